"""What paths are worth with their gated forms: expected ones until they are measured."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from code_ray.gated_objective import GatedPlanObjective, loss_behind
from code_ray.objective import Known, PlanObjective
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.space import Candidate
from code_ray.throughput import Limits, PathCost

RERUNS = (0.05, 0.2)
ORIGINAL = Candidate(original_path("tiny", 6), PathCost({"a": 1.0}))
LIMITS = Limits({"a": 1.0, "b": 0.5}, 0.5)
PLAIN = PlanObjective(ORIGINAL, 0.93, LIMITS, "a")
GATED = GatedPlanObjective(ORIGINAL, 0.93, LIMITS, "a", RERUNS)
CROSS, SLOWER = (path_from_vector(vector, "tiny", 6, "host", 6) for vector in ((1, 2, 4, 5), (2, 2, 4, 5)))
SKIP = path_from_vector((1, 4), "tiny", 6)
KNOWN: Known = {CROSS: (PathCost({"a": 0.2, "b": 0.1}), 0.915), SKIP: (PathCost({"a": 0.6}), 0.92)}


def by_hand(known: Known) -> Known:
    """Every form of ``known``, written out."""
    found: dict[InferencePath, tuple[PathCost, float]] = dict(known)
    for path, (cost, accuracy) in known.items():
        for rerun in RERUNS:
            lost = float(loss_behind(np.array(100 * (0.93 - accuracy)), rerun))
            found[replace(path, rerun=rerun)] = (PathCost({**cost.seconds, "a": cost.at("a") + rerun}), 0.93 - lost / 100)
    return found


def test_a_rerun_wins_back_most_at_first_and_never_more_than_was_lost() -> None:
    lost = np.array([0.3, 1.0, 5.0])
    left = [loss_behind(lost, share) for share in (0.0, 0.02, 0.1, 0.4)]
    assert left[0] == pytest.approx(lost)
    for more, less in pairwise(left):
        assert (less < more).all()
        assert (less >= 0).all()
    # A small share wins back two tenths of a point for each per cent, whatever is lost, while much is.
    assert (lost - loss_behind(lost, 0.001))[2] == pytest.approx(0.02, rel=0.01)
    assert loss_behind(np.array([-0.5, 0.0]), 0.2).tolist() == [-0.5, 0.0]


def test_known_paths_are_worth_their_gated_forms_too() -> None:
    assert GATED.value(KNOWN) == pytest.approx(PLAIN.value(by_hand(KNOWN)))
    assert GATED.value(KNOWN) > PLAIN.value(KNOWN) + 0.1
    assert GATED.value({}) == pytest.approx(1.0)


def test_measured_gates_take_the_place_of_expected_ones() -> None:
    measured: Known = {**KNOWN, replace(CROSS, rerun=0.1): (PathCost({"a": 0.3, "b": 0.1}), 0.92)}
    forms = GATED.forms(measured)
    assert {path.rerun for path in forms if path.plain == CROSS} == {0.0, 0.1}
    assert {path.rerun for path in forms if path.plain == SKIP} == {0.0, *RERUNS}


def test_with_a_candidate_it_is_what_the_best_of_its_forms_would_add() -> None:
    candidates = [Candidate(SLOWER, PathCost({"a": 0.3, "b": 0.05})), Candidate(SKIP, PathCost({"a": 0.1}))]
    accuracies = np.array([[0.929, 0.90], [0.91, 0.88], [0.80, 0.50]])
    found = GATED.values_with({CROSS: KNOWN[CROSS]}, candidates, accuracies)
    forms = by_hand({CROSS: KNOWN[CROSS]})
    for row, column in np.ndindex(*accuracies.shape):
        mine = by_hand({candidates[column].path: (candidates[column].cost, float(accuracies[row, column]))})
        wanted = max(PLAIN.value({**forms, path: entry}) for path, entry in mine.items())
        assert found[row, column] == pytest.approx(wanted, abs=1e-9)


def test_the_bound_is_never_below_the_value() -> None:
    random = np.random.default_rng(0)
    candidates = [Candidate(SLOWER, PathCost({"a": a, "b": b})) for a, b in random.uniform(0.02, 1.2, (40, 2))]
    accuracies = random.uniform(0.85, 0.935, (1, 40))
    seconds = np.array([[c.cost.at(name) for name in LIMITS.budgets] for c in candidates])
    for known in ({}, KNOWN):
        bound = GATED.upper_bound(known)(seconds, accuracies[0])
        assert (bound >= GATED.values_with(known, candidates, accuracies)[0] - 1e-9).all()


def test_rates_are_those_of_a_path_over_all_of_its_forms() -> None:
    rates, forms = GATED.rates(KNOWN), PLAIN.rates(by_hand(KNOWN))
    assert set(rates) == set(KNOWN)
    assert rates[CROSS] == pytest.approx(sum(rate for path, rate in forms.items() if path.plain == CROSS))
    assert sum(rates.values()) > 0
