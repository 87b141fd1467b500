"""The circuit breaker: who is let through, and when a host is trusted again (DESIGN 3.5)."""

import pytest

from code_ray.breaker import MOST_OPEN_S, OPEN_S, Breaker


def failed(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    breaker.begin(at)
    breaker.fail(at)
    return breaker


def test_a_host_that_answers_is_asked_by_all() -> None:
    breaker = Breaker()
    for _ in range(5):
        assert breaker.allows(0.0)
        breaker.begin(0.0)
    breaker.succeed()
    assert (breaker.state(0.0), breaker.allows(0.0)) == ("closed", True)


def test_after_a_failure_nobody_asks_for_a_while() -> None:
    breaker = failed()
    assert (breaker.state(OPEN_S / 2), breaker.allows(OPEN_S / 2)) == ("open", False)


def test_then_one_request_probes_and_the_others_do_not_wait_for_it() -> None:
    breaker = failed()
    assert (breaker.state(OPEN_S), breaker.allows(OPEN_S)) == ("half-open", True)
    breaker.begin(OPEN_S)
    assert (breaker.state(OPEN_S + 1), breaker.allows(OPEN_S + 1)) == ("half-open", False)


def test_a_probe_that_is_answered_closes_it() -> None:
    breaker = failed()
    breaker.begin(OPEN_S)
    breaker.succeed()
    assert breaker.state(OPEN_S) == "closed"
    breaker.begin(OPEN_S)
    breaker.fail(OPEN_S)
    assert breaker.state(OPEN_S + OPEN_S) == "half-open"  # as long as the first time


def test_each_probe_that_fails_doubles_the_wait_up_to_a_minute() -> None:
    breaker, now, waits = failed(), 0.0, []
    for _ in range(7):
        wait = 0.0
        while not breaker.allows(now + wait):
            wait += OPEN_S / 4
        waits.append(wait)
        now += wait
        breaker.begin(now)
        breaker.fail(now)
    assert waits == [OPEN_S * min(2**n, MOST_OPEN_S / OPEN_S) for n in range(7)]


def test_requests_that_fail_together_count_once() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.begin(0.0)
    for _ in range(5):
        breaker.fail(0.0)
    assert breaker.state(OPEN_S) == "half-open"


@pytest.mark.parametrize("late", ["succeed", "give_up"])
def test_a_probe_that_nobody_waits_for_gives_its_place_to_the_next(late: str) -> None:
    breaker = failed()
    breaker.begin(OPEN_S)
    getattr(breaker, late)()
    assert breaker.allows(OPEN_S)
