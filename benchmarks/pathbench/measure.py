"""Measure rows of a table: scores of paths, and trainings with a look at every rung."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch

from benchmarks.jobs import Job, JobTrial, Record
from benchmarks.pathbench.pairs import PAIRS, Pair, beginning
from code_ray.controls import RANDOM_SUFFIX, random_host
from code_ray.data import load_data
from code_ray.path import InferencePath, original_path, parse_path
from code_ray.profiling import Profile
from code_ray.scoring import Scorer
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import get_service
from search.trial import CALIBRATION_IMAGES

TEST_IMAGES = 2_500


def services_of(pair: Pair) -> dict[str, Service]:
    """Both services and the host's random-weight control."""
    services = {name: get_service(name) for name in (pair.local, pair.host)}
    control = random_host(services[pair.host], load_data(pair.data).train.images[:CALIBRATION_IMAGES])
    return services | {control.name: control}


def placement_of(pair: Pair) -> dict[str, str]:
    """Each service with its own provider; the control stands where its host does."""
    return {pair.local: pair.local, pair.host: pair.host, pair.host + RANDOM_SUFFIX: pair.host}


class RowWorker:
    """Measures rows in one process."""

    def __init__(self, pair: Pair, profile: Profile, device: str) -> None:
        torch.set_num_threads(1)
        self.device = device
        self.services = services_of(pair)
        self.data = load_data(pair.data)
        self.pair = pair
        self.profile = profile
        self.test = self.data.test.head(TEST_IMAGES)
        self._before: tuple[float, tuple[object, ...]] | None = None
        self._trainers: dict[float, Trainer] = {}
        self._scorer = Scorer(self.trainer())

    def trainer(self, scale: float = 1.0) -> Trainer:
        """A trainer whose learning rates are ``scale`` times the recipe's."""
        if scale not in self._trainers:
            rates = {name: getattr(self.pair.recipe, name) * scale for name in ("learning_rate", "joint_learning_rate")}
            recipe = self.pair.recipe.model_copy(update=rates)
            placement = placement_of(self.pair)
            new = Trainer(self.services, self.pair.local, self.data, placement, self.profile.mode_of, recipe, self.device)
            # Activations do not depend on a learning rate.
            new.activations = next(iter(self._trainers.values()), new).activations
            self._trainers[scale] = new
        return self._trainers[scale]

    def run(self, job: Job) -> list[Record]:
        """The rows of a job."""
        trainer = self.trainer(job.get("scale", 1.0))
        if job["kind"] == "original":
            path = original_path(self.pair.local, trainer.local.num_blocks)
            whole = {name: trainer.accuracy(path, {}, split) for name, split in (("validation", self.data.validation), ("test", self.test))}
            screen = {"accuracy_screen": trainer.screen_accuracy}
            return [{"record": "original", **screen, **{f"accuracy_{name}": accuracy for name, accuracy in whole.items()}}]
        paths = [parse_path(path, trainer.local.num_blocks) for path in job["paths"]]
        if job["kind"] == "score":
            return [{"record": "score", "path": str(path), **vars(score)} for path, score in self._scorer.score(paths).items()]
        return [{"record": "training", **self._train(trainer, path, job["seed"], job["scale"])} for path in paths]

    def _train(self, trainer: Trainer, path: InferencePath, seed: int, scale: float) -> Record:
        """One row. Where an earlier path began alike, what its inputs of the last link took is added: a path alone would pay it."""
        again = (scale, beginning(path)) == self._before
        self._before = scale, beginning(path)
        shared = dict(trainer.link_inputs.seconds) if again else {}
        recipe, rungs = trainer.recipe, self.pair.rungs
        fit_share, screen_share = recipe.fit_samples / len(trainer.train), recipe.screen_samples / len(self.data.validation)
        train, validation = shared.get("train", 0.0), shared.get("validation", 0.0)
        clock = _Clock()
        training = LinkTraining(trainer, path, seed)
        training.fit()
        row: Record = {"path": str(path), "seed": seed, "scale": scale, "accuracy_fit": training.screen_accuracy()}
        row["seconds_fit"] = clock.lap() + train * fit_share + validation * screen_share
        for rung in (*rungs, recipe.total_steps):
            training.advance(rung)
            row[f"seconds_{rung}"] = clock.lap() + (train * (1 - fit_share) if rung == rungs[0] else 0.0)
            if rung in rungs:
                row[f"accuracy_{rung}"] = training.screen_accuracy()
                row[f"seconds_screen_{rung}"] = clock.lap()
        row["accuracy_validation"] = training.accuracy("validation")
        row["seconds_validation"] = clock.lap() + validation * (1 - screen_share)
        row["accuracy_test"] = training.accuracy("test", TEST_IMAGES)
        return row


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before


@lru_cache(maxsize=1)
def _worker(pair: str, profile: str, device: str) -> RowWorker:
    return RowWorker(PAIRS[pair], Profile.model_validate_json(profile), device)


class RowTrial(JobTrial):
    """A job of a table."""

    def measure(self, settings: dict[str, Any], job: Job) -> list[Record]:
        return _worker(**settings).run(job)
