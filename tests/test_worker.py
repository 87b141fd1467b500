"""The provider's queue: whose turn it is, how work is cut and joined, who is refused, whom a failure reaches (DESIGN 3.5)."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.metering import ComputeBucket
from deployments.routes import Refusal
from deployments.worker import Array, HostedLeg, LegWorker, QueueLimits

LONG_S = 30.0


class Desk:
    """Legs that write down what they run, behind a leg ``gate`` that keeps the worker busy until it is opened."""

    def __init__(
        self,
        *,
        share: float = 1.0,
        burst_s: float = 100.0,
        max_queue_s: float = 100.0,
        guest_slice_s: float = 100.0,
        guest_share_of_wait: float = float("inf"),
        guest_wait_s: float = 100.0,
        **legs: HostedLeg,
    ) -> None:
        self.ran: list[tuple[str, list[int]]] = []
        self.is_busy, self.opened = threading.Event(), threading.Event()
        self.legs = {name: self._watched(name, leg) for name, leg in legs.items()}
        self.legs["gate"] = HostedLeg(self._wait, "", (), guest=False, position=0, batch_size=1, seconds=0.0)
        limits = QueueLimits(max_queue_s, guest_slice_s, guest_share_of_wait, guest_wait_s)
        self.worker = LegWorker(self.legs, ComputeBucket(share, burst_s, time.monotonic()), limits, threads=1)

    def keep_busy(self) -> None:
        """Return when the worker waits at the gate: what is submitted now queues."""
        self.submit("gate", np.zeros(1))
        assert self.is_busy.wait(LONG_S)

    def submit(self, key: str, value: Array) -> Future[Any]:
        accepted = self.worker.submit(key, value)
        assert not isinstance(accepted, Refusal)
        return accepted

    def _watched(self, name: str, leg: HostedLeg) -> HostedLeg:
        call = leg.call

        def run(value: Array) -> Array:
            self.ran.append((name, value.astype(int).tolist()))
            return call(value)

        leg.call = run
        return leg

    def _wait(self, value: Array) -> Array:
        self.is_busy.set()
        assert self.opened.wait(LONG_S)
        return value


def leg(
    call: Callable[[Array], Array] = lambda value: value * 2,
    *,
    guest: bool = False,
    position: int = 0,
    batch_size: int = 8,
    seconds: float = 0.001,
) -> HostedLeg:
    return HostedLeg(call, "", (), guest, position, batch_size, seconds)


def results(*futures: Future[Any]) -> list[list[float]]:
    return [future.result(LONG_S).tolist() for future in futures]


def test_own_requests_run_before_guests_and_later_legs_before_earlier_ones() -> None:
    desk = Desk(guest_first=leg(guest=True), guest_last=leg(guest=True, position=2), own_first=leg(), own_last=leg(position=2))
    desk.keep_busy()
    futures = [desk.submit(key, np.array([1])) for key in ("guest_first", "guest_last", "own_first", "own_last")]
    desk.opened.set()
    results(*futures)
    assert [name for name, _ in desk.ran] == ["own_last", "own_first", "guest_last", "guest_first"]


def test_an_own_request_waits_for_one_chunk_of_a_long_guest() -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(value: Array) -> Array:
        started.set()
        assert go_on.wait(LONG_S)
        return value

    desk = Desk(guest=leg(slow, guest=True, batch_size=2), own=leg())
    long = desk.submit("guest", np.arange(6))
    assert started.wait(LONG_S)
    own = desk.submit("own", np.array([7]))
    go_on.set()
    assert results(long, own) == [[0, 1, 2, 3, 4, 5], [14]]
    assert desk.ran == [("guest", [0, 1]), ("own", [7]), ("guest", [2, 3]), ("guest", [4, 5])]


@pytest.mark.parametrize(
    ("sizes", "chunks"),
    [
        ([3, 5], [8]),
        ([20], [8, 8, 4]),
        ([5, 5], [5, 5]),  # the second fits into a chunk of its own and is not cut
        ([1] * 10, [8, 2]),
        ([9, 3], [8, 4]),
        ([3, 9], [8, 4]),
        ([8, 8, 1], [8, 8, 1]),
    ],
    ids=str,
)
def test_long_requests_are_cut_and_short_ones_run_together(sizes: list[int], chunks: list[int]) -> None:
    desk = Desk(own=leg(batch_size=8))
    desk.keep_busy()
    values = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    futures = [desk.submit("own", value) for value in values]
    desk.opened.set()
    assert results(*futures) == [(2 * value).tolist() for value in values]
    assert [len(chunk) for _, chunk in desk.ran] == chunks


@pytest.fixture(scope="module")
def shared_desk() -> Desk:
    return Desk(first=leg(lambda v: v + 0.5, batch_size=4), second=leg(lambda v: -v, position=1, batch_size=7))


@given(st.lists(st.tuples(st.sampled_from(["first", "second"]), st.integers(1, 30)), min_size=1, max_size=12))
def test_every_request_gets_its_own_content_in_order(shared_desk: Desk, requests: list[tuple[str, int]]) -> None:
    shared_desk.ran.clear()
    rng = np.random.default_rng(len(requests))
    values = [rng.integers(0, 1000, size) for _, size in requests]
    futures = [shared_desk.submit(key, value) for (key, _), value in zip(requests, values, strict=True)]
    expected = [(v + 0.5 if key == "first" else -v).tolist() for (key, _), v in zip(requests, values, strict=True)]
    assert results(*futures) == expected
    assert all(len(chunk) <= {"first": 4, "second": 7}[name] for name, chunk in shared_desk.ran)
    # No image was run twice or left out.
    assert sum(len(chunk) for _, chunk in shared_desk.ran) == sum(size for _, size in requests)


def test_requests_of_different_number_types_never_share_a_chunk() -> None:
    # A leg from images divides uint8 by 255 and takes floats as they are.
    desk = Desk(images=leg(lambda v: v / 255 if v.dtype == np.uint8 else v, batch_size=8))
    desk.keep_busy()
    pixels, scaled = np.array([255, 0, 51], np.uint8), np.array([1.0, 0.5], np.float32)
    futures = [desk.submit("images", value) for value in (pixels, scaled, pixels)]
    desk.opened.set()
    assert results(*futures) == [[1.0, 0.0, 0.2], [1.0, 0.5], [1.0, 0.0, 0.2]]


def test_guests_above_their_share_are_refused_and_come_in_again_later() -> None:
    slow = leg(lambda v: time.sleep(0.02) or v, guest=True, seconds=0.0)  # type: ignore[func-returns-value]
    desk = Desk(share=0.05, burst_s=0.001, guest=slow, own=leg())
    assert results(desk.submit("guest", np.array([1]))) == [[1]]
    refused = desk.worker.submit("guest", np.array([2]))
    assert isinstance(refused, Refusal)
    assert "share of this server that is lent is used up" in refused.reason
    # 20 ms or more were used, 1 was there, 50 ms a second flow back.
    assert 0 < refused.retry_after_s < LONG_S
    assert results(desk.submit("own", np.array([3]))) == [[6]]
    time.sleep(refused.retry_after_s + 0.01)
    assert results(desk.submit("guest", np.array([4]))) == [[4]]
    assert [chunk for name, chunk in desk.ran if name == "guest"] == [[1], [4]]


def test_what_guests_wait_for_counts_against_their_share() -> None:
    desk = Desk(share=0.5, burst_s=1.0, guest=leg(guest=True, seconds=0.4))
    desk.keep_busy()
    futures = [desk.submit("guest", np.array([n, n])) for n in (1, 2)]  # 0.8 and 1.6 seconds promised
    refused = desk.worker.submit("guest", np.array([3]))
    assert isinstance(refused, Refusal)
    assert refused.retry_after_s == pytest.approx((1.6 - 1.0) / 0.5)
    # Given up, the promise is off.
    assert all(future.cancel() for future in futures)
    desk.opened.set()
    assert results(desk.submit("guest", np.array([3]))) == [[6]]


def test_own_work_is_refused_where_too_much_waits_and_taken_again_later() -> None:
    desk = Desk(max_queue_s=2.0, own=leg(seconds=1.0), guest=leg(guest=True, seconds=0.0))
    desk.keep_busy()
    futures = [desk.submit("own", np.array([n])) for n in range(3)]  # 3 seconds of work
    refused = desk.worker.submit("own", np.array([9]))
    assert isinstance(refused, Refusal)
    assert "queue is full" in refused.reason
    assert refused.retry_after_s == pytest.approx(1.0)
    desk.submit("guest", np.array([1]))  # guests have their share, not a place in this queue
    desk.opened.set()
    assert results(*futures) == [[0], [2], [4]]
    assert results(desk.submit("own", np.array([9]))) == [[18]]


def fail_on_13(value: Array) -> Array:
    if 13 in value:
        raise RuntimeError("out of memory")
    return value * 2


def test_a_failure_reaches_its_callers_alone() -> None:
    desk = Desk(own=leg(fail_on_13, batch_size=4), other=leg())
    desk.keep_busy()
    before, bad, after = (desk.submit("own", np.array(v)) for v in ([1, 2, 3], [13, 5], [6, 7, 8]))
    other = desk.submit("other", np.array([9]))
    desk.opened.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(LONG_S)
    assert results(before, after, other) == [[2, 4, 6], [12, 14, 16], [18]]
    assert results(desk.submit("own", np.array([4]))) == [[8]]


def test_a_request_that_failed_is_not_run_to_its_end() -> None:
    desk = Desk(own=leg(fail_on_13, batch_size=2))
    desk.keep_busy()
    bad = desk.submit("own", np.array([0, 1, 13, 3, 4, 5, 6]))
    desk.opened.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(LONG_S)
    assert results(desk.submit("own", np.array([9]))) == [[18]]
    assert desk.ran == [("own", [0, 1]), ("own", [13, 3]), ("own", [9])]


def test_cancelled_requests_are_skipped() -> None:
    desk = Desk(own=leg())
    desk.keep_busy()
    given_up, kept = desk.submit("own", np.array([1, 2])), desk.submit("own", np.array([3]))
    assert given_up.cancel()
    desk.opened.set()
    assert results(kept) == [[6]]
    assert desk.ran == [("own", [3])]


def test_a_request_cancelled_while_it_runs_stops_after_its_chunk() -> None:
    cancel_now, go_on = threading.Event(), threading.Event()

    def slow(value: Array) -> Array:
        cancel_now.set()
        assert go_on.wait(LONG_S)
        return value

    desk = Desk(own=leg(slow, batch_size=2))
    long = desk.submit("own", np.arange(6))
    assert cancel_now.wait(LONG_S)
    assert long.cancel()
    go_on.set()
    assert results(desk.submit("own", np.array([9]))) == [[9]]
    assert desk.ran == [("own", [0, 1]), ("own", [9])]


def test_a_legs_time_follows_what_it_takes() -> None:
    hosted = leg(lambda v: time.sleep(0.02) or v, batch_size=2, seconds=1.0)  # type: ignore[func-returns-value]
    desk = Desk(own=hosted)
    results(desk.submit("own", np.arange(2)))
    assert hosted.seconds == pytest.approx(0.9 + 0.1 * 0.01, abs=0.05)
    before = hosted.seconds
    # Half a chunk says half as much.
    results(desk.submit("own", np.arange(1)))
    assert hosted.seconds == pytest.approx(0.95 * before + 0.05 * 0.02, abs=0.05)


def test_a_worker_knows_how_long_it_has_been_at_a_chunk() -> None:
    desk = Desk(own=leg())
    assert desk.worker.stuck_for() == 0.0
    desk.keep_busy()
    time.sleep(0.01)
    assert 0.01 <= desk.worker.stuck_for() < LONG_S
    assert desk.worker.busy_seconds()[0] >= 0.01
    done = desk.submit("own", np.array([1]))
    desk.opened.set()
    results(done)


def test_a_worker_counts_the_seconds_it_worked_and_not_those_it_waited() -> None:
    slow = [leg(lambda v: time.sleep(0.05) or v, guest=guest) for guest in (False, True)]  # type: ignore[func-returns-value]
    desk = Desk(own=slow[0], guest=slow[1])
    results(desk.submit("own", np.array([1])))
    time.sleep(0.5)
    before, for_guests = desk.worker.busy_seconds()
    assert (0.05 <= before < 0.4, for_guests) == (True, 0.0)
    results(desk.submit("guest", np.array([1])))
    after, for_guests = desk.worker.busy_seconds()
    assert 0.05 <= for_guests <= after - before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_is_stuck_for_ever() -> None:
    desk = Desk(broken=leg(lambda v: v[None][9]))  # an IndexError: nothing torch raises, a mistake of ours
    desk.submit("broken", np.array([1]))
    end = time.monotonic() + LONG_S
    while desk.worker.stuck_for() != float("inf") and time.monotonic() < end:
        time.sleep(0.005)
    assert desk.worker.stuck_for() == float("inf")
