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
from code_ray.framing import HEADER_LENGTH, join, mapping, pack_strings, short, split, take, unpack_strings
from code_ray.tokenizer import TokenArray, Tokenizer, get_tokenizer

OUTPUTS = ("logits", "label")
INPUT, TEXT_INPUT = "images", "text"
MAX_DEADLINE_MS = 3_600_000.0

GROUPED = "+"
"""Stands between the names of services that are asked together."""

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


def output_names(services: Sequence[str]) -> tuple[str, ...]:
    """Of the answer of services that are asked together: each one's outputs behind its name; of one alone just the outputs."""
    return OUTPUTS if len(services) == 1 else tuple(f"{service}.{output}" for service in services for output in OUTPUTS)


def decode_request(
    body: bytes,
    header_length: str | None,
    sample_shape: Sequence[int],
    max_images: int,
    vocabulary: str | None = None,
    names: Sequence[str] = OUTPUTS,
) -> InferRequest:
    """Check and read a request for a service whose images have ``sample_shape``, or, where it has a ``vocabulary``, which takes texts;
    its outputs have these ``names``.

    Raises:
        RequestError: 400 malformed, 413 too many images, 422 wrong shape, dtype or values.
    """
    header, tail = split(body, header_length)
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(f"'inputs' must be a list of one tensor called {INPUT!r}; got {short(inputs)}")
    if vocabulary is None:
        images: ImageArray | TokenArray = _read_images(inputs[0], tail, sample_shape, max_images)
    else:
        images = _read_texts(inputs[0], tail, sample_shape[0], get_tokenizer(vocabulary), max_images)
    parameters = mapping(header.get("parameters", {}), "parameters")
    requested, binary = _read_outputs(header.get("outputs"), bool(parameters.get("binary_data_output", False)), names)
    identifier, path = header.get("id"), parameters.get("path")
    for name, value in (("id", identifier), ("parameters.path", path)):
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{name!r} must be a string; got {short(value)}")
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
        name, datatype, shape, raw = TEXT_INPUT, "BYTES", [len(samples)], pack_strings(samples)
    header: dict[str, Any] = {
        "inputs": [{"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True} | {name: value for name, value in wishes.items() if value is not None},
    }
    return join(header, [raw])


def encode_response(
    service: str,
    request: InferRequest,
    logits: npt.NDArray[np.float32],
    labels: Sequence[str] | Mapping[str, Sequence[str]],
    path: str,
    kind: str,
) -> tuple[bytes, dict[str, str]]:
    """Body and HTTP headers of the answer; ``labels`` are the names of the classes, ``path`` the one taken.

    Of services that are asked together ``labels`` are by service, and their logits (n, classes) stand side by side in that order.
    """
    made: dict[str, npt.NDArray[np.float32] | list[str]] = {}
    begin = 0
    for name, some in labels.items() if isinstance(labels, Mapping) else [("", labels)]:
        part, begin = logits[:, begin : begin + len(some)], begin + len(some)
        prefix = f"{name}." if name else ""
        made[f"{prefix}logits"] = part
        made[f"{prefix}label"] = [some[i] for i in part.argmax(axis=1)]
    outputs: list[dict[str, Any]] = []
    payload: list[bytes] = []
    for name in request.outputs:
        value = made[name]
        shape, datatype = ([len(value)], "BYTES") if isinstance(value, list) else (list(value.shape), "FP32")
        output: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
        if name in request.binary:
            raw = pack_strings(value) if isinstance(value, list) else np.ascontiguousarray(value, dtype="<f4").tobytes()
            output["parameters"] = {"binary_data_size": len(raw)}
            payload.append(raw)
        else:
            output["data"] = value if isinstance(value, list) else value.ravel().tolist()
        outputs.append(output)
    header = {"model_name": service, "model_version": "1", "outputs": outputs, "parameters": {"path": path, "kind": kind}}
    if request.id is not None:
        header["id"] = request.id
    if payload:
        return join(header, payload)
    return json.dumps(header).encode(), {"Content-Type": "application/json"}


def decode_response(body: bytes, headers: Mapping[str, str]) -> tuple[list[str], npt.NDArray[np.float32], str]:
    """Labels, logits (n, classes) and path id of a binary answer.

    Raises:
        RequestError: 502 where the answer is not what ``encode_response`` writes.
    """
    return decode_responses(body, headers, [""])[""]


def decode_responses(
    body: bytes, headers: Mapping[str, str], services: Sequence[str]
) -> dict[str, tuple[list[str], npt.NDArray[np.float32], str]]:
    """The same of services that were asked together, by service; raises as ``decode_response``."""
    try:
        header, tail = split(body, headers.get(HEADER_LENGTH.lower()))
        found: dict[str, Any] = {}
        for output in header["outputs"]:
            raw, tail = take(output, tail)
            if output["datatype"] == "FP32":
                found[output["name"]] = np.frombuffer(raw, dtype="<f4").reshape(output["shape"]).copy()
            else:
                found[output["name"]] = unpack_strings(raw)
        prefixes = {service: f"{service}." if service else "" for service in services}
        path = header["parameters"]["path"]
        return {service: (found[f"{prefix}label"], found[f"{prefix}logits"], path) for service, prefix in prefixes.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"the server's answer cannot be read ({error}); is this a code_ray server?", status=502) from error


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
            texts = tensor.get("data") if raw is None else unpack_strings(raw)
        except ValueError:  # not UTF-8, or cut off
            texts = None
        if not isinstance(texts, list) or len(texts) != shape[0] or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"shape {shape} needs as many texts in UTF-8; got {short(texts)}")
        return tokenizer.encode(texts, length)
    ids = _numbers(tensor, tail, datatype, np.dtype("<i4" if datatype == "INT32" else "<i8"), shape)
    if not bool(((ids >= 0) & (ids < len(tokenizer))).all()) or not bool(ids.any(axis=1).all()):
        raise RequestError(f"token ids must be from 0 to {len(tokenizer) - 1}, and not all of a text 0, which is padding", status=422)
    return ids.astype(np.int32)


def _described(tensor: dict[str, Any], taken: Mapping[str, Sequence[int]], wanted: str, most: int, noun: str) -> tuple[str, list[int]]:
    """Datatype and shape of an input, one of those that are ``taken`` (datatype -> shape of a sample)."""
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str):
        raise RequestError(f"the input needs a name; got {short(name)}")
    if not isinstance(datatype, str) or datatype not in taken:
        raise RequestError(f"input {short(name)} has datatype {short(datatype)}; send {wanted}", status=422)
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise RequestError(f"input {short(name)} has shape {short(shape)}; give a list of sizes")
    if not shape or list(shape[1:]) != list(taken[datatype]) or shape[0] == 0:
        takes = [-1, *taken[datatype]]
        raise RequestError(f"input {short(name)} has shape {short(shape)}; this service takes {takes}, at least one {noun}", status=422)
    if shape[0] > most:
        raise RequestError(f"{shape[0]} {noun}s in one request; at most {most} are taken, send several requests", status=413)
    return datatype, shape


