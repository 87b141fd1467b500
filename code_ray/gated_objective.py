"""What a search maximises where every path also has gated forms (see ``gating``), before a gate of any has been measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from code_ray.objective import Known, PlanObjective, UpperBound, fullest
from code_ray.path import InferencePath
from code_ray.space import Candidate
from code_ray.throughput import FloatArray, Limits, PathCost

RECOVERY = 0.2
"""Points that the first per cent of reruns wins back: the median of 13 trained paths of Fashion-MNIST, with and without a host, that lost
0.3 to 2.3 points (0.08 to 0.28).
"""


def loss_behind(loss_points: FloatArray, rerun: float) -> FloatArray:
    """What is expected to be left of a loss, in points, where a share ``rerun`` is answered by the original: L exp(-c r / L)."""
    lost = np.asarray(loss_points, np.float64)
    return np.where(lost > 0, lost * np.exp(-RECOVERY * 100 * rerun / np.maximum(lost, 1e-9)), lost)


class GatedPlanObjective(PlanObjective):
    """``PlanObjective`` over paths and their gated forms at the shares ``reruns``: those that were measured, where ``known`` holds
    gated forms of a path, else those that are expected.
    """

    def __init__(self, original: Candidate, accuracy_original: float, limits: Limits, local_provider: str, reruns: Sequence[float]) -> None:
        super().__init__(original, accuracy_original, limits, local_provider)
        self.reruns = tuple(reruns)
        self._plain = PlanObjective(original, accuracy_original, limits, local_provider)

    def forms(self, known: Known) -> Known:
        """``known`` paths with their gated forms."""
        measured = {path.plain for path in known if path.rerun}
        found = dict(known)
        for path, (cost, accuracy) in known.items():
            if path.plain not in measured:
                for rerun in self.reruns:
                    found[replace(path, rerun=rerun)] = self._cost(cost, rerun), float(self._accuracy(np.array(accuracy), rerun))
        return found

    def rates(self, known: Known) -> dict[InferencePath, float]:
        """Of a path, over all of its forms."""
        found = dict.fromkeys((path.plain for path in known), 0.0)
        for path, rate in self._plain.rates(self.forms(known)).items():
            found[path.plain] += rate
        return found

    def value(self, known: Known) -> float:
        return self._plain.value(self.forms(known))

    def values_with(self, known: Known, candidates: Sequence[Candidate], accuracies: FloatArray) -> FloatArray:
        # One form of a candidate at a time: a mixture of several of them would be a little better still.
        forms = self.efficient(self.forms(known))
        found = self._plain.values_with(forms, candidates, accuracies)
        for rerun in self.reruns:
            gated = [Candidate(candidate.path, self._cost(candidate.cost, rerun)) for candidate in candidates]
            found = np.maximum(found, self._plain.values_with(forms, gated, self._accuracy(accuracies, rerun)))
        return found

    def upper_bound(self, known: Known) -> UpperBound:
        dual = self._plain.dual(self.efficient(self.forms(known)))
        local = self.limits.resources.index(self.local_provider)
        others = [i for i in range(len(dual.shares)) if i != local]

        def bound(seconds: FloatArray, accuracies: FloatArray) -> FloatArray:
            used, lost = seconds / self.original_seconds, self.loss_points(accuracies)
            left, elsewhere = 1 - used @ dual.prices[:-1], fullest(used[:, others], dual.shares[others])
            here = used[:, local]

            def gated(rerun: float, lost: FloatArray) -> FloatArray:
                # Of what a path uses its gate changes the local server's time alone: the original crosses no edge.
                full = np.minimum(elsewhere, fullest((here + rerun)[:, None], dual.shares[[local]]))
                return dual.bound(left - rerun * dual.prices[local], full, lost - self.limits.loss_points)

            found = gated(0.0, lost)
            # Where nothing is lost a gate gains nothing.
            for rerun in self.reruns if bool((lost > 0).any()) else ():
                found = np.maximum(found, gated(rerun, loss_behind(lost, rerun)))
            return found

        return bound

    def _cost(self, cost: PathCost, rerun: float) -> PathCost:
        return cost.plus(self.original.cost, rerun)

    def _accuracy(self, accuracies: FloatArray, rerun: float) -> FloatArray:
        return self.accuracies(loss_behind(self.loss_points(accuracies), rerun))
