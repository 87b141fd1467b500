"""Whether a path still answers as it did when its plan was made, by what it shares with the original on the same images. Pure."""

from __future__ import annotations

import math
from collections import deque

WINDOW, LEAST = 500, 100
"""Images that are looked back on, and the fewest that say anything."""

DEVIATIONS, TOLERANCE = 4.0, 0.05
"""A path has drifted where it disagrees with the original on more images than it used to, by so many standard deviations (each
image is a test, so few would be too many) and by this share besides: traffic differs from validation images.
"""


class DriftWatch:
    """Told of images that a path and the original both answered. ``agreement``: the share of images on which they chose the same
    class when the plan was made; where that is not known, the first ``WINDOW`` images say it.
    """

    def __init__(self, agreement: float | None) -> None:
        self._agreement = agreement
        self._recent: deque[tuple[int, int]] = deque()
        self._images = self._same = 0

    @property
    def images(self) -> int:
        """How many are looked back on."""
        return self._images

    def add(self, images: int, same: int) -> bool:
        """Of ``images`` images ``same`` were given the same class; whether the path has drifted."""
        self._recent.append((images, same))
        self._images += images
        self._same += same
        if self._agreement is None:
            if self._images >= WINDOW:
                self._agreement = self._same / self._images
            return False
        while self._images - self._recent[0][0] >= WINDOW:
            gone, agreed = self._recent.popleft()
            self._images -= gone
            self._same -= agreed
        if self._images < LEAST:
            return False
        expected = max(1.0 - self._agreement, 1.0 / WINDOW)
        most = expected + DEVIATIONS * math.sqrt(expected * (1 - expected) / self._images) + TOLERANCE
        return 1.0 - self._same / self._images > most
