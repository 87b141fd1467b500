"""What trainings promised at the rungs they came to: asynchronous successive halving (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from code_ray.path import InferencePath


class Rungs:
    """Forecasts of paths at their rungs, and who was stopped there. A forecast is the z that a path may end with, and its standard
    deviation (``forecast.after_rung``).
    """

    def __init__(self, reduction: int) -> None:
        self._reduction = reduction
        self._forecasts: dict[int, dict[InferencePath, tuple[float, float]]] = {}  # by the steps of the rung
        self._last: dict[InferencePath, int] = {}
        self.stopped: dict[InferencePath, None] = {}  # in order: sums of floats depend on it

    def arrive(self, path: InferencePath, steps: int, z: float, std: float) -> None:
        """Record what is forecast of a training that has come to a rung of ``steps`` batches."""
        self._last[path] = steps
        self._forecasts.setdefault(steps, {})[path] = z, std

    def forecast(self, path: InferencePath, ended: Mapping[InferencePath, float], steps: int | None = None) -> tuple[float, float]:
        """What ``path`` may end with, by its rung of ``steps``, or its last one, corrected by how far those of that rung were off that
        have ``ended``; two trainings that were not count against them.
        """
        rung = self._forecasts[self._last[path] if steps is None else steps]
        z, std = rung[path]
        off = [ended[other] - forecast for other, (forecast, _) in rung.items() if other in ended]
        return z + sum(off) / (len(off) + 2), std

    def among_the_best(self, path: InferencePath, steps: int, promise: Callable[[InferencePath], float]) -> bool:
        """Whether what ``path`` promises is positive and of the best 1 / ``reduction`` of all that came to this rung; the first always is."""
        rung = self._forecasts[steps]
        # Of those that promise the same the one that loses less is better.
        promises = {other: (round(promise(other), 9), -z) for other, (z, _) in rung.items()}
        kept = sorted(promises.values(), reverse=True)[: max(1, len(rung) // self._reduction)]
        return len(rung) == 1 or (promises[path] >= kept[-1] and promises[path][0] > 0)
