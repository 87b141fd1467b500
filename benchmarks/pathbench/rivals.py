"""Optuna's samplers as Ray Tune hands them out, behind the ask / tell of ours: they see a path's coordinates and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from ray.tune.search.optuna import OptunaSearch

from code_ray.objective import Objective
from code_ray.path_space import Sides
from code_ray.sampler import Proposal, Sampler, Stopping
from code_ray.scoring import Score
from code_ray.space import Candidate, feature_matrix


class OptunaSampler(Sampler):
    """Asks Optuna for coordinates and takes the nearest path not yet trained; tells it the value of the best plan with that path."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        objective: Objective,
        stopping: Stopping,
        hosts: Mapping[str, int],
        *,
        kind: Literal["tpe", "gp"],
        seed: int,
        sides: Sides | None = None,
    ) -> None:
        super().__init__(candidates, objective, stopping)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        features = feature_matrix([c.path for c in self.candidates], hosts, sides)
        moving = features[:, features.std(axis=0) > 0]
        self._points = (moving - moving.min(axis=0)) / np.ptp(moving, axis=0)
        names = [f"x{i}" for i in range(self._points.shape[1])]
        sampler = optuna.samplers.TPESampler(seed=seed) if kind == "tpe" else optuna.samplers.GPSampler(seed=seed)
        space: dict[str, Any] = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names}
        self._searcher = OptunaSearch(space, metric="value", mode="max", sampler=sampler)
        self._trial_ids: dict[Proposal, str] = {}

    def ask(self) -> tuple[Proposal, ...]:
        if len(self.trained) >= min(self.stopping.max_trainings, len(self.candidates)):
            self.stopped_because = self._budget_spent
        if self.stopped_because:
            return ()
        trial_id = str(len(self.trained))
        wanted = self._searcher.suggest(trial_id)
        assert isinstance(wanted, dict)
        gaps = np.abs(self._points - np.array([wanted[f"x{i}"] for i in range(self._points.shape[1])])).sum(axis=1)
        index = next(int(i) for i in np.argsort(gaps) if self.candidates[i].path not in self.trained)
        proposal = Proposal(self.candidates[index].path, "trained")
        self._trial_ids[proposal] = trial_id
        return (proposal,)

    def tell(self, proposal: Proposal, accuracy: float, score: Score | None = None) -> None:
        super().tell(proposal, accuracy, score)
        self.trained[proposal.path] = accuracy
        value = self.objective.value({proposal.path: (self.candidates[self.index[proposal.path]].cost, accuracy)})
        self._searcher.on_trial_complete(self._trial_ids.pop(proposal), {"value": value})
