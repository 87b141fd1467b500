"""The few paths of a space of millions that may be worth most, found without looking at each of them closely."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from code_ray.acquisition import NODES, expected_improvement
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
    forecast: Callable[[FloatArray], FloatArray],
    std: float,
    size: int,
) -> tuple[Rows, FloatArray]:
    """The ``size`` rows of ``space`` that promise to add most to the best plan of ``known``, best first, and by how much.

    ``forecast``: features (n, d) -> mean of z, ``std`` its standard deviation. What a path promises is the expected
    improvement, as ``acquisition`` counts it, by a bound of what it can add (``Objective.upper_bound``). A path that could add
    nothing even without any loss is left out. Memory does not grow with the space.
    """
    rows, gains = next(space.chunks(1))[:0], np.zeros(0)
    now, bound = objective.value(known), objective.upper_bound(known)
    for chunk in space.chunks():
        seconds = costs.taken(chunk, objective.limits)
        least = gains[-1] if len(gains) == size else 1e-9 * now
        # What is too slow to matter without any loss need not be predicted.
        quick = bound(seconds, np.full(len(chunk), objective.accuracy_original)) > now + least
        chunk, seconds = chunk[quick], seconds[quick]
        if not len(chunk):
            continue
        mean = forecast(space.features(chunk))
        losses = [np.maximum(from_z(mean + node * std), 0.0) for node in NODES]
        found = expected_improvement(np.array([bound(seconds, objective.accuracies(lost)) for lost in losses]), now)
        hopeful = found > least
        rows, gains = np.concatenate([rows, chunk[hopeful]]), np.concatenate([gains, found[hopeful]])
        if len(rows) > size:
            best = np.argpartition(-gains, size - 1)[:size]
            rows, gains = rows[best], gains[best]
        by_gain = np.argsort(-gains, kind="stable")
        rows, gains = rows[by_gain], gains[by_gain]
    return rows, gains
