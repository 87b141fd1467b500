"""Plans over two hosts, of measured times and trained accuracies: the digits, blocks of two services that know other things (DESIGN 2.3)."""

from typing import NamedTuple

import pytest
from trained import train_path

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.objective import Known, PlanObjective
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.profiling import measure_profile
from code_ray.recipe import Recipe
from code_ray.service import Service
from code_ray.space import Candidate
from code_ray.throughput import Limits
from code_ray.training import Trainer

LOCAL, FIRST, SECOND = "alexnet-digits", "efficientnet-lite0", "alexnet-fashion"
PLACEMENT = {LOCAL: "a", FIRST: "b", SECOND: "c"}
KAPPA = 0.25
ORIGINAL = original_path(LOCAL, 6)
OVER_FIRST = path_from_vector((1, 2, 4), LOCAL, 6, FIRST, 10)
OVER_SECOND = path_from_vector((1, 2, 3), LOCAL, 6, SECOND, 6)
THROUGH_BOTH = [path_from_vector(vector, LOCAL, 6, FIRST, 10, then={SECOND: 6}) for vector in ((1, 2, 3, 3, 4, 5), (1, 2, 3, 3, 4))]


class Trained(NamedTuple):
    """Paths with what they cost and how accurate they are, and what plans of them are worth."""

    known: Known
    objective: PlanObjective

    def value(self, *paths: InferencePath) -> float:
        """Throughput over the original's of the best plan of the original and ``paths``."""
        return self.objective.value({path: self.known[path] for path in paths})


@pytest.fixture(scope="module")
def trained(services: dict[str, Service], digits: DataSet) -> Trained:
    used = {name: services[name] for name in PLACEMENT}
    paths = [ORIGINAL, OVER_FIRST, OVER_SECOND, *THROUGH_BOTH]
    profile = measure_profile(paths, used, PLACEMENT, batch_sizes=(16,))
    recipe = Recipe(samples=900, fit_samples=600, steps=20)
    trainer = Trainer(used, LOCAL, digits, PLACEMENT, lambda _: ExecutionMode(), recipe)
    known = {path: (profile.cost(path, used), train_path(trainer, path, seed=0).accuracy) for path in paths}
    cost, accuracy = known[ORIGINAL]
    limits = Limits({"a": 1.0, "b": KAPPA, "c": KAPPA}, 2.3)
    return Trained(known, PlanObjective(Candidate(ORIGINAL, cost), accuracy, limits, "a"))


def test_paths_through_two_hosts_learn_from_their_links_alone(trained: Trained) -> None:
    lost = {str(path): 100 * (trained.known[ORIGINAL][1] - trained.known[path][1]) for path in THROUGH_BOTH}
    assert all(points < 5 for points in lost.values()), lost


def test_with_a_quarter_of_each_of_two_hosts_the_plan_over_both_beats_the_best_over_one(trained: Trained) -> None:
    over_one = max(trained.value(OVER_FIRST), trained.value(OVER_SECOND))
    assert over_one > 1.0
    assert trained.value(OVER_FIRST, OVER_SECOND, *THROUGH_BOTH) > 1.01 * over_one


def test_a_plan_of_paths_through_both_keeps_to_what_each_of_them_lends(trained: Trained) -> None:
    assert trained.value(*THROUGH_BOTH) > 1.0
    paths = {path: trained.known[path] for path in THROUGH_BOTH}
    used = trained.objective.limits.used(
        trained.objective.mixture(paths), [trained.known[ORIGINAL][0], *(cost for cost, _ in paths.values())]
    )
    assert all(0 < used[provider] <= KAPPA + 1e-9 for provider in ("b", "c"))
