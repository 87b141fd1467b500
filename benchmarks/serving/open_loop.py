"""Requests sent at given moments, whatever comes back: how users load a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from code_ray.errors import RequestError
from code_ray.wire import decode_response, encode_request
from examples.load import Images

FAILED = 0
"""Status of a request that got no answer of HTTP."""


@dataclass(frozen=True)
class Answered:
    """What came of a request: when it was due and how long its answer took (seconds), HTTP status, path id where it was 200."""

    due: float
    seconds: float
    status: int
    path: str | None


async def send_all(
    url: str,
    service: str,
    requests: Sequence[Images],
    due: Sequence[float],
    deadline_ms: float | None = None,
) -> list[Answered]:
    """Send a request at each moment of ``due`` (seconds from now), over and over the same ``requests``, uint8 images (n, ...) each."""
    bodies = [encode_request(images, deadline_ms=deadline_ms) for images in requests]
    route = f"{url}/v2/models/{service}/infer"
    begin = time.monotonic() + 0.1
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int, moment: float) -> Answered:
            await asyncio.sleep(begin + moment - time.monotonic())
            sent, (body, headers) = time.monotonic(), bodies[number % len(bodies)]
            try:
                async with session.post(route, data=body, headers=headers) as response:
                    content = await response.read()
                    status, path = response.status, None
                    if status == 200:
                        _, _, path = decode_response(content, {k.lower(): v for k, v in response.headers.items()})
            except (aiohttp.ClientError, TimeoutError, RequestError):
                status, path = FAILED, None
            return Answered(moment, time.monotonic() - sent, status, path)

        return list(await asyncio.gather(*(one(number, moment) for number, moment in enumerate(due))))
