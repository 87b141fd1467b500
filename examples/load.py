"""A load of real HTTP requests: as many images a second as a deployment answers, and what the answers are worth."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import numpy.typing as npt

from code_ray.data import Split
from code_ray.errors import RequestError
from code_ray.wire import decode_response, encode_request

Images = npt.NDArray[np.uint8]

WARM_UP_S = 1.5


@dataclass
class Measured:
    """One stretch of load. ``latencies`` in seconds, one a request; ``paths`` images by path id; ``answered`` and ``right`` count
    the answers, and the right ones, by image of the split.
    """

    answered: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    failed: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> int:
        return int(self.answered.sum())

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


class Load:
    """Closed loop: ``in_flight`` requests of ``request_images`` images each are always under way, over and over the same split."""

    def __init__(self, url: str, service: str, split: Split, request_images: int, in_flight: int) -> None:
        self._route = f"{url}/v2/models/{service}/infer"
        self._in_flight = in_flight
        count = len(split) // request_images
        slices = [slice(i * request_images, (i + 1) * request_images) for i in range(count)]
        self._split = split
        # Bodies are made beforehand: the clients share the servers' cores.
        self._requests = [(*encode_request(split.images[s]), s) for s in slices]
        self._next = 0

    async def run(self, seconds: float, labels: tuple[str, ...], begin_at: float = 0.0) -> Measured:
        """Load for ``seconds`` after a warm-up, from a place in the split on (a share of it); only answers that arrive within that
        time count.
        """
        self._next = int(begin_at * len(self._requests))
        measured = Measured(*np.zeros((2, len(self._split)), np.int64))
        begin = time.monotonic() + WARM_UP_S
        end = begin + seconds
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._one_client(session, begin, end, labels, measured) for _ in range(self._in_flight)))
        measured.seconds = seconds
        return measured

    async def _one_client(
        self, session: aiohttp.ClientSession, begin: float, end: float, labels: tuple[str, ...], measured: Measured
    ) -> None:
        while (started := time.monotonic()) < end:
            body, headers, images = self._requests[self._next % len(self._requests)]
            self._next += 1
            answer = await self._send(session, body, headers)
            finished = time.monotonic()
            if answer is None:
                measured.failed += 1
            elif begin <= finished < end:
                names, path = answer
                truth = [labels[label] for label in self._split.labels[images]]
                measured.answered[images] += 1
                measured.right[images] += np.array(names) == np.array(truth)
                measured.latencies.append(finished - started)
                measured.paths[path] += len(truth)

    async def _send(self, session: aiohttp.ClientSession, body: bytes, headers: dict[str, str]) -> tuple[list[str], str] | None:
        """Labels and path of the answer; None where there was no good one."""
        try:
            async with session.post(self._route, data=body, headers=headers) as response:
                content = await response.read()
                if response.status != 200:
                    return None
                names, _, path = decode_response(content, {k.lower(): v for k, v in response.headers.items()})
                return names, path
        except (aiohttp.ClientError, TimeoutError, RequestError):
            return None
