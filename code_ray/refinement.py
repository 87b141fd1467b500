"""Which trained path is worth a longer training (a refinement): the last and dearest fidelity, for what plans are made of."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from code_ray.forecast import after_rung, from_z
from code_ray.objective import Known, Objective
from code_ray.path import InferencePath
from code_ray.space import Candidate


def hoped_accuracy(objective: Objective, accuracy: float, times: int) -> float:
    """What a path with this ``accuracy`` is expected to reach, trained ``times`` as long: as if it had come to a rung there."""
    z, _ = after_rung(float(objective.loss_points(accuracy)), 1 / times)
    return float(objective.accuracies(from_z(z)))


def next_to_refine(
    known: Known, refined: Container[InferencePath], objective: Objective, times: int, epsilon: float
) -> InferencePath | None:
    """The path, not among ``refined``, from whose longer training the best plan, or the best one without a host, is expected to
    gain most; None where no more than ``epsilon`` is expected. Both count: a plan is compared with one that was tried as hard.
    """
    gains: dict[InferencePath, float] = {}
    for plan in (known, {path: entry for path, entry in known.items() if not path.hosts}):
        for path, (cost, accuracy) in plan.items():
            if path not in refined:
                others = {other: entry for other, entry in plan.items() if other != path}
                hoped = np.array([[hoped_accuracy(objective, accuracy, times)]])
                gain = float(objective.values_with(others, [Candidate(path, cost)], hoped)[0, 0]) - objective.value(plan)
                gains[path] = max(gain, gains.get(path, gain))
    best = max(gains, key=lambda path: gains[path], default=None)
    return best if best is not None and gains[best] > epsilon else None
