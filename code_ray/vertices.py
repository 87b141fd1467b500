"""Exact values of many plans at once: what the linear programme of DESIGN 2.3 would give if one more path were known.

A plan is a vertex of the programme, so the best plan with a new path is either the best without it or a vertex whose basis
holds the new path. With few rows (the servers and the loss limit) and few useful known paths, all those bases can be walked,
each of them for all new paths together.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from code_ray.throughput import FloatArray

_TOLERANCE = 1e-9


def best_with(known: FloatArray, bounds: FloatArray, new: FloatArray) -> FloatArray:
    """Largest sum of rates over vertices that use the new column, for each row of ``new``; -inf where there is none.

    known (k, m): columns of the programme ``maximise sum x, x @ known <= bounds, x >= 0``, a path a row; bounds (m,);
    new (n, m). The best plan of the known paths alone is not looked at.
    """
    m = len(bounds)
    useful = _undominated(known)
    others = np.vstack([useful, np.eye(m)])
    counted = np.arange(len(others)) < len(useful)
    best = np.full(len(new), -np.inf)
    for chosen in combinations(range(len(others)), m - 1):
        rows = others[list(chosen)]
        u, s, vt = np.linalg.svd(rows)
        if s[-1] < _TOLERANCE * s[0]:
            continue
        normal = vt[-1]  # orthogonal to the other basis columns: what is left there is the new column's alone
        inverse = vt[: m - 1].T / s @ u.T
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = (normal @ bounds) / (new @ normal)
            rest = bounds @ inverse - rate[:, None] * (new @ inverse)
            value = rate + rest[:, counted[list(chosen)]].sum(axis=1)
        feasible = np.isfinite(value) & (rate >= -_TOLERANCE) & (rest >= -_TOLERANCE).all(axis=1)
        best = np.where(feasible, np.maximum(best, value), best)
    return best


def tight_rows(columns: FloatArray, bounds: FloatArray) -> npt.NDArray[np.intp]:
    """The rows (positions in ``bounds``, (m,)) that some plan of ``columns`` (k, m) could run up against, the last one included: of
    the others, whose bounds are positive, one of these is the fuller whatever the plan.
    """
    filled = columns[:, :-1] / bounds[:-1]
    kept: list[int] = []
    for row in range(filled.shape[1]):
        others = [*kept, *range(row + 1, filled.shape[1])]
        if not (filled[:, [row]] <= filled[:, others]).all(axis=0).any():
            kept.append(row)
    return np.array([*kept, len(bounds) - 1])


def count_bases(known: FloatArray) -> int:
    """How many bases ``best_with`` walks."""
    m = known.shape[1]
    return comb(len(_undominated(known)) + m, m - 1)


def dual_prices(columns: FloatArray, bounds: FloatArray) -> FloatArray:
    """What one unit more of each bound (m,) would add to the best sum of rates of ``columns`` (k, m)."""
    solution = linprog(-np.ones(len(columns)), A_ub=columns.T, b_ub=bounds, method="highs")
    return np.maximum(-np.asarray(solution.ineqlin.marginals, dtype=np.float64), 0.0)


def most_slack(columns: FloatArray, bounds: FloatArray) -> float:
    """The most that ``columns`` (k, m) can leave free of the last bound while they keep the others; bounds (m,)."""
    solution = linprog(columns[:, -1], A_ub=columns[:, :-1].T, b_ub=bounds[:-1], method="highs")
    return float(bounds[-1] - solution.fun)


def _undominated(columns: FloatArray) -> FloatArray:
    """Rows that no other row undercuts in everything: only they can be part of a best plan."""
    columns = np.unique(columns, axis=0)
    better = np.less_equal(columns[None], columns[:, None]).all(axis=2) & ~np.eye(len(columns), dtype=np.bool_)
    return columns[~better.any(axis=1)]
