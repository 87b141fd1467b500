"""Both clients against servers that are late, gone, overloaded or something else (what a deployment answers: test_serving_answers)."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from code_ray import AsyncClient, Client, Prediction
from code_ray.errors import RequestError
from code_ray.wire import OUTPUTS, InferRequest, encode_response


class Awaited:
    """An ``AsyncClient`` whose calls are waited for."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **options)

    def __enter__(self) -> "Awaited":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def predict(self, service: str, images: Any) -> Prediction:
        return self._runner.run(self._client.predict(service, images))

    def metadata(self, service: str) -> dict[str, Any]:
        return self._runner.run(self._client.metadata(service))

    def is_ready(self) -> bool:
        return self._runner.run(self._client.is_ready())


AnyClient = type[Client] | type[Awaited]


@pytest.fixture(params=[Client, Awaited], ids=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest) -> AnyClient:
    found: AnyClient = request.param
    return found


IMAGES = np.zeros((2, 28, 28), np.uint8)
Answer = tuple[int, dict[str, str], bytes]
GOOD_LOGITS = np.array([[1, 0], [0, 1]], np.float32)


def good() -> Answer:
    body, headers = encode_response(
        "tiny", InferRequest(IMAGES, binary=frozenset(OUTPUTS)), GOOD_LOGITS, ("a", "b"), "original", "original"
    )
    return 200, headers, body


class Server:
    """A real HTTP server that gives its answers one after the other, the last one for ever. None: it hangs up."""

    def __init__(self, answers: list[Answer | None]) -> None:
        self.answers = answers
        self.moments: list[float] = []
        self.held = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def do_GET(self) -> None:
                outer.moments.append(time.monotonic())
                answer = outer.answers[min(len(outer.moments), len(outer.answers)) - 1]
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, body = answer
                if status == 0:  # says nothing until the test is over
                    outer.held.wait(30)
                    return
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on the screen."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"


@contextmanager
def running(*answers: Answer | None) -> Iterator[Server]:
    server = Server(list(answers))
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.held.set()
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def overloaded(status: int, retry_after: str) -> Answer:
    return status, {"Retry-After": retry_after}, b'{"error": "overloaded"}'


SILENCE: Answer = (0, {}, b"")


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_server_is_asked_again_when_it_said(status: int, make: AnyClient) -> None:
    with running(overloaded(status, "1"), good()) as server, make(server.url) as client:
        answer = client.predict("tiny", IMAGES)
    assert answer.labels == ["a", "b"]
    assert np.array_equal(answer.logits, GOOD_LOGITS)
    assert len(server.moments) == 2
    assert 1.0 <= server.moments[1] - server.moments[0] < 5.0


def test_retries_end_with_the_servers_own_reason(make: AnyClient) -> None:
    with running(overloaded(503, "0")) as server, make(server.url, retries=2) as client, pytest.raises(RequestError) as caught:
        client.predict("tiny", IMAGES)
    assert (caught.value.status, str(caught.value)) == (503, "overloaded")
    assert len(server.moments) == 3


def test_a_wait_beyond_the_timeout_is_not_begun(make: AnyClient) -> None:
    with running(overloaded(503, "60")) as server, make(server.url, timeout_s=5) as client:
        begin = time.monotonic()
        with pytest.raises(RequestError) as caught:
            client.predict("tiny", IMAGES)
        assert time.monotonic() - begin < 5
    assert caught.value.retry_after_s == 60


@pytest.mark.parametrize("value", ["", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "²"])
def test_a_retry_after_that_is_no_number_of_seconds_does_not_matter(value: str, make: AnyClient) -> None:
    with running(overloaded(503, value), good()) as server, make(server.url) as client:
        assert client.predict("tiny", IMAGES).path == "original"


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500])
def test_what_would_fail_again_is_not_sent_again(status: int, make: AnyClient) -> None:
    with (
        running((status, {}, b'{"error": "no"}')) as server,
        make(server.url) as client,
        pytest.raises(RequestError, match="no") as caught,
    ):
        client.predict("tiny", IMAGES)
    assert caught.value.status == status
    assert len(server.moments) == 1


