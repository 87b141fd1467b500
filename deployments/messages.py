"""HTTP bodies in and out of the router: read within limits, answered as Open Inference Protocol v2."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from code_ray.errors import RequestError
from code_ray.pictures import PICTURE_TYPES
from code_ray.service import ServiceSpec
from code_ray.wire import INPUT, OUTPUTS, TEXT_INPUT, output_names

VERSION = "1"
"""Of every service: a plan serves one version of each. Routes with ``/versions/1`` are those without it."""

BODY_TYPES = ("application/octet-stream", "application/json", *PICTURE_TYPES)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of at most ``limit`` bytes; a longer one is refused before it is read to its end.

    Raises:
        RequestError: 413 too large, 415 neither JSON, binary tensors nor a picture.
    """
    headers, media_type = request.headers, media_type_of(request)
    if media_type not in BODY_TYPES:
        raise RequestError(f"content type {media_type!r} is not taken; send {' or '.join(BODY_TYPES)}", status=415)
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise RequestError(f"content encoding {encoding!r} is not taken; send the body as it is", status=415)
    announced = headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(announced[:20], limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(f"more than {limit}", limit)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def media_type_of(request: Request) -> str:
    """The content type without its parameters; binary tensors where it is not said."""
    return request.headers.get("content-type", BODY_TYPES[0]).partition(";")[0].strip().lower()


def _too_large(size: str, limit: int) -> RequestError:
    return RequestError(f"the body has {size} bytes; at most {limit} are taken: send fewer images a request", status=413)


def json_response(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """``content`` as JSON."""
    return Response(json.dumps(content), status, headers, media_type="application/json")


def error_response(error: RequestError) -> Response:
    """``{"error": ...}`` with the error's status, and Retry-After where waiting helps."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response({"error": str(error)}, error.status, headers)


def _input(spec: ServiceSpec) -> dict[str, Any]:
    if spec.vocabulary is not None:
        return {"name": TEXT_INPUT, "datatype": "BYTES", "shape": [-1]}
    return {"name": INPUT, "datatype": "UINT8", "shape": [-1, *spec.preprocessing.sample_shape]}


def service_metadata(name: str, specs: Sequence[ServiceSpec], parameters: dict[str, Any]) -> dict[str, Any]:
    """The protocol's metadata of a service, or of several that are asked together, whose outputs go by their names; ``parameters`` are
    what the router says of it.
    """
    sizes = [[-1, len(spec.labels)] for spec in specs]
    names = output_names([spec.name for spec in specs])
    outputs = [("FP32", size) if kind == "logits" else ("BYTES", [-1]) for size in sizes for kind in OUTPUTS]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "code_ray",
        "inputs": [_input(specs[0])],
        "outputs": [{"name": n, "datatype": datatype, "shape": shape} for n, (datatype, shape) in zip(names, outputs, strict=True)],
        "parameters": parameters,
    }
