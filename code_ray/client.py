"""Clients of a running deployment, with and without asyncio: images or texts in, labels, logits and the path taken out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from code_ray.errors import RequestError
from code_ray.wire import GROUPED, decode_response, decode_responses, encode_request

DEFAULT_URL = "http://127.0.0.1:8000"

RETRY_S = 0.2
"""Wait before another attempt where the server names no time."""

RETRIES = 30
"""A server that was lost is back in half a minute; ``timeout_s`` ends a call before that where it is less."""


Samples = npt.NDArray[Any] | Sequence[str]


@dataclass(frozen=True)
class Prediction:
    """Answers for n samples: ``labels`` by name, ``logits`` (n, classes), and the id of the ``path`` that made them."""

    labels: list[str]
    logits: npt.NDArray[np.float32]
    path: str


class _Calls:
    """What the two clients share: how requests are built, answers judged, and when another attempt is worth it."""

    def __init__(self, url: str, timeout_s: float, retries: int) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.retries = retries

    def judge(self, response: httpx.Response) -> httpx.Response:
        """The answer.

        Raises:
            RequestError: where it is none; with ``retry_after_s`` where another attempt may help.
        """
        if response.is_success:
            return response
        reason = _reason(response)
        # Serve answers 500 in its own words, without JSON, where a router was lost with the request.
        late = response.status_code == 504 and "retry-after" in response.headers
        safe = late or response.status_code in (429, 503) or (response.status_code == 500 and reason is None)
        raise RequestError(
            reason or f"HTTP {response.status_code}: {response.text[:200]}",
            status=response.status_code,
            retry_after_s=_retry_after(response) if safe else None,
        )

    def failure(self, error: httpx.TransportError | httpx.DecodingError) -> RequestError:
        """What a call that got no answer ends with."""
        if isinstance(error, httpx.TimeoutException):
            failure = RequestError(f"{self.url}: no answer within {self.timeout_s:g} s; send fewer images", status=504)
        elif isinstance(error, httpx.DecodingError):
            failure = RequestError(f"the server's answer cannot be read ({error}); is this a code_ray server?", status=502)
        else:
            message = f"{self.url} cannot be reached ({error}); is the deployment up?"
            failure = RequestError(message, status=503, retry_after_s=RETRY_S)
        failure.__cause__ = error
        return failure

    def pause(self, failure: RequestError, attempt: int, end: float) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            RequestError: ``failure``, where there is none.
        """
        wait = failure.retry_after_s
        if wait is None or attempt >= self.retries or time.monotonic() + wait >= end:
            raise failure
        return wait


