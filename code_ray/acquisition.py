"""Expected improvement of the objective under the predictor's uncertainty about an accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from code_ray.throughput import FloatArray

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)


def expected_improvement(value_at: Callable[[FloatArray], FloatArray], mean: FloatArray, std: FloatArray, best: float) -> FloatArray:
    """E[max(value(A) - best, 0)] for A ~ Normal(mean, std), by Gauss-Hermite quadrature; shape (n,).

    ``value_at`` maps accuracies (nodes, n) to objective values of the same shape. The objective is not linear in the
    accuracy (a plan's share jumps at the loss limit), so the textbook formula does not apply.
    """
    accuracies = np.clip(mean + _NODES[:, None] * std, 0.0, 1.0)
    improvement = np.maximum(value_at(accuracies) - best, 0.0)
    return np.asarray((_WEIGHTS / _WEIGHTS.sum()) @ improvement)
