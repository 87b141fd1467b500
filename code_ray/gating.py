"""Gated paths: answers of low confidence are made again by the original path (DESIGN 2.1; the early-exit rule of BranchyNet).

A path that is gated at a rerun share r costs its own time and r of the original's, and gains back what the original knows better. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RERUN_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the images that are tried: a mixture of two of them is any share between."""

SHARE_DIGITS = 4
"""A share is part of a path's text, which is read again."""

Logits = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Gate:
    """Answers whose confidence is below ``threshold`` are rerun: a share ``rerun`` of them, after which ``accuracy`` (a fraction) is
    reached, both on the data it was made from.
    """

    threshold: float
    rerun: float
    accuracy: float


def confidence(logits: Logits) -> npt.NDArray[np.float64]:
    """The largest softmax probability of each row of logits (n, classes): (n,), between 1 / classes and 1."""
    shifted = np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(1.0 / np.exp(shifted).sum(axis=1))


def make_gates(
    logits: Logits, original: npt.NDArray[np.integer[Any]], labels: npt.NDArray[np.integer[Any]], shares: Sequence[float]
) -> tuple[Gate, ...]:
    """A gate for each of ``shares``, for a path that answered ``logits`` (n, classes) where the original chose classes ``original`` (n,)
    and ``labels`` (n,) are right. Shares that so many images cannot tell apart give one gate.
    """
    sure, chosen = confidence(logits), logits.argmax(axis=1)
    gates: dict[float, Gate] = {}
    for share in sorted(shares):
        threshold = float(np.quantile(sure, share))
        again = sure < threshold
        rerun = round(float(again.mean()), SHARE_DIGITS)
        if 0 < rerun < 1:
            gates[rerun] = Gate(threshold, rerun, float((np.where(again, original, chosen) == labels).mean()))
    return tuple(gates.values())
