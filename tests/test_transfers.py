"""Networks in the programme: what paths send over each edge, and plans where bandwidth binds (DESIGN 2.3)."""

from dataclasses import replace

import numpy as np
import pytest
from landscape import (
    A0,
    CANDIDATES,
    HOSTS,
    LIMITS,
    ORIGINAL,
    UNDAUNTED,
    accuracy,
    best_value,
    cost,
    sampler,
    trainings_until,
)
from test_cost_table import PLACEMENTS, profile_of
from wide_landscape import COSTS, SPACE
from wide_landscape import OBJECTIVE as WIDE

from code_ray.cost_table import cost_table
from code_ray.gated_objective import GatedPlanObjective
from code_ray.objective import Objective, PaperObjective, PlanObjective
from code_ray.path import InferencePath, path_from_vector
from code_ray.path_space import PathSpace
from code_ray.reward import Reward
from code_ray.service import Service
from code_ray.shortlist import shortlist
from code_ray.space import Candidate, is_faster
from code_ray.throughput import Edge, Limits, PathCost, payload_by_edge
from code_ray.vertices import dual_prices

OUT, BACK = ("local", "host"), ("host", "local")
SIZES = 4.0 * np.array([200, 12_000, 6_000, 3_000, 1_500, 1_000, 10])
"""Bytes an image at each boundary of both services: most just behind the first block, as in networks for images."""
SLOW = replace(LIMITS, bandwidth={OUT: 1e6, BACK: 1e6})


def sent(path: InferencePath) -> PathCost:
    """The landscape's cost of a path, with what it sends."""
    hosted = bool(path.hosts)
    lin = path.segments[-1].start if path.ends_in_head else 6
    return PathCost(cost(path).seconds, {OUT: SIZES[path.lout], BACK: SIZES[lin]} if hosted else {})


EVERY = [Candidate(c.path, sent(c.path)) for c in CANDIDATES]
FAST_PLAN, PLAN = (PlanObjective(ORIGINAL, A0, limits, "local") for limits in (LIMITS, SLOW))
GATED = GatedPlanObjective(ORIGINAL, A0, SLOW, "local", (0.05, 0.2))
PAPER = PaperObjective(ORIGINAL, A0, SLOW, "local", Reward(A0 - 0.007))
KNOWN = {c.path: (c.cost, accuracy(c.path)) for c in EVERY[::17]}


def test_what_leaves_a_place_and_comes_to_another_is_counted_by_edge() -> None:
    # Input 7 at home; the last leg's logits go home.
    assert payload_by_edge("a", 7, [("a", 5), ("b", 3), ("a", 1)]) == {("a", "b"): 5, ("b", "a"): 3}
    assert payload_by_edge("a", 7, [("b", 5), ("c", 3), ("b", 1)]) == {("a", "b"): 7, ("b", "c"): 5, ("c", "b"): 3, ("b", "a"): 1}
    assert payload_by_edge("a", 7, [("a", 5), ("a", 3)]) == {}


def test_where_bandwidth_binds_the_best_plan_is_another_one_and_the_search_finds_it() -> None:
    known = {c.path: (c.cost, accuracy(c.path)) for c in EVERY}
    fast, slow = FAST_PLAN.mixture(known), PLAN.mixture(known)
    used = SLOW.used(slow, [ORIGINAL.cost, *(c.cost for c in EVERY)])
    assert max(used[OUT], used[BACK]) == pytest.approx(1.0)
    assert slow.throughput < 0.9 * fast.throughput
    # The paths that are best without the limit are worth clearly less than the best ones with it.
    best_fast = {path: known[path] for path, rate in zip(known, fast.rates[1:], strict=True) if rate > 0}
    assert PLAN.value(best_fast) < 0.95 * PLAN.value(known)
    # It is the best there is: at prices that pay for just this plan no path, of all there are, is worth more than it takes.
    rows = SLOW.seconds([ORIGINAL.cost, *(c.cost for c in EVERY)]) / PLAN.original_seconds
    over = 100 * (A0 - np.array([A0, *(a for _, a in known.values())])) - SLOW.loss_points
    columns, bounds = np.column_stack([rows, over]), np.append(SLOW.shares, 0.0)
    prices = dual_prices(columns, bounds)
    assert (columns @ prices >= 1 - 1e-6).all()
    assert prices @ bounds == pytest.approx(PLAN.value(known), rel=1e-6)
    # A search that knows nothing at first comes near it with a fraction of the trainings.
    searching = sampler("gp", UNDAUNTED, candidates=EVERY, objective=PLAN, hosts=HOSTS, screen=24)
    assert trainings_until(searching, 0.97 * PLAN.value(known)) < len(EVERY) / 8


def best_value_of(objective: Objective) -> float:
    return objective.value({c.path: (c.cost, accuracy(c.path)) for c in EVERY})


