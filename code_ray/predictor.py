"""Predict what untrained paths would lose from those scored and trained so far, on the scale of ``forecast``."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, Matern, WhiteKernel

from code_ray.forecast import DOUBT_FREE, DOUBT_LOGITS, UNKNOWN_STD, UNKNOWN_Z, noise_std
from code_ray.path_space import HEADLESS, HOSTLESS, RETURN
from code_ray.throughput import FloatArray


@dataclass(frozen=True)
class Measured:
    """What was measured: ``forecasts`` index -> z after training as the path's score says, ``finals`` index -> z of the trained
    path, ``partial`` index -> (z forecast from a training that was stopped, its standard deviation).
    """

    forecasts: Mapping[int, float]
    finals: Mapping[int, float]
    partial: Mapping[int, tuple[float, float]] = field(default_factory=dict)


class Predictor(ABC):
    """Predicts z of paths by index into ``features`` (n, d), the first ``classes`` of which say of which class a path is."""

    uses_scores: ClassVar[bool] = True

    def __init__(self, features: FloatArray, classes: int, seed: int) -> None:
        self.features = features
        self.classes = classes
        self.seed = seed

    def look_at(self, features: FloatArray) -> None:
        """Predict paths of other ``features`` (n, d) from now on; indices mean these."""
        self.features = features

    @abstractmethod
    def rough(self, measured: Measured) -> tuple[Callable[[FloatArray], FloatArray], float]:
        """A quick forecast for spaces in which only few paths can be looked at closely: a function of features (n, d) to the mean
        of z (n,), and one standard deviation for all.
        """

    @abstractmethod
    def predict(self, measured: Measured, indices: list[int], *, by_return: bool = False) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of z of paths ``indices``, noise of a single training left out; each (len(indices),).

        ``by_return``: what trained paths say of those that come back at other local blocks is believed less.
        """


