"""The load level against a discrete-event model of a local server with a queue and a host without one (DESIGN 3.5)."""

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from code_ray.load import PATIENCE_S, LoadLevel
from code_ray.policy import ORIGINAL, RatePolicy

IMAGES = 32
LOCAL_SHARE = 0.5
"""What a request on the cross path takes of the local server, beside one on the original path."""
HOST_SHARE = 0.3
OBSERVED_S = 2.0
"""How often routers hear what the local server did."""
PLAN = {ORIGINAL: 0.2, "cross": 0.8}
BOUND = 1 / (PLAN[ORIGINAL] + PLAN["cross"] * LOCAL_SHARE)
"""Throughput of the plan over the original's."""


@dataclass(frozen=True)
class Answer:
    """When a request came, when it was answered and by which path, and the level at which it was sent off."""

    begin: float
    end: float
    path: str
    level: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Pair:
    """A local server that runs requests in order, a router before it; ``request_s`` seconds a request on the original path."""

    def __init__(self, request_s: float, routers: int = 1) -> None:
        self.request_s = request_s
        self.loads = [LoadLevel(1 / routers) for _ in range(routers)]
        self.policies = [RatePolicy(PLAN) for _ in range(routers)]
        self.ending: list[tuple[float, int, float]] = []
        self.free = self.observed = self.worked = self.known = 0.0
        self.answers: list[Answer] = []

    def ask(self, now: float) -> Answer:
        """A request at ``now``, of which all before were earlier."""
        while self.ending and self.ending[0][0] <= now:
            _, router, work = heapq.heappop(self.ending)
            self.loads[router].end(work)
        while now >= self.observed + OBSERVED_S:
            self.observed += OBSERVED_S
            # Of the work that was accepted, what lies behind this moment is done.
            done = self.worked - max(0.0, self.free - self.observed)
            for load in self.loads:
                load.observe((done - self.known) / OBSERVED_S)
            self.known = done
        router = len(self.answers) % len(self.loads)
        load = self.loads[router]
        level = load.level(now)
        path = self.policies[router].choose(IMAGES, now, level=level)
        work = self.request_s * (1.0 if path == ORIGINAL else LOCAL_SHARE)
        self.worked += work
        load.begin(work, self.request_s, now)
        self.free = max(self.free, now) + work
        answer = Answer(now, self.free + (0.0 if path == ORIGINAL else HOST_SHARE * self.request_s), path, level)
        heapq.heappush(self.ending, (answer.end, router, work))
        self.answers.append(answer)
        return answer

    def open_loop(self, load_at: Callable[[float], float], seconds: float, rng: np.random.Generator | None = None) -> list[Answer]:
        """Requests at ``load_at(time)`` times what the original serves, evenly spaced, or as chance has it."""
        now = 0.0
        while (now := now + self.request_s / load_at(now) * (1.0 if rng is None else rng.exponential())) < seconds:
            self.ask(now)
        return self.answers

    def closed_loop(self, clients: int, seconds: float) -> list[Answer]:
        """Each client asks again when it was answered."""
        ready = [(0.0, number) for number in range(clients)]
        while ready[0][0] < seconds:
            now, number = heapq.heappop(ready)
            heapq.heappush(ready, (self.ask(now).end, number))
        return self.answers


def borrowed(answers: list[Answer], since: float = 0.0) -> float:
    return float(np.mean([answer.path != ORIGINAL for answer in answers if answer.begin >= since]))


