"""A client of a running deployment: images in, labels, logits and the path taken out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from code_ray.errors import RequestError
from code_ray.wire import decode_response, encode_request

RETRY_S = 0.2
"""Wait before another attempt where the server names no time."""


@dataclass(frozen=True)
class Prediction:
    """Answers for n images: ``labels`` by name, ``logits`` (n, classes), and the id of the ``path`` that made them."""

    labels: list[str]
    logits: npt.NDArray[np.float32]
    path: str


class Client:
    """Talks to the server at ``url``; ``timeout_s`` bounds one call, retries included.

    What is safe to send again (an inference changes nothing) is sent again: where the connection broke, or the server
    asked to wait (429, 503).
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", *, timeout_s: float = 30.0, retries: int = 3) -> None:
        self.timeout_s = timeout_s
        self.retries = retries
        # No proxy of the environment: a deployment is reached directly.
        self._http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)

    def predict(
        self,
        service: str,
        images: npt.NDArray[np.uint8],
        *,
        path: str | None = None,
        min_accuracy: float | None = None,
        deadline_ms: float | None = None,
    ) -> Prediction:
        """Classify ``images``, uint8 (n, *image_shape), with ``service``.

        ``path`` asks for one of its paths by id, ``min_accuracy`` (a fraction) for one that is so accurate, ``deadline_ms`` for an
        answer within so many milliseconds of its arrival at the server.

        Raises:
            RequestError: with the HTTP ``status`` the server answered; 503 where it cannot be reached, 504 past the timeout.
        """
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim < 2:
            found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise RequestError(f"images are {found}; give a uint8 array (n, height, width) or (n, height, width, 3)", status=422)
        body, headers = encode_request(images, path=path, min_accuracy=min_accuracy, deadline_ms=deadline_ms)
        response = self._send("POST", f"{_route(service)}/infer", content=body, headers=headers)
        return Prediction(*decode_response(response.content, response.headers))

    def is_ready(self) -> bool:
        """Whether the server answers and its local service is up."""
        try:
            return self._http.get("/v2/health/ready").is_success
        except httpx.TransportError:
            return False

    def metadata(self, service: str) -> dict[str, Any]:
        """Shapes, dtypes and paths of ``service``, as the server describes them; raises as ``predict``."""
        response = self._send("GET", _route(service))
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise RequestError(f"{self._http.base_url}: the answer is not JSON; is this a code_ray server?", status=502)
        return content

    def close(self) -> None:
        """Close the connections; the client is of no use after."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _send(self, method: str, route: str, **arguments: Any) -> httpx.Response:
        end = time.monotonic() + self.timeout_s
        attempt = 0
        while True:
            try:
                return self._try(method, route, end - time.monotonic(), arguments)
            except RequestError as error:
                attempt += 1
                wait = error.retry_after_s
                if wait is None or attempt > self.retries or time.monotonic() + wait >= end:
                    raise
                time.sleep(wait)

    def _try(self, method: str, route: str, left_s: float, arguments: dict[str, Any]) -> httpx.Response:
        """One attempt; errors after which another one may help say when, in ``retry_after_s``."""
        try:
            response = self._http.request(method, route, timeout=left_s, **arguments)
        except httpx.TimeoutException as error:
            raise RequestError(f"{self._http.base_url}: no answer within {self.timeout_s:g} s; send fewer images", status=504) from error
        except httpx.TransportError as error:
            message = f"{self._http.base_url} cannot be reached ({error}); is the deployment up?"
            raise RequestError(message, status=503, retry_after_s=RETRY_S) from error
        except httpx.DecodingError as error:
            raise RequestError(f"the server's answer cannot be read ({error}); is this a code_ray server?", status=502) from error
        if response.is_success:
            return response
        wait = _retry_after(response) if response.status_code in (429, 503) else None
        raise RequestError(_reason(response), status=response.status_code, retry_after_s=wait)


def _route(service: str) -> str:
    return f"/v2/models/{quote(service, safe='')}"


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}"


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value[:6]) if value.isascii() and value.isdigit() else RETRY_S
