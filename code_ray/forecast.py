"""From what little was measured of a path to the accuracy it would end with: the prior of every prediction.

Everything is said on one scale, z = log(1 + loss in points), on which errors are about as large for good paths as for bad
ones: half a point matters where a path loses one, and not where it loses thirty.
"""

from __future__ import annotations

import math

import numpy as np

from code_ray.path import InferencePath
from code_ray.scoring import Score
from code_ray.throughput import FloatArray

LEAST_LOSS = -0.9
"""No path is better than its original by more than this, in points."""

HOPELESS_LOSS = 30.0
"""A path that loses this much serves no plan; predictors are not told how much more it loses."""

KEPT_FREE = 0.75
"""Share of the z of least-squares links that training leaves of paths without a host that end in the local head."""

TAKEN, KEPT_AT_LEAST = 0.5, 0.3
"""What training takes off the z of least-squares links of paths through a host to the local head, and the share that it leaves at
least. Between pairs of services it is off by half a unit, for good paths and bad ones alike."""

KEPT_OF_MUCH, MUCH = 0.25, float(np.log1p(15.0))
"""Share of what their z exceeds ``MUCH`` by: links that lose half of all images do not end five times worse than those that lose
a tenth."""

DOUBT_FREE, DOUBT_LOGITS = 0.6, 0.35
"""How far off forecasts from scores are for paths without a host, and for paths whose link makes the logits, beside those of paths
through a host to the local head."""

RUNG_GAIN, RUNG_STD = 0.3, 0.4
"""Share of z that the whole of a training takes away from what it has after a few steps; how far off forecasts at a rung are
(a loss measured on a thousand images is half a point off)."""

UNKNOWN_Z, UNKNOWN_STD = float(np.log1p(3.0)), 0.9
"""What is thought of a path before anything was measured."""

NOISE_POINTS = 0.15
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


def after_score(score: Score, path: InferencePath) -> float:
    """z that training may make of least-squares links of ``path`` with this score."""
    z = float(np.log1p(max(score.loss_points, LEAST_LOSS)))
    if not path.ends_in_head or z <= 0:
        return min(z, float(to_z(HOPELESS_LOSS)))  # links that make the logits end where least squares leave them
    if not path.hosts:
        return KEPT_FREE * z
    return max(min(z, MUCH) - TAKEN, KEPT_AT_LEAST * z) + KEPT_OF_MUCH * max(z - MUCH, 0.0)


def after_rung(loss_points: float, share: float) -> tuple[float, float]:
    """z, and its standard deviation, that a path may end with which loses ``loss_points`` when ``share`` of its training is done."""
    z = float(to_z(loss_points))
    return z * (1 - RUNG_GAIN * (1 - share)), RUNG_STD * math.sqrt(1 - share) + 0.05
