"""Expected improvement of the objective under the predictor's uncertainty about an accuracy."""

from __future__ import annotations

import numpy as np

from code_ray.throughput import FloatArray

NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
"""Standard normal deviates at which a prediction is looked at."""


def expected_improvement(values: FloatArray, best: float) -> FloatArray:
    """E[max(value - best, 0)], shape (n,), by Gauss-Hermite quadrature.

    ``values`` (len(NODES), n): the objective where what was predicted comes out NODES standard deviations off. The objective is
    not linear in the accuracy (a plan's share jumps at the loss limit), so the textbook formula does not apply.
    """
    return np.asarray((_WEIGHTS / _WEIGHTS.sum()) @ np.maximum(values - best, 0.0))
