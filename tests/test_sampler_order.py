"""What samplers score and train, and in which order, on a landscape whose best plan is known (DESIGN 2.5)."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from landscape import (
    A0,
    CANDIDATES,
    HOSTS,
    LIMITS,
    ORIGINAL,
    PAPER,
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
    sampler,
    score,
    trainings_until,
    turns,
)

from code_ray.acquisition import NODES, expected_improvement
from code_ray.forecast import UNKNOWN_STD, UNKNOWN_Z, after_score, from_z
from code_ray.objective import Objective, PaperObjective, PlanObjective
from code_ray.path import InferencePath
from code_ray.reward import Reward
from code_ray.sampler import Proposal, Sampler, Stopping
from code_ray.scoring import Score
from code_ray.scoring_design import BATCH, groups_of
from code_ray.throughput import Limits, PathCost


def start(of: Sampler) -> list[tuple[Proposal, ...]]:
    """All batches that are asked before anything was told."""
    return list(iter(of.ask, ()))


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
    first, *batches = start(searching)
    assert len(first) == 1
    found = Counter(p.path.hosts for batch in batches for p in batch)
    assert found[()] == 8
    assert set(found) - {()} == {(host,) for host in hosts}
    assert {found[host,] for host in hosts} == {each}
    assert {p.path.kind for batch in batches for p in batch if not p.path.hosts} == {"skip", "exit"}
    # What to ask next depends on what these say.
    assert (searching.ask(), searching.stopped_because) == ((), None)


FASTEST = PaperObjective(ORIGINAL, A0, LIMITS, "local", Reward(A0 - 0.007, exponent=3))
"""A reward for which speed is nearly all."""


@pytest.mark.parametrize("objective", [PLAN, PAPER, FASTEST], ids=["plan", "paper", "fastest"])
def test_what_would_serve_most_if_it_lost_nothing_is_scored_first(objective: Objective) -> None:
    first = ask(sampler("gp", objective=objective, screen=24))
    values = {c.path: objective.value({c.path: (c.cost, A0)}) for c in CANDIDATES}
    assert first.fidelity == "fit"
    assert values[first.path] == pytest.approx(max(values.values()))


def test_before_the_first_training_nothing_is_scored_that_could_not_add_to_what_is_forecast() -> None:
    searching, forecast = sampler("gp", objective=FASTEST, screen=24), dict[InferencePath, tuple[PathCost, float]]()
    while (proposals := searching.ask())[0].fidelity == "fit":
        before = FASTEST.value(forecast)
        for proposal in proposals:
            path = proposal.path
            assert FASTEST.value({path: (cost(path), A0)}) > before
            evaluate(searching, proposal)
            lost = float(from_z(np.array(after_score(score(path), path))))
            forecast[path] = cost(path), A0 - lost / 100
    assert 0 < len(forecast) < 12  # half of the screen


@pytest.mark.parametrize("why", ["a worker has nothing better to do", "it came out worse than forecast"])
def test_what_was_not_worth_a_look_may_be_later(why: str) -> None:
    searching = sampler("gp", objective=FASTEST, screen=24)
    first = ask(searching).path
    searching.tell(Proposal(first, "fit"), A0, Score(A0, 0.0, divergence=0.0, explained=1.0, seconds=0.1))
    # Nothing is better than the fastest if that loses nothing.
    training = ask(searching)
    assert training == Proposal(first, "trained")
    if why == "it came out worse than forecast":
        searching.tell(training, 0.1)
    proposals = searching.ask()
    assert len(proposals) > 1
    assert {p.fidelity for p in proposals} == {"fit"}


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


@pytest.mark.parametrize("seed", range(3))
def test_no_search_ends_for_lack_of_hope_before_what_may_still_serve_more_was_scored(seed: int) -> None:
    searching = sampler("gp", Stopping(40, 40, 0.05), screen=len(CANDIDATES), seed=seed)
    scored = {p.path for batch in turns(searching) for p in batch if p.fidelity == "fit"}
    assert searching.stopped_because == "no path left is expected to gain 0.05"
    assert len(scored) < len(CANDIDATES) - 10
    value = searching.objective.value(searching.known)
    for candidate in searching.candidates:
        if candidate.path not in scored | {*searching.trained}:
            expected = searching.expected_range(candidate.path)
            assert expected is not None
            # The range is wider by what chance makes of a training than what the search looks at: some gain is left beyond its end.
            assert searching.objective.value({**searching.known, candidate.path: (candidate.cost, expected[1])}) < value + 0.1
