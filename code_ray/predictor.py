"""Predict the accuracy of untrained paths from those measured so far."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from code_ray.throughput import FloatArray


class GaussianProcessPredictor:
    """Gaussian process, Matern 5/2 with one length a feature, hyper-parameters fitted at every ``fit``.

    The last column of the features is the fidelity (0 least squares only, 1 trained): cheap scores and full trainings
    inform each other through it.
    """

    def __init__(self, num_features: int, seed: int) -> None:
        kernel = ConstantKernel(1.0, (0.05, 50.0)) * Matern(np.ones(num_features), (0.1, 20.0), nu=2.5) + WhiteKernel(0.01, (1e-4, 0.5))
        self._model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=1, random_state=seed)

    def fit(self, features: FloatArray, accuracies: FloatArray) -> None:
        """features (n, d), accuracies (n,) as fractions."""
        with warnings.catch_warnings():
            # With a dozen points some length always ends at its bound; the bound is the prior.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(features, accuracies)

    def predict(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the accuracy, each (n,)."""
        mean, std = self._model.predict(features, return_std=True)
        return np.asarray(mean), np.asarray(std)


class ConstantPredictor:
    """The comparison every search must beat: each path is as accurate as the average one seen so far."""

    def __init__(self) -> None:
        self._mean, self._std = 0.5, 0.2

    def fit(self, features: FloatArray, accuracies: FloatArray) -> None:
        """features are ignored, accuracies (n,)."""
        self._mean, self._std = float(np.mean(accuracies)), float(np.std(accuracies))

    def predict(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the accuracy, each (n,)."""
        return np.full(len(features), self._mean), np.full(len(features), self._std)
