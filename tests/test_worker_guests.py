"""The host comes first: guests run in slices beside own traffic, and make room in a surge (DESIGN 3.5)."""

import time

import numpy as np
from test_worker import LONG_S, Desk, leg, results

from deployments.routes import Refusal
from deployments.worker import OWN_FIRST, OWN_RECENTLY_S, Array


def sizes(desk: Desk, name: str) -> list[int]:
    return [len(images) for ran, images in desk.ran if ran == name]


def test_guests_run_in_slices_of_time_beside_own_traffic_and_own_requests_in_their_best_batches() -> None:
    desk = Desk(own=leg(seconds=0.01), guest=leg(guest=True, seconds=0.01), guest_slice_s=0.03)
    desk.keep_busy()
    futures = [desk.submit("guest", np.arange(8)), desk.submit("own", np.arange(8))]
    desk.opened.set()
    assert results(*futures) == [(2 * np.arange(8)).tolist()] * 2
    assert sizes(desk, "own") == [8]
    # The running time of the leg is measured, so later slices may hold more; the first one is as promised.
    assert sizes(desk, "guest")[0] == 3


def test_a_slice_is_no_more_than_a_part_of_what_an_own_request_takes() -> None:
    def slow(value: Array) -> Array:
        time.sleep(0.4)
        return value

    desk = Desk(own=leg(slow), guest=leg(guest=True, seconds=0.01), guest_share_of_wait=0.1)
    results(desk.submit("own", np.arange(1)))
    desk.keep_busy()
    future = desk.submit("guest", np.arange(8))
    desk.opened.set()
    results(future)
    assert 3 <= sizes(desk, "guest")[0] <= 5


def test_a_guest_leg_slower_than_a_slice_runs_image_by_image() -> None:
    desk = Desk(own=leg(), guest=leg(lambda value: value, guest=True, seconds=5.0), guest_slice_s=0.02)
    desk.keep_busy()
    future = desk.submit("guest", np.arange(3))
    own = desk.submit("own", np.arange(1))
    desk.opened.set()
    results(future, own)
    assert sizes(desk, "guest")[0] == 1


def test_without_own_traffic_guests_run_in_their_best_batches() -> None:
    desk = Desk(own=leg(), guest=leg(guest=True, seconds=0.01), guest_slice_s=0.03)
    results(desk.submit("own", np.arange(1)))
    time.sleep(OWN_RECENTLY_S + 0.1)
    results(desk.submit("guest", np.arange(8)))
    assert sizes(desk, "guest") == [8]


def test_guests_that_waited_long_behind_own_work_are_told_to_go_elsewhere_and_later_ones_stay() -> None:
    desk = Desk(own=leg(), guest=leg(guest=True), guest_wait_s=0.2)
    desk.keep_busy()
    early = desk.submit("guest", np.arange(4))
    time.sleep(0.3)
    late = desk.submit("guest", np.arange(4))
    own = desk.submit("own", np.arange(4))
    desk.opened.set()
    sent_away = early.result(LONG_S)
    assert isinstance(sent_away, Refusal)
    assert sent_away.reason == OWN_FIRST
    results(own, late)
    # What it was to take is no longer promised to anybody: the next guest is let in.
    results(desk.submit("guest", np.arange(4)))


def test_a_guest_that_waits_behind_guests_alone_is_not_sent_away() -> None:
    desk = Desk(guest=leg(guest=True), guest_wait_s=0.1)
    hold = desk.submit("gate", np.zeros(1))
    assert desk.is_busy.wait(LONG_S)
    waiting = desk.submit("guest", np.arange(4))
    time.sleep(0.3)
    desk.opened.set()
    assert results(hold, waiting)[1] == [0, 2, 4, 6]


def test_no_guest_is_let_in_during_a_surge_of_own_work() -> None:
    desk = Desk(own=leg(seconds=0.1), guest=leg(guest=True), guest_wait_s=0.25)
    desk.keep_busy()
    own = [desk.submit("own", np.arange(3))]
    refused = desk.worker.submit("guest", np.arange(1))
    desk.opened.set()
    results(*own)
    assert isinstance(refused, Refusal)
    assert refused.reason == OWN_FIRST
    assert refused.retry_after_s > 0
    results(desk.submit("guest", np.arange(1)))
