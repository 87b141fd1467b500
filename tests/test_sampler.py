"""Samplers on a smooth landscape whose best plan is known: what they ask, when they stop, how soon they find it (DESIGN 2.5)."""

from collections.abc import Iterator
from itertools import count, islice
from typing import Literal

import numpy as np
import pytest

from code_ray.objective import Objective, PaperObjective, PlanObjective
from code_ray.path import InferencePath, original_path
from code_ray.reward import Reward
from code_ray.sampler import Proposal, Sampler, Stopping, make_sampler
from code_ray.space import Candidate, enumerate_paths
from code_ray.throughput import Limits, PathCost

Name = Literal["gp", "constant", "random", "printed"]
NAMES: tuple[Name, ...] = ("gp", "constant", "random", "printed")
HOSTS = {"host": 6}
A0 = 0.9
BLOCK_SECONDS = 0.001 * np.array([0.6, 1.4, 1.1, 1.0, 0.7, 0.2])
LIMITS = Limits({"local": 1.0, "host": 0.8}, 2.3)
ORIGINAL = Candidate(original_path("local", 6), PathCost({"local": float(BLOCK_SECONDS.sum())}))
PLAN = PlanObjective(ORIGINAL, A0, LIMITS, "local")
PAPER = PaperObjective(ORIGINAL, A0, LIMITS, "local", Reward(A0 - 0.007))


def cost(path: InferencePath) -> PathCost:
    """Blocks and a little for each link, where it lives."""
    seconds = {"local": 0.0}
    for segment in path.segments:
        seconds[segment.service] = seconds.get(segment.service, 0.0) + float(BLOCK_SECONDS[segment.start : segment.stop].sum())
    home = path.hosts[0] if path.hosts else "local"
    seconds[home] += 0.0001 * len(path.link_slots)
    return PathCost(seconds)


def accuracy(path: InferencePath) -> float:
    """Smooth in the path's positions: what is skipped costs, host blocks of the same depth make up for most of it."""
    lin = path.segments[-1].start if path.ends_in_head else 6
    lost = 0.018 * (lin - path.lout) ** 1.2 + 0.01 * path.lout * (6 - lin) / 9
    if path.hosts:
        borrowed = path.segments[1]
        gap = abs(borrowed.start - path.lout) + abs(borrowed.stop - lin)
        lost *= 0.25 + 0.12 * gap
    return float(A0 - lost)


def accuracy_fit(path: InferencePath) -> float:
    """Least-squares links lose more, the more they have to bridge."""
    return A0 - 1.6 * (A0 - accuracy(path)) - 0.02


CANDIDATES = [
    c for c in (Candidate(p, cost(p)) for p in enumerate_paths("local", 6, HOSTS)) if c.cost.at("local") < ORIGINAL.cost.at("local")
]
BEST = PLAN.value({c.path: (c.cost, accuracy(c.path)) for c in CANDIDATES})
PATIENT = Stopping(max_trainings=40, patience=40, epsilon=0.01)


def sampler(
    name: Name,
    stopping: Stopping = PATIENT,
    *,
    candidates: list[Candidate] = CANDIDATES,
    objective: Objective = PLAN,
    screen: int = 6,
    seed: int = 0,
) -> Sampler:
    return make_sampler(name, candidates, objective, stopping, HOSTS, screen=screen, seed=seed)


def evaluate(of: Sampler, proposal: Proposal) -> None:
    """Tell what the landscape measures."""
    if proposal.fidelity == "fit":
        of.tell(proposal, accuracy_fit(proposal.path))
    else:
        of.tell(proposal, accuracy(proposal.path), accuracy_fit(proposal.path))


def ask(of: Sampler) -> Proposal:
    proposal = of.ask()
    assert proposal is not None
    return proposal


def run(of: Sampler) -> Iterator[Proposal]:
    """Every proposal until the sampler stops, one at a time."""
    while proposal := of.ask():
        yield proposal
        evaluate(of, proposal)
    assert of.stopped_because is not None


def trainings_until(of: Sampler, share: float) -> int:
    for _ in run(of):
        if PLAN.value(of.known) >= share * BEST:
            return len(of.trained)
    raise AssertionError(f"{of.stopped_because} before {share} of {BEST:.3f} was reached")


def test_the_gp_finds_97_percent_of_the_best_plan_with_fewer_trainings_than_chance() -> None:
    seeds = range(3)
    guided = [trainings_until(sampler("gp", screen=24, seed=seed), 0.97) for seed in seeds]
    by_chance = [trainings_until(sampler("random", Stopping(400, 400, 0.01), seed=seed), 0.97) for seed in range(6)]
    assert np.mean(guided) < 0.3 * np.mean(by_chance), (guided, by_chance)


@pytest.mark.parametrize("name", NAMES)
def test_no_path_is_trained_twice_and_none_comes_from_outside(name: Name) -> None:
    few = CANDIDATES[::25]
    trained = [p.path for p in run(sampler(name, Stopping(40, 12, 0.01), candidates=few, screen=3)) if p.fidelity == "trained"]
    assert trained
    assert len(set(trained)) == len(trained)
    assert set(trained) <= {c.path for c in few}


