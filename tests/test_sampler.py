"""Samplers on a landscape whose best plan is known: what they ask, when they stop, how soon they find it (DESIGN 2.5)."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from landscape import (
    A0,
    BEST,
    CANDIDATES,
    HOSTS,
    NAMES,
    PLAN,
    POOR,
    UNDAUNTED,
    Name,
    accuracy,
    ask,
    best_value,
    cost,
    evaluate,
    faster,
    run,
    sampler,
    trainings_until,
)

from code_ray.acquisition import NODES, expected_improvement
from code_ray.forecast import UNKNOWN_STD, UNKNOWN_Z, from_z
from code_ray.greedy_sampler import LEAST_TRAININGS
from code_ray.objective import PlanObjective
from code_ray.path import InferencePath, path_from_vector
from code_ray.sampler import Proposal, Sampler, Stopping
from code_ray.scoring_design import BATCH, groups_of
from code_ray.throughput import Limits

GREEDY: tuple[Name, ...] = ("gp", "constant", "random")
FEW = CANDIDATES[::30]


def start(of: Sampler) -> list[tuple[Proposal, ...]]:
    """All batches that are asked before anything was told."""
    return list(iter(of.ask, ()))


def turns(of: Sampler) -> list[tuple[Proposal, ...]]:
    """All that is asked until the sampler stops, each batch told before the next is asked."""
    found = []
    while proposals := of.ask():
        found.append(proposals)
        for proposal in proposals:
            evaluate(of, proposal)
    return found


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


@pytest.mark.parametrize("name", GREEDY)
def test_without_candidates_there_is_nothing_to_ask(name: Name) -> None:
    searching = sampler(name, candidates=[])
    assert (searching.ask(), searching.chosen, searching.left) == ((), {}, None)
    assert searching.stopped_because == "no path in the space is faster than the original"


@pytest.mark.parametrize("name", ["gp", "constant"])
@pytest.mark.parametrize("size", [1, 2, 40])
def test_without_a_screen_what_serves_most_if_all_lose_alike_is_trained_first(name: Name, size: int) -> None:
    few = CANDIDATES[:: len(CANDIDATES) // size]
    first = ask(sampler(name, candidates=few, screen=0))
    accuracies = PLAN.accuracies(from_z(UNKNOWN_Z + UNKNOWN_STD * NODES))[:, None].repeat(len(few), axis=1)
    promises = expected_improvement(PLAN.values_with({}, few, accuracies), 1.0)
    assert first.fidelity == "trained"
    assert promises[[c.path for c in few].index(first.path)] == pytest.approx(promises.max())


@pytest.mark.parametrize(
    ("hosts", "each"),
    [(HOSTS, 4), (HOSTS | POOR, 3), (POOR | HOSTS | {"third": 6}, 2)],
    ids=["one host", "two hosts", "three hosts"],
)
def test_paths_without_a_host_and_as_many_of_all_hosts_are_scored_before_anything_is_known(hosts: dict[str, int], each: int) -> None:
    objective = PlanObjective(PLAN.original, A0, Limits({"local": 1.0} | dict.fromkeys(hosts, 0.8), 2.3), "local")
    searching = sampler("gp", candidates=faster(hosts), objective=objective, hosts=hosts, screen=24)
    batches = start(searching)
    found = Counter(p.path.hosts for batch in batches for p in batch)
    assert found[()] == 8
    assert set(found) - {()} == {(host,) for host in hosts}
    assert {found[host,] for host in hosts} == {each}
    assert {p.path.kind for batch in batches for p in batch if not p.path.hosts} == {"skip", "exit"}
    # What to ask next depends on what these say.
    assert (searching.ask(), searching.stopped_because) == ((), None)


@pytest.mark.parametrize("seed", range(2))
def test_what_is_scored_together_shares_most_of_its_work_and_what_was_scored_is_trained(seed: int) -> None:
    searching = sampler("gp", Stopping(4, 4, 0.0), screen=24, seed=seed)
    group_of = {i: key for key, group in groups_of(searching.candidates).items() for i in group}
    scored: set[InferencePath] = set()
    for batch in turns(searching):
        paths = [p.path for p in batch]
        assert len({p.fidelity for p in batch}) == 1
        if batch[0].fidelity == "fit":
            assert len({group_of[searching.index[path]] for path in paths}) == 1
            assert len(paths) <= BATCH
            scored |= {*paths}
        else:
            assert len(paths) == 1
            # Only when no score is left is a path trained that has none.
            assert paths[0] in scored or len(scored) == 24


def test_once_something_is_known_better_paths_are_scored() -> None:
    def best(batches: list[tuple[Proposal, ...]]) -> float:
        return max(PLAN.value({p.path: (cost(p.path), accuracy(p.path))}) for p in chain(*batches) if p.fidelity == "fit")

    values = []
    for seed in range(3):
        searching = sampler("gp", Stopping(2, 2, 0.0), screen=24, seed=seed)
        first = start(searching)
        for proposal in chain(*first):
            evaluate(searching, proposal)
        values.append((best(first), best(turns(searching))))
    before, after = np.mean(values, axis=0)
    assert after > 1.05 * before, values


@pytest.mark.parametrize("hosts", [HOSTS | POOR, POOR | HOSTS], ids=["good host first", "poor host first"])
def test_of_two_hosts_the_one_that_serves_better_is_found(hosts: dict[str, int]) -> None:
    objective = PlanObjective(PLAN.original, A0, Limits({"local": 1.0} | dict.fromkeys(hosts, 0.8), 2.3), "local")
    candidates = faster(hosts)
    goal = 0.95 * best_value(objective, candidates)

    def trainings(name: Name, seed: int) -> int:
        searching = sampler(name, UNDAUNTED, candidates=candidates, objective=objective, hosts=hosts, screen=36, seed=seed)
        found = trainings_until(searching, goal)
        rates = dict(zip(searching.chosen, objective.mixture(searching.chosen).rates[1:], strict=True))
        assert max(rates, key=lambda path: rates[path]).hosts == ("host",)
        return found

    guided, by_chance = (np.mean([trainings(name, seed) for seed in range(2)]) for name in ("gp", "random"))
    assert guided < 0.2 * by_chance


@pytest.mark.parametrize("screen", [0, 1, 2, 3, 9, 24])
@pytest.mark.parametrize("failing", [False, True], ids=["all succeed", "every third fails"])
def test_no_more_paths_are_scored_than_the_screen_allows(screen: int, failing: bool) -> None:
    searching, asked = sampler("gp", Stopping(4, 9, 0.0), screen=screen), list[Proposal]()
    while proposals := searching.ask():
        for proposal in proposals:
            asked.append(proposal)
            if failing and len(asked) % 3 == 0:
                searching.drop(proposal)
            else:
                evaluate(searching, proposal)
    scored = [p.path for p in asked if p.fidelity == "fit"]
    assert len({*scored}) == len(scored) <= screen
    if not failing:
        assert len(scored) == screen


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
