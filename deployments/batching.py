"""Requests put together on their way to one leg. Pure asyncio: no Ray, no HTTP.

A call between processes costs milliseconds of a core whatever it carries, so many requests are sent as few calls. Nothing waits
for a clock: a request is sent at once unless enough calls are under way, and what came meanwhile goes together when one returns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from deployments.routes import Refusal
from deployments.worker import Array

Call = Callable[[Array], Awaitable[Array | Refusal]]

BATCHES_A_CALL = 2
"""Servers cut what a call carries into batches of their own. With more of them in a call fewer are under way, and servers wait for each
other: four took the pair's speed from 0.83 to 0.74 of its bound."""


@dataclass(frozen=True)
class _Waiting:
    images: Array
    answer: asyncio.Future[Array | Refusal]


class Batcher:
    """Sends images (n, *image_shape) over ``call``, at most ``at_once`` calls under way. What has waited goes together, up to
    ``BATCHES_A_CALL`` times the ``size`` of a server's batch; a larger request alone.

    Whoever stops waiting for an answer leaves the batch; a call for whose answers nobody waits any more is cancelled.
    """

    def __init__(self, call: Call, size: int, at_once: int) -> None:
        self.size = size
        self._call = call
        self.at_once = at_once
        self._waiting: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Future[Array | Refusal]] = set()

    @property
    def waiting_images(self) -> int:
        """Images of requests that have not been sent on."""
        return sum(len(waiting.images) for waiting in self._waiting)

    async def run(self, images: Array) -> Array | Refusal:
        """The rows of the answer that belong to ``images``; a refusal, and what ``call`` raises, concern every request of a batch."""
        waiting = _Waiting(images, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._send_on()
        return await waiting.answer

    def _send_on(self) -> None:
        while len(self._under_way) < self.at_once and (batch := self._take()):
            task = asyncio.ensure_future(self._call(_together(batch)))
            self._under_way.add(task)
            task.add_done_callback(partial(self._returned, batch))
            for waiting in batch:
                waiting.answer.add_done_callback(partial(_cancel_unwanted, task, batch))

    def _take(self) -> list[_Waiting]:
        """The requests that waited longest, as many as a call carries; numbers of another type mean other pixels and go apart."""
        batch: list[_Waiting] = []
        images, most = 0, BATCHES_A_CALL * self.size
        while self._waiting:
            first = self._waiting[0]
            if first.answer.done():  # its caller has given up
                self._waiting.popleft()
                continue
            if batch and (images + len(first.images) > most or first.images.dtype != batch[0].images.dtype):
                break
            batch.append(self._waiting.popleft())
            images += len(first.images)
        return batch

    def _returned(self, batch: list[_Waiting], task: asyncio.Future[Array | Refusal]) -> None:
        self._under_way.discard(task)
        _hand_out(task, batch)
        self._send_on()


def _together(batch: list[_Waiting]) -> Array:
    return batch[0].images if len(batch) == 1 else np.concatenate([waiting.images for waiting in batch])


def _hand_out(task: asyncio.Future[Array | Refusal], batch: list[_Waiting]) -> None:
    first = 0
    for waiting in batch:
        last = first + len(waiting.images)
        if not waiting.answer.done():
            if task.cancelled():
                waiting.answer.cancel()
            elif (error := task.exception()) is not None:
                waiting.answer.set_exception(error)
            else:
                answer = task.result()
                waiting.answer.set_result(answer if isinstance(answer, Refusal) else answer[first:last])
        first = last
    if not task.cancelled():
        task.exception()  # where nobody waits any more it has been seen all the same


def _cancel_unwanted(task: asyncio.Future[Array | Refusal], batch: list[_Waiting], _: object) -> None:
    if all(waiting.answer.done() for waiting in batch):
        task.cancel()  # of a call that has returned this does nothing