@pytest.mark.parametrize("name", ["gp", "constant", "random"])
def test_it_ends_when_every_path_was_trained(name: Name) -> None:
    few = CANDIDATES[::60]
    searching = sampler(name, candidates=few, screen=2)
    assert {p.path for p in run(searching)} == {c.path for c in few} == set(searching.trained)
    assert searching.stopped_because == "every path was trained"


@pytest.mark.parametrize("name", ["gp", "constant", "random"])
def test_it_ends_when_the_budget_is_spent(name: Name) -> None:
    searching = sampler(name, Stopping(max_trainings=4, patience=40, epsilon=0.01), screen=2)
    assert sum(p.fidelity == "trained" for p in run(searching)) == 4
    assert searching.stopped_because == "the budget of 4 trainings is spent"


@pytest.mark.parametrize("name", ["gp", "constant", "random"])
def test_it_ends_when_patience_does(name: Name) -> None:
    # No gain is ever as large as this epsilon; the two paths of the initial design do not count.
    searching = sampler(name, Stopping(max_trainings=40, patience=3, epsilon=5.0), screen=6)
    assert sum(p.fidelity == "trained" for p in run(searching)) == 3 + (0 if name == "random" else 2)
    assert searching.stopped_because == "3 trainings in a row gained less than 5"


def test_a_gain_of_epsilon_over_the_best_starts_patience_again() -> None:
    searching = sampler("random", Stopping(max_trainings=40, patience=2, epsilon=0.05))
    worse, better, best = sorted((CANDIDATES[i] for i in (0, 100, 200)), key=lambda c: PLAN.value({c.path: (c.cost, A0)}))
    for candidate, lost in ((better, 0.0), (worse, 0.4), (best, 0.0), (CANDIDATES[5], 0.4)):
        searching.tell(Proposal(candidate.path, "trained"), A0 - lost)
        assert searching.stopped_because is None
    searching.tell(Proposal(CANDIDATES[6].path, "trained"), A0 - 0.4)
    assert searching.stopped_because == "2 trainings in a row gained less than 0.05"


@pytest.mark.parametrize("name", NAMES)
def test_without_candidates_there_is_nothing_to_ask(name: Name) -> None:
    searching = sampler(name, candidates=[])
    assert (searching.ask(), searching.chosen) == (None, {})
    assert searching.stopped_because == "no path in the space is faster than the original"


