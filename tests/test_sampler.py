"""Samplers on a landscape whose best plan is known: what they ask, when they stop, how soon they find it (DESIGN 2.5)."""

from itertools import chain

import numpy as np
import pytest
from landscape import (
    A0,
    BEST,
    CANDIDATES,
    NAMES,
    PLAN,
    UNDAUNTED,
    Name,
    accuracy,
    ask,
    cost,
    evaluate,
    run,
    sampler,
    trainings_until,
    turns,
)

from code_ray.greedy_sampler import LEAST_TRAININGS
from code_ray.path import InferencePath, path_from_vector
from code_ray.predictor import GaussianProcessPredictor
from code_ray.sampler import Proposal, Stopping

GREEDY: tuple[Name, ...] = ("gp", "ridge", "constant", "random")
FEW = CANDIDATES[::30]


def test_the_gp_finds_97_percent_of_the_best_plan_with_far_fewer_trainings_than_without_a_forecast() -> None:
    guided = [trainings_until(sampler("gp", UNDAUNTED, screen=24, seed=seed), 0.97 * BEST) for seed in range(3)]
    by_chance = [trainings_until(sampler("random", UNDAUNTED, seed=seed), 0.97 * BEST) for seed in range(3)]
    assert np.mean(guided) < 0.25 * np.mean(by_chance), (guided, by_chance)
    constant = sampler("constant", Stopping(max_trainings=2 * max(guided), patience=40, epsilon=0.0))
    with pytest.raises(AssertionError, match="the budget of"):
        trainings_until(constant, 0.97 * BEST)


@pytest.mark.parametrize("name", NAMES)
def test_no_path_is_trained_twice_and_none_comes_from_outside(name: Name) -> None:
    trained = [p.path for p in run(sampler(name, Stopping(40, 12, 0.01), candidates=FEW, screen=3)) if p.fidelity == "trained"]
    assert trained
    assert len({*trained}) == len(trained)
    assert {*trained} <= {c.path for c in FEW}


@pytest.mark.parametrize("name", GREEDY)
def test_it_ends_when_every_path_was_trained(name: Name) -> None:
    searching = sampler(name, UNDAUNTED, candidates=FEW, screen=2)
    assert {p.path for p in run(searching)} == {c.path for c in FEW} == {*searching.trained}
    assert searching.stopped_because == "every path was trained"
    assert searching.left is None


@pytest.mark.parametrize("name", GREEDY)
def test_it_ends_when_the_budget_is_spent(name: Name) -> None:
    searching = sampler(name, Stopping(max_trainings=4, patience=40, epsilon=0.0), screen=2)
    assert sum(p.fidelity == "trained" for p in run(searching)) == 4
    assert searching.stopped_because == "the budget of 4 trainings is spent"


@pytest.mark.parametrize("name", GREEDY)
def test_it_ends_when_patience_does(name: Name) -> None:
    searching = sampler(name, Stopping(max_trainings=40, patience=3, epsilon=0.01), screen=6)
    values = [1.0]
    while proposals := searching.ask():
        for proposal in proposals:
            if proposal.fidelity == "fit":
                evaluate(searching, proposal)
            else:
                searching.tell(proposal, 0.4)  # far worse than was forecast: nothing adds much to what the first adds
                values.append(PLAN.value(searching.known))
    gains = [bool(gain >= 0.01) for gain in np.diff(values)]
    assert searching.stopped_because == "3 trainings in a row gained less than 0.01"
    assert gains[-3:] == [False, False, False]
    assert all(any(gains[i : i + 3]) for i in range(len(gains) - 3))


def test_a_gain_of_epsilon_over_the_best_starts_patience_again() -> None:
    searching = sampler("random", Stopping(max_trainings=40, patience=2, epsilon=0.05))
    worse, better, best = sorted((CANDIDATES[i] for i in (0, 100, 200)), key=lambda c: PLAN.value({c.path: (c.cost, A0)}))
    for candidate, lost in ((better, 0.0), (worse, 0.4), (best, 0.0), (CANDIDATES[5], 0.4)):
        searching.tell(Proposal(candidate.path, "trained"), A0 - lost)
        assert searching.stopped_because is None
    searching.tell(Proposal(CANDIDATES[6].path, "trained"), A0 - 0.4)
    assert searching.stopped_because == "2 trainings in a row gained less than 0.05"


@pytest.mark.parametrize("name", ["gp", "constant"])
def test_it_ends_where_no_gain_is_expected_but_not_before_its_forecasts_were_tried(name: Name) -> None:
    # No gain is ever as large as this epsilon.
    searching = sampler(name, Stopping(max_trainings=40, patience=9, epsilon=50.0))
    assert sum(p.fidelity == "trained" for p in run(searching)) == LEAST_TRAININGS
    assert searching.stopped_because == "no path left is expected to gain 50"


