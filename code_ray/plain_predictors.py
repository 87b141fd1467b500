"""Predictors that the Gaussian processes have to beat: ridge regression, and that all paths lose the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from code_ray.forecast import UNKNOWN_STD, UNKNOWN_Z
from code_ray.predictor import ERROR_STD, GaussianProcessPredictor, Measured, Predictor, as_scored
from code_ray.throughput import FloatArray

Linear = Callable[[FloatArray], FloatArray]
"""Of features (n, d) to z (n,)."""

BEFORE = 4
"""So many paths as far off as is usual count beside those that were seen: a line through two points would be beyond doubt."""


class RidgePredictor(Predictor):
    """Ridge regression on the same features: one over what scores forecast, one over how far trained paths turned out from that.
    Paths without a score are doubted alike, and all alike for their training, by how far the fit is off where it was made.
    """

    def predict(self, measured: Measured, indices: list[int], *, by_return: bool = False) -> tuple[FloatArray, FloatArray]:
        results = {**measured.finals, **{index: z for index, (z, _) in measured.partial.items()}}
        n, rows = len(results), [*results, *indices]
        line, doubt = self._of_scores(measured)
        prior, prior_std = as_scored(measured.forecasts, rows, line(self.features[rows]), np.full(len(rows), doubt))
        points = np.column_stack([self.features[rows], prior])
        error, doubt = _ridge(points[:n], np.array([*results.values()]) - prior[:n], 0.0, ERROR_STD)
        return prior[n:] + error(points[n:]), np.hypot(prior_std[n:], doubt)

    def rough(self, measured: Measured) -> tuple[Linear, float]:
        line, doubt = self._of_scores(measured)
        return line, float(np.hypot(doubt, ERROR_STD))

    def _of_scores(self, measured: Measured) -> tuple[Linear, float]:
        return _ridge(self.features[[*measured.forecasts]], np.array([*measured.forecasts.values()]), UNKNOWN_Z, UNKNOWN_STD)


def _ridge(points: FloatArray, values: FloatArray, unknown: float, unknown_std: float) -> tuple[Linear, float]:
    """Ridge of ``values`` (n,) over ``points`` (n, d), and how far it is off; ``unknown`` where there are none."""
    if not len(values):
        return lambda features: np.full(len(features), unknown), unknown_std
    model = make_pipeline(StandardScaler(), Ridge()).fit(points, values)
    squares = BEFORE * unknown_std**2 + float(np.square(values - model.predict(points)).sum())
    return lambda features: np.asarray(model.predict(features)), float(np.sqrt(squares / (BEFORE + len(values))))


class ConstantPredictor(Predictor):
    """The comparison every search must beat: each path loses as much as the average one trained so far."""

    uses_scores: ClassVar[bool] = False

    def predict(self, measured: Measured, indices: list[int], *, by_return: bool = False) -> tuple[FloatArray, FloatArray]:
        values = list(measured.finals.values()) or [UNKNOWN_Z]
        spread = float(np.std(values)) if len(values) > 1 else UNKNOWN_STD
        return np.full(len(indices), np.mean(values)), np.full(len(indices), spread)

    def rough(self, measured: Measured) -> tuple[Linear, float]:
        mean, std = self.predict(measured, [0])
        return lambda features: np.full(len(features), mean[0]), float(std[0])


PREDICTORS: Mapping[str, Callable[[FloatArray, int, int], Predictor]] = {
    "gp": GaussianProcessPredictor,
    "ridge": RidgePredictor,
    "constant": ConstantPredictor,
}
"""By the name of the sampler, of features, how many of them are classes, and a seed."""