def test_a_connection_that_breaks_is_tried_again(make: AnyClient) -> None:
    with running(None, None, good()) as server, make(server.url) as client:
        assert client.predict("tiny", IMAGES).path == "original"
    assert len(server.moments) == 3


def test_a_late_server_is_a_504_in_time(make: AnyClient) -> None:
    with running(SILENCE) as server, make(server.url, timeout_s=0.5) as client:
        begin = time.monotonic()
        with pytest.raises(RequestError, match=r"no answer within 0\.5 s; send fewer images") as caught:
            client.predict("tiny", IMAGES)
        assert caught.value.status == 504
        assert 0.4 < time.monotonic() - begin < 3.0
        assert not client.is_ready()


def unreachable() -> str:
    with running(good()) as server:
        return server.url


def test_a_server_that_is_not_there_is_a_503_with_its_address(make: AnyClient) -> None:
    url = unreachable()
    with make(url, retries=1) as client:
        with pytest.raises(RequestError, match=f"{url} cannot be reached .*is the deployment up") as caught:
            client.predict("tiny", IMAGES)
        assert caught.value.status == 503
        assert not client.is_ready()


OTHER_SERVERS = [(200, {}, b"<html>hello</html>"), (200, {}, b"[1]"), (200, {}, b""), (200, {"Content-Encoding": "gzip"}, b"no gzip")]


@pytest.mark.parametrize("answer", OTHER_SERVERS, ids=["page", "list", "nothing", "broken gzip"])
@pytest.mark.parametrize("call", [lambda c: c.predict("tiny", IMAGES), lambda c: c.metadata("tiny")], ids=["predict", "metadata"])
def test_an_answer_of_another_server_is_a_502(call: Callable[[Client | Awaited], object], answer: Answer, make: AnyClient) -> None:
    with running(answer) as server, make(server.url) as client, pytest.raises(RequestError, match="is this a code_ray server") as caught:
        call(client)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    "images",
    [IMAGES.astype(np.float32), IMAGES.astype(np.int64), IMAGES[0, 0], [[0]], None],
    ids=["floats", "integers", "a row", "a list", "nothing"],
)
def test_what_is_no_array_of_images_is_a_422_before_anything_is_sent(images: object, make: AnyClient) -> None:
    with running(good()) as server, make(server.url) as client:
        with pytest.raises(RequestError, match="give a uint8 array") as caught:
            client.predict("tiny", images)  # type: ignore[arg-type]
        assert caught.value.status == 422
    assert server.moments == []


@pytest.mark.parametrize("name", ["a/b", "a?b", "a#b", "ü", "a\nb", ""])
def test_any_service_name_stays_one_part_of_the_route(name: str, make: AnyClient) -> None:
    with running((404, {}, b'{"error": "no such service"}')) as server, make(server.url) as client:
        with pytest.raises(RequestError, match="no such service"):
            client.predict(name, IMAGES)
        with pytest.raises(RequestError, match="no such service"):
            client.metadata(name)


def test_a_500_of_serves_own_is_tried_again(make: AnyClient) -> None:
    with running((500, {}, b"Internal Server Error"), good()) as server, make(server.url) as client:
        assert client.predict("tiny", IMAGES).path == "original"
    assert len(server.moments) == 2


def test_calls_of_the_asyncio_client_are_under_way_at_once() -> None:
    async def ask(url: str) -> list[Prediction]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.predict("tiny", IMAGES) for _ in range(20)))

    with running(*[overloaded(503, "1")] * 20, good()) as server:
        begin = time.monotonic()
        answers = asyncio.run(ask(server.url))
        assert time.monotonic() - begin < 15  # 20 waits of a second, one after the other, take longer
    assert [answer.labels for answer in answers] == [["a", "b"]] * 20
