"""Ask / tell: which path to train next (DESIGN 2.5). Knows no Tune and trains nothing itself.

What every sampler does; ``greedy_sampler`` and ``printed_sampler`` are the two forms of Algorithm 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from code_ray.objective import Known, Objective
from code_ray.path import InferencePath
from code_ray.space import Candidate

Fidelity = Literal["fit", "trained"]
"""``fit``: least-squares links only; ``trained``: the full recipe."""


@dataclass(frozen=True)
class Proposal:
    """A path to evaluate at a fidelity."""

    path: InferencePath
    fidelity: Fidelity


@dataclass(frozen=True)
class Stopping:
    """When a search ends: ``patience`` full trainings in a row without a gain of ``epsilon`` (c_stop), or the budget.

    ``epsilon`` is in units of the objective and should be at least two of its standard errors.
    """

    max_trainings: int
    patience: int
    epsilon: float


class Sampler(ABC):
    """Proposes paths (``ask``) and learns what they measured (``tell``)."""

    def __init__(self, candidates: Sequence[Candidate], objective: Objective, stopping: Stopping) -> None:
        self.candidates = list(candidates)
        self.objective = objective
        self.stopping = stopping
        self.trained: dict[InferencePath, float] = {}
        self.stopped_because: str | None = None if candidates else "no path in the space is faster than the original"
        self.index = {candidate.path: i for i, candidate in enumerate(self.candidates)}
        self._pending: set[Proposal] = set()
        self._without_gain = 0

    @abstractmethod
    def ask(self) -> Proposal | None:
        """The next proposal; None where there is none now (something is in flight) or none ever (``stopped_because``)."""

    def tell(self, proposal: Proposal, accuracy: float, accuracy_fit: float | None = None) -> None:
        """Record a measured validation accuracy (a fraction); ``accuracy_fit`` is that of the least-squares links."""
        self._pending.discard(proposal)

    def drop(self, proposal: Proposal) -> None:
        """Forget a proposal whose evaluation failed; it is not proposed again."""
        self._pending.discard(proposal)

    @property
    def known(self) -> Known:
        """Trained paths with cost and accuracy, as objectives take them."""
        return {path: (self.candidates[self.index[path]].cost, accuracy) for path, accuracy in self.trained.items()}

    @property
    def chosen(self) -> Known:
        """The paths a plan may be made of when the search ends."""
        return self.known

    @property
    def _budget_spent(self) -> str:
        return f"the budget of {self.stopping.max_trainings} trainings is spent"

    def _count_gain(self, before: float, after: float) -> None:
        """The stop rule: c_stop results in a row that gain less than epsilon."""
        self._without_gain = 0 if after - before >= self.stopping.epsilon else self._without_gain + 1
        if self._without_gain >= self.stopping.patience:
            self.stopped_because = f"{self.stopping.patience} trainings in a row gained less than {self.stopping.epsilon:g}"
