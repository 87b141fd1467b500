"""What a client may get wrong, by hand over HTTP: each gets its own status and a reason, and the service goes on (DESIGN 3.6)."""

import gzip
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from ray import serve
from serving import FIXED, LOCAL, Run, peak_bytes, process_ids, relative_difference, running_serve

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.framing import HEADER_LENGTH
from deployments import build_app
from deployments.config import AppOptions, RouterOptions

INFER = f"/v2/models/{LOCAL}/infer"
MAX_IMAGES = 64
LIMITS = RouterOptions(path_deadline_s=60, request_deadline_s=120, max_images=MAX_IMAGES, max_request_bytes=1 << 20)
JSON = {"Content-Type": "application/json"}
BINARY = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def url(served_run: Run) -> Iterator[str]:
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": FIXED}, router=LIMITS)))
        yield base


@pytest.fixture(autouse=True)
def service_that_goes_on(url: str, served_run: Run, digits: DataSet) -> Iterator[None]:
    """Behind every refusal the service still gives right answers."""
    yield
    images = digits.test.images[:4]
    with Client(url, timeout_s=120, retries=0) as client:
        assert relative_difference(client.predict(LOCAL, images, path="original").logits, served_run.logits("original", images)) <= 1e-5


@dataclass(frozen=True)
class Bad:
    """A request that is refused with ``status``, for a reason that holds ``reason``."""

    name: str
    status: int
    reason: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    method: str = "POST"
    route: str = INFER


def tensor(**changes: Any) -> dict[str, Any]:
    """A good input of one image, with ``changes``."""
    return {"name": "images", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784} | changes


def in_json(changes: dict[str, Any] | None = None, **fields: Any) -> bytes:
    return json.dumps({"inputs": [tensor(**(changes or {}))], **fields}).encode()


def in_binary(changes: dict[str, Any], payload: bytes, length: str | None = None) -> dict[str, Any]:
    """Body and headers of a binary request; ``length`` is what the HTTP header claims of the JSON."""
    described = tensor(parameters={"binary_data_size": len(payload)}) | changes
    text = json.dumps({"inputs": [{key: value for key, value in described.items() if key != "data"}]}).encode()
    return {"body": text + payload, "headers": BINARY | {HEADER_LENGTH: str(len(text)) if length is None else length}}


PIXELS = bytes(784)
NAN = np.full(784, np.nan, "<f4").tobytes()