def spans(answers: list[Answer], seconds: float) -> Iterator[list[Answer]]:
    for _, group in itertools.groupby(answers, lambda answer: answer.begin // seconds):
        yield list(group)


REQUESTS = pytest.mark.parametrize("request_s", [0.002, 0.03, 0.4])


@REQUESTS
@pytest.mark.parametrize("load", [0.2, 0.8, 0.98])
def test_what_the_local_server_can_do_alone_it_does_alone(request_s: float, load: float) -> None:
    answers = Pair(request_s).open_loop(lambda _: load, 600 * request_s + 20)
    assert borrowed(answers) == 0
    assert max(answer.seconds for answer in answers) < 1.01 * request_s


@REQUESTS
@pytest.mark.parametrize("load", [1.05, 1.2, 1.35, 1.5])
def test_above_that_just_as_much_is_borrowed_as_the_load_needs(request_s: float, load: float) -> None:
    start = 200 * request_s + 25  # until what had queued up at first is worked off
    answers = [a for a in Pair(request_s).open_loop(lambda _: load, 800 * request_s + 50) if a.begin > start]
    needed = (1 - 1 / load) / (1 - LOCAL_SHARE)
    assert borrowed(answers) == pytest.approx(needed, abs=0.03)
    assert np.quantile([answer.seconds for answer in answers], 0.99) < 8 * request_s


@REQUESTS
def test_beyond_the_plans_bound_all_of_the_plan_is_used(request_s: float) -> None:
    answers = Pair(request_s).open_loop(lambda _: 1.2 * BOUND, 400 * request_s + 20)
    assert borrowed(answers, 100 * request_s + 10) == pytest.approx(PLAN["cross"], abs=0.01)


def test_accuracy_goes_smoothly_as_the_load_rises_and_comes_back_as_it_falls() -> None:
    answers = Pair(0.01).open_loop(lambda now: 0.2 + 1.3 * (1 - abs(now - 60) / 60), 120.0)
    shares = [borrowed(group) for group in spans(answers, 5.0)]
    top = int(np.argmax(shares))
    assert shares[:6] == [0] * 6
    assert shares[-6:] == [0] * 6
    assert shares[top] > 0.5
    # Before it leaves 0 the queue has grown for a moment; that is made up for at first.
    assert max(np.abs(np.diff(shares))) < 0.2
    assert max(answer.seconds for answer in answers) < PATIENCE_S


@pytest.mark.parametrize("seed", range(3))
def test_requests_by_chance_hardly_borrow_below_four_fifths_of_the_load(seed: int) -> None:
    answers = Pair(0.1).open_loop(lambda _: 0.5, 500.0, np.random.default_rng(seed))
    assert borrowed(answers) < 0.01
    answers = Pair(0.1).open_loop(lambda _: 0.8, 500.0, np.random.default_rng(seed))
    assert borrowed(answers) < 0.15


@pytest.mark.parametrize("seed", range(3))
def test_a_steady_overload_does_not_flap(seed: int) -> None:
    answers = Pair(0.05).open_loop(lambda _: 1.3, 200.0, np.random.default_rng(seed))
    shares = [borrowed(group) for group in spans(answers, 5.0)][1:]
    assert min(shares) > 0.1
    assert np.quantile([answer.seconds for answer in answers], 0.99) < 20 * 0.05


@REQUESTS
@pytest.mark.parametrize("clients", [6, 10])
def test_clients_that_ask_again_at_once_get_all_that_the_plan_serves(request_s: float, clients: int) -> None:
    seconds = 300 * request_s + 20
    answers = [a for a in Pair(request_s).closed_loop(clients, seconds) if a.end > seconds / 2]
    rate = len(answers) / (answers[-1].end - answers[0].end)
    assert rate * request_s > 0.95 * BOUND


def test_one_client_after_another_borrows_nothing() -> None:
    assert borrowed(Pair(0.05).closed_loop(1, 60.0)) == 0


def test_routers_that_see_a_part_of_the_requests_do_as_one_does() -> None:
    answers = Pair(0.02, routers=2).open_loop(lambda _: 1.4, 60.0)
    assert borrowed(answers, 10.0) == pytest.approx((1 - 1 / 1.4) / (1 - LOCAL_SHARE), abs=0.05)


def test_what_is_on_the_wire_is_no_queue() -> None:
    load = LoadLevel()
    for _ in range(20):
        load.begin(0.002, 0.002, 0.0)
    load.observe(0.5)
    assert load.level(60.0) == 0
    load.observe(0.95)
    assert load.level(62.0) == 1
    load.observe(0.5)
    assert load.level(64.0) == 0


def test_a_load_of_nothing_is_no_level() -> None:
    load = LoadLevel()
    load.observe(1.0)
    assert load.level(100.0) == 0
    load.begin(0.0, 0.0, 100.0)  # a route whose times nobody knows yet
    assert load.level(200.0) == 0


def test_what_is_refused_counts_as_waiting_for_as_long_as_it_would_take() -> None:
    load = LoadLevel()
    load.begin(0.1, 0.1, 0.0)
    for _ in range(100):
        load.refuse(0.1, 0.5)
    assert load.level(0.5) == 1, "there is nothing left to be patient for"
    load.end(0.1)
    assert load.level(0.65) == pytest.approx(0.25)
    assert load.level(0.81) == 0, "however many were refused, it is forgotten"


def test_one_refusal_is_one_request_that_waits() -> None:
    load = LoadLevel()
    load.begin(0.1, 0.1, 0.0)
    load.refuse(0.1, 0.0)
    assert load.level(0.0) == pytest.approx(0.5)
    assert load.level(0.05) == pytest.approx(0.25)
    assert load.level(0.11) == 0
