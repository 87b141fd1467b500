"""How much later answers come than is reckoned: the mean and its spread, as TCP reckons its timer (RFC 6298). Pure: no clock of its own."""

from __future__ import annotations

import math

MEAN_WEIGHT, SPREAD_WEIGHT, SPREADS = 1 / 8, 1 / 4, 4.0
"""Of the newest answer in either; how many spreads are allowed for."""

HALF_LIFE_S = 1.0
"""In which what was learnt counts half: what keeps requests away has to be forgotten where none comes any more."""


class Lateness:
    """Of one path."""

    def __init__(self) -> None:
        self._mean = self._spread = 0.0
        self._at = -math.inf

    def learn(self, seconds: float, now: float) -> None:
        """An answer came so many seconds later than was reckoned when its request began, or earlier where they are below 0."""
        mean, spread = self._kept(now) * self._mean, self._kept(now) * self._spread
        self._spread = spread + SPREAD_WEIGHT * (abs(seconds - mean) - spread)
        self._mean = mean + MEAN_WEIGHT * (seconds - mean)
        self._at = now

    def allowance(self, now: float) -> float:
        """Seconds to add to what is reckoned, so that few answers come later."""
        return self._kept(now) * (self._mean + SPREADS * self._spread)

    def _kept(self, now: float) -> float:
        return float(0.5 ** ((now - self._at) / HALF_LIFE_S))
