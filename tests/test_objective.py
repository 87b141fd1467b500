"""Objectives: what a set of trained paths is worth (DESIGN 2.4)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from code_ray.objective import Known, Objective, PaperObjective, PlanObjective
from code_ray.path import original_path
from code_ray.reward import Reward, pair_reward
from code_ray.space import Candidate, enumerate_paths
from code_ray.throughput import FloatArray, Limits, PathCost

A0 = 0.9
T0 = 0.004
ORIGINAL = Candidate(original_path("local", 6), PathCost({"local": T0}))
LIMITS = Limits({"local": 1.0, "host": 0.6, "second": 0.3}, 2.3)
PLAN = PlanObjective(ORIGINAL, A0, LIMITS, "local")
PAPER = PaperObjective(ORIGINAL, A0, LIMITS, "local", Reward(A0 - 0.007))
PATHS = enumerate_paths("local", 6, {"host": 6, "second": 6}, kinds=["cross", "skip"])


def cost(index: int, local: float, host: float) -> PathCost:
    hosts = PATHS[index].hosts
    return PathCost({"local": T0 * local} | ({hosts[0]: T0 * host} if hosts else {}))


@st.composite
def trained(draw: st.DrawFn, at_most: int) -> Known:
    """Up to ``at_most`` trained paths of any speed and accuracy."""
    chosen = draw(st.lists(st.integers(0, len(PATHS) - 1), max_size=at_most, unique=True))
    shares = st.floats(0.01, 1.5)
    return {PATHS[i]: (cost(i, draw(shares), draw(shares)), draw(st.floats(0.1, 0.95))) for i in chosen}


def some_candidates(count: int, seed: int) -> tuple[list[Candidate], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Candidates and their accuracies (1, n), better where they are slower."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(PATHS), count, replace=False)
    local = rng.uniform(0.05, 0.95, count)
    candidates = [Candidate(PATHS[i], cost(i, share, rng.uniform(0.1, 1.2))) for i, share in zip(chosen, local, strict=True)]
    return candidates, np.asarray(A0 - 0.25 * (1 - local) * rng.uniform(0.3, 1.0, count))[None]


def test_nothing_trained_is_worth_the_original() -> None:
    assert PLAN.value({}) == pytest.approx(1.0)
    assert PAPER.value({}) == PAPER.original_value == pytest.approx(1 / (1 + np.exp(-8 * 0.007)))


@given(trained(6), trained(3))
def test_more_trained_paths_never_lower_the_value(known: Known, more: Known) -> None:
    assert PLAN.value({**more, **known}) >= PLAN.value(known) - 1e-6
    assert PAPER.value({**more, **known}) >= PAPER.value(known)
    assert PLAN.value(known) >= 1 - 1e-6


@given(trained(4))
def test_the_mixture_lists_the_original_first_and_then_the_known_paths(known: Known) -> None:
    mixture = PLAN.mixture(known)
    costs = [ORIGINAL.cost, *(c for c, _ in known.values())]
    assert len(mixture.rates) == 1 + len(known)
    assert mixture.load("local", costs) <= 1 + 1e-6
    assert mixture.load("second", costs) <= 0.3 + 1e-6
    assert mixture.average_loss_points([A0, *(a for _, a in known.values())], A0) <= 2.3 + 1e-5


def test_a_path_that_loses_too_much_takes_a_share_only() -> None:
    # Twice the speed for 4.6 points: half of the samples may take it.
    known = {PATHS[0]: (PathCost({"local": T0 / 2, "host": T0 / 100}), A0 - 0.046)}
    assert PLAN.value(known) == pytest.approx(1 / 0.75)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_known", [0, 1, 5])
def test_every_candidate_is_valued_as_the_programme_values_it(seed: int, num_known: int) -> None:
    # Two hosts and the local server: four rows, so plans of up to four paths.
    candidates, accuracies = some_candidates(60, seed)
    known = {c.path: (c.cost, float(a)) for c, a in zip(candidates[:num_known], accuracies[0], strict=False)}
    asked, at = candidates[num_known:], accuracies[:, num_known:]
    found = PLAN.values_with(known, asked, at)[0]
    exact = [PLAN.value({**known, c.path: (c.cost, float(a))}) for c, a in zip(asked, at[0], strict=True)]
    assert np.allclose(found, exact, rtol=1e-5)
    assert found.max() > PLAN.value(known)


def test_a_few_candidates_are_all_valued_beside_what_is_known() -> None:
    candidates, accuracies = some_candidates(6, seed=3)
    known = {candidates[0].path: (candidates[0].cost, 0.88)}
    grid = np.vstack([accuracies, accuracies - 0.05])
    found = PLAN.values_with(known, candidates[1:], grid[:, 1:])
    assert found.shape == (2, 5)
    for row, column in np.ndindex(found.shape):
        candidate = candidates[1 + column]
        exact = PLAN.value({**known, candidate.path: (candidate.cost, float(grid[row, 1 + column]))})
        assert found[row, column] == pytest.approx(exact, rel=1e-9)


def test_the_papers_value_is_that_of_its_best_pair_at_maximum_offload() -> None:
    candidates, accuracies = some_candidates(12, seed=4)
    known = {c.path: (c.cost, float(a)) for c, a in zip(candidates, accuracies[0], strict=True)}
    pairs = [
        pair_reward(
            PAPER.reward,
            A0,
            np.array([accuracy]),
            T0,
            np.array([c.seconds["local"]]),
            np.array([c.elsewhere("local")]),
            LIMITS.budgets[path.hosts[0]] if path.hosts else 1.0,
        )[0]
        for path, (c, accuracy) in known.items()
    ]
    assert PAPER.value(known) == pytest.approx(max(PAPER.original_value, *map(float, pairs)))


def test_a_path_that_ruins_accuracy_leaves_the_paper_with_the_original() -> None:
    candidate = Candidate(PATHS[0], PathCost({"local": 0.2 * T0, "host": 0.1 * T0}))
    assert float(PAPER.path_values([candidate], np.array([[0.1]]))[0, 0]) < PAPER.original_value
    assert PAPER.value({candidate.path: (candidate.cost, 0.1)}) == PAPER.original_value


def test_what_a_candidate_adds_to_the_paper_is_the_better_of_the_two() -> None:
    candidates, accuracies = some_candidates(8, seed=5)
    known = {candidates[0].path: (candidates[0].cost, 0.89)}
    found = PAPER.values_with(known, candidates[1:], accuracies[:, 1:])
    alone = PAPER.path_values(candidates[1:], accuracies[:, 1:])
    assert np.array_equal(found, np.maximum(alone, PAPER.value(known)))


def test_each_host_lends_its_own_share() -> None:
    seconds = 0.9 * T0
    generous, tight = (
        Candidate(next(p for p in PATHS if p.hosts == (host,)), PathCost({"local": T0 / 2, host: seconds})) for host in ("host", "second")
    )
    # 0.6 / 0.9 and 0.3 / 0.9 of Th_0 offloaded, each sample frees half a local sample.
    for candidate, share in ((generous, 0.6), (tight, 0.3)):
        offloaded = share / 0.9
        total = 1 + offloaded / 2
        expected = PAPER.reward((A0 * (1 - offloaded / 2) + 0.88 * offloaded) / total, total)
        assert float(PAPER.path_values([candidate], np.array([[0.88]]))[0, 0]) == pytest.approx(float(expected))


def test_a_path_over_two_hosts_goes_at_the_tighter_ones_rate() -> None:
    both = Candidate(PATHS[0], PathCost({"local": T0 / 2, "host": 0.3 * T0, "second": 0.3 * T0}))
    tau_l, tau_h = PLAN.pair_seconds([both])
    assert (float(tau_l[0]), float(tau_h[0])) == pytest.approx((T0 / 2, T0))


def upper_values(objective: Objective, known: Known, candidates: list[Candidate], accuracies: FloatArray) -> FloatArray:
    """The upper bound of each candidate (columns) at each accuracy (rows)."""
    seconds = np.array([[c.cost.at(provider) for provider in objective.limits.budgets] for c in candidates])
    bound = objective.upper_bound(known)
    return np.array([bound(seconds, row) for row in accuracies])


@settings(max_examples=40)
@given(trained(5), st.integers(0, 2**32 - 1))
def test_no_plan_with_one_more_path_is_worth_more_than_its_upper_bound(known: Known, seed: int) -> None:
    candidates, accuracies = some_candidates(30, seed)
    # Better than the original, as good, within the loss limit, and hopeless.
    grid = np.vstack([accuracies, accuracies + 0.2, np.full_like(accuracies, A0), accuracies - 0.6]).clip(0, 1)
    plans, papers = PLAN.values_with(known, candidates, grid), PAPER.values_with(known, candidates, grid)
    assert (upper_values(PLAN, known, candidates, grid) >= plans - 1e-6 * plans).all()
    assert np.allclose(upper_values(PAPER, known, candidates, grid), papers, rtol=1e-12)


def test_the_upper_bound_of_a_path_that_is_no_better_than_the_original_is_the_plan_without_it() -> None:
    candidates, accuracies = some_candidates(5, seed=6)
    known = {c.path: (c.cost, float(a)) for c, a in zip(candidates, accuracies[0], strict=True)}
    worse = Candidate(PATHS[-1], PathCost({"local": T0, "host": 0.1 * T0}))
    for objective in (PLAN, PAPER):
        assert upper_values(objective, known, [worse], np.array([[A0 - 0.01]]))[0, 0] == pytest.approx(objective.value(known))


def test_upper_bounds_stand_in_for_values_where_too_many_plans_would_have_to_be_walked() -> None:
    hosts = [f"host{i}" for i in range(8)]
    many = PlanObjective(ORIGINAL, A0, Limits({"local": 1.0} | dict.fromkeys(hosts, 0.5), 2.3), "local")
    paths = enumerate_paths("local", 6, dict.fromkeys(hosts, 6), kinds=["cross"])
    rng = np.random.default_rng(0)
    every = [Candidate(p, PathCost({"local": T0 * rng.uniform(0.2, 0.9), p.hosts[0]: T0 * rng.uniform(0.2, 0.9)})) for p in paths[::40]]
    known = {c.path: (c.cost, A0 - rng.uniform(0.0, 0.1)) for c in every[:15]}
    accuracies = np.array([[A0 - 0.02], [A0]]).repeat(len(every[15:]), axis=1)
    found = many.values_with(known, every[15:], accuracies)
    assert np.array_equal(found, upper_values(many, known, every[15:], accuracies))
    exact = np.array([many.value({**known, c.path: (c.cost, A0 - 0.02)}) for c in every[15:]])
    assert (found[0] >= exact * (1 - 1e-6)).all()
    assert (found[0] > exact * (1 + 1e-6)).any()


@given(trained(12))
def test_best_plans_need_only_paths_that_no_other_beats(known: Known) -> None:
    fewer = PLAN.efficient(known)
    assert PLAN.mixture(fewer).throughput == pytest.approx(PLAN.mixture(known).throughput, rel=1e-6)
    for path, (cost, accuracy) in known.items():
        beaten_by = [p for p, (c, a) in fewer.items() if a >= accuracy and all(c.at(name) <= cost.at(name) for name in LIMITS.budgets)]
        assert (path in fewer) == (beaten_by == [path])


def test_of_paths_that_are_the_same_in_everything_one_is_kept() -> None:
    entry = (PathCost({"local": T0 / 2, "host": T0 / 4}), 0.89)
    assert list(PLAN.efficient({PATHS[0]: entry, PATHS[1]: entry, PATHS[2]: entry})) == [PATHS[0]]
