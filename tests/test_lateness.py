"""How much later answers come than is reckoned, and whom a server that is full still takes."""

import pytest

from code_ray.errors import RequestError
from code_ray.lateness import Lateness
from code_ray.policy import ORIGINAL, RatePolicy


def test_what_comes_as_late_every_time_is_allowed_for_with_little_doubt() -> None:
    late = Lateness()
    assert late.allowance(0.0) == 0.0
    for number in range(60):
        late.learn(0.5, 0.01 * number)
    assert late.allowance(0.6) == pytest.approx(0.5, abs=0.05)


def test_answers_that_differ_are_allowed_for_with_more_and_early_ones_with_less() -> None:
    steady, wild, early = Lateness(), Lateness(), Lateness()
    for number in range(60):
        steady.learn(0.5, 0.01 * number)
        wild.learn(number % 2, 0.01 * number)
        early.learn(-1.0, 0.01 * number)
    assert wild.allowance(0.6) > steady.allowance(0.6) + 0.3
    assert early.allowance(0.6) < -0.8


def test_what_was_learnt_is_forgotten_where_no_answer_comes() -> None:
    late = Lateness()
    late.learn(8.0, 0.0)
    first = late.allowance(0.0)
    assert first > 1.0
    assert late.allowance(1.0) == pytest.approx(first / 2)
    assert late.allowance(20.0) < 1e-4


FITTING = [ORIGINAL, "skip", "last", "cross"]
LIMITS = dict.fromkeys(FITTING, 2.0)
LOCAL_S = {ORIGINAL: 0.16, "skip": 0.06, "last": 0.08, "cross": 0.02}


def choice(level: float, late: set[str], **rates: float) -> str:
    policy = RatePolicy(dict.fromkeys(FITTING, 0.0))
    policy.set_rates(rates)
    expected = {path: 3.0 if path in late else 1.0 for path in FITTING}
    return policy.choose_in_time(32, 0.0, level, FITTING, expected, LIMITS, LOCAL_S)


def test_at_full_load_nothing_dearer_takes_what_a_late_path_cannot() -> None:
    assert choice(1.0, set(), cross=10.0) == "cross"
    with pytest.raises(RequestError, match="an answer would take 3000 ms, which exceeds 2000") as caught:
        choice(1.0, {"cross"}, cross=10.0)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_what_is_as_accurate_and_costs_the_local_server_less_may_take_it() -> None:
    assert choice(1.0, {"last"}, last=10.0) == "skip"
    with pytest.raises(RequestError, match="3000 ms"):
        choice(1.0, {"skip"}, skip=10.0)


def test_below_full_load_whatever_is_in_time_does() -> None:
    assert choice(0.0, set(), cross=10.0) == ORIGINAL
    assert choice(0.5, {"cross", "skip", "last"}, cross=10.0) == ORIGINAL
    assert choice(0.0, {ORIGINAL}, cross=10.0) == "skip"
