"""Requests put together on their way to a leg."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from deployments.batching import BATCHES_A_CALL, Batcher
from deployments.routes import Refusal
from deployments.worker import Array


class Leg:
    """Doubles what it is sent; each call waits until ``let_go``, and fails, or refuses, as told."""

    def __init__(self, answer: Callable[[Array], Array | Refusal] = lambda images: 2 * images) -> None:
        self.sizes: list[int] = []
        self.cancelled = 0
        self.most = self.under_way = 0
        self.gate = asyncio.Event()
        self._answer = answer

    async def __call__(self, images: Array) -> Array | Refusal:
        self.sizes.append(len(images))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            return self._answer(images)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1


def images(first: int, count: int, dtype: Any = np.float32) -> Array:
    return np.arange(first, first + count, dtype=dtype)[:, None]


async def later(*requests: Awaitable[Any]) -> Sequence[asyncio.Future[Any]]:
    """Requests begun, and the event loop given time to take them."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(request) for request in requests]
    await asyncio.sleep(0.01)
    return tasks


def test_what_comes_while_enough_is_under_way_goes_together_and_everyone_gets_their_rows() -> None:
    async def scenario() -> None:
        leg = Leg()
        batcher = Batcher(leg, size=8, at_once=2)
        tasks = await later(*(batcher.run(images(10 * i, 2)) for i in range(30)))
        assert (leg.sizes, batcher.waiting_images) == ([2, 2], 56)
        leg.gate.set()
        for i, answer in enumerate(await asyncio.gather(*tasks)):
            assert np.array_equal(answer, 2 * images(10 * i, 2))
        assert leg.sizes == [2, 2, *[8 * BATCHES_A_CALL] * 3, 8]
        assert leg.most == 2

    asyncio.run(scenario())


def test_large_requests_wait_in_turn_and_none_is_cut() -> None:
    async def scenario() -> None:
        leg = Leg()
        batcher = Batcher(leg, size=8, at_once=1)
        sizes = (3, 20, 4, 100, 9, 1)
        tasks = await later(*(batcher.run(images(1000 * i, size)) for i, size in enumerate(sizes)))
        assert leg.sizes == [3]
        leg.gate.set()
        for i, answer in enumerate(await asyncio.gather(*tasks)):
            assert np.array_equal(answer, 2 * images(1000 * i, sizes[i]))
        assert leg.sizes == [3, 20, 4, 100, 10]

    asyncio.run(scenario())


def test_images_of_another_type_are_not_converted_to_share_a_batch() -> None:
    async def scenario() -> None:
        leg = Leg()
        batcher = Batcher(leg, size=8, at_once=1)
        leg.gate.set()
        answers = await asyncio.gather(*(batcher.run(images(i, 1, dtype)) for i, dtype in enumerate([np.uint8, np.uint8, np.float32])))
        assert [answer.dtype for answer in answers] == [np.uint8, np.uint8, np.float32]  # type: ignore[union-attr]

    asyncio.run(scenario())


def test_a_refusal_and_an_error_reach_all_of_a_batch_and_the_next_one_is_sent() -> None:
    def fail(batch: Array) -> Array | Refusal:
        if batch[0, 0] == 1:
            raise RuntimeError("lost")
        return Refusal("busy", 1.0)

    async def scenario() -> None:
        leg = Leg(fail)
        batcher = Batcher(leg, size=2, at_once=1)
        tasks = await later(*(batcher.run(images(i, 1)) for i in range(9)))
        leg.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert leg.sizes == [1, 4, 4]
        assert [type(answer) for answer in found] == [Refusal, *[RuntimeError] * 4, *[Refusal] * 4]

    asyncio.run(scenario())


def test_who_stops_waiting_leaves_the_batch_and_a_call_that_nobody_waits_for_is_cancelled() -> None:
    async def scenario() -> None:
        leg = Leg()
        batcher = Batcher(leg, size=4, at_once=1)
        one, two, three, four = await later(*(batcher.run(images(i, 1)) for i in range(4)))
        two.cancel()
        one.cancel()
        await asyncio.sleep(0.01)
        assert leg.cancelled == 1
        # The two that are left went when the call that nobody waited for had ended.
        assert leg.sizes == [1, 2]
        three.cancel()
        leg.gate.set()
        assert np.array_equal(await four, 2 * images(3, 1))
        assert leg.cancelled == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("at_once", [1, 3])
def test_nothing_is_left_under_way_when_all_are_answered(at_once: int) -> None:
    async def scenario() -> None:
        leg = Leg()
        leg.gate.set()
        batcher = Batcher(leg, size=4, at_once=at_once)
        await asyncio.gather(*(batcher.run(images(i, 1 + i % 6)) for i in range(200)))
        assert (leg.under_way, batcher.waiting_images) == (0, 0)
        assert sum(leg.sizes) == sum(1 + i % 6 for i in range(200))
        assert leg.most >= at_once

    asyncio.run(scenario())