def test_before_it_ends_it_doubts_what_trained_paths_say_of_those_that_come_back_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(seed: int) -> float:
        searching = sampler("gp", Stopping(max_trainings=40, patience=40, epsilon=0.05), screen=24, seed=seed)
        assert list(run(searching))
        assert searching.stopped_because == "no path left is expected to gain 0.05"
        assert searching.left is not None
        assert searching.left.expected_improvement <= 0.05
        return searching.objective.value(searching.known) / BEST

    doubting = [found(seed) for seed in range(3)]
    predict = GaussianProcessPredictor.predict
    # Trainings that are expected to gain enough for sure are mostly done at 94 % of the best plan.
    monkeypatch.setattr(
        GaussianProcessPredictor, "predict", lambda self, measured, indices, by_return=False: predict(self, measured, indices)
    )
    sure = [found(seed) for seed in range(3)]
    assert np.mean(doubting) >= 0.97
    assert np.mean(doubting) > np.mean(sure) + 0.01
    assert all(a >= b for a, b in zip(doubting, sure, strict=True))


@pytest.mark.parametrize("name", GREEDY)
def test_without_candidates_there_is_nothing_to_ask(name: Name) -> None:
    searching = sampler(name, candidates=[])
    assert (searching.ask(), searching.chosen, searching.left) == ((), {}, None)
    assert searching.stopped_because == "no path in the space is faster than the original"


@pytest.mark.parametrize("name", GREEDY)
def test_what_is_in_flight_together_differs(name: Name) -> None:
    searching = sampler(name, Stopping(max_trainings=5, patience=40, epsilon=0.01), screen=4)
    while (proposals := searching.ask())[0].fidelity == "fit":
        for proposal in proposals:
            evaluate(searching, proposal)
    flying = [*proposals, *(ask(searching) for _ in range(4))]
    assert len({p.path for p in flying}) == 5
    # The budget is promised: nothing more now, and the search ends only when the last has landed.
    assert searching.ask() == ()
    for proposal in flying:
        assert searching.stopped_because is None
        evaluate(searching, proposal)
    assert searching.ask() == ()
    assert searching.stopped_because == "the budget of 5 trainings is spent"


@pytest.mark.parametrize("name", GREEDY)
def test_what_failed_is_not_proposed_again_and_the_rest_goes_on(name: Name) -> None:
    searching, asked, dropped = sampler(name, UNDAUNTED, candidates=FEW, screen=3), list[Proposal](), set[InferencePath]()
    while proposals := searching.ask():
        for proposal in proposals:
            asked.append(proposal)
            if len(asked) % 3 == 1:
                searching.drop(proposal)
                dropped.add(proposal.path)
            else:
                evaluate(searching, proposal)
    assert len({*asked}) == len(asked)
    assert searching.chosen.keys() == {c.path for c in FEW} - dropped


@pytest.mark.parametrize("name", ["gp", "constant"])
def test_a_screen_that_fails_altogether_does_not_stop_the_search(name: Name) -> None:
    searching = sampler(name, UNDAUNTED, candidates=FEW, screen=3)
    failed = 0
    while (proposals := searching.ask())[0].fidelity == "fit":
        for proposal in proposals:
            searching.drop(proposal)
            failed += 1
    assert failed == (3 if name == "gp" else 0)
    evaluate(searching, proposals[0])
    assert len([p for p in run(searching) if p.fidelity == "trained"]) == len(FEW) - failed - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_asks_the_same(name: Name) -> None:
    stopping = Stopping(max_trainings=3, patience=3, epsilon=0.01)
    first, second = (turns(sampler(name, stopping, screen=12, seed=7)) for _ in range(2))
    assert first == second


def test_a_search_that_is_told_its_results_again_goes_on_as_it_would_have() -> None:
    stopping = Stopping(max_trainings=4, patience=4, epsilon=0.01)
    whole = turns(sampler("gp", stopping, screen=12))
    for done in range(1, len(whole), 2):
        resumed = sampler("gp", stopping, screen=12)
        for proposal in chain(*whole[:done]):
            assert resumed.admit(proposal.path)
            evaluate(resumed, proposal)
        assert turns(resumed) == whole[done:]


def test_a_path_from_another_space_is_not_admitted() -> None:
    assert not sampler("gp").admit(path_from_vector((1, 2, 3, 4), "local", 6, "stranger", 6))


@pytest.mark.parametrize("name", GREEDY)
def test_the_repaired_sampler_keeps_all_it_trained_and_not_the_last_path(name: Name) -> None:
    searching = sampler(name, Stopping(max_trainings=5, patience=40, epsilon=0.0), screen=4)
    trained = [p.path for p in run(searching) if p.fidelity == "trained"]
    assert searching.chosen == {path: (cost(path), accuracy(path)) for path in trained}
    assert searching.takes_all
    searching.tell(Proposal(CANDIDATES[0].path, "trained"), 0.1)
    assert PLAN.value(searching.chosen) >= max(PLAN.value({path: searching.chosen[path]}) for path in trained) * (1 - 1e-9)
