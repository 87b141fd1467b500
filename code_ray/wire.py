"""Tensors <-> bytes: Open Inference Protocol v2 ``infer``, JSON and binary tensors, for both ends.

A message is a JSON header, followed for binary tensors by their raw little-endian bytes in order; the HTTP header
``Inference-Header-Content-Length`` says where the JSON ends. Everything that comes in is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from code_ray.errors import RequestError
from code_ray.tokenizer import TokenArray, Tokenizer, get_tokenizer

HEADER_LENGTH = "Inference-Header-Content-Length"
OUTPUTS = ("logits", "label")
INPUT, TEXT_INPUT = "images", "text"
MAX_DEADLINE_MS = 3_600_000.0

ImageArray = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

_DTYPES: dict[str, type[np.uint8] | type[np.float32]] = {"UINT8": np.uint8, "FP32": np.float32}


@dataclass(frozen=True)
class InferRequest:
    """A checked request. ``images``: (n, *image_shape), uint8, or float32 pixels scaled to 0..1; of texts token ids, int32 (n, tokens).
    Of ``outputs`` those in ``binary`` come as bytes behind the JSON.

    ``path``: the id of the path to try first. ``min_accuracy`` (a fraction) and ``deadline_s`` (seconds): what it needs.
    """

    images: ImageArray | TokenArray
    id: str | None = None
    outputs: tuple[str, ...] = OUTPUTS
    binary: frozenset[str] = frozenset()
    path: str | None = None
    min_accuracy: float | None = None
    deadline_s: float | None = None


def decode_request(
    body: bytes, header_length: str | None, sample_shape: Sequence[int], max_images: int, vocabulary: str | None = None
) -> InferRequest:
    """Check and read a request for a service whose images have ``sample_shape``, or, where it has a ``vocabulary``, which takes texts.

    Raises:
        RequestError: 400 malformed, 413 too many images, 422 wrong shape, dtype or values.
    """
    header, tail = _split(body, header_length)
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(f"'inputs' must be a list of one tensor called {INPUT!r}; got {_short(inputs)}")
    if vocabulary is None:
        images: ImageArray | TokenArray = _read_images(inputs[0], tail, sample_shape, max_images)
    else:
        images = _read_texts(inputs[0], tail, sample_shape[0], get_tokenizer(vocabulary), max_images)
    parameters = _mapping(header.get("parameters", {}), "parameters")
    requested, binary = _read_outputs(header.get("outputs"), bool(parameters.get("binary_data_output", False)))
    identifier, path = header.get("id"), parameters.get("path")
    for name, value in (("id", identifier), ("parameters.path", path)):
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{name!r} must be a string; got {_short(value)}")
    min_accuracy = _number(parameters, "min_accuracy", 1.0)
    deadline_ms = _number(parameters, "deadline_ms", MAX_DEADLINE_MS)
    deadline_s = None if deadline_ms is None else deadline_ms / 1e3
    return InferRequest(images, identifier, requested, binary, path, min_accuracy, deadline_s)


def encode_request(samples: npt.NDArray[Any] | Sequence[str], **wishes: str | float | None) -> tuple[bytes, dict[str, str]]:
    """Body and HTTP headers of a binary request for uint8 images (n, ...), texts, or token ids, int32 (n, tokens); ``wishes``: path,
    min_accuracy, deadline_ms.
    """
    if isinstance(samples, np.ndarray):
        name, datatype = (INPUT, "UINT8") if samples.dtype == np.uint8 else (TEXT_INPUT, "INT32")
        shape, raw = list(samples.shape), np.ascontiguousarray(samples).tobytes()
    else:
        name, datatype, shape, raw = TEXT_INPUT, "BYTES", [len(samples)], _pack_strings(samples)
    header: dict[str, Any] = {
        "inputs": [{"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True} | {name: value for name, value in wishes.items() if value is not None},
    }
    return _join(header, [raw])


def encode_response(
    service: str,
    request: InferRequest,
    logits: npt.NDArray[np.float32],
    labels: Sequence[str],
    path: str,
    kind: str,
) -> tuple[bytes, dict[str, str]]:
    """Body and HTTP headers of the answer; ``labels`` are the names of the classes, ``path`` the one taken."""
    chosen = [labels[i] for i in logits.argmax(axis=1)] if "label" in request.outputs else []
    outputs: list[dict[str, Any]] = []
    payload: list[bytes] = []
    for name in request.outputs:
        shape, datatype = (list(logits.shape), "FP32") if name == "logits" else ([len(chosen)], "BYTES")
        output: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
        if name in request.binary:
            raw = np.ascontiguousarray(logits, dtype="<f4").tobytes() if name == "logits" else _pack_strings(chosen)
            output["parameters"] = {"binary_data_size": len(raw)}
            payload.append(raw)
        else:
            output["data"] = logits.ravel().tolist() if name == "logits" else chosen
        outputs.append(output)
    header = {"model_name": service, "model_version": "1", "outputs": outputs, "parameters": {"path": path, "kind": kind}}
    if request.id is not None:
        header["id"] = request.id
    if payload:
        return _join(header, payload)
    return json.dumps(header).encode(), {"Content-Type": "application/json"}


def decode_response(body: bytes, headers: Mapping[str, str]) -> tuple[list[str], npt.NDArray[np.float32], str]:
    """Labels, logits (n, classes) and path id of a binary answer.

    Raises:
        RequestError: 502 where the answer is not what ``encode_response`` writes.
    """
    try:
        header, tail = _split(body, headers.get(HEADER_LENGTH.lower()))
        found: dict[str, Any] = {}
        for output in header["outputs"]:
            raw, tail = _take(output, tail)
            if output["name"] == "logits":
                found["logits"] = np.frombuffer(raw, dtype="<f4").reshape(output["shape"]).copy()
            else:
                found["label"] = _unpack_strings(raw)
        return found["label"], found["logits"], header["parameters"]["path"]
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"the server's answer cannot be read ({error}); is this a code_ray server?", status=502) from error


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    if header_length is None:
        length = len(body)
    elif not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 12 or int(header_length) > len(body):
        raise RequestError(f"{HEADER_LENGTH} {_short(header_length)} is not a length within the body's {len(body)} bytes")
    else:
        length = int(header_length)
    try:
        header = json.loads(body[:length])
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of thousands of digits, nested too deep
        raise RequestError(f"the request's header is not JSON ({_short(str(error))}); see docs/serving.md for the format") from error
    return _mapping(header, "the request"), body[length:]


def _join(header: dict[str, Any], payload: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(header).encode()
    return b"".join([text, *payload]), {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}


def _read_images(tensor: dict[str, Any], tail: bytes, image_shape: Sequence[int], max_images: int) -> ImageArray:
    datatype, shape = _described(tensor, {"UINT8": image_shape, "FP32": image_shape}, "UINT8, or FP32 scaled to 0..1", max_images, "image")
    images: ImageArray = _numbers(tensor, tail, datatype, np.dtype(_DTYPES[datatype]).newbyteorder("<"), shape)
    if datatype == "FP32" and not bool(np.isfinite(images).all()):
        raise RequestError("the images hold NaN or infinite values; send finite pixels", status=422)
    return images


def _read_texts(tensor: dict[str, Any], tail: bytes, length: int, tokenizer: Tokenizer, max_texts: int) -> TokenArray:
    """Texts, or their token ids, as token ids (n, length)."""
    taken: dict[str, Sequence[int]] = {"BYTES": (), "INT32": (length,), "INT64": (length,)}
    datatype, shape = _described(tensor, taken, "BYTES, one text each, or token ids as INT32 or INT64", max_texts, "text")
    if datatype == "BYTES":
        raw = _raw(tensor, tail)
        try:
            texts = tensor.get("data") if raw is None else _unpack_strings(raw)
        except ValueError:  # not UTF-8, or cut off
            texts = None
        if not isinstance(texts, list) or len(texts) != shape[0] or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"shape {shape} needs as many texts in UTF-8; got {_short(texts)}")
        return tokenizer.encode(texts, length)
    ids = _numbers(tensor, tail, datatype, np.dtype("<i4" if datatype == "INT32" else "<i8"), shape)
    if not bool(((ids >= 0) & (ids < len(tokenizer))).all()) or not bool(ids.any(axis=1).all()):
        raise RequestError(f"token ids must be from 0 to {len(tokenizer) - 1}, and not all of a text 0, which is padding", status=422)
    return ids.astype(np.int32)


def _described(tensor: dict[str, Any], taken: Mapping[str, Sequence[int]], wanted: str, most: int, noun: str) -> tuple[str, list[int]]:
    """Datatype and shape of an input, one of those that are ``taken`` (datatype -> shape of a sample)."""
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str):
        raise RequestError(f"the input needs a name; got {_short(name)}")
    if not isinstance(datatype, str) or datatype not in taken:
        raise RequestError(f"input {_short(name)} has datatype {_short(datatype)}; send {wanted}", status=422)
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise RequestError(f"input {_short(name)} has shape {_short(shape)}; give a list of sizes")
    if not shape or list(shape[1:]) != list(taken[datatype]) or shape[0] == 0:
        takes = [-1, *taken[datatype]]
        raise RequestError(f"input {_short(name)} has shape {_short(shape)}; this service takes {takes}, at least one {noun}", status=422)
    if shape[0] > most:
        raise RequestError(f"{shape[0]} {noun}s in one request; at most {most} are taken, send several requests", status=413)
    return datatype, shape


def _raw(tensor: dict[str, Any], tail: bytes) -> bytes | None:
    """The bytes of the one input, or None where it is JSON."""
    if "binary_data_size" in _mapping(tensor.get("parameters", {}), "inputs[0].parameters"):
        raw, rest = _take(tensor, tail)
        if rest:
            raise RequestError(f"the input has {len(raw)} bytes; {len(tail)} follow the header")
        return raw
    if tail:
        raise RequestError(f"{len(tail)} bytes follow the JSON but the input has no 'binary_data_size'")
    return None


def _numbers(tensor: dict[str, Any], tail: bytes, datatype: str, dtype: np.dtype[Any], shape: list[int]) -> npt.NDArray[Any]:
    raw = _raw(tensor, tail)
    if raw is None:
        return _from_json(tensor.get("data"), datatype, dtype, shape)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise RequestError(f"shape {shape} of {datatype} needs {math.prod(shape) * dtype.itemsize} bytes; {len(tail)} follow the header")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _from_json(data: Any, datatype: str, dtype: np.dtype[Any], shape: list[int]) -> npt.NDArray[Any]:
    try:
        values = np.asarray(data, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RequestError(f"'data' is not a list of numbers ({_short(str(error))})") from error
    if values.size != math.prod(shape):
        raise RequestError(f"shape {shape} needs {math.prod(shape)} numbers; 'data' holds {values.size}")
    if datatype == "UINT8" and not bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all()):
        raise RequestError("UINT8 data must be whole numbers from 0 to 255", status=422)
    if dtype.kind == "i" and not bool(((np.abs(values) < 2**31) & (values == np.floor(values))).all()):
        raise RequestError(f"{datatype} data must be whole numbers", status=422)
    if bool((np.abs(values) > np.finfo(np.float32).max).any()):
        raise RequestError("the images hold values beyond FP32; send finite pixels", status=422)
    return values.astype(dtype).reshape(shape)


def _read_outputs(outputs: Any, binary: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names, each once, and those of them that are asked for as bytes; ``binary`` where an output does not say."""
    if outputs is None or outputs == []:
        return OUTPUTS, frozenset(OUTPUTS if binary else ())
    if not isinstance(outputs, list) or not all(isinstance(o, dict) for o in outputs):
        raise RequestError(f"'outputs' must be a list of {{'name': ...}}; got {_short(outputs)}")
    flags: dict[str, bool] = {}
    for output in outputs:
        if (name := output.get("name")) not in OUTPUTS:
            raise RequestError(f"output {_short(name)} is unknown; there are: {', '.join(OUTPUTS)}")
        flags.setdefault(name, bool(_mapping(output.get("parameters", {}), "outputs").get("binary_data", binary)))
    return tuple(flags), frozenset(name for name, flag in flags.items() if flag)


def _take(tensor: Mapping[str, Any], tail: bytes) -> tuple[bytes, bytes]:
    size = tensor["parameters"]["binary_data_size"]
    if type(size) is not int or not 0 <= size <= len(tail):
        raise RequestError(f"'binary_data_size' {_short(size)} is not a length within the {len(tail)} bytes that follow the header")
    return tail[:size], tail[size:]


def _pack_strings(texts: Sequence[str]) -> bytes:
    """The protocol's BYTES: each element as a 4-byte little-endian length and its bytes."""
    raw = [text.encode() for text in texts]
    return b"".join(len(r).to_bytes(4, "little") + r for r in raw)


def _unpack_strings(raw: bytes) -> list[str]:
    texts, position = [], 0
    while position < len(raw):
        length = int.from_bytes(raw[position : position + 4], "little")
        if position + 4 + length > len(raw):
            raise ValueError("a text is cut off")
        texts.append(raw[position + 4 : position + 4 + length].decode())
        position += 4 + length
    return texts


def _number(parameters: Mapping[str, Any], name: str, most: float) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= most:
        raise RequestError(f"'parameters.{name}' must be a number above 0, at most {most:g}; got {_short(value)}", status=422)
    return float(value)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be a JSON object; got {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
