"""What a search maximises: the plan's throughput under a loss limit, or the paper's reward (DESIGN 2.4).

An objective values a *set* of trained paths, because a plan is a mixture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from code_ray.path import InferencePath
from code_ray.reward import Reward, pair_reward
from code_ray.space import Candidate
from code_ray.throughput import FloatArray, Limits, Mixture, PathCost, best_mixture, pair_seconds
from code_ray.vertices import best_with, count_bases, dual_prices, most_slack, tight_rows

Known = Mapping[InferencePath, tuple[PathCost, float]]
"""Trained paths with their costs and validation accuracies."""

MAX_BASES = 5_000
"""Bases of the programme that are walked for exact values: a second or two."""

UpperBound = Callable[[FloatArray, FloatArray], FloatArray]
"""Of paths' seconds of each resource, in the order of ``Limits.resources`` (n, resources), and accuracies (n,); gives (n,)."""


class Objective(ABC):
    """Values of plans for one local service; ``original`` is its own path."""

    def __init__(self, original: Candidate, accuracy_original: float, limits: Limits, local_provider: str) -> None:
        self.original = original
        self.accuracy_original = accuracy_original
        self.limits = limits
        self.local_provider = local_provider

    @property
    def original_seconds(self) -> float:
        """T0, seconds per sample of the original path on the local server."""
        return self.original.cost.at(self.local_provider)

    def loss_points(self, accuracy: FloatArray | float) -> FloatArray:
        """What an accuracy (a fraction) loses against the original, in points."""
        return np.asarray(100 * (self.accuracy_original - np.asarray(accuracy)))

    def accuracies(self, loss_points: FloatArray) -> FloatArray:
        """The accuracies (fractions) that lose so many points."""
        return np.asarray(np.clip(self.accuracy_original - loss_points / 100, 0.0, 1.0))

    @abstractmethod
    def value(self, known: Known) -> float:
        """Value of the best plan from the original and ``known`` paths (cost, accuracy); 1 is the original alone or F of it."""

    @abstractmethod
    def values_with(self, known: Known, candidates: Sequence[Candidate], accuracies: FloatArray) -> FloatArray:
        """Value of the best plan if each candidate (columns) turned out to have each accuracy (rows); ``upper_bound`` of it where
        so many hosts and known paths make the exact values too many to walk.
        """

    @abstractmethod
    def upper_bound(self, known: Known) -> UpperBound:
        """What the best plan with one more path cannot exceed; much cheaper than ``values_with``."""

    def bounds_at_no_loss(self, known: Known, candidates: Sequence[Candidate]) -> FloatArray:
        """What the best plan cannot exceed (n,) with each candidate if that were as accurate as the original."""
        seconds = self.limits.seconds([candidate.cost for candidate in candidates])
        return self.upper_bound(known)(seconds, np.full(len(candidates), self.accuracy_original))

    def pair_seconds(self, candidates: Sequence[Candidate]) -> tuple[FloatArray, FloatArray]:
        """tau_l of each candidate, and tau_h / kappa of its tightest host or network edge: as if that one lent all of itself."""
        return pair_seconds(self.limits, self.local_provider, self.limits.seconds([c.cost for c in candidates]))


@dataclass(frozen=True)
class Dual:
    """The programme's value ``now``, its prices (resources, then the loss row), the most that others can make up for, how much of each
    resource may be used.
    """

    now: float
    prices: FloatArray
    slack: float
    shares: FloatArray

    def bound(self, left: FloatArray, full: FloatArray, over: FloatArray) -> FloatArray:
        """What the value cannot exceed with one more column: (n,) of what is ``left`` of its worth at the resources' prices, of the rate
        at which one of them is ``full``, of its loss ``over`` the limit in points.

        By duality a column gains at most what it is worth at these prices, times the rate at which a resource is full, or the others can
        no longer make up for what it loses.
        """
        worth = left - self.prices[-1] * over
        rate = np.minimum(full, np.where(over > 0, self.slack / np.maximum(over, 1e-12), np.inf))
        return np.asarray(self.now + np.maximum(worth, 0.0) * rate)


def fullest(used: FloatArray, shares: FloatArray) -> FloatArray:
    """The rate (n,) at which the first resource is full, of what is used at a rate of 1 (n, resources) and their shares."""
    with np.errstate(divide="ignore"):
        # Column by column: along rows this short numpy is slow.
        rates = (share / use for share, use in zip(shares, used.T, strict=True))
        return reduce(np.minimum, rates, np.full(len(used), np.inf))


