"""A provider's queue: own work before guests', later legs first, chunks of the best size, refusals (DESIGN 3.5)."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from code_ray.metering import ComputeBucket
from deployments.routes import Refusal
from deployments.worker import Array, HostedLeg, LegWorker

SHAPE = (2,)


@dataclass
class Legs:
    """Legs that double their input and note their calls; the leg "gate" waits until it is opened."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def leg(self, name: str, *, guest: bool = False, position: int = 0, batch_size: int = 4, seconds: float = 0.001) -> HostedLeg:
        return HostedLeg(self._call(name), SHAPE, guest, position, batch_size, seconds)

    def _call(self, name: str) -> Callable[[Array], Array]:
        def call(value: Array) -> Array:
            if name == "gate":
                self.entered.set()
                assert self.opened.wait(30)
            self.calls.append((name, len(value)))
            if name == "broken":
                raise RuntimeError("out of memory")
            return value * 2

        return call

    def worker(self, legs: dict[str, HostedLeg], share: float = 1.0, burst_s: float = 10.0, max_queue_s: float = 10.0) -> LegWorker:
        return LegWorker({"gate": self.leg("gate"), **legs}, ComputeBucket(share, burst_s, time.monotonic()), max_queue_s, threads=1)

    def close_gate(self, worker: LegWorker) -> None:
        """Keep the worker busy until ``opened`` is set, so that what is queued meanwhile waits together."""
        queue(worker, "gate", 1)
        assert self.entered.wait(30)


@pytest.fixture
def legs() -> Iterator[Legs]:
    made = Legs()
    yield made
    made.opened.set()


def values(count: int, start: int = 0, dtype: Any = np.float32) -> Array:
    return np.arange(2 * start, 2 * (start + count), dtype=dtype).reshape(count, 2)


def queue(worker: LegWorker, key: str, count: int, start: int = 0, dtype: Any = np.float32) -> Future[Array]:
    accepted = worker.submit(key, values(count, start, dtype))
    assert not isinstance(accepted, Refusal)
    return accepted


def test_own_work_runs_before_guests_that_came_first(legs: Legs) -> None:
    worker = legs.worker({"guest": legs.leg("guest", guest=True), "own": legs.leg("own")})
    legs.close_gate(worker)
    jobs = [queue(worker, "guest", 4), queue(worker, "guest", 4), queue(worker, "own", 4)]
    legs.opened.set()
    for job in jobs:
        job.result(30)
    assert [name for name, _ in legs.calls] == ["gate", "own", "guest", "guest"]


def test_own_work_waits_for_one_chunk_of_a_long_guest_request_only(legs: Legs) -> None:
    worker = legs.worker({"gate": legs.leg("gate", guest=True, batch_size=4), "own": legs.leg("own")})
    guest = queue(worker, "gate", 40)
    assert legs.entered.wait(30)
    own = queue(worker, "own", 4)
    legs.opened.set()
    own.result(30)
    guest.result(30)
    assert [name for name, _ in legs.calls].index("own") == 1


def test_a_later_leg_of_a_path_runs_before_an_earlier_one(legs: Legs) -> None:
    worker = legs.worker({"first": legs.leg("first", position=0), "last": legs.leg("last", position=2)})
    legs.close_gate(worker)
    jobs = [queue(worker, "first", 4), queue(worker, "last", 4)]
    legs.opened.set()
    for job in jobs:
        job.result(30)
    assert [name for name, _ in legs.calls] == ["gate", "last", "first"]


def test_a_long_request_is_cut_and_comes_back_whole(legs: Legs) -> None:
    worker = legs.worker({"own": legs.leg("own", batch_size=4)})
    assert np.array_equal(queue(worker, "own", 10).result(30), 2 * values(10))
    assert legs.calls == [("own", 4), ("own", 4), ("own", 2)]


def test_short_requests_share_a_chunk_and_each_gets_its_own_part(legs: Legs) -> None:
    worker = legs.worker({"own": legs.leg("own", batch_size=8)})
    legs.close_gate(worker)
    jobs = [queue(worker, "own", 2, start) for start in (0, 2, 4)]
    legs.opened.set()
    for start, job in zip((0, 2, 4), jobs, strict=True):
        assert np.array_equal(job.result(30), 2 * values(2, start))
    assert legs.calls[1:] == [("own", 6)]


def test_bytes_and_floats_never_share_a_chunk(legs: Legs) -> None:
    worker = legs.worker({"own": legs.leg("own", batch_size=8)})
    legs.close_gate(worker)
    jobs = [queue(worker, "own", 2, dtype=dtype) for dtype in (np.uint8, np.float32, np.float32)]
    legs.opened.set()
    assert [job.result(30).dtype for job in jobs] == [np.uint8, np.float32, np.float32]
    assert legs.calls[1:] == [("own", 2), ("own", 4)]


def test_a_request_whose_caller_gave_up_is_not_computed(legs: Legs) -> None:
    worker = legs.worker({"own": legs.leg("own")})
    legs.close_gate(worker)
    given_up, other = queue(worker, "own", 4), queue(worker, "own", 4, start=4)
    assert given_up.cancel()
    legs.opened.set()
    assert np.array_equal(other.result(30), 2 * values(4, 4))
    assert legs.calls[1:] == [("own", 4)]


def test_a_leg_that_fails_fails_its_own_requests_only(legs: Legs) -> None:
    worker = legs.worker({"own": legs.leg("own"), "broken": legs.leg("broken")})
    with pytest.raises(RuntimeError, match="out of memory"):
        queue(worker, "broken", 10).result(30)
    assert np.array_equal(queue(worker, "own", 4).result(30), 2 * values(4))
    assert worker.stuck_for() < 10


def test_guests_are_refused_beyond_their_share_and_own_work_is_not(legs: Legs) -> None:
    worker = legs.worker(
        {"guest": legs.leg("guest", guest=True, seconds=1.0), "own": legs.leg("own", seconds=1.0)}, share=0.5, burst_s=2.0, max_queue_s=100
    )
    legs.close_gate(worker)
    queue(worker, "guest", 3)
    refused = worker.submit("guest", values(1))
    assert isinstance(refused, Refusal)
    assert refused.reason == "the share of this server that is lent is used up"
    assert 1.0 < refused.retry_after_s <= 2.0
    queue(worker, "own", 3)


def test_own_work_is_refused_where_too_much_of_it_waits(legs: Legs) -> None:
    worker = legs.worker({"own": legs.leg("own", seconds=1.0)}, max_queue_s=5.0)
    legs.close_gate(worker)
    queue(worker, "own", 6)
    refused = worker.submit("own", values(1))
    assert isinstance(refused, Refusal)
    assert refused.reason == "this server's queue is full"
    assert refused.retry_after_s == pytest.approx(1.0, abs=0.1)


def test_what_is_finished_or_given_up_no_longer_counts_as_waiting(legs: Legs) -> None:
    worker = legs.worker({"own": legs.leg("own", seconds=1.0)}, max_queue_s=5.0)
    legs.close_gate(worker)
    assert queue(worker, "own", 6).cancel()
    done, settled = queue(worker, "own", 6), threading.Event()
    done.add_done_callback(lambda _: settled.set())  # called after the worker's own, which comes first
    legs.opened.set()
    assert settled.wait(30)
    queue(worker, "own", 6).result(30)


def test_a_chunk_that_hangs_is_seen(legs: Legs) -> None:
    worker = legs.worker({})
    assert worker.stuck_for() == 0.0
    legs.close_gate(worker)
    time.sleep(0.1)
    assert worker.stuck_for() >= 0.1