def test_a_bandwidth_that_never_binds_changes_nothing() -> None:
    plenty = PlanObjective(ORIGINAL, A0, replace(LIMITS, bandwidth={OUT: 1e12, BACK: 1e12}), "local")
    assert plenty.value(KNOWN) == pytest.approx(FAST_PLAN.value(KNOWN))
    accuracies = np.array([[accuracy(c.path) for c in EVERY]])
    assert np.allclose(plenty.values_with(KNOWN, EVERY, accuracies), FAST_PLAN.values_with(KNOWN, EVERY, accuracies), rtol=1e-9)
    assert best_value(FAST_PLAN, CANDIDATES) == pytest.approx(best_value_of(plenty))


def test_one_more_path_is_valued_as_the_programme_values_it() -> None:
    asked, few = EVERY[::3], dict(list(KNOWN.items())[::3])
    accuracies = np.array([[accuracy(c.path) for c in asked]])
    exact = np.array([PLAN.value({**few, c.path: (c.cost, accuracy(c.path))}) for c in asked])
    assert np.allclose(PLAN.values_with(few, asked, accuracies)[0], exact, rtol=1e-6)
    assert (exact < 0.99 * FAST_PLAN.values_with(few, asked, accuracies)[0]).any()


@pytest.mark.parametrize("objective", [PLAN, GATED, PAPER], ids=["plan", "gated", "paper"])
def test_no_value_is_above_its_bound(objective: Objective) -> None:
    accuracies = np.array([[accuracy(c.path) for c in EVERY]])
    values = objective.values_with(KNOWN, EVERY, accuracies)[0]
    bound = objective.upper_bound(KNOWN)(objective.limits.seconds([c.cost for c in EVERY]), accuracies[0])
    assert (bound >= values * (1 - 1e-9)).all()
    # The network is a part of the bound, not of the value alone.
    wider = type(objective).upper_bound(objective, KNOWN)(
        objective.limits.seconds([replace(c.cost, payload_bytes={}) for c in EVERY]), accuracies[0]
    )
    assert (bound < wider * (1 - 1e-6)).any()


def test_the_papers_pair_goes_at_the_networks_rate_where_that_is_the_least() -> None:
    candidate = Candidate(EVERY[0].path, PathCost({"local": 0.001, "host": 0.001}, {OUT: 1e4}))
    tau_l, tau_h = PAPER.pair_seconds([candidate])
    assert (float(tau_l[0]), float(tau_h[0])) == pytest.approx((0.001, 0.01))
    assert is_faster(candidate, ORIGINAL, "local", SLOW)


def test_a_gated_path_sends_what_the_plain_one_does(tiny_services: dict[str, Service]) -> None:
    services = {name: tiny_services[name] for name in ("tiny", "host")}
    profile = profile_of(PathSpace("tiny", 6, {"host": 6}), services, {"tiny": "a", "host": "b"})
    plain = path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6)
    gated = profile.cost(replace(plain, rerun=0.25), services)
    assert gated.payload_bytes == profile.cost(plain, services).payload_bytes
    assert gated.at("a") == pytest.approx(profile.cost(plain, services).at("a") + 0.25 * profile.original_seconds("tiny"))


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())
def test_by_the_chunk_a_path_takes_of_the_network_what_it_takes_by_itself(
    placement: dict[str, str], tiny_services: dict[str, Service]
) -> None:
    space = PathSpace("tiny", 6, {"host": 6, "second": 6}, ranks=(None, 3))
    profile = profile_of(space, tiny_services, placement)
    edges = {("c", "a"): 2e6, ("a", "b"): 1e6, ("b", "a"): 3e6, ("a", "c"): 5e5}
    limits = Limits(dict.fromkeys(reversed(sorted({*placement.values()})), 0.5), 2.0, edges)
    found = np.concatenate([cost_table(space, profile, tiny_services).taken(rows, limits) for rows in space.chunks()])
    expected = limits.seconds([profile.cost(path, tiny_services) for path in space.paths()])
    assert found.shape == (len(space), len(limits.resources))
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert (found[:, len(limits.budgets) :].max(axis=0) > 0).any()


def test_of_a_wide_space_other_paths_promise_most_where_the_network_to_a_host_is_slow() -> None:
    found = []
    for bandwidth in (dict[Edge, float](), {("local", "near"): 0.01, ("near", "local"): 0.01}):
        objective = PlanObjective(WIDE.original, A0, replace(WIDE.limits, bandwidth=bandwidth), "local")
        rows, _ = shortlist(SPACE, COSTS, objective, {}, lambda f: np.full(len(f), 0.3), 0.5, 40)
        found.append(sum(SPACE.path(row).hosts == ("near",) for row in rows))
    assert found[1] < found[0] / 2
