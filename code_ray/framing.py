"""How messages of the Open Inference Protocol are put together: a JSON header, then the raw bytes of its binary tensors in order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from code_ray.errors import RequestError

HEADER_LENGTH = "Inference-Header-Content-Length"


def split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """A message's header and what follows it; raises RequestError (400) where it is neither."""
    if header_length is None:
        length = len(body)
    elif not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 12 or int(header_length) > len(body):
        raise RequestError(f"{HEADER_LENGTH} {short(header_length)} is not a length within the body's {len(body)} bytes")
    else:
        length = int(header_length)
    try:
        header = json.loads(body[:length])
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of thousands of digits, nested too deep
        raise RequestError(f"the request's header is not JSON ({short(str(error))}); see docs/serving.md for the format") from error
    return mapping(header, "the request"), body[length:]


def join(header: dict[str, Any], payload: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """Body and HTTP headers of a message."""
    text = json.dumps(header).encode()
    return b"".join([text, *payload]), {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}


def take(tensor: Mapping[str, Any], tail: bytes) -> tuple[bytes, bytes]:
    """A binary tensor's bytes, the first of ``tail``, and those behind them; raises RequestError (400) for another length."""
    size = tensor["parameters"]["binary_data_size"]
    if type(size) is not int or not 0 <= size <= len(tail):
        raise RequestError(f"'binary_data_size' {short(size)} is not a length within the {len(tail)} bytes that follow the header")
    return tail[:size], tail[size:]


def pack_strings(texts: Sequence[str]) -> bytes:
    """The protocol's BYTES: each element as a 4-byte little-endian length and its bytes."""
    raw = [text.encode() for text in texts]
    return b"".join(len(r).to_bytes(4, "little") + r for r in raw)


def unpack_strings(raw: bytes) -> list[str]:
    """What ``pack_strings`` made; raises ValueError where a text is cut off or not UTF-8."""
    texts, position = [], 0
    while position < len(raw):
        length = int.from_bytes(raw[position : position + 4], "little")
        if position + 4 + length > len(raw):
            raise ValueError("a text is cut off")
        texts.append(raw[position + 4 : position + 4 + length].decode())
        position += 4 + length
    return texts


def mapping(value: Any, name: str) -> dict[str, Any]:
    """``value``, which is called ``name``; raises RequestError (400) where it is no JSON object."""
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be a JSON object; got {short(value)}")
    return value


def short(value: object) -> str:
    """What a message says of ``value``: 80 characters at most."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
