"""The paper's reward F(p) = xi(A_av) * zeta(Th_p) (DESIGN 2.4). Accuracies are fractions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from code_ray.throughput import FloatArray, pair_throughput


@dataclass(frozen=True)
class Reward:
    """Parameters of F: steepness s, knee A_min (a fraction, not a floor), exponent k."""

    accuracy_min: float
    steepness: float = 8.0
    exponent: float = 1.0

    def xi(self, accuracy: FloatArray | float) -> FloatArray:
        """Worth of an average accuracy, in (0, 1)."""
        return np.asarray(1 / (1 + np.exp(-self.steepness * (np.asarray(accuracy) - self.accuracy_min))))

    def zeta(self, throughput_ratio: FloatArray | float) -> FloatArray:
        """Worth of a throughput relative to the original's."""
        return np.asarray(np.asarray(throughput_ratio) ** self.exponent)

    def __call__(self, accuracy: FloatArray | float, throughput_ratio: FloatArray | float) -> FloatArray:
        return self.xi(accuracy) * self.zeta(throughput_ratio)


def average_accuracy(accuracy_original: float, accuracy: FloatArray | float, th_l: FloatArray, th_h: FloatArray) -> FloatArray:
    """A_av = (Th_l A_0 + Th_h A_p) / Th_p, the accuracy of the pair's mixed traffic."""
    return np.asarray((th_l * accuracy_original + th_h * np.asarray(accuracy)) / (th_l + th_h))


def pair_reward(
    reward: Reward,
    accuracy_original: float,
    accuracy: FloatArray,
    t0: float,
    tau_l: FloatArray,
    tau_h: FloatArray,
    kappa: float,
) -> FloatArray:
    """F of the original with each path at maximum offload (``mix: max``, the paper's); broadcasts over paths."""
    th_l, th_h = pair_throughput(t0, tau_l, tau_h, kappa)
    return reward(average_accuracy(accuracy_original, accuracy, th_l, th_h), (th_l + th_h) * t0)
