"""How much later answers come than is reckoned, and whom a server that is full still takes."""

import pytest
from test_routes import SECONDS, TINY, reports

from code_ray.errors import RequestError
from code_ray.lateness import Lateness
from code_ray.policy import ORIGINAL, RatePolicy
from deployments.network import ONE_PLACE
from deployments.under_way import UnderWay


def test_what_comes_as_late_every_time_is_allowed_for_with_little_doubt() -> None:
    late = Lateness()
    assert late.allowance(0.0) == 0.0
    for number in range(60):
        late.learn(0.5, 0.001 * number)
    assert late.allowance(0.06) == pytest.approx(0.5, abs=0.05)


def test_answers_that_differ_are_allowed_for_with_more_and_early_ones_with_less() -> None:
    steady, wild, early = Lateness(), Lateness(), Lateness()
    for number in range(60):
        steady.learn(0.5, 0.001 * number)
        wild.learn(number % 2, 0.001 * number)
        early.learn(-1.0, 0.001 * number)
    assert wild.allowance(0.06) > steady.allowance(0.06) + 0.3
    assert early.allowance(0.06) < -0.8


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


def test_what_is_late_behind_others_is_the_load_and_what_is_late_alone_is_not() -> None:
    original, under_way, known = TINY[0], UnderWay(share=1.0), reports(SECONDS)
    expected = under_way.expected(original, original.work(10, known))
    assert expected == pytest.approx(0.1)
    assert not under_way.explains(original, expected, began=0.0, took_s=2.0)
    under_way.add(original.work(100, known))
    assert under_way.explains(original, under_way.expected(original, original.work(10, known)), began=0.0, took_s=2.0)


def test_a_server_with_nothing_to_do_takes_a_request_however_late_answers_came() -> None:
    original, under_way, known = TINY[0], UnderWay(share=1.0), reports(SECONDS)
    under_way.learn(original, 8.0, now=0.0)
    assert under_way.due(original, original.work(10, known), ONE_PLACE, now=0.0) == pytest.approx(0.1)
    under_way.add(original.work(1, known))
    assert under_way.due(original, original.work(10, known), ONE_PLACE, now=0.0) > 1.0
    for _ in range(60):
        under_way.learn(original, -1.0, now=0.0)
    assert under_way.due(original, original.work(10, known), ONE_PLACE, now=0.0) == pytest.approx(0.1), "it takes what it takes alone"