BAD = [
    Bad("unknown service", 404, "service 'nobody' is unknown", in_json(), route="/v2/models/nobody/infer"),
    Bad("unknown service's metadata", 404, "service 'nobody' is unknown", method="GET", route="/v2/models/nobody"),
    Bad("unknown route below v2", 404, "there is nothing at", method="GET", route="/v2/models"),
    Bad("unknown route", 404, "there is nothing at", in_json(), route="/predict"),
    Bad("unknown root", 404, "there is nothing at", method="GET", route="/"),
    Bad("GET where POST is meant", 405, "use POST", method="GET"),
    Bad("POST where GET is meant", 405, "use GET", in_json(), route=f"/v2/models/{LOCAL}"),
    Bad("DELETE", 405, "DELETE is not allowed", method="DELETE", route=f"/v2/models/{LOCAL}"),
    Bad("no body", 400, "not JSON"),
    Bad("half a body", 400, "not JSON", in_json()[:-9]),
    Bad("not UTF-8", 400, "not JSON", b"\xff\xfe{}"),
    Bad("nested without end", 400, "not JSON", b"[" * 200_000),
    Bad("a number without end", 400, "not JSON", b'{"id": ' + b"9" * 10_000 + b"}"),
    Bad("a list", 400, "must be a JSON object", b"[]"),
    Bad("no inputs", 400, "'inputs'", b"{}"),
    Bad("two inputs", 400, "'inputs'", json.dumps({"inputs": [tensor(), tensor()]}).encode()),
    Bad("another image size", 422, "takes [-1, 28, 28]", in_json({"shape": [1, 28, 27], "data": [0] * 756})),
    Bad("no image dimension", 422, "takes [-1, 28, 28]", in_json({"shape": [28, 28]})),
    Bad("no images", 422, "at least one image", in_json({"shape": [0, 28, 28], "data": []})),
    Bad("a shape of floats", 400, "give a list of sizes", in_json({"shape": [1.0, 28, 28]})),
    Bad("a shape of truths", 400, "give a list of sizes", in_json({"shape": [True, 28, 28]})),
    Bad("a negative shape", 400, "give a list of sizes", in_json({"shape": [-1, 28, 28]})),
    Bad("another dtype", 422, "send UINT8, or FP32", in_json({"datatype": "INT64"})),
    Bad("no dtype", 422, "send UINT8, or FP32", in_json({"datatype": None})),
    Bad("fewer numbers than the shape says", 400, "'data' holds 783", in_json({"data": [0] * 783})),
    Bad("words for numbers", 400, "not a list of numbers", in_json({"data": ["black"] * 784})),
    Bad("ragged rows", 400, "not a list of numbers", in_json({"data": [[0] * 28, [0]]})),
    Bad("no data", 400, "'data' holds", in_json({"data": None})),
    Bad("numbers below a byte", 422, "from 0 to 255", in_json({"data": [-1] * 784})),
    Bad("numbers beyond a byte", 422, "from 0 to 255", in_json({"data": [256] * 784})),
    Bad("parts of a byte", 422, "from 0 to 255", in_json({"data": [0.5] * 784})),
    Bad("NaN in JSON", 422, "NaN", in_json({"datatype": "FP32", "data": [float("nan")] * 784})),
    Bad("infinity in JSON", 422, "finite", in_json({"datatype": "FP32", "data": [float("inf")] * 784})),
    Bad("too large for FP32", 422, "beyond FP32", in_json({"datatype": "FP32", "data": [1e300] * 784})),
    Bad("NaN in binary", 422, "NaN", **in_binary({"datatype": "FP32"}, NAN)),
    Bad("fewer bytes than the shape says", 400, "needs 1568 bytes; 784 follow", **in_binary({"shape": [2, 28, 28]}, PIXELS)),
    Bad("bytes of another dtype", 400, "needs 3136 bytes; 784 follow", **in_binary({"datatype": "FP32"}, PIXELS)),
    Bad("more bytes than announced", 400, "785 follow", **in_binary({"parameters": {"binary_data_size": 784}}, PIXELS + b"x")),
    Bad("a size beyond the body", 400, "'binary_data_size' 785", **in_binary({"parameters": {"binary_data_size": 785}}, PIXELS)),
    Bad("a negative size", 400, "'binary_data_size' -1", **in_binary({"parameters": {"binary_data_size": -1}}, PIXELS)),
    Bad("bytes without a size", 400, "has no 'binary_data_size'", **in_binary({"parameters": {}}, PIXELS)),
    Bad("a header longer than the body", 400, "is not a length within", **in_binary({}, PIXELS, "999999")),
    Bad("a header of nearly everything", 400, "not JSON", **in_binary({}, PIXELS, "900")),
    Bad("a header cut short", 400, "not JSON", **in_binary({}, PIXELS, "20")),
    Bad("a negative header", 400, "is not a length", **in_binary({}, PIXELS, "-5")),
    Bad("a header in words", 400, "is not a length", **in_binary({}, PIXELS, "all")),
    Bad("an endless header length", 400, "is not a length", **in_binary({}, PIXELS, "9" * 5000)),
    Bad("too many images", 413, f"at most {MAX_IMAGES}", **in_binary({"shape": [65, 28, 28]}, bytes(65 * 784))),
    Bad("more images than there is memory", 413, f"at most {MAX_IMAGES}", **in_binary({"shape": [2**31 - 1, 28, 28]}, PIXELS)),
    Bad("a form", 415, "'text/plain'", in_json(), {"Content-Type": "text/plain"}),
    Bad("a compressed body", 415, "'gzip'", gzip.compress(in_json()), JSON | {"Content-Encoding": "gzip"}),
    Bad("a damaged picture", 400, "is no PNG or JPEG file", b"\x89PNG\r\n\x1a\n" + bytes(40), {"Content-Type": "image/png"}),
    Bad("an unknown path", 400, "path 'nowhere' is not one", in_json(parameters={"path": "nowhere"})),
    Bad("a path that is no string", 400, "'parameters.path' must be a string", in_json(parameters={"path": 7})),
    Bad("parameters that are none", 400, "parameters must be a JSON object", in_json(parameters=[])),
    Bad("an id that is no string", 400, "'id' must be a string", in_json(id=7)),
    Bad("an unknown output", 400, "output 'boxes' is unknown", in_json(outputs=[{"name": "boxes"}])),
    Bad("outputs that are none", 400, "'outputs' must be a list", in_json(outputs="logits")),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_with_its_status_and_reason(bad: Bad, url: str) -> None:
    response = httpx.request(bad.method, f"{url}{bad.route}", content=bad.body, headers=bad.headers, timeout=60, trust_env=False)
    assert response.status_code == bad.status, response.text
    assert set(response.json()) == {"error"}
    assert bad.reason in response.json()["error"]


def test_text_that_is_no_unicode_comes_back_in_the_reason(url: str) -> None:
    body = in_json(parameters={"path": "\ud800"})
    response = httpx.post(f"{url}{INFER}", content=body, headers=JSON, timeout=60, trust_env=False)
    assert response.status_code == 400
    assert "is not one that may be used" in response.json()["error"]


def stream(size: int) -> Iterator[bytes]:
    piece = bytes(1 << 20)
    for _ in range(size >> 20):
        yield piece


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_a_body_of_200_mb_is_refused_and_not_held(announced: bool, url: str) -> None:
    size = 200 << 20
    processes = process_ids("ray::ProxyActor") | process_ids("ray::ServeReplica:default:router")
    assert len(processes) == 2
    before = {process: peak_bytes(process) for process in processes}
    headers = BINARY | ({"Content-Length": str(size)} if announced else {})
    response = httpx.post(f"{url}{INFER}", content=stream(size), headers=headers, timeout=120, trust_env=False)
    assert response.status_code == 413
    assert "send fewer images a request" in response.json()["error"]
    # Serve hands chunks on in bursts, as large as what came in meanwhile: how large depends on the load. Held whole it would
    # be the body at least, and once more where its chunks are joined.
    for process in processes:
        assert peak_bytes(process) - before[process] < size * 3 // 4


@pytest.mark.parametrize("sent", [b"", b"{" * 100])
def test_a_client_that_hangs_up_within_its_body_harms_nobody(sent: bytes, url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode() + sent)


def test_what_is_no_http_harms_nobody(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        connection.settimeout(30)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
