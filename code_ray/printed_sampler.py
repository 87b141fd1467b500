"""Algorithm 1 as printed, kept to compare with (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from code_ray.forecast import from_z, to_z
from code_ray.objective import Known, Objective
from code_ray.path import InferencePath
from code_ray.path_space import Sides, class_columns
from code_ray.predictor import GaussianProcessPredictor, Measured
from code_ray.sampler import Proposal, Sampler, Stopping
from code_ray.scoring import Score
from code_ray.space import Candidate, feature_matrix


class PrintedSampler(Sampler):
    """Algorithm 1 as printed: Q is never cleared, trained paths stay candidates, the stop test looks at the previous stage
    and not at the best, and the last path is returned. One training at a time.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        objective: Objective,
        stopping: Stopping,
        hosts: Mapping[str, int],
        *,
        seed: int = 0,
        sides: Sides | None = None,
        hosts_per_path: int = 1,
    ) -> None:
        super().__init__(candidates, objective, stopping)
        if candidates:
            features = feature_matrix([c.path for c in self.candidates], hosts, sides, hosts_per_path)
            self._predictor = GaussianProcessPredictor(features, class_columns(hosts, hosts_per_path), seed)
        self._q: dict[InferencePath, float] = {}
        self._previous = -1.0
        self._last: InferencePath | None = None

    def ask(self) -> tuple[Proposal, ...]:
        while not self.stopped_because and not self._pending:
            self._predict_all()
            path = max(self._q, key=lambda p: self._q[p])
            if path not in self.trained:
                if len(self.trained) >= self.stopping.max_trainings:
                    self.stopped_because = self._budget_spent
                    return ()
                proposal = Proposal(path, "trained")
                self._pending.add(proposal)
                return (proposal,)
            if path == self._last and self.stopping.patience > len(self.candidates):
                # Nothing new is known, so this goes on until c_stop ends it; one larger than the space is taken for none.
                self.stopped_because = f"it would choose {path} for ever"
                return ()
            self._end_stage(path)
        return ()

    def tell(self, proposal: Proposal, accuracy: float, score: Score | None = None) -> None:
        """Record the accuracy of the path just trained."""
        super().tell(proposal, accuracy)
        self.trained[proposal.path] = accuracy
        self._end_stage(proposal.path)

    def drop(self, proposal: Proposal) -> None:
        super().drop(proposal)
        self.stopped_because = f"the training of {proposal.path} failed, and the printed algorithm knows no other way on"

    @property
    def takes_all(self) -> bool:
        return False

    @property
    def chosen(self) -> Known:
        return {path: entry for path, entry in self.known.items() if path == self._last}

    def _end_stage(self, path: InferencePath) -> None:
        candidate = self.candidates[self.index[path]]
        value = self.objective.value({path: (candidate.cost, self.trained[path])})
        self._count_gain(self._previous, value)
        self._previous, self._last = value, path

    def _predict_all(self) -> None:
        measured = Measured({}, {self.index[p]: float(to_z(self.objective.loss_points(a))) for p, a in self.trained.items()})
        # The first forecast is A_0 for all.
        mean = self._predictor.predict(measured, list(range(len(self.candidates))))[0] if self.trained else np.zeros(len(self.candidates))
        accuracies = self.objective.accuracies(from_z(mean))
        values = self.objective.values_with({}, self.candidates, accuracies[None])[0]
        for candidate, value in zip(self.candidates, values, strict=True):
            self._q[candidate.path] = max(self._q.get(candidate.path, -np.inf), float(value))
