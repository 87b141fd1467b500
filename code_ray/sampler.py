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
from code_ray.scoring import Score
from code_ray.space import Candidate

Fidelity = Literal["fit", "stopped", "trained", "refined"]
"""``fit``: least-squares links only; ``trained``: the full recipe; ``stopped``: a training that was given up at a rung; ``refined``:
trained several times as long, which samplers do not ask for: it is for the paths of the plan."""


@dataclass(frozen=True)
class Proposal:
    """A path to evaluate at a fidelity."""

    path: InferencePath
    fidelity: Fidelity


@dataclass(frozen=True)
class Stopping:
    """When a search ends: ``patience`` full trainings in a row without a gain of ``epsilon`` (c_stop), no path left from which
    as much is expected, or the budget.

    ``epsilon`` is in units of the objective and should be at least two of its standard errors.
    """

    max_trainings: int
    patience: int
    epsilon: float


@dataclass(frozen=True)
class Left:
    """What is left when a search ends: how many paths, the objective's value by then, its largest gain expected from training one of
    them, and the largest value with one of them if that path came out at the good end of its 95 % interval.
    """

    paths: int
    value: float
    expected_improvement: float
    bound: float


class Sampler(ABC):
    """Proposes paths (``ask``) and learns what they measured (``tell``)."""

    def __init__(self, candidates: Sequence[Candidate], objective: Objective, stopping: Stopping) -> None:
        self._consider(candidates)
        self.objective = objective
        self.stopping = stopping
        self.trained: dict[InferencePath, float] = {}
        self.stopped_because: str | None = None if candidates else "no path in the space is faster than the original"
        self._pending: set[Proposal] = set()
        self._without_gain = 0

    @abstractmethod
    def ask(self) -> tuple[Proposal, ...]:
        """What to evaluate next: one path to train, or some to score together.

        Empty where there is nothing now (something is in flight) or nothing ever (``stopped_because``).
        """

    def tell(self, proposal: Proposal, accuracy: float, score: Score | None = None) -> None:
        """Record a measured validation accuracy (a fraction); of least-squares links, the whole score."""
        self._pending.discard(proposal)

    @property
    def takes_all(self) -> bool:
        """Whether a plan may be made of every trained path, those that the sampler did not ask for among them."""
        return True

    def rival(self) -> Proposal | None:
        """A path without a host that a plan without hosts may still gain from, to be trained before plans are compared; None
        where nothing is forecast, or no such path is left.
        """
        return None

    def admit(self, path: InferencePath) -> bool:
        """Whether what was measured of ``path``, in an earlier session or another search, can be told."""
        return path in self.index

    def keep_training(self, path: InferencePath, steps: int, share: float, loss_points: float) -> bool:
        """Whether a training goes on that has come to a rung of ``steps`` batches, ``share`` of them all, and loses so much now."""
        return True

    def stop(self, path: InferencePath) -> None:
        """Record that the training of ``path`` was stopped at its last rung."""
        self._pending.discard(Proposal(path, "trained"))

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

    def _consider(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = list(candidates)
        self.index = {candidate.path: i for i, candidate in enumerate(self.candidates)}

    @property
    def _budget_spent(self) -> str:
        return f"the budget of {self.stopping.max_trainings} trainings is spent"

    def expected_range(self, path: InferencePath) -> tuple[float, float] | None:
        """What a training of ``path`` is expected to reach, an interval of 95 % of accuracies; None where nothing is forecast."""
        return None

    @property
    def left(self) -> Left | None:
        """What the paths that were not trained may hold; None where nothing is forecast, or no path is left."""
        return None

    def _count_gain(self, before: float, after: float) -> None:
        """The stop rule: c_stop results in a row that gain less than epsilon."""
        if self.stopped_because is not None:
            return  # what is told after the end counts to no rule
        gained = after > before and after - before >= self.stopping.epsilon
        self._without_gain = 0 if gained else self._without_gain + 1
        if self._without_gain >= self.stopping.patience:
            self.stopped_because = f"{self.stopping.patience} trainings in a row gained less than {self.stopping.epsilon:g}"
