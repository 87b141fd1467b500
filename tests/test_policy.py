"""The rate policy: shares over requests of any size, paths left out and taken back (DESIGN 3.5)."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.errors import RequestError
from code_ray.policy import COOL_DOWN_S, ORIGINAL, RatePolicy

RATES = {ORIGINAL: 60.0, "a": 30.0, "b": 10.0}


def images_by_path(policy: RatePolicy, sizes: list[int], now: float = 0.0) -> Counter[str]:
    taken: Counter[str] = Counter()
    for size in sizes:
        taken[policy.choose(size, now)] += size
    return taken


def test_equal_requests_follow_the_rates_to_the_request() -> None:
    assert images_by_path(RatePolicy(RATES), [1] * 100) == {ORIGINAL: 60, "a": 30, "b": 10}


@given(
    st.dictionaries(st.sampled_from([ORIGINAL, *"abcdef"]), st.floats(0.1, 1000), min_size=1),
    st.lists(st.integers(1, 64), min_size=1, max_size=200),
)
def test_images_stay_within_one_large_request_a_path_of_the_rates(rates: dict[str, float], sizes: list[int]) -> None:
    taken = images_by_path(RatePolicy(rates), sizes)
    total = sum(rates.values())
    for path, rate in rates.items():
        assert abs(taken[path] - sum(sizes) * rate / total) <= max(sizes) * len(rates)


def test_requests_are_spread_and_not_bunched() -> None:
    policy = RatePolicy({ORIGINAL: 1.0, "a": 1.0})
    chosen = [policy.choose(8, 0.0) for _ in range(10)]
    assert all(first != second for first, second in pairwise(chosen))


def test_a_path_of_rate_zero_is_never_chosen() -> None:
    assert set(images_by_path(RatePolicy({ORIGINAL: 1.0, "a": 2.0, "b": 0.0}), [3] * 50)) == {ORIGINAL, "a"}


@pytest.mark.parametrize("rates", [{}, {"a": 0.0}, {ORIGINAL: 0.0, "a": 0.0}])
def test_without_rates_everything_takes_the_original(rates: dict[str, float]) -> None:
    assert set(images_by_path(RatePolicy(rates), [1] * 5)) == {ORIGINAL}


def test_a_path_left_out_gives_its_share_to_the_others_and_comes_back() -> None:
    policy = RatePolicy(RATES)
    policy.leave_out("a", now=10.0)
    assert images_by_path(policy, [1] * 70, now=10.0 + COOL_DOWN_S / 2) == {ORIGINAL: 60, "b": 10}
    assert "a" in images_by_path(policy, [1] * 10, now=10.0 + COOL_DOWN_S)


def test_a_path_that_comes_back_does_not_catch_up() -> None:
    policy = RatePolicy(RATES)
    policy.leave_out("a", now=0.0, seconds=5.0)
    images_by_path(policy, [1] * 1000, now=1.0)
    assert images_by_path(policy, [1] * 100, now=5.0)["a"] == pytest.approx(30, abs=2)


def test_with_every_path_left_out_the_original_takes_over() -> None:
    policy = RatePolicy({"a": 1.0, "b": 1.0})
    for path in ("a", "b"):
        policy.leave_out(path, now=0.0)
    assert images_by_path(policy, [1] * 5) == {ORIGINAL: 5}


def test_the_original_is_never_left_out() -> None:
    policy = RatePolicy(RATES)
    policy.leave_out(ORIGINAL, now=0.0, seconds=100.0)
    assert images_by_path(policy, [1] * 100, now=1.0)[ORIGINAL] == 60


def test_new_rates_hold_at_once_and_health_stays() -> None:
    policy = RatePolicy(RATES)
    images_by_path(policy, [1] * 50)
    policy.leave_out("a", now=0.0, seconds=100.0)
    policy.set_rates({ORIGINAL: 1.0, "a": 1.0, "c": 1.0})
    assert policy.shares == pytest.approx({ORIGINAL: 1 / 3, "a": 1 / 3, "c": 1 / 3})
    taken = images_by_path(policy, [1] * 60, now=1.0)
    assert set(taken) == {ORIGINAL, "c"}
    assert taken["c"] == pytest.approx(30, abs=10)


def test_a_pinned_request_takes_its_path_whatever_its_rate_and_health() -> None:
    policy = RatePolicy({ORIGINAL: 1.0, "a": 0.0})
    policy.leave_out("a", now=0.0)
    assert policy.choose(1, 0.0, pinned="a") == "a"
    assert policy.choose(1, 0.0, pinned=ORIGINAL) == ORIGINAL


def test_a_pinned_request_costs_the_others_nothing() -> None:
    policy = RatePolicy(RATES)
    for _ in range(50):
        policy.choose(64, 0.0, pinned="a")
    assert images_by_path(policy, [1] * 100) == {ORIGINAL: 60, "a": 30, "b": 10}


def test_an_unknown_pin_lists_what_there_is() -> None:
    with pytest.raises(RequestError, match="path 'z' is not one that may be used; there are: a, b, original") as caught:
        RatePolicy(RATES).choose(1, 0.0, pinned="z")
    assert caught.value.status == 400


@pytest.mark.parametrize(("level", "original"), [(0.0, 100), (0.25, 90), (0.5, 80), (1.0, 60)])
def test_shares_move_with_the_level_from_the_original_to_the_rates(level: float, original: int) -> None:
    policy = RatePolicy(RATES)
    taken = Counter(policy.choose(1, 0.0, level=level) for _ in range(100))
    assert taken[ORIGINAL] == pytest.approx(original, abs=1)
    assert taken["a"] == pytest.approx(30 * level, abs=1)


def test_a_level_that_rises_does_not_bring_what_was_not_borrowed_before() -> None:
    policy = RatePolicy(RATES)
    for _ in range(1000):
        policy.choose(1, 0.0, level=0.0)
    taken = Counter(policy.choose(1, 0.0) for _ in range(100))
    assert taken["a"] == pytest.approx(30, abs=2)


def test_only_paths_that_fit_are_taken_in_the_rates_between_them() -> None:
    policy = RatePolicy(RATES)
    assert Counter(policy.choose(1, 0.0, among=["b", "a"]) for _ in range(40)) == {"a": 30, "b": 10}


def test_where_no_path_of_the_rates_fits_the_best_that_does_is_taken() -> None:
    policy = RatePolicy({ORIGINAL: 1.0, "a": 0.0, "b": 0.0})
    assert policy.choose(1, 0.0, among=["b", "a"]) == "b"
    policy.leave_out("b", 0.0)
    assert policy.choose(1, 0.0, among=["b", "a"]) == "a"
    policy.leave_out("a", 0.0)
    assert policy.choose(1, 0.0, among=["b", "a"]) == ORIGINAL