def _raw(tensor: dict[str, Any], tail: bytes) -> bytes | None:
    """The bytes of the one input, or None where it is JSON."""
    if "binary_data_size" in mapping(tensor.get("parameters", {}), "inputs[0].parameters"):
        raw, rest = take(tensor, tail)
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
        raise RequestError(f"'data' is not a list of numbers ({short(str(error))})") from error
    if values.size != math.prod(shape):
        raise RequestError(f"shape {shape} needs {math.prod(shape)} numbers; 'data' holds {values.size}")
    if datatype == "UINT8" and not bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all()):
        raise RequestError("UINT8 data must be whole numbers from 0 to 255", status=422)
    if dtype.kind == "i" and not bool(((np.abs(values) < 2**31) & (values == np.floor(values))).all()):
        raise RequestError(f"{datatype} data must be whole numbers", status=422)
    if bool((np.abs(values) > np.finfo(np.float32).max).any()):
        raise RequestError("the images hold values beyond FP32; send finite pixels", status=422)
    return values.astype(dtype).reshape(shape)


def _read_outputs(outputs: Any, binary: bool, names: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names, each once, and those of them that are asked for as bytes; ``binary`` where an output does not say."""
    if outputs is None or outputs == []:
        return tuple(names), frozenset(names if binary else ())
    if not isinstance(outputs, list) or not all(isinstance(o, dict) for o in outputs):
        raise RequestError(f"'outputs' must be a list of {{'name': ...}}; got {short(outputs)}")
    flags: dict[str, bool] = {}
    for output in outputs:
        if (name := output.get("name")) not in names:
            raise RequestError(f"output {short(name)} is unknown; there are: {', '.join(names)}")
        flags.setdefault(name, bool(mapping(output.get("parameters", {}), "outputs").get("binary_data", binary)))
    return tuple(flags), frozenset(name for name, flag in flags.items() if flag)


def _number(parameters: Mapping[str, Any], name: str, most: float) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= most:
        raise RequestError(f"'parameters.{name}' must be a number above 0, at most {most:g}; got {short(value)}", status=422)
    return float(value)
