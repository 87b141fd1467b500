"""Spaces with more paths than a search can look at closely: the few that promise most, chosen again as it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from code_ray.cost_table import CostTable
from code_ray.forecast import UNKNOWN_STD, UNKNOWN_Z
from code_ray.objective import Known, Objective, UpperBound
from code_ray.path import InferencePath
from code_ray.path_space import HOST, PathSpace, Rows
from code_ray.scoring_design import BATCH
from code_ray.shortlist import shortlist
from code_ray.space import Candidate
from code_ray.throughput import FloatArray, PathCost


@dataclass(frozen=True)
class WideSpace:
    """A space of which at most ``size`` paths exist as objects at a time. ``cost`` is what ``costs`` says, of one path."""

    space: PathSpace
    costs: CostTable
    objective: Objective
    cost: Callable[[InferencePath], PathCost]
    size: int

    @cached_property
    def faster(self) -> int:
        """How many paths can serve more than the original alone: what P' of Algorithm 1 holds."""
        return sum(map(len, self._faster_chunks()))

    def start(self) -> list[Candidate]:
        """Candidates before anything is measured: half of them those that promise most, half spread evenly over the rest of P',
        with paths beside them that share most of what scoring them takes.
        """
        half = self.size // 2
        best, _ = shortlist(self.space, self.costs, self.objective, {}, lambda f: np.full(len(f), UNKNOWN_Z), UNKNOWN_STD, half)
        spread = _evenly(np.concatenate(list(self._faster_chunks(max(1, self.faster // (4 * half))))), half // (BATCH + 1))
        beside = [self._faster_rows(self.space.siblings(row)) for row in spread if row[HOST] >= 0]
        rows = np.concatenate([best, spread, *(_evenly(rows, BATCH) for rows in beside)])
        return [self.candidate(path) for path in dict.fromkeys(map(self.space.path, rows))]

    def promising(self, known: Known, forecast: Callable[[FloatArray], FloatArray], std: float) -> list[Candidate]:
        """The paths that promise to add most to the best plan of ``known``, best first; see ``shortlist``."""
        rows, _ = shortlist(self.space, self.costs, self.objective, known, forecast, std, self.size)
        return [self.candidate(self.space.path(row)) for row in rows]

    def candidate(self, path: InferencePath) -> Candidate:
        """A path of the space with what it costs."""
        return Candidate(path, self.cost(path))

    def _faster_chunks(self, step: int = 1) -> Iterator[Rows]:
        """P', or about every ``step``-th path of it."""
        for chunk in self.space.chunks():
            yield self._faster_rows(chunk)[::step]

    def _faster_rows(self, rows: Rows) -> Rows:
        bound, alone = self._beside_the_original
        reached = bound(self.costs.taken(rows, self.objective.limits), np.full(len(rows), self.objective.accuracy_original))
        return rows[reached > alone * (1 + 1e-9)]

    @cached_property
    def _beside_the_original(self) -> tuple[UpperBound, float]:
        """What the original with one path cannot exceed, and what it serves alone: programmes solved once, not for every chunk."""
        return self.objective.upper_bound({}), self.objective.value({})


def _evenly(rows: Rows, count: int) -> Rows:
    """About ``count`` of ``rows``, from one end to the other."""
    return rows[:: max(1, len(rows) // max(1, count))][:count]