class PlanObjective(Objective):
    """Throughput of the best mixture over Th_0, under the loss limit."""

    def mixture(self, known: Known) -> Mixture:
        """The best mixture; rates in the order original, then ``known``."""
        costs = [self.original.cost, *(cost for cost, _ in known.values())]
        accuracies = [self.accuracy_original, *(accuracy for _, accuracy in known.values())]
        return best_mixture(costs, accuracies, self.accuracy_original, self.limits)

    def rates(self, known: Known) -> dict[InferencePath, float]:
        """Samples a second on each of ``known`` in the best mixture."""
        return dict(zip(known, self.mixture(known).rates[1:], strict=True))

    def value(self, known: Known) -> float:
        return self.mixture(self.efficient(known)).throughput * self.original_seconds

    def efficient(self, known: Known) -> Known:
        """The paths of ``known`` than which no other is both as quick at every resource and as accurate: best plans use no others.
        Programmes over them are many times smaller.
        """
        if len(known) < 2:
            return known
        paths, entries = list(known), list(known.values())
        worse = np.column_stack([self.limits.seconds([cost for cost, _ in entries]), [-accuracy for _, accuracy in entries]])
        as_good = (worse[:, None, :] <= worse[None, :, :]).all(axis=2)  # [i, j]: i is nowhere worse than j
        # Of paths that are the same in everything the first is kept.
        beaten = np.any(as_good & (~as_good.T | np.tri(len(paths), k=-1, dtype=bool).T), axis=0)
        return {path: known[path] for path, out in zip(paths, beaten.tolist(), strict=True) if not out}

    def values_with(self, known: Known, candidates: Sequence[Candidate], accuracies: FloatArray) -> FloatArray:
        entries = [(self.original.cost, self.accuracy_original), *known.values()]
        columns = self._columns(self.limits.seconds([cost for cost, _ in entries]), np.array([accuracy for _, accuracy in entries]))
        seconds = np.tile(self.limits.seconds([c.cost for c in candidates]), (len(accuracies), 1))
        asked = self._columns(seconds, accuracies.ravel())
        bounds = np.append(self.limits.shares, 0.0)
        # What is never short before something else is needs no row: each makes many more bases.
        rows = tight_rows(np.vstack([columns, asked]), bounds)
        if count_bases(columns[:, rows]) > MAX_BASES:
            return self.upper_bound(known)(seconds, accuracies.ravel()).reshape(accuracies.shape)
        return np.maximum(best_with(columns[:, rows], bounds[rows], asked[:, rows]).reshape(accuracies.shape), self.value(known))

    def upper_bound(self, known: Known) -> UpperBound:
        dual = self.dual(known)

        def bound(seconds: FloatArray, accuracies: FloatArray) -> FloatArray:
            used, over = seconds / self.original_seconds, self.loss_points(accuracies) - self.limits.loss_points
            return dual.bound(1 - used @ dual.prices[:-1], fullest(used, dual.shares), over)

        return bound

    def dual(self, known: Known) -> Dual:
        """What the best plan of ``known`` says of one more column."""
        entries = [(self.original.cost, self.accuracy_original), *known.values()]
        columns = self._columns(self.limits.seconds([cost for cost, _ in entries]), np.array([accuracy for _, accuracy in entries]))
        bounds = np.append(self.limits.shares, 0.0)
        prices = dual_prices(columns, bounds)
        return Dual(float(prices @ bounds), prices, most_slack(columns, bounds), self.limits.shares)

    def _columns(self, seconds: FloatArray, accuracies: FloatArray) -> FloatArray:
        """Columns of the programme at a rate of Th_0: shares of each resource, and the loss row, in points above the limit."""
        return np.column_stack([seconds / self.original_seconds, self.loss_points(accuracies) - self.limits.loss_points])


class PaperObjective(Objective):
    """F of the best pair, original and one path at maximum offload."""

    def __init__(self, original: Candidate, accuracy_original: float, limits: Limits, local_provider: str, reward: Reward) -> None:
        super().__init__(original, accuracy_original, limits, local_provider)
        self.reward = reward

    @property
    def original_value(self) -> float:
        """F of the original alone."""
        return float(self.reward(self.accuracy_original, 1.0))

    def path_values(self, candidates: Sequence[Candidate], accuracies: FloatArray) -> FloatArray:
        """F of each candidate (columns) at each accuracy (rows)."""
        tau_l, tau_h = self.pair_seconds(candidates)
        return pair_reward(self.reward, self.accuracy_original, accuracies, self.original_seconds, tau_l, tau_h, 1.0)

    def upper_bound(self, known: Known) -> UpperBound:
        now = self.value(known)

        def bound(seconds: FloatArray, accuracies: FloatArray) -> FloatArray:
            tau_l, tau_h = pair_seconds(self.limits, self.local_provider, seconds)
            values = pair_reward(self.reward, self.accuracy_original, accuracies, self.original_seconds, tau_l, tau_h, 1.0)
            return np.maximum(values, now)

        return bound

    def value(self, known: Known) -> float:
        found = [float(self.path_values([Candidate(path, cost)], np.array([[accuracy]]))[0, 0]) for path, (cost, accuracy) in known.items()]
        return max([self.original_value, *found])

    def values_with(self, known: Known, candidates: Sequence[Candidate], accuracies: FloatArray) -> FloatArray:
        return np.maximum(self.path_values(candidates, accuracies), self.value(known))