class Client:
    """Talks to the server at ``url``, with an API ``key`` where it asks for one; ``timeout_s`` bounds one call, retries included.

    What is safe to send again (an inference changes nothing) is sent again: where the connection broke, the server asked to
    wait (429, 503, 504 with Retry-After), or it lost the part that had the request (a 500 of Serve's own).
    """

    def __init__(self, url: str = DEFAULT_URL, *, key: str | None = None, timeout_s: float = 30.0, retries: int = RETRIES) -> None:
        self._calls = _Calls(url, timeout_s, retries)
        # No proxy of the environment: a deployment is reached directly.
        self._http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False, headers=_key_header(key))

    def predict(
        self,
        service: str,
        samples: Samples,
        *,
        path: str | None = None,
        min_accuracy: float | None = None,
        deadline_ms: float | None = None,
    ) -> Prediction:
        """Classify ``samples`` with ``service``: images, uint8 (n, *image_shape), or texts, or token ids of texts, int32 (n, tokens).

        ``path`` asks for one of its paths by id, ``min_accuracy`` (a fraction) for one that is so accurate, ``deadline_ms`` for an
        answer within so many milliseconds of its arrival at the server.

        Raises:
            RequestError: with the HTTP ``status`` the server answered; 503 where it cannot be reached, 504 past the timeout.
        """
        body, headers = encode_request(_checked(samples), path=path, min_accuracy=min_accuracy, deadline_ms=deadline_ms)
        response = self._send("POST", f"{_route(service)}/infer", content=body, headers=headers)
        return Prediction(*decode_response(response.content, response.headers))

    def predict_together(
        self, services: Sequence[str], samples: Samples, *, path: str | None = None, deadline_ms: float | None = None
    ) -> dict[str, Prediction]:
        """Classify the same ``samples`` with several services at once, which may share a host's pass over them; answers by service.

        Services that can be asked together are among the server's models, as names with ``+`` between (``GET /v2``).

        Raises:
            RequestError: as ``predict``; 404 for services that the server does not answer together.
        """
        body, headers = encode_request(_checked(samples), path=path, deadline_ms=deadline_ms)
        response = self._send("POST", f"{_route(GROUPED.join(services))}/infer", content=body, headers=headers)
        return {name: Prediction(*made) for name, made in decode_responses(response.content, response.headers, services).items()}

    def is_ready(self) -> bool:
        """Whether the server answers and its local service is up."""
        try:
            return self._http.get("/v2/health/ready").is_success
        except httpx.TransportError:
            return False

    def metadata(self, service: str) -> dict[str, Any]:
        """Shapes, dtypes and paths of ``service``, as the server describes them; raises as ``predict``."""
        return _json(self._send("GET", _route(service)))

    def close(self) -> None:
        """Close the connections; the client is of no use after."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _send(self, method: str, route: str, **arguments: Any) -> httpx.Response:
        attempt, end = 0, time.monotonic() + self._calls.timeout_s
        while True:
            try:
                return self._calls.judge(self._http.request(method, route, timeout=end - time.monotonic(), **arguments))
            except RequestError as error:
                failure = error
            except (httpx.TransportError, httpx.DecodingError) as error:
                failure = self._calls.failure(error)
            time.sleep(self._calls.pause(failure, attempt, end))
            attempt += 1


class AsyncClient:
    """``Client`` for asyncio: the same calls, awaited; many of them may be under way at once."""

    def __init__(self, url: str = DEFAULT_URL, *, key: str | None = None, timeout_s: float = 30.0, retries: int = RETRIES) -> None:
        self._calls = _Calls(url, timeout_s, retries)
        # The server bounds what is under way, and says so; httpx's own bound of 100 would let requests wait here unseen.
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False, limits=limits, headers=_key_header(key))

    async def predict(
        self,
        service: str,
        samples: Samples,
        *,
        path: str | None = None,
        min_accuracy: float | None = None,
        deadline_ms: float | None = None,
    ) -> Prediction:
        """See ``Client.predict``."""
        body, headers = encode_request(_checked(samples), path=path, min_accuracy=min_accuracy, deadline_ms=deadline_ms)
        response = await self._send("POST", f"{_route(service)}/infer", content=body, headers=headers)
        return Prediction(*decode_response(response.content, response.headers))

    async def predict_together(
        self, services: Sequence[str], samples: Samples, *, path: str | None = None, deadline_ms: float | None = None
    ) -> dict[str, Prediction]:
        """See ``Client.predict_together``."""
        body, headers = encode_request(_checked(samples), path=path, deadline_ms=deadline_ms)
        response = await self._send("POST", f"{_route(GROUPED.join(services))}/infer", content=body, headers=headers)
        return {name: Prediction(*made) for name, made in decode_responses(response.content, response.headers, services).items()}

    async def is_ready(self) -> bool:
        """See ``Client.is_ready``."""
        try:
            return (await self._http.get("/v2/health/ready")).is_success
        except httpx.TransportError:
            return False

    async def metadata(self, service: str) -> dict[str, Any]:
        """See ``Client.metadata``."""
        return _json(await self._send("GET", _route(service)))

    async def close(self) -> None:
        """Close the connections; the client is of no use after."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    async def _send(self, method: str, route: str, **arguments: Any) -> httpx.Response:
        attempt, end = 0, time.monotonic() + self._calls.timeout_s
        while True:
            try:
                return self._calls.judge(await self._http.request(method, route, timeout=end - time.monotonic(), **arguments))
            except RequestError as error:
                failure = error
            except (httpx.TransportError, httpx.DecodingError) as error:
                failure = self._calls.failure(error)
            await asyncio.sleep(self._calls.pause(failure, attempt, end))
            attempt += 1


def _key_header(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _checked(samples: Any) -> Samples:
    is_array = isinstance(samples, np.ndarray)
    if is_array and (samples.dtype == np.uint8 or (samples.dtype == np.int32 and samples.ndim == 2)) and samples.ndim >= 2:
        return np.asarray(samples)
    if isinstance(samples, list | tuple) and samples and all(isinstance(text, str) for text in samples):
        return samples
    found = f"{samples.dtype} {samples.shape}" if is_array else type(samples).__name__
    raise RequestError(
        f"images are {found}; give a uint8 array (n, height, width) or (n, height, width, 3), or a list of texts", status=422
    )


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RequestError(f"{response.url}: the answer is not JSON; is this a code_ray server?", status=502)
    return content


def _route(service: str) -> str:
    return f"/v2/models/{quote(service, safe='')}"


def _reason(response: httpx.Response) -> str | None:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return None


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value[:6]) if value.isascii() and value.isdigit() else RETRY_S
