"""Expected improvement of the objective under the predictor's uncertainty about an accuracy."""

from __future__ import annotations

import numpy as np

from code_ray.throughput import FloatArray

NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
"""Standard normal deviates at which a prediction is looked at: none so far out that nobody has seen a path there."""


def expected_improvement(values: FloatArray, best: float) -> FloatArray:
    """best E[max(log(value / best), 0)], shape (n,), by Gauss-Hermite quadrature; in units of the objective, for small gains
    E[max(value - best, 0)].

    ``values`` (len(NODES), n): the objective where what was predicted comes out NODES standard deviations off. The objective is
    not linear in the accuracy (a plan's share jumps at the loss limit), so the textbook formula does not apply. Gains count by
    their logarithm: a path that takes next to no time would serve a hundred times as much if it lost nothing, and however
    unlikely that is, its expectation would outweigh every path that may well double what is served.
    """
    return np.asarray((_WEIGHTS / _WEIGHTS.sum()) @ np.log(np.maximum(values, best) / best)) * best
