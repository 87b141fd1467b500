"""The bucket of borrowed seconds: never more than kappa on average, a burst at most at once (DESIGN 3.5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.metering import ComputeBucket

kappas = st.floats(0.01, 1.0)


def test_a_new_bucket_holds_its_burst() -> None:
    bucket = ComputeBucket(share=0.25, burst_s=0.5, now=100.0)
    assert bucket.balance(100.0) == 0.5
    assert bucket.wait_for(0.0, 100.0) == 0.0


def test_it_fills_at_kappa_and_no_higher_than_its_burst() -> None:
    bucket = ComputeBucket(share=0.25, burst_s=0.5, now=0.0)
    bucket.charge(0.5, 0.0)
    assert bucket.balance(1.0) == pytest.approx(0.25)
    assert bucket.balance(1000.0) == 0.5


def test_an_overdraft_has_to_be_paid_back_before_guests_come_in_again() -> None:
    bucket = ComputeBucket(share=0.5, burst_s=0.1, now=0.0)
    bucket.charge(0.3, 0.0)
    assert bucket.wait_for(0.0, 0.0) == pytest.approx(0.4)
    assert bucket.wait_for(0.0, 0.2) == pytest.approx(0.2)
    assert bucket.wait_for(0.0, 0.4001) == 0.0


def test_what_is_promised_counts_as_spent() -> None:
    bucket = ComputeBucket(share=0.5, burst_s=0.1, now=0.0)
    assert bucket.wait_for(0.1, 0.0) == 0.0
    assert bucket.wait_for(0.3, 0.0) == pytest.approx(0.4)


@given(kappas, st.floats(0, 1), st.lists(st.tuples(st.floats(0, 2), st.floats(0, 0.2)), min_size=1, max_size=50))
def test_guests_get_kappa_of_any_time_and_one_burst_and_one_batch_more(
    share: float, burst_s: float, work: list[tuple[float, float]]
) -> None:
    bucket, now, used = ComputeBucket(share, burst_s, 0.0), 0.0, 0.0
    for pause, seconds in work:
        now += pause
        if bucket.wait_for(0.0, now) == 0.0:
            bucket.charge(seconds, now)
            used += seconds
        assert used <= burst_s + share * now + 0.2 + 1e-9


@given(kappas, st.floats(0, 1), st.floats(0, 5), st.floats(0, 1))
def test_the_wait_is_exactly_long_enough(share: float, burst_s: float, spent: float, promised: float) -> None:
    bucket = ComputeBucket(share, burst_s, 0.0)
    bucket.charge(spent, 0.0)
    wait = bucket.wait_for(promised, 0.0)
    assert (wait == 0.0) == (promised <= burst_s - spent)
    if promised <= burst_s:
        assert bucket.wait_for(promised, wait) == pytest.approx(0.0, abs=1e-9 / share)


@given(kappas, st.lists(st.floats(0, 3), max_size=20))
def test_asking_often_changes_nothing(share: float, pauses: list[float]) -> None:
    asked, left = ComputeBucket(share, 2.0, 0.0), ComputeBucket(share, 2.0, 0.0)
    for bucket in (asked, left):
        bucket.charge(5.0, 0.0)
    now = 0.0
    for pause in pauses:
        now += pause
        asked.balance(now)
    assert asked.balance(now) == pytest.approx(left.balance(now))
