"""From what little was measured of a path to the accuracy it would end with: the prior of every prediction.

Everything is said on one scale, z = log(1 + loss in points), on which errors are about as large for good paths as for bad
ones: half a point matters where a path loses one, and not where it loses thirty.
"""

from __future__ import annotations

import math

import numpy as np

from code_ray.scoring import Score
from code_ray.throughput import FloatArray

LEAST_LOSS = -0.9
"""No path is better than its original by more than this, in points."""

HOPELESS_LOSS = 30.0
"""A path that loses this much serves no plan; predictors are not told how much more it loses."""

LEFT_AFTER_TRAINING = {True: 0.5, False: 0.85}
"""Share of the loss of least-squares links that training leaves, about, for paths that end in the local head (.4 to .6 on
Fashion-MNIST) and for those whose last link makes the logits (.8 to .95)."""

RUNG_GAIN, RUNG_STD = 0.3, 0.2
"""Share of z that the whole of a training takes away from what it has after a few steps; how far off forecasts at a rung are."""

UNKNOWN_Z, UNKNOWN_STD = float(np.log1p(3.0)), 0.9
"""What is thought of a path before anything was measured."""

NOISE_POINTS = 0.25
"""Standard deviation of a trained path's accuracy from seed to seed, in points."""


def to_z(loss_points: FloatArray | float) -> FloatArray:
    """z of losses in points."""
    return np.asarray(np.log1p(np.clip(np.asarray(loss_points, dtype=np.float64), LEAST_LOSS, HOPELESS_LOSS)))


def from_z(z: FloatArray | float) -> FloatArray:
    """Losses in points of z."""
    return np.asarray(np.expm1(np.asarray(z)))


def noise_std(z: FloatArray | float) -> FloatArray:
    """Standard deviation of the z of one training from seed to seed."""
    return np.asarray(NOISE_POINTS / np.exp(np.asarray(z)))


def after_score(score: Score, ends_in_head: bool) -> float:
    """z that training may make of least-squares links with this score."""
    loss = score.loss_points
    return float(to_z(loss * (LEFT_AFTER_TRAINING[ends_in_head] if loss > 0 else 1.0)))


def after_rung(loss_points: float, share: float) -> tuple[float, float]:
    """z, and its standard deviation, that a path may end with which loses ``loss_points`` when ``share`` of its training is done."""
    z = float(to_z(loss_points))
    return z * (1 - RUNG_GAIN * (1 - share)), RUNG_STD * math.sqrt(1 - share) + 0.05
