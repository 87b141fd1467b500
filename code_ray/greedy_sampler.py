"""Algorithm 1 repaired: screen with least-squares links, then train by expected improvement (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from code_ray.acquisition import expected_improvement
from code_ray.objective import Known, Objective
from code_ray.path import InferencePath
from code_ray.predictor import ConstantPredictor, GaussianProcessPredictor
from code_ray.sampler import Fidelity, Proposal, Sampler, Stopping
from code_ray.space import Candidate, feature_matrix
from code_ray.throughput import FloatArray

LEFT_AFTER_TRAINING = {True: 0.5, False: 0.85}
"""Share of the loss of least-squares links that training leaves, about, for paths that end in the local head (.4 to .6 on
Fashion-MNIST) and for those whose last link makes the logits (.8 to .95). A screened path is judged by the loss it would have
then: a plan under a loss limit wants little from a path that loses much."""

HOPELESS = 0.25
"""A path that loses this much, as a fraction, serves no plan; the predictor is not told how much more it loses."""


class GreedySampler(Sampler):
    """Algorithm 1 repaired. ``predictor``: gp, or constant and random to compare with.

    ``screen`` paths are tried with least-squares links alone: a third of them without a host (the rivals: where the space is
    small, all of them), a third spread over the faster half of those with a host, the rest where such links promise most. Then
    the initial design is trained, the best of these with a host and the two best without, then the largest expected improvement
    of the objective among what was screened, then among the rest. No path is trained twice, and the best set is kept, not the
    last path.
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
        self._fits: dict[InferencePath, float] = {}  # screened paths: what training may make of them
        self._dropped: set[InferencePath] = set()
        self._screen = 0 if predictor == "random" else min(screen, len(self.candidates))
        self._first_screened = self._spread(self._screen // 3, with_host=False) + self._spread((self._screen + 1) // 3, with_host=True)
        self._initial: list[InferencePath] | None = None

    def ask(self) -> Proposal | None:
        if self.stopped_because:
            return None
        screening, in_flight = self._paths_in_flight("fit"), self._paths_in_flight("trained")
        path = self._next_screened(screening)
        if path is not None:
            return self._propose(Proposal(path, "fit"))
        if screening:
            return None
        open_indices = self._open_indices({*self.trained, *in_flight})
        if len(self.trained) + len(in_flight) >= self.stopping.max_trainings or not open_indices:
            if not in_flight:
                self.stopped_because = self._budget_spent if open_indices else "every path was trained"
            return None
        return self._propose(Proposal(self._next_path(open_indices, in_flight), "trained"))

    def tell(self, proposal: Proposal, accuracy: float, accuracy_fit: float | None = None) -> None:
        """Record an accuracy; a full training also tells what its least-squares links reached."""
        super().tell(proposal, accuracy)
        if proposal.fidelity == "fit":
            self._fits[proposal.path] = self._after_training(proposal.path, accuracy)
            return
        if self._initial is None:  # a resumed search: the initial design does not count there either
            self._initial = self._initial_design()
        before = self.objective.value(self.known)
        self.trained[proposal.path] = accuracy
        if accuracy_fit is not None:
            self._fits[proposal.path] = self._after_training(proposal.path, accuracy_fit)
        if proposal.path not in self._initial:
            self._count_gain(before, self.objective.value(self.known))

    def drop(self, proposal: Proposal) -> None:
        super().drop(proposal)
        self._dropped.add(proposal.path)

    def _propose(self, proposal: Proposal) -> Proposal:
        self._pending.add(proposal)
        return proposal

    def _paths_in_flight(self, fidelity: Fidelity) -> set[InferencePath]:
        return {proposal.path for proposal in self._pending if proposal.fidelity == fidelity}

    def _open_indices(self, taken: set[InferencePath]) -> list[int]:
        return [i for i, c in enumerate(self.candidates) if c.path not in taken and c.path not in self._dropped]

    def _next_screened(self, screening: set[InferencePath]) -> InferencePath | None:
        """The next path to screen; None where enough are, or the first results must come back."""
        taken = {*self._fits, *screening}
        open_indices = self._open_indices(taken)
        if len(taken) + len(self._dropped) >= self._screen or not open_indices or self.trained:
            return None
        for path in self._first_screened:
            if path not in taken and path not in self._dropped:
                return path
        if not self._fits:
            return None if screening else self.candidates[open_indices[0]].path
        return self._most_promising(open_indices, screening, self._costed(self._fits), 0.0)

    def _next_path(self, open_indices: list[int], in_flight: set[InferencePath]) -> InferencePath:
        if self._predictor == "random":
            return self.candidates[int(self._rng.choice(open_indices))].path
        if self._initial is None:
            self._initial = self._initial_design()
        for path in self._initial:
            if path not in self.trained and path not in in_flight and path not in self._dropped:
                return path
        # A few seconds of screening say more of a path than its neighbours do: screened ones first.
        screened = [i for i in open_indices if self.candidates[i].path in self._fits]
        return self._most_promising(screened or open_indices, in_flight, self.known, 1.0)

    def _most_promising(self, open_indices: list[int], in_flight: set[InferencePath], known: Known, fidelity: float) -> InferencePath:
        """The open path with the largest expected improvement over ``known`` at a fidelity."""
        candidates = [self.candidates[i] for i in open_indices]
        mean, std, flying = self._predict(open_indices, in_flight, fidelity)
        # What is in flight counts as if it came out as predicted, so that the next trial asks something else.
        known = {**known, **self._costed(flying)}
        gains = expected_improvement(lambda a: self.objective.values_with(known, candidates, a), mean, std, self.objective.value(known))
        if gains.max() > 0:
            return candidates[int(gains.argmax())].path
        # Nothing is expected to gain: spend the trial where most is unknown.
        return candidates[int(std.argmax())].path

    def _after_training(self, path: InferencePath, accuracy_fit: float) -> float:
        """What training may make of the accuracy of least-squares links."""
        loss = self.objective.accuracy_original - accuracy_fit
        return self.objective.accuracy_original - (LEFT_AFTER_TRAINING[path.ends_in_head] * loss if loss > 0 else loss)

    def _costed(self, accuracies: Mapping[InferencePath, float]) -> Known:
        return {path: (self.candidates[self.index[path]].cost, accuracy) for path, accuracy in accuracies.items()}

    def _predict(
        self, open_indices: list[int], in_flight: set[InferencePath], fidelity: float
    ) -> tuple[FloatArray, FloatArray, dict[InferencePath, float]]:
        """Mean and deviation of the accuracy of open paths, and the mean of those in flight."""
        rows, accuracies = [], []
        for known_fidelity, results in ((0.0, self._fits), (1.0, self.trained)):
            for path, accuracy in results.items():
                rows.append(np.append(self._features[self.index[path]], known_fidelity))
                accuracies.append(max(accuracy, self.objective.accuracy_original - HOPELESS))
        flying = [self.index[path] for path in in_flight]
        asked = np.array([np.append(self._features[i], fidelity) for i in [*open_indices, *flying]])
        n = len(open_indices)
        if not rows:  # nothing was screened: begin with the path that would serve most if it lost nothing
            prior = self.objective.accuracy_original
            return np.full(n, prior), np.zeros(n), dict.fromkeys(in_flight, prior)
        model = ConstantPredictor() if self._predictor == "constant" else GaussianProcessPredictor(asked.shape[1], self._seed)
        model.fit(np.array(rows), np.array(accuracies))
        mean, std = model.predict(asked)
        return mean[:n], std[:n], {self.candidates[i].path: float(m) for i, m in zip(flying, mean[n:], strict=True)}

    def _initial_design(self) -> list[InferencePath]:
        """The best screened path with a host and the two best without, by the objective at the accuracy they may reach."""
        design: list[InferencePath] = []
        for with_host, count in ((True, 1), (False, 2)):
            fits = {p: a for p, a in self._fits.items() if bool(p.hosts) == with_host and p in self.index}
            for _ in range(min(count, len(fits))):
                chosen = self._costed({path: fits[path] for path in design if path in fits})
                left = self._costed({path: accuracy for path, accuracy in fits.items() if path not in design})
                worth = {path: self.objective.value({**chosen, path: entry}) for path, entry in left.items()}
                design.append(max(worth, key=lambda path: worth[path]))
        return design

    def _spread(self, count: int, *, with_host: bool) -> list[InferencePath]:
        """``count`` paths far from each other, fastest first (farthest-point design); of those with a host in the faster half."""
        indices = [i for i, c in enumerate(self.candidates) if bool(c.path.hosts) == with_host]
        tau_l, tau_h = self.objective.pair_seconds([self.candidates[i] for i in indices])
        order = [indices[i] for i in np.argsort(np.maximum(tau_l, tau_h))]
        pool = order[: max(count, len(order) // 2)] if with_host else order
        chosen = [pool.pop(0)] if pool and count else []
        while pool and len(chosen) < count:
            gaps = np.abs(self._features[pool][:, None] - self._features[chosen][None]).sum(axis=2).min(axis=1)
            chosen.append(pool.pop(int(gaps.argmax())))
        return [self.candidates[i].path for i in chosen]
