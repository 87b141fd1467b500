"""Ask / tell: which path to train next (DESIGN 2.5). Knows no Tune and trains nothing itself.

``GreedySampler`` is Algorithm 1 repaired: it screens some paths by their least-squares links alone, then trains the path with
the largest expected improvement of the objective; it never trains a path twice and returns the best set, not the last
path. ``PrintedSampler`` is Algorithm 1 as printed, with its four defects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from code_ray.acquisition import expected_improvement
from code_ray.objective import Known, Objective
from code_ray.path import InferencePath
from code_ray.predictor import ConstantPredictor, GaussianProcessPredictor
from code_ray.space import Candidate, feature_matrix
from code_ray.throughput import FloatArray

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
        self._index = {candidate.path: i for i, candidate in enumerate(self.candidates)}
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
        return {path: (self.candidates[self._index[path]].cost, accuracy) for path, accuracy in self.trained.items()}

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


class GreedySampler(Sampler):
    """Algorithm 1 repaired. ``predictor``: gp, or constant and random to compare with.

    ``screen`` paths, spread over the faster half of the space, are tried with least-squares links alone; then come the best
    of these with and without a host (the initial design), then the largest expected improvement.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        objective: Objective,
        stopping: Stopping,
        hosts: Mapping[str, int],
        *,
        predictor: Literal["gp", "constant", "random"] = "gp",
        screen: int = 24,
        seed: int = 0,
    ) -> None:
        super().__init__(candidates, objective, stopping)
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._predictor = predictor
        self._features = feature_matrix([c.path for c in self.candidates], hosts)
        self._fits: dict[InferencePath, float] = {}
        self._dropped: set[InferencePath] = set()
        self._to_screen = self._spread(screen) if predictor != "random" and self.candidates and screen else []
        self._initial: list[InferencePath] | None = None

    def ask(self) -> Proposal | None:
        if self.stopped_because:
            return None
        in_flight = {proposal.path for proposal in self._pending if proposal.fidelity == "trained"}
        while self._to_screen:
            path = self._to_screen.pop(0)
            if path not in self._fits and path not in self.trained:
                return self._propose(Proposal(path, "fit"))
        if any(proposal.fidelity == "fit" for proposal in self._pending):
            return None
        open_indices = [i for i, c in enumerate(self.candidates) if c.path not in {*self.trained, *in_flight, *self._dropped}]
        if len(self.trained) + len(in_flight) >= self.stopping.max_trainings or not open_indices:
            if not in_flight:
                self.stopped_because = self._budget_spent if open_indices else "every path was trained"
            return None
        return self._propose(Proposal(self._next_path(open_indices, in_flight), "trained"))

    def tell(self, proposal: Proposal, accuracy: float, accuracy_fit: float | None = None) -> None:
        """Record an accuracy; a full training also tells what its least-squares links reached."""
        super().tell(proposal, accuracy)
        if proposal.fidelity == "fit":
            self._fits[proposal.path] = accuracy
            return
        if self._initial is None:  # a resumed search: the initial design does not count there either
            self._initial = self._initial_design()
        before = self.objective.value(self.known)
        self.trained[proposal.path] = accuracy
        if accuracy_fit is not None:
            self._fits[proposal.path] = accuracy_fit
        if proposal.path not in self._initial:
            self._count_gain(before, self.objective.value(self.known))

    def drop(self, proposal: Proposal) -> None:
        super().drop(proposal)
        self._dropped.add(proposal.path)

    def _propose(self, proposal: Proposal) -> Proposal:
        self._pending.add(proposal)
        return proposal

    def _next_path(self, open_indices: list[int], in_flight: set[InferencePath]) -> InferencePath:
        if self._predictor == "random":
            return self.candidates[int(self._rng.choice(open_indices))].path
        if self._initial is None:
            self._initial = self._initial_design()
        for path in self._initial:
            if path not in self.trained and path not in in_flight and path not in self._dropped:
                return path
        candidates = [self.candidates[i] for i in open_indices]
        mean, std, pending_mean = self._predict(open_indices, in_flight)
        # What is in flight counts as if it came out as predicted, so that the next trial asks something else.
        known = {**self.known, **{p: (self.candidates[self._index[p]].cost, m) for p, m in pending_mean.items()}}
        best = self.objective.value(known)
        gains = expected_improvement(lambda a: self.objective.values_with(known, candidates, a), mean, std, best)
        if gains.max() > 0:
            return candidates[int(gains.argmax())].path
        # Nothing is expected to gain: spend the training where most is unknown.
        return candidates[int(std.argmax())].path

    def _predict(self, open_indices: list[int], in_flight: set[InferencePath]) -> tuple[FloatArray, FloatArray, dict[InferencePath, float]]:
        rows, accuracies = [], []
        for fidelity, results in ((0.0, self._fits), (1.0, self.trained)):
            for path, accuracy in results.items():
                rows.append(np.append(self._features[self._index[path]], fidelity))
                accuracies.append(accuracy)
        flying = [self._index[path] for path in in_flight]
        asked = np.array([np.append(self._features[i], 1.0) for i in [*open_indices, *flying]])
        n = len(open_indices)
        if not rows:  # nothing was screened: begin with the path that would serve most if it lost nothing
            prior = self.objective.accuracy_original
            return np.full(n, prior), np.zeros(n), dict.fromkeys(in_flight, prior)
        model = ConstantPredictor() if self._predictor == "constant" else GaussianProcessPredictor(asked.shape[1], self._seed)
        model.fit(np.array(rows), np.array(accuracies))
        mean, std = model.predict(asked)
        return mean[:n], std[:n], {self.candidates[i].path: float(m) for i, m in zip(flying, mean[n:], strict=True)}

    def _initial_design(self) -> list[InferencePath]:
        """The best screened path with a host and the best without, by the objective at their least-squares accuracy."""
        design = []
        for with_host in (True, False):
            group = [(p, a) for p, a in self._fits.items() if bool(p.hosts) == with_host and p in self._index]
            if group:
                candidates = [self.candidates[self._index[path]] for path, _ in group]
                values = self.objective.values_with({}, candidates, np.array([[a for _, a in group]]))
                design.append(group[int(values[0].argmax())][0])
        return design

    def _spread(self, count: int) -> list[InferencePath]:
        """``count`` paths far from each other among the faster half, fastest first (farthest-point design)."""
        tau_l, tau_h = self.objective.pair_seconds(self.candidates)
        pool = list(np.argsort(np.maximum(tau_l, tau_h))[: max(count, len(self.candidates) // 2)])
        chosen = [pool.pop(0)]
        while pool and len(chosen) < count:
            gaps = np.abs(self._features[pool][:, None] - self._features[chosen][None]).sum(axis=2).min(axis=1)
            chosen.append(pool.pop(int(gaps.argmax())))
        return [self.candidates[i].path for i in chosen]


class PrintedSampler(Sampler):
    """Algorithm 1 as printed: Q is never cleared, trained paths stay candidates, the stop test looks at the previous stage
    and not at the best, and the last path is returned. One training at a time.
    """

    def __init__(
        self, candidates: Sequence[Candidate], objective: Objective, stopping: Stopping, hosts: Mapping[str, int], *, seed: int = 0
    ) -> None:
        super().__init__(candidates, objective, stopping)
        self._seed = seed
        self._features = feature_matrix([c.path for c in self.candidates], hosts)
        self._q: dict[InferencePath, float] = {}
        self._previous = -1.0
        self._last: InferencePath | None = None

    def ask(self) -> Proposal | None:
        while not self.stopped_because and not self._pending:
            self._predict_all()
            path = max(self._q, key=lambda p: self._q[p])
            if path not in self.trained:
                if len(self.trained) >= self.stopping.max_trainings:
                    self.stopped_because = self._budget_spent
                    return None
                proposal = Proposal(path, "trained")
                self._pending.add(proposal)
                return proposal
            self._end_stage(path)
        return None

    def tell(self, proposal: Proposal, accuracy: float, accuracy_fit: float | None = None) -> None:
        """Record the accuracy of the path just trained."""
        super().tell(proposal, accuracy)
        self.trained[proposal.path] = accuracy
        self._end_stage(proposal.path)

    def drop(self, proposal: Proposal) -> None:
        super().drop(proposal)
        self.stopped_because = f"the training of {proposal.path} failed, and the printed algorithm knows no other way on"

    @property
    def chosen(self) -> Known:
        return {path: entry for path, entry in self.known.items() if path == self._last}

    def _end_stage(self, path: InferencePath) -> None:
        candidate = self.candidates[self._index[path]]
        value = self.objective.value({path: (candidate.cost, self.trained[path])})
        self._count_gain(self._previous, value)
        self._previous, self._last = value, path

    def _predict_all(self) -> None:
        if self.trained:
            rows = self._features[[self._index[path] for path in self.trained]]
            model = GaussianProcessPredictor(rows.shape[1], self._seed)
            model.fit(rows, np.array(list(self.trained.values())))
            mean = model.predict(self._features)[0]
        else:
            mean = np.full(len(self.candidates), self.objective.accuracy_original)
        values = self.objective.values_with({}, self.candidates, mean[None])[0]
        for candidate, value in zip(self.candidates, values, strict=True):
            self._q[candidate.path] = max(self._q.get(candidate.path, -np.inf), float(value))


def make_sampler(
    name: Literal["gp", "constant", "random", "printed"],
    candidates: Sequence[Candidate],
    objective: Objective,
    stopping: Stopping,
    hosts: Mapping[str, int],
    *,
    screen: int,
    seed: int,
) -> Sampler:
    """The sampler of that name."""
    if name == "printed":
        return PrintedSampler(candidates, objective, stopping, hosts, seed=seed)
    return GreedySampler(candidates, objective, stopping, hosts, predictor=name, screen=screen, seed=seed)
