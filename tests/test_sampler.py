"""Samplers on a landscape whose best plan is known: what they ask, when they stop, how soon they find it (DESIGN 2.5)."""

from itertools import count, islice

import numpy as np
import pytest
from landscape import A0, CANDIDATES, NAMES, PLAN, Name, accuracy, accuracy_fit, ask, cost, evaluate, run, sampler, trainings_until

from code_ray.greedy_sampler import LEFT_AFTER_TRAINING
from code_ray.path import InferencePath
from code_ray.sampler import Proposal, Stopping


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
    # No gain is ever as large as this epsilon; the three paths of the initial design do not count.
    searching = sampler(name, Stopping(max_trainings=40, patience=3, epsilon=5.0), screen=6)
    assert sum(p.fidelity == "trained" for p in run(searching)) == 3 + (0 if name == "random" else 3)
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


def test_a_third_of_the_screen_is_rivals_a_third_is_spread_and_the_rest_is_where_it_promises_most() -> None:
    searching = sampler("gp", screen=24)
    first = [ask(searching) for _ in range(16)]
    assert [bool(p.path.hosts) for p in first] == 8 * [False] + 8 * [True]
    slower = np.median([max(c.cost.at("local"), c.cost.at("host") / 0.8) for c in CANDIDATES if c.path.hosts])
    assert all(max(cost(p.path).at("local"), cost(p.path).at("host") / 0.8) <= slower + 1e-9 for p in first[8:])
    assert {p.path.kind for p in first} == {"cross", "skip", "exit", "probe"}
    # Where to look next depends on what these reach, so they have to come back first.
    assert (searching.ask(), searching.stopped_because) == (None, None)
    for proposal in first:
        evaluate(searching, proposal)
    promising = []
    for _ in range(8):
        promising.append(ask(searching))
        evaluate(searching, promising[-1])
    assert all(p.fidelity == "fit" for p in first + promising)
    assert len({p.path for p in first + promising}) == 24
    worth = [np.mean([PLAN.value({p.path: (cost(p.path), accuracy(p.path))}) for p in group]) for group in (first[8:], promising)]
    assert worth[1] > worth[0]
    assert ask(searching).fidelity == "trained"


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


def test_the_first_trainings_are_the_best_screened_path_with_a_host_and_the_two_best_without() -> None:
    proposals = list(islice(run(sampler("gp", screen=24)), 27))
    reached = {p.path: (cost(p.path), A0 - LEFT_AFTER_TRAINING[p.path.ends_in_head] * (A0 - accuracy_fit(p.path))) for p in proposals[:24]}

    def best(hosted: bool, beside: list[InferencePath]) -> InferencePath:
        group = [path for path in reached if bool(path.hosts) == hosted and path not in beside]
        return max(group, key=lambda path: PLAN.value({other: reached[other] for other in [*beside, path]}))

    with_host, without = best(True, []), best(False, [])
    assert [p.path for p in proposals[24:]] == [with_host, without, best(False, [without])]
