"""Throughput: the programme, its closed forms, and the rows it has to keep (DESIGN 2.3)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.errors import PlanError
from code_ray.throughput import (
    Limits,
    Mixture,
    PathCost,
    best_mixture,
    cycle_throughput,
    host_efficiency,
    least_loss_mixture,
    pair_throughput,
)
from code_ray.vertices import best_with

NO_LIMIT = 100.0
# Microseconds (a small network on an accelerator) to seconds (a large one on a slow core).
times = st.floats(-6, 0.5).map(lambda exponent: 10.0**exponent)
shares = st.floats(0.01, 2.0)
kappas = st.floats(0.05, 1.0)
ORIGINAL = PathCost({"local": 1.0})


def hundredths(low: int, high: int) -> st.SearchStrategy[float]:
    """Points, as far as validation data can tell them apart."""
    return st.integers(100 * low, 100 * high).map(lambda n: n / 100)


def pair(t0: float, tau_l: float, tau_h: float) -> list[PathCost]:
    return [PathCost({"local": t0}), PathCost({"local": tau_l, "host": tau_h})]


@given(times, shares, shares, kappas)
def test_the_programme_is_the_closed_form_at_maximum_offload(t0: float, local: float, host: float, kappa: float) -> None:
    tau_l, tau_h = t0 * local, t0 * host
    th_l, th_h = pair_throughput(t0, tau_l, tau_h, kappa)
    mixture = best_mixture(pair(t0, tau_l, tau_h), [0.9, 0.5], 0.9, Limits({"local": 1.0, "host": kappa}, NO_LIMIT))
    assert mixture.throughput == pytest.approx(float(th_l + th_h), rel=1e-6)
    if abs(local - 1) > 1e-3:
        assert mixture.rates[1] == pytest.approx(float(th_h), rel=1e-4, abs=1e-6 / t0)


def test_the_closed_form_of_a_path_that_halves_local_work() -> None:
    th_l, th_h = pair_throughput(0.010, 0.005, 0.008, 0.4)
    assert (float(th_h), float(th_l)) == pytest.approx((50.0, 75.0))


def test_the_local_server_bounds_the_offload_too() -> None:
    th_l, th_h = pair_throughput(0.010, 0.005, 0.0001, 1.0)
    assert (float(th_h), float(th_l)) == pytest.approx((200.0, 0.0))


def test_closed_forms_broadcast_over_paths() -> None:
    tau_l, tau_h = np.array([0.2, 0.5, 1.5]), np.array([1.0, 0.1, 0.1])
    together = sum(pair_throughput(1.0, tau_l, tau_h, 0.5))
    one_by_one = [float(sum(pair_throughput(1.0, a, b, 0.5))) for a, b in zip(tau_l, tau_h, strict=True)]
    assert np.allclose(together, one_by_one)


@given(times, st.floats(1.001, 5.0), shares)
def test_a_path_that_frees_no_local_time_gets_rate_zero(t0: float, slower: float, host: float) -> None:
    mixture = best_mixture(pair(t0, t0 * slower, t0 * host), [0.9, 0.99], 0.9, Limits({"local": 1.0, "host": 1.0}, NO_LIMIT))
    assert mixture.rates[1] == pytest.approx(0.0, abs=1e-6 / t0)
    assert mixture.throughput == pytest.approx(1 / t0, rel=1e-6)
    assert [float(rate) for rate in pair_throughput(t0, t0 * slower, t0 * host, 1.0)] == pytest.approx([1 / t0, 0.0])


@st.composite
def programmes(draw: st.DrawFn) -> tuple[list[PathCost], list[float], Limits]:
    """The original and up to eight paths over two hosts and two network edges, on a machine of any speed."""
    t0 = draw(times)
    costs, accuracies = [PathCost({"local": t0})], [0.9]
    for _ in range(draw(st.integers(0, 8))):
        host = draw(st.sampled_from(["first", "second"]))
        payload = {("local", host): draw(st.floats(0, 1e6)), (host, "local"): draw(st.floats(0, 1e6))}
        costs.append(PathCost({"local": t0 * draw(shares), host: t0 * draw(shares)}, payload))
        accuracies.append(draw(st.floats(0.1, 0.95)))
    bandwidth = {("local", "first"): draw(st.floats(1e4, 1e12)), ("second", "local"): draw(st.floats(1e4, 1e12))}
    budgets = {"local": 1.0, "first": draw(kappas), "second": draw(kappas)}
    return costs, accuracies, Limits(budgets, draw(st.floats(0, 10)), bandwidth)


@given(programmes())
def test_every_row_holds_and_the_original_alone_is_never_better(problem: tuple[list[PathCost], list[float], Limits]) -> None:
    costs, accuracies, limits = problem
    mixture = best_mixture(costs, accuracies, 0.9, limits)
    assert min(mixture.rates) >= 0
    for provider, budget in limits.budgets.items():
        assert mixture.load(provider, costs) <= budget + 1e-6
    for edge, capacity in limits.bandwidth.items():
        assert sum(rate * cost.payload_bytes.get(edge, 0.0) for rate, cost in zip(mixture.rates, costs, strict=True)) <= capacity * (
            1 + 1e-6
        )
    assert mixture.average_loss_points(accuracies, 0.9) <= limits.loss_points + 1e-5
    assert mixture.throughput >= (1 - 1e-6) / costs[0].at("local")


def with_one_path(t0: float, tau_l: float, tau_h: float, kappa: float, loss: float, limit: float) -> float:
    """Throughput of the best plan of the original and one path, by the vertices that the path takes part in."""
    original, path = [[1.0, 0.0, -limit]], [[tau_l / t0, tau_h / t0, loss - limit]]
    return max(1.0, float(best_with(np.array(original), np.array([1.0, kappa, 0.0]), np.array(path))[0])) / t0


@given(times, shares, shares, kappas, hundredths(-5, 60), hundredths(0, 10))
def test_the_vertices_within_the_loss_limit_are_the_programme(
    t0: float, local: float, host: float, kappa: float, loss: float, limit: float
) -> None:
    limits = Limits({"local": 1.0, "host": kappa}, limit)
    mixture = best_mixture(pair(t0, t0 * local, t0 * host), [0.9, 0.9 - loss / 100], 0.9, limits)
    found = with_one_path(t0, t0 * local, t0 * host, kappa, loss, limit)
    assert found == pytest.approx(mixture.throughput, rel=1e-5)


def test_a_skip_within_the_loss_limit_needs_no_host() -> None:
    limits = Limits({"local": 1.0}, 2.0)
    mixture = best_mixture([ORIGINAL, PathCost({"local": 0.5})], [0.9, 0.85], 0.9, limits)
    found = with_one_path(1.0, 0.5, 0.0, 0.5, 5.0, 2.0)
    # 40 % of the samples may lose 5 points each.
    assert found == pytest.approx(1 / (0.6 + 0.4 * 0.5))
    assert found == pytest.approx(mixture.throughput)


def test_a_loss_limit_of_zero_leaves_the_original() -> None:
    mixture = best_mixture([ORIGINAL, PathCost({"local": 0.5})], [0.9, 0.89], 0.9, Limits({"local": 1.0}, 0.0))
    assert mixture.rates == pytest.approx((1.0, 0.0))


def test_a_more_accurate_path_pays_for_a_less_accurate_one() -> None:
    limits = Limits({"local": 1.0, "host": 1.0}, 0.0)
    costs = [ORIGINAL, PathCost({"local": 0.5, "host": 0.5}), PathCost({"local": 0.1, "host": 0.5})]
    mixture = best_mixture(costs, [0.9, 0.92, 0.88], 0.9, limits)
    assert mixture.rates[1] == pytest.approx(mixture.rates[2])
    assert mixture.throughput > 2


def test_the_bandwidth_row_binds() -> None:
    costs = [ORIGINAL, PathCost({"local": 0.2, "host": 0.2}, {("local", "host"): 1000.0, ("host", "local"): 10.0})]
    limits = Limits({"local": 1.0, "host": 1.0}, NO_LIMIT, {("local", "host"): 500.0})
    mixture = best_mixture(costs, [0.9, 0.9], 0.9, limits)
    assert mixture.rates == pytest.approx((0.9, 0.5))
    other_way = best_mixture(costs, [0.9, 0.9], 0.9, Limits(limits.budgets, NO_LIMIT, {("host", "local"): 500.0}))
    assert other_way.rates[1] == pytest.approx(5.0)


@pytest.mark.parametrize("t0", [1e-6, 1e-3, 1.0, 30.0])
def test_machines_of_every_speed_get_the_same_plan(t0: float) -> None:
    costs = [
        PathCost({"local": t0}),
        PathCost({"local": 0.3 * t0, "host": 0.9 * t0}),
        PathCost({"local": 0.6 * t0}),
        PathCost({"local": 1e-4 * t0, "host": 50 * t0}),
    ]
    mixture = best_mixture(costs, [0.9, 0.87, 0.84, 0.9], 0.9, Limits({"local": 1.0, "host": 0.5}, 2.3))
    expected = best_mixture(
        [PathCost({p: s / t0 for p, s in cost.seconds.items()}) for cost in costs],
        [0.9, 0.87, 0.84, 0.9],
        0.9,
        Limits({"local": 1.0, "host": 0.5}, 2.3),
    )
    assert [rate * t0 for rate in mixture.rates] == pytest.approx(list(expected.rates), abs=1e-7)


def test_a_fast_path_beside_a_slow_original_is_well_scaled() -> None:
    # Seconds for the original, a microsecond for the path.
    mixture = best_mixture(pair(3.0, 1e-6, 1e-6), [0.9, 0.9], 0.9, Limits({"local": 1.0, "host": 1.0}, 0.0))
    assert mixture.throughput == pytest.approx(1e6, rel=1e-6)


@given(times, shares, shares, kappas)
def test_a_cycle_of_only_own_samples_is_the_original(t0: float, local: float, host: float, kappa: float) -> None:
    found = cycle_throughput(t0, np.array([t0 * local]), np.array([t0 * host]), kappa, own=32, offloaded=0)
    assert found[0] == pytest.approx(1 / t0)


def test_a_cycle_waits_for_the_slower_server() -> None:
    # 2 own and 2 offloaded samples: the local server is busy for 2.4 seconds, the host for 1.6 or 4.
    tau_l, tau_h = np.array([0.2]), np.array([0.4])
    assert cycle_throughput(1.0, tau_l, tau_h, 0.5, own=2, offloaded=2)[0] == pytest.approx(4 / 2.4)
    assert cycle_throughput(1.0, tau_l, tau_h, 0.2, own=2, offloaded=2)[0] == pytest.approx(4 / 4)


@given(times, shares, shares, kappas, st.integers(1, 64), st.integers(1, 64))
def test_a_fixed_cycle_never_beats_the_programme(t0: float, local: float, host: float, kappa: float, own: int, offloaded: int) -> None:
    mixture = best_mixture(pair(t0, t0 * local, t0 * host), [0.9, 0.9], 0.9, Limits({"local": 1.0, "host": kappa}, NO_LIMIT))
    found = cycle_throughput(t0, np.array([t0 * local]), np.array([t0 * host]), kappa, own, offloaded)
    assert found[0] <= mixture.throughput * (1 + 1e-6)


@given(times)
def test_a_replica_has_efficiency_one(t0: float) -> None:
    assert host_efficiency(t0, 0.0, t0) == pytest.approx(1.0)


def test_efficiency_is_local_work_saved_per_host_work_and_none_without_a_host() -> None:
    assert host_efficiency(1.0, 0.4, 1.2) == pytest.approx(0.5)
    assert host_efficiency(1.0, 0.4, 0.0) is None


@given(programmes(), st.floats(0, 1), st.data())
def test_no_mixture_of_the_same_speed_up_loses_less(
    problem: tuple[list[PathCost], list[float], Limits], reach: float, data: st.DataObject
) -> None:
    costs, accuracies, limits = problem
    # Two plans that keep the rows, and every mixture between them, are rivals at their throughput.
    slow = best_mixture(costs, accuracies, 0.9, limits)
    fast = best_mixture(costs, accuracies, 0.9, Limits(limits.budgets, NO_LIMIT, limits.bandwidth))
    rates = [(1 - reach) * a + reach * b for a, b in zip(slow.rates, fast.rates, strict=True)]
    shrink = data.draw(st.floats(0.1, 1.0))
    rival = Mixture(tuple(shrink * rate for rate in rates))
    least = least_loss_mixture(costs, accuracies, 0.9, limits, rival.throughput * (1 - 1e-9))
    assert least is not None
    assert least.throughput == pytest.approx(rival.throughput, rel=1e-6)
    assert least.average_loss_points(accuracies, 0.9) <= rival.average_loss_points(accuracies, 0.9) + 1e-4
    for provider, budget in limits.budgets.items():
        assert least.load(provider, costs) <= budget + 1e-6


def test_the_least_loss_at_a_speed_up_takes_the_accurate_path_first() -> None:
    costs = [ORIGINAL, PathCost({"local": 0.5, "host": 1.0}), PathCost({"local": 0.25})]
    mixture = least_loss_mixture(costs, [0.9, 0.89, 0.6], 0.9, Limits({"local": 1.0, "host": 0.5}, 0.0), 1.2)
    assert mixture is not None
    assert mixture.rates == pytest.approx((0.8, 0.4, 0.0))


@given(programmes(), st.floats(1.01, 100.0))
def test_a_speed_up_out_of_reach_is_none(problem: tuple[list[PathCost], list[float], Limits], factor: float) -> None:
    costs, accuracies, limits = problem
    most = best_mixture(costs, accuracies, 0.9, Limits(limits.budgets, NO_LIMIT, limits.bandwidth)).throughput
    assert least_loss_mixture(costs, accuracies, 0.9, limits, factor * most) is None


def test_a_mixture_of_nothing_loses_nothing() -> None:
    assert Mixture((0.0, 0.0)).average_loss_points([0.9, 0.5], 0.9) == 0.0


def test_a_provider_without_a_budget_is_named() -> None:
    with pytest.raises(PlanError, match=r"no budget is given for provider\(s\) \['host'\]; name a kappa for each host"):
        best_mixture(pair(1.0, 0.5, 0.5), [0.9, 0.9], 0.9, Limits({"local": 1.0}, NO_LIMIT))


@pytest.mark.parametrize("seconds", [0.0, float("nan")])
def test_a_path_that_costs_no_time_is_refused(seconds: float) -> None:
    costs = [ORIGINAL, PathCost({"local": seconds})]
    limits = Limits({"local": 1.0}, NO_LIMIT)
    with pytest.raises(PlanError, match="is not positive; measure the profile again"):
        best_mixture(costs, [0.9, 0.9], 0.9, limits)
    with pytest.raises(PlanError, match="is not positive; measure the profile again"):
        least_loss_mixture(costs, [0.9, 0.9], 0.9, limits, 1.0)
