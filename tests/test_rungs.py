"""What is expected of trainings: those that fall back at a rung are stopped, where others end, what is left (DESIGN 2.5)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from landscape import A0, CANDIDATES, ORIGINAL, PATIENT, PLAN, UNDAUNTED, Name, accuracy, best_value, evaluate, run, sampler

from code_ray.path import InferencePath
from code_ray.sampler import Proposal, Sampler, Stopping
from code_ray.space import Candidate
from code_ray.throughput import PathCost

T0 = ORIGINAL.cost.at("local")
FEW = CANDIDATES[::25]
CROSSES = [c.path for c in CANDIDATES if c.path.kind == "cross"]
ALIKE = [Candidate(path, PathCost({"local": 0.5 * T0, "host": 0.1 * T0})) for path in CROSSES[:12]]
"""Paths that cost the same: the less one of them loses, the more it adds to a plan."""

SHORT = Stopping(max_trainings=6, patience=6, epsilon=0.01)


def halving(candidates: Sequence[Candidate] = ALIKE, name: Name = "gp", reduction: int = 2) -> Sampler:
    return sampler(name, SHORT, candidates=list(candidates), reduction=reduction)


def goes_on(of: Sampler, losses: Sequence[float], steps: int = 50, share: float = 0.1) -> list[bool]:
    """Whether each of ``ALIKE`` goes on, in order, that loses so many points at a rung."""
    return [of.keep_training(c.path, steps, share, float(lost)) for c, lost in zip(ALIKE, losses, strict=False)]


def at_rung(path: InferencePath) -> float:
    """What a path loses a fifth of the way, in points."""
    return 150 * (A0 - accuracy(path))


def searched(of: Sampler, rung: int = 100) -> Iterator[tuple[Proposal, float | None]]:
    """What a search with one rung, a fifth of the way, asks one at a time, and what it loses there where it is stopped."""
    while proposals := of.ask():
        for proposal in proposals:
            lost = at_rung(proposal.path)
            if proposal.fidelity == "fit" or of.keep_training(proposal.path, rung, 0.2, lost):
                evaluate(of, proposal)
                yield proposal, None
            else:
                of.stop(proposal.path)
                yield proposal, lost


@pytest.mark.parametrize("name", ["gp", "constant"])
def test_the_first_at_a_rung_goes_on_and_so_does_whoever_is_better_than_all_before(name: Name) -> None:
    assert all(goes_on(halving(name=name), [28, 25, 20, 16, 12, 9]))


@pytest.mark.parametrize("name", ["gp", "constant"])
def test_what_is_worse_than_all_before_is_stopped(name: Name) -> None:
    assert goes_on(halving(name=name), [9, 12, 16, 20, 25]) == [True, False, False, False, False]


@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_of_those_that_came_so_far_the_best_part_goes_on(seed: int, reduction: int) -> None:
    losses = np.random.default_rng(seed).permutation(np.arange(8.0, 30.0, 2.0))
    ranks = [int((losses[:came] < losses[came - 1]).sum()) for came in range(1, len(losses) + 1)]
    expected = [rank < max(1, came // reduction) for came, rank in enumerate(ranks, start=1)]
    assert goes_on(halving(reduction=reduction), losses.tolist()) == expected
    assert {*expected} == {True, False}


def test_each_rung_compares_only_those_that_came_to_it() -> None:
    searching = halving()
    assert goes_on(searching, [9, 12, 16]) == [True, False, False]
    assert goes_on(searching, [20], steps=100, share=0.2) == [True]


def test_paths_are_compared_by_what_they_add_to_a_plan_and_not_by_what_they_lose() -> None:
    slow, fast = ALIKE[0], Candidate(ALIKE[1].path, PathCost({"local": 0.1 * T0, "host": 0.1 * T0}))
    assert [halving([slow, fast]).keep_training(c.path, 50, 0.1, 1.0) for c in (slow, fast)] == [True, True]
    searching = halving([fast, slow])
    assert searching.keep_training(fast.path, 50, 0.1, 1.5)
    assert not searching.keep_training(slow.path, 50, 0.1, 1.0)


@pytest.mark.parametrize("trained", [False, True])
def test_what_a_trained_path_gives_the_plan_anyway_is_not_what_another_adds(trained: bool) -> None:
    # Alone the second is worth more than the first. Beside one that costs as much as it and loses nothing it adds nothing.
    quick = Candidate(ALIKE[0].path, PathCost({"local": 0.05 * T0, "host": 0.05 * T0}))
    searching = halving([quick, *ALIKE[1:]])
    if trained:
        searching.tell(Proposal(ALIKE[-1].path, "trained"), A0)
    assert goes_on(searching, [9.0, 2.0], steps=500, share=1.0) == [True, not trained]


@pytest.mark.parametrize("name", ["random", "printed"])
def test_without_a_forecast_nothing_is_stopped(name: Name) -> None:
    assert all(goes_on(halving(name=name), np.arange(0.0, 24.0, 2.0).tolist()))


def score_first(of: Sampler) -> list[InferencePath]:
    """Paths that a search scores before it trains one; the scores are told."""
    paths: list[InferencePath] = []
    while batch := of.ask():
        if batch[0].fidelity == "trained":
            return paths
        for proposal in batch:
            paths.append(proposal.path)
            evaluate(of, proposal)
    raise AssertionError(of.stopped_because)


def test_a_stopped_path_waits_until_no_other_promises_more_and_then_is_trained_to_its_end() -> None:
    waited = False
    for seed in range(4):
        searching = sampler("gp", UNDAUNTED, candidates=FEW, screen=6, seed=seed)
        events = [(proposal.path, lost is not None) for proposal, lost in searched(searching) if proposal.fidelity == "trained"]
        stopped = [path for path, was_stopped in events if was_stopped]
        assert stopped
        assert len({*stopped}) == len(stopped)
        assert sorted(path for path, was_stopped in events if not was_stopped) == sorted(c.path for c in FEW)
        assert searching.stopped_because == "every path was trained"
        waited |= any(events[i + 1][0] != path for i, (path, was_stopped) in enumerate(events[:-1]) if was_stopped)
    assert waited


def test_what_was_stopped_is_left_and_no_plan_is_made_of_it() -> None:
    searching = sampler("gp", candidates=FEW, screen=6)
    (*_, path) = score_first(searching)
    searching.keep_training(path, 100, 0.2, 20.0)
    searching.stop(path)
    assert searching.chosen == {}
    assert searching.left is not None
    assert searching.left.paths == len(FEW)


def test_a_path_that_was_stopped_is_not_stopped_again() -> None:
    searching = halving()
    assert goes_on(searching, [9, 12]) == [True, False]
    searching.stop(ALIKE[1].path)
    for steps in (50, 100, 400):
        assert searching.keep_training(ALIKE[1].path, steps, steps / 500, 30.0)


def test_a_stopped_path_tells_of_itself_and_of_paths_like_it_as_far_as_it_came() -> None:
    def middles(lost: float | None, share: float = 0.2) -> tuple[float, float]:
        """The middle of what is expected of the path, and of one with a host like it, after a stop at such a loss."""
        searching = sampler("gp", screen=12)
        path = max((p for p in score_first(searching) if p.kind == "cross"), key=accuracy)
        like = min((p for p in CROSSES if p != path), key=lambda p: float(np.abs(np.subtract(p.vector, path.vector)).sum()))
        if lost is not None:
            searching.keep_training(path, 100, share, lost)
            searching.stop(path)
        own, other = (float(np.mean(expected(searching, p))) for p in (path, like))
        return own, other

    untold, bad, good, bad_for_long = middles(None), middles(25.0), middles(1.0), middles(25.0, share=0.9)
    for i in range(2):
        assert bad_for_long[i] < bad[i] < untold[i] < good[i]


def test_a_search_that_stopped_trainings_goes_on_where_it_was_when_it_is_told_of_them_again() -> None:
    def start() -> Sampler:
        return sampler("gp", SHORT, candidates=CANDIDATES[::6], screen=12)

    whole = list(searched(start()))
    assert any(lost is not None for _, lost in whole)
    for done in range(12, len(whole), 3):
        resumed = start()
        for proposal, lost in whole[:done]:
            if proposal.fidelity == "trained":
                assert resumed.keep_training(proposal.path, 100, 0.2, at_rung(proposal.path)) == (lost is None)
            if lost is None:
                evaluate(resumed, proposal)
            else:
                resumed.stop(proposal.path)
        assert list(searched(resumed)) == whole[done:]


@pytest.fixture(scope="module")
def finished() -> list[tuple[Sampler, list[bool]]]:
    """Three searches of eight trainings, and of each training whether it came out in the range that was expected before."""
    found = []
    for seed in range(3):
        searching, hits = sampler("gp", Stopping(max_trainings=8, patience=8, epsilon=0.0), screen=24, seed=seed), []
        for proposal in run(searching):
            if proposal.fidelity == "trained":
                low, high = expected(searching, proposal.path)
                hits.append(low <= accuracy(proposal.path) <= high)
        found.append((searching, hits))
    return found


def expected(of: Sampler, path: InferencePath) -> tuple[float, float]:
    found = of.expected_range(path)
    assert found is not None
    return found


def test_trainings_end_where_they_were_expected_about_as_often_as_is_said(finished: list[tuple[Sampler, list[bool]]]) -> None:
    every = [hit for _, hits in finished for hit in hits]
    assert len(every) == 24
    assert np.mean(every) >= 0.85


def test_ranges_of_paths_that_were_never_tried_hold_mostly_and_are_narrow(finished: list[tuple[Sampler, list[bool]]]) -> None:
    hits, widths = [], []
    for searching, _ in finished:
        for path in (c.path for c in CANDIDATES[::12] if c.path not in searching.trained):
            low, high = expected(searching, path)
            assert 0 <= low <= high <= 1
            hits.append(low <= accuracy(path) <= high)
            widths.append(high - low)
    low, high = expected(sampler("gp"), CANDIDATES[0].path)  # of anything, before the search
    assert len(hits) > 60
    assert np.mean(hits) > 0.8
    assert np.median(widths) < (high - low) / 3


@pytest.mark.parametrize("name", ["random", "printed"])
def test_without_a_forecast_no_range_is_said_and_no_rival_named(name: Name) -> None:
    searching = sampler(name)
    assert (searching.expected_range(CANDIDATES[0].path), searching.left, searching.rival()) == (None, None, None)


def test_what_is_left_counts_all_that_was_not_trained_and_bounds_what_it_could_add(finished: list[tuple[Sampler, list[bool]]]) -> None:
    for searching, _ in finished:
        left = searching.left
        others = [c for c in CANDIDATES if c.path not in searching.trained]
        truth = PLAN.values_with(searching.known, others, np.array([[accuracy(c.path) for c in others]])).max()
        assert left is not None
        assert left.paths == len(CANDIDATES) - 8
        assert left.bound >= 0.98 * truth  # the good end of a range: a path may still be better
        assert left.expected_improvement >= 0
        assert left.value == PLAN.value(searching.known)


def test_a_search_that_ends_for_lack_of_hope_leaves_less_than_epsilon() -> None:
    searching = sampler("gp", Stopping(max_trainings=len(CANDIDATES), patience=len(CANDIDATES), epsilon=0.01), screen=24)
    before = searching.left
    asked = list(run(searching))
    assert searching.stopped_because == "no path left is expected to gain 0.01"
    assert len([p for p in asked if p.fidelity == "trained"]) < len(CANDIDATES) / 3
    assert before is not None
    assert searching.left is not None
    assert searching.left.expected_improvement < 0.01 < before.expected_improvement


def test_a_path_that_failed_is_not_left() -> None:
    searching = sampler("gp", screen=0, candidates=CANDIDATES[:5])
    searching.drop(Proposal(CANDIDATES[2].path, "trained"))
    assert searching.left is not None
    assert searching.left.paths == 4


def test_rivals_are_the_paths_without_a_host_from_which_a_plan_without_hosts_gains() -> None:
    searching = sampler("gp", PATIENT, screen=24)
    asked, told = list(run(searching)), searching.stopped_because
    rivals: list[InferencePath] = []
    while (rival := searching.rival()) is not None:
        rivals.append(rival.path)
        evaluate(searching, rival)
    assert rivals
    assert not any(path.hosts for path in rivals)
    assert len({*rivals}) == len(rivals)
    assert not {*rivals} & {p.path for p in asked if p.fidelity == "trained"}
    assert {*rivals} <= searching.chosen.keys()
    host_free = {path: entry for path, entry in searching.known.items() if not path.hosts}
    assert PLAN.value(host_free) > 0.95 * best_value(PLAN, [c for c in CANDIDATES if not c.path.hosts])
    # What is trained after the end counts to no stop rule.
    assert searching.stopped_because == told


def test_a_rival_that_was_stopped_may_still_be_trained_before_plans_are_compared() -> None:
    searching = sampler("gp", SHORT, candidates=[c for c in CANDIDATES if c.path.kind == "skip"], screen=3)
    (path, *_) = score_first(searching)
    assert searching.keep_training(path, 100, 0.2, 0.2)
    searching.stop(path)
    rivals: list[InferencePath] = []
    while (rival := searching.rival()) is not None:
        rivals.append(rival.path)
        searching.tell(rival, A0 - (0.002 if rival.path == path else 0.3))
    assert path in rivals
    assert path in searching.chosen
    assert len({*rivals}) == len(rivals)