def as_scored(forecasts: Mapping[int, float], indices: list[int], mean: FloatArray, std: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``mean`` and ``std`` (len(indices),), but of paths that were scored what their scores say, for certain."""
    scored = np.array([index in forecasts for index in indices], dtype=np.bool_)
    said = np.array([forecasts.get(index, 0.0) for index in indices])
    return np.where(scored, said, mean), np.where(scored, 0.0, std)


class GaussianProcessPredictor(Predictor):
    """Two Gaussian processes (Matern 5/2) one on the other, their variances fitted to the data.

    The first runs over forecasts from scores: there are many of them, and where a path was scored it says just that. The second
    runs over what trained paths turned out to be beside that first one: it learns how far scores can be trusted here. Each is
    what is left over after the one before, so that both variances add up.
    """

    def __init__(self, features: FloatArray, classes: int, seed: int) -> None:
        super().__init__(features, classes, seed)
        deviations = features.std(axis=0)
        self._scale = np.where(deviations > 0, deviations, 1.0)
        self._scaled = features / self._scale
        self._kernel: tuple[int, Kernel] | None = None  # fitted to so many forecasts

    def look_at(self, features: FloatArray) -> None:
        super().look_at(features)
        self._scaled = features / self._scale

    def predict(self, measured: Measured, indices: list[int], *, by_return: bool = False) -> tuple[FloatArray, FloatArray]:
        trained = [*measured.finals, *measured.partial]
        rows = [*trained, *indices]
        prior, prior_std = self._from_scores(measured.forecasts, rows)
        doubts = self._doubts(rows)
        if not trained:
            return prior, np.hypot(prior_std, math.hypot(ERROR_STD, by_return * math.sqrt(_OF_RETURN)) * doubts)
        n = len(trained)
        results = np.array([*measured.finals.values(), *(z for z, _ in measured.partial.values())])
        noise = np.array([*noise_std(np.array([*measured.finals.values()])), *(std for _, std in measured.partial.values())])
        where = np.column_stack([self._scaled[rows] / np.sqrt(self._scaled.shape[1]), prior])
        points = np.column_stack([self.features[rows, : self.classes], self._returns(rows), where])
        model = GaussianProcessRegressor(
            _errors_kernel(self.classes, where.shape[1], by_return),
            alpha=(noise**2 + prior_std[:n] ** 2) / doubts[:n] ** 2,
            optimizer="fmin_l_bfgs_b" if n >= 4 else None,
            random_state=self.seed,
        )
        _fit(model, points[:n], (results - prior[:n]) / doubts[:n])
        error, error_std = model.predict(points[n:], return_std=True)
        return prior[n:] + doubts[n:] * error, np.hypot(prior_std[n:], doubts[n:] * error_std)

    def _returns(self, indices: list[int]) -> FloatArray:
        """Where paths come back, (len(indices),); all alike where features say nothing of it."""
        column = self.classes + RETURN
        return self.features[indices, column] if column < self.features.shape[1] else np.zeros(len(indices))

    def _doubts(self, indices: list[int]) -> FloatArray:
        """How far off scores of paths may be, beside those of paths through a host to the local head; (len(indices),)."""
        if not self.classes:
            return np.ones(len(indices))
        classes = self.features[indices] > 0
        return np.where(classes[:, HEADLESS], DOUBT_LOGITS, np.where(classes[:, HOSTLESS], DOUBT_FREE, 1.0))

    def rough(self, measured: Measured) -> tuple[Callable[[FloatArray], FloatArray], float]:
        if len(measured.forecasts) < 2:
            mean = float(np.mean([*measured.forecasts.values()] or [UNKNOWN_Z]))
            return lambda features: np.full(len(features), mean), math.hypot(UNKNOWN_STD, ERROR_STD)
        values = np.array([*measured.forecasts.values()])
        points = self._scaled[list(measured.forecasts)]
        model = GaussianProcessRegressor(self._fitted_kernel(points, values), normalize_y=True, optimizer=None)
        _fit(model, points, values)
        smooth = QuickMean(model, model.kernel_.k1)
        deviation = float(values.std()) * math.sqrt(float(model.kernel_.diag(points[:1])[0]))
        offset = self._mean_error(measured)
        return lambda features: smooth(features / self._scale) + offset, math.hypot(deviation, ERROR_STD)

    def _mean_error(self, measured: Measured) -> float:
        """By how much trained paths are off what their scores said, on average."""
        both = [measured.finals[index] - measured.forecasts[index] for index in measured.finals if index in measured.forecasts]
        return float(np.mean(both)) if both else 0.0

    def _from_scores(self, forecasts: Mapping[int, float], indices: list[int]) -> tuple[FloatArray, FloatArray]:
        """What scores say of paths: those scored for certain, others by their neighbours."""
        if len(forecasts) < 2:
            mean = next(iter(forecasts.values()), UNKNOWN_Z)
            prior, std = np.full(len(indices), mean), np.full(len(indices), UNKNOWN_STD)
        else:
            values = np.array(list(forecasts.values()))
            points = self._scaled[list(forecasts)]
            model = GaussianProcessRegressor(self._fitted_kernel(points, values), normalize_y=True, optimizer=None)
            _fit(model, points, values)
            prior, std = model.predict(self._scaled[indices], return_std=True)
        return as_scored(forecasts, indices, prior, std)

    def _fitted_kernel(self, points: FloatArray, values: FloatArray) -> Kernel:
        """Kernel of the forecasts. It is fitted again when a third more are known, and always to the first so many of them: a
        search that was resumed fits what the one before fitted.
        """
        count = 2
        while (more := count + max(2, count // 3)) <= len(values):
            count = more
        if self._kernel is None or self._kernel[0] != count:
            # There is one length a column: a few dozen paths, many alike, say little of a dozen lengths.
            lengths = Matern(np.full(points.shape[1], 2.0), "fixed", nu=2.5)
            kernel = ConstantKernel(1.0, (0.1, 20.0)) * lengths + WhiteKernel(0.01, (1e-4, 0.3))
            model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=self.seed)
            _fit(model, points[:count], values[:count])
            self._kernel = count, model.kernel_
        return self._kernel[1]


_OF_CLASS, _OF_NEIGHBOURS, _OF_ITS_OWN = 0.25, 0.16, 0.15
"""Variances of how far z after training is off what a path's score says: for all paths of a class together (between pairs of
services it differs by 1), for paths that are alike, and for each by itself."""

ERROR_STD = math.sqrt(_OF_CLASS + _OF_NEIGHBOURS + _OF_ITS_OWN)


_OF_RETURN = 0.14
"""One more, where it is asked for: of all paths that come back at one local block. Between blocks z is off by .37 more or less on the
table of the first pair."""


def _errors_kernel(classes: int, others: int, by_return: bool) -> Kernel:
    """Of points whose first columns are their class, the next where they come back, the others where they are. With a dozen trainings
    only variances can be fitted, and what paths share to no less than half: most trained paths are good ones, and they say that scores
    are hardly ever far off.
    """
    deaf = 1e6  # a length at which a column says nothing
    of_class = RBF([0.3] * classes + [deaf] * (1 + others), "fixed")
    alike = Matern([deaf] * (classes + 1) + [1.0] * others, "fixed", nu=2.5)
    kernel = (
        ConstantKernel(_OF_CLASS, (0.12, 1.0)) * of_class
        + ConstantKernel(_OF_NEIGHBOURS, (0.08, 0.5)) * alike
        + WhiteKernel(_OF_ITS_OWN, (0.04, 0.3))
    )
    if not by_return:
        return kernel
    # Shorter than from one block to the next. Trained paths that all come back at one block say nothing of its variance.
    of_return = RBF([deaf] * classes + [0.03] + [deaf] * others, "fixed")
    return kernel + ConstantKernel(_OF_RETURN, "fixed") * of_return


def _fit(model: GaussianProcessRegressor, features: FloatArray, values: FloatArray) -> None:
    with warnings.catch_warnings():
        # With a dozen points some length always ends at its bound; the bound is the prior.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, values)


class QuickMean:
    """The mean of a fitted process with a Matern 5/2 kernel, in float32 and without its variance: ten million points in seconds."""

    def __init__(self, model: GaussianProcessRegressor, kernel: Kernel) -> None:
        """``kernel``: constant times Matern, the part of the model's that reaches from point to point."""
        self._lengths = torch.from_numpy(np.asarray(kernel.k2.length_scale, dtype=np.float32))
        self._points = torch.from_numpy(np.asarray(model.X_train_, dtype=np.float32)) / self._lengths
        weights = np.asarray(model.alpha_, dtype=np.float32) * np.float32(kernel.k1.constant_value * model._y_train_std)
        self._weights = torch.from_numpy(weights.reshape(-1))
        self._mean = float(model._y_train_mean)

    def __call__(self, points: FloatArray) -> FloatArray:
        asked = torch.from_numpy(points.astype(np.float32)) / self._lengths
        found = []
        for part in asked.split(4096):  # stays in the processor's cache
            distance = (5**0.5) * torch.cdist(part, self._points, compute_mode="use_mm_for_euclid_dist")
            kernel = (1 + distance + distance.square().div_(3)).mul_(distance.neg().exp_())
            found.append(kernel @ self._weights)
        return np.asarray(torch.cat(found).double().numpy() + self._mean)