@pytest.mark.parametrize("name", ["gp", "constant"])
@pytest.mark.parametrize("size", [1, 2, 40])
def test_without_a_screen_the_fastest_plan_is_trained_first(name: Name, size: int) -> None:
    few = CANDIDATES[:: len(CANDIDATES) // size]
    first = ask(sampler(name, candidates=few, screen=0))
    fastest = max(few, key=lambda c: PLAN.value({c.path: (c.cost, A0)}))
    assert first.fidelity == "trained"
    assert PLAN.value({first.path: (cost(first.path), A0)}) == pytest.approx(PLAN.value({fastest.path: (fastest.cost, A0)}))


def test_the_screen_comes_first_and_is_spread_over_the_faster_half() -> None:
    searching = sampler("gp", screen=24)
    screened = [ask(searching) for _ in range(24)]
    assert all(p.fidelity == "fit" for p in screened)
    paths = {p.path for p in screened}
    assert len(paths) == 24
    slower = np.median([max(c.cost.at("local"), c.cost.at("host") / 0.8) for c in CANDIDATES])
    assert all(max(cost(p).at("local"), cost(p).at("host") / 0.8) <= slower + 1e-9 for p in paths)
    assert {p.kind for p in paths} == {"cross", "skip", "exit", "probe"}
    # What is trained next depends on the screen, so it has to come back first.
    assert (searching.ask(), searching.stopped_because) == (None, None)


@pytest.mark.parametrize("name", ["gp", "constant", "random"])
def test_what_is_in_flight_together_differs(name: Name) -> None:
    searching = sampler(name, Stopping(max_trainings=5, patience=40, epsilon=0.01), screen=4)
    for _ in range(0 if name == "random" else 4):
        evaluate(searching, ask(searching))
    flying = [ask(searching) for _ in range(5)]
    assert len({p.path for p in flying if p.fidelity == "trained"}) == 5
    # The budget is promised: nothing more now, and the search ends only when the last has landed.
    assert searching.ask() is None
    for proposal in flying:
        assert searching.stopped_because is None
        evaluate(searching, proposal)
    assert searching.ask() is None
    assert searching.stopped_because == "the budget of 5 trainings is spent"


@pytest.mark.parametrize("name", ["gp", "constant", "random"])
def test_what_failed_is_not_proposed_again_and_the_rest_goes_on(name: Name) -> None:
    few = CANDIDATES[::30]
    searching, proposed = sampler(name, candidates=few, screen=3), list[Proposal]()
    for turn in count():
        proposal = searching.ask()
        if proposal is None:
            break
        proposed.append(proposal)
        if turn % 3 == 0:
            searching.drop(proposal)
        else:
            evaluate(searching, proposal)
    assert len(set(proposed)) == len(proposed)
    dropped = {p.path for p in proposed[::3]}
    assert set(searching.trained) == {c.path for c in few} - dropped


@pytest.mark.parametrize("name", ["gp", "constant"])
def test_a_screen_that_fails_altogether_does_not_stop_the_search(name: Name) -> None:
    searching = sampler(name, candidates=CANDIDATES[::30], screen=3)
    for _ in range(3):
        searching.drop(ask(searching))
    assert len([p for p in run(searching) if p.fidelity == "trained"]) == len(CANDIDATES[::30]) - 3


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_asks_the_same(name: Name) -> None:
    stopping = Stopping(max_trainings=3, patience=3, epsilon=0.01)
    first, second = (list(run(sampler(name, stopping, screen=4, seed=7))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("done", range(2, 12, 3))
def test_a_search_resumed_from_its_results_goes_on_as_it_would_have(done: int) -> None:
    stopping = Stopping(max_trainings=40, patience=3, epsilon=0.1)
    whole = list(run(sampler("gp", stopping, screen=4)))
    resumed = sampler("gp", stopping, screen=4)
    for proposal in whole[:done]:
        evaluate(resumed, proposal)
    assert list(run(resumed)) == whole[done:]


def test_the_repaired_sampler_chooses_from_all_it_trained() -> None:
    searching = sampler("gp", Stopping(max_trainings=3, patience=40, epsilon=0.01), screen=4)
    trained = {p.path for p in run(searching) if p.fidelity == "trained"}
    assert searching.chosen == {path: (cost(path), accuracy(path)) for path in trained}


@pytest.mark.parametrize("objective", [PLAN, PAPER], ids=["plan", "paper"])
def test_printed_never_clears_q_so_it_comes_back_to_a_path_that_disappointed(objective: Objective) -> None:
    searching = sampler("printed", Stopping(max_trainings=40, patience=3, epsilon=0.01), objective=objective)
    first = ask(searching)
    # Its first forecast was the original's accuracy. It came out as useless as can be, and is still the best of Q.
    searching.tell(first, 0.1)
    assert searching.ask() is None
    # A trained path stays a candidate: three stages passed without training anything.
    assert searching.stopped_because == "3 trainings in a row gained less than 0.01"
    assert list(searching.trained) == [first.path]


def test_printed_compares_with_the_stage_before_and_not_with_the_best() -> None:
    stopping = Stopping(max_trainings=40, patience=2, epsilon=0.01)
    printed, repaired = sampler("printed", stopping), sampler("random", stopping)
    ranked = sorted(CANDIDATES, key=lambda c: PLAN.value({c.path: (c.cost, A0)}))
    # Down and a little up, again and again, far below the first result.
    for candidate in (ranked[-1], ranked[0], ranked[100], ranked[1], ranked[110], ranked[2], ranked[120]):
        for searching in (printed, repaired):
            searching.tell(Proposal(candidate.path, "trained"), A0)
    assert repaired.stopped_because == "2 trainings in a row gained less than 0.01"
    assert printed.stopped_because is None


def test_printed_returns_the_last_path_and_not_the_best() -> None:
    searching = sampler("printed")
    good, bad = CANDIDATES[:2]
    for candidate, found in ((good, A0), (bad, 0.2)):
        searching.tell(Proposal(candidate.path, "trained"), found)
    assert set(searching.known) == {good.path, bad.path}
    assert searching.chosen == {bad.path: (bad.cost, 0.2)}


def test_printed_trains_one_path_at_a_time_and_knows_no_way_past_a_failure() -> None:
    searching = sampler("printed")
    first = ask(searching)
    assert (searching.ask(), searching.stopped_because) == (None, None)
    searching.drop(first)
    assert searching.ask() is None
    assert searching.stopped_because == f"the training of {first.path} failed, and the printed algorithm knows no other way on"


def test_printed_ends_when_the_budget_is_spent() -> None:
    searching = sampler("printed", Stopping(max_trainings=1, patience=40, epsilon=0.01), objective=PAPER)
    searching.tell(Proposal(CANDIDATES[-1].path, "trained"), A0)
    assert searching.ask() is None
    assert searching.stopped_because == "the budget of 1 trainings is spent"


def test_the_first_trainings_are_the_best_screened_paths_with_and_without_a_host() -> None:
    proposals = list(islice(run(sampler("gp", screen=12)), 14))
    screened = {p.path: PLAN.value({p.path: (cost(p.path), accuracy_fit(p.path))}) for p in proposals[:12]}
    with_host = max((path for path in screened if path.hosts), key=lambda path: screened[path])
    without = max((path for path in screened if not path.hosts), key=lambda path: screened[path])
    assert [p.path for p in proposals[12:]] == [with_host, without]
