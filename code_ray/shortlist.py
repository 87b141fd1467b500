"""The few paths of a space of millions that may be worth most, found without looking at each of them closely."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from code_ray.cost_table import CostTable
from code_ray.forecast import from_z
from code_ray.objective import Known, Objective
from code_ray.path_space import PathSpace, Rows
from code_ray.throughput import FloatArray


def shortlist(
    space: PathSpace,
    costs: CostTable,
    objective: Objective,
    known: Known,
    optimistic: Callable[[FloatArray], FloatArray],
    size: int,
) -> tuple[Rows, FloatArray]:
    """The ``size`` rows of ``space`` that may add most to the best plan of ``known``, best first, and bounds of its value then.

    A path that could add nothing even without any loss is left out. ``optimistic``: features (n, d) -> z at the good end.
    Memory does not grow with the space.
    """
    rows, bounds = next(space.chunks(1))[:0], np.zeros(0)
    order = [costs.providers.index(provider) for provider in objective.limits.budgets]
    nothing = objective.value(known)
    for chunk in space.chunks():
        seconds = costs.seconds(chunk)[:, order]
        least = max(nothing * (1 + 1e-9), bounds[-1] if len(bounds) == size else 0.0)
        # What is too slow to matter without any loss need not be predicted.
        quick = objective.upper_values(known, seconds, np.full(len(chunk), objective.accuracy_original)) > least
        chunk, seconds = chunk[quick], seconds[quick]
        if not len(chunk):
            continue
        accuracies = objective.accuracies(np.maximum(from_z(optimistic(space.features(chunk))), 0.0))
        values = objective.upper_values(known, seconds, accuracies)
        hopeful = values > least
        rows, bounds = np.concatenate([rows, chunk[hopeful]]), np.concatenate([bounds, values[hopeful]])
        if len(rows) > size:
            best = np.argpartition(-bounds, size - 1)[:size]
            rows, bounds = rows[best], bounds[best]
        by_bound = np.argsort(-bounds, kind="stable")
        rows, bounds = rows[by_bound], bounds[by_bound]
    return rows, bounds
