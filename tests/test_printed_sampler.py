"""Algorithm 1 as printed: its four defects are kept (DESIGN 2.5)."""

import pytest
from landscape import A0, CANDIDATES, PAPER, PLAN, ask, run, sampler

from code_ray.objective import Objective
from code_ray.sampler import Proposal, Stopping


@pytest.mark.parametrize("objective", [PLAN, PAPER], ids=["plan", "paper"])
def test_printed_never_clears_q_so_it_comes_back_to_a_path_that_disappointed(objective: Objective) -> None:
    searching = sampler("printed", Stopping(max_trainings=40, patience=3, epsilon=0.01), objective=objective)
    first = ask(searching)
    # Its first forecast was the original's accuracy. It came out as useless as can be, and is still the best of Q.
    searching.tell(first, 0.1)
    assert searching.ask() == ()
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
    assert (searching.ask(), searching.stopped_because) == ((), None)
    searching.drop(first)
    assert searching.ask() == ()
    assert searching.stopped_because == f"the training of {first.path} failed, and the printed algorithm knows no other way on"


def test_printed_ends_when_the_budget_is_spent() -> None:
    searching = sampler("printed", Stopping(max_trainings=1, patience=40, epsilon=0.01), objective=PAPER)
    searching.tell(Proposal(CANDIDATES[-1].path, "trained"), A0)
    assert searching.ask() == ()
    assert searching.stopped_because == "the budget of 1 trainings is spent"


def test_printed_asks_for_trainings_alone_and_takes_no_other_path_into_its_plan() -> None:
    searching = sampler("printed", Stopping(max_trainings=4, patience=40, epsilon=0.01))
    assert {proposal.fidelity for proposal in run(searching)} == {"trained"}
    assert not searching.takes_all
    assert (searching.rival(), searching.left) == (None, None)


def test_printed_that_nothing_else_would_end_ends_where_it_chooses_the_same_path_for_ever() -> None:
    searching = sampler("printed", Stopping(max_trainings=40, patience=10**9, epsilon=0.01))
    first = ask(searching)
    searching.tell(first, 0.1)
    assert searching.ask() == ()
    assert searching.stopped_because == f"it would choose {first.path} for ever"
    assert list(searching.trained) == [first.path]
