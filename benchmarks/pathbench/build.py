"""Fill a pair's table: every row is a job on Ray Tune, kept in a journal as soon as it is measured."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from benchmarks.pathbench.pairs import PAIRS, RECIPE, RUNGS, Pair, tabled_paths
from code_ray.controls import RANDOM_SUFFIX, control_paths, random_host
from code_ray.data import load_data
from code_ray.journal import Journal
from code_ray.path import InferencePath, parse_path
from code_ray.profiling import Profile, measure_profile
from code_ray.scoring import Scorer
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import get_service
from search.trial import CALIBRATION_IMAGES

TEST_IMAGES = 5_000
LEARNING_RATE_SCALES = (0.25, 0.5, 1.0)
TUNING_PATHS = 4
SEEDS = (0, 1, 2)

Job = dict[str, Any]


def services_of(pair: Pair) -> dict[str, Service]:
    """Both services and the host's random-weight control."""
    services = {name: get_service(name) for name in (pair.local, pair.host)}
    control = random_host(services[pair.host], load_data(pair.data).train.images[:CALIBRATION_IMAGES])
    return services | {control.name: control}


def placement_of(pair: Pair) -> dict[str, str]:
    """Each service with its own provider; the control stands where its host does."""
    return {pair.local: pair.local, pair.host: pair.host, pair.host + RANDOM_SUFFIX: pair.host}


def randomised(path: InferencePath) -> InferencePath:
    """The same path through the random-weight host."""
    return control_paths(path)["random_host"]


class Rows:
    """What a table holds so far, and what is still to be measured."""

    def __init__(self, pair: Pair, paths: Sequence[InferencePath], journal: Journal) -> None:
        self.pair = pair
        self.paths = list(paths)
        self.journal = journal
        self.scores: dict[str, dict[str, Any]] = {}
        self.trained: dict[tuple[str, int, float], dict[str, Any]] = {}
        for record in journal.records():
            self._take(record)

    def tell(self, record: dict[str, Any]) -> None:
        self.journal.append(record)
        self._take(record)

    def jobs(self) -> list[Job]:
        """Everything left whose place is known by now: scores, one seed of every path, seeds of the best, the random host."""
        borrowing = [path for path in self.paths if path.hosts]
        jobs = self._scores(self.paths)
        jobs += [self._training(path) for path in self.paths]
        jobs += self._scores([randomised(path) for path in borrowing])
        tuning = [randomised(path) for path in borrowing[:: max(1, len(borrowing) // TUNING_PATHS)]][:TUNING_PATHS]
        jobs += [self._training(path, scale=scale) for path in tuning for scale in LEARNING_RATE_SCALES]
        if all(self._is_done(job) for job in jobs):
            best = sorted(self.paths, key=lambda path: -self.trained[str(path), 0, 1.0]["accuracy_validation"])
            jobs += [self._training(path, seed) for path in best[: len(best) // 5] for seed in SEEDS[1:]]
            scale = max(LEARNING_RATE_SCALES, key=lambda s: sum(self.trained[str(p), 0, s]["accuracy_validation"] for p in tuning))
            jobs += [self._training(randomised(path), scale=scale) for path in borrowing]
        return [job for job in jobs if not self._is_done(job)]

    def _scores(self, paths: Sequence[InferencePath]) -> list[Job]:
        """Paths that leave the local service at the same place for the same block share one job."""
        batches: dict[tuple[object, ...], list[str]] = {}
        for path in paths:
            key = (path.lout, path.segments[1].service, path.segments[1].start) if path.hosts else ()
            batches.setdefault(key, []).append(str(path))
        return [{"kind": "scores", "paths": batch} for batch in batches.values()]

    def _training(self, path: InferencePath, seed: int = 0, scale: float = 1.0) -> Job:
        return {"kind": "training", "path": str(path), "seed": seed, "scale": scale}

    def _is_done(self, job: Job) -> bool:
        if job["kind"] == "scores":
            return all(path in self.scores for path in job["paths"])
        return (job["path"], job["seed"], job["scale"]) in self.trained

    def _take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "scores":
            self.scores |= record["scores"]
        else:
            self.trained[record["path"], record["seed"], record["scale"]] = record


def build(pair: Pair, out: Path, say: Callable[[str], None], minutes: float) -> None:
    """Measure what is missing, at most ``minutes`` long, and write the table."""
    out.mkdir(parents=True, exist_ok=True)
    services = services_of(pair)
    paths = tabled_paths(pair, services[pair.local], services[pair.host])
    profile_file = out / "profile.json"
    if not profile_file.exists():
        torch.set_num_threads(1)
        profile_file.write_text(measure_profile(paths, services, placement_of(pair), say).model_dump_json(indent=1))
    rows = Rows(pair, paths, Journal(out / "journal.jsonl"))
    searcher = JobList(rows, say, time.monotonic() + 60 * minutes)
    if rows.jobs():
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        settings = {"pair": pair.name, "profile": profile_file.read_text()}
        trainable = tune.with_resources(tune.with_parameters(RowTrial, settings=settings), {"cpu": 1})
        with tempfile.TemporaryDirectory(prefix="pathbench-") as storage:
            config = tune.TuneConfig(
                metric="done_", mode="max", search_alg=searcher, num_samples=-1, max_concurrent_trials=2, reuse_actors=True
            )
            tune.Tuner(trainable, tune_config=config, run_config=tune.RunConfig(storage_path=storage, verbose=0)).fit()


class JobList(Searcher):
    """Hands Tune the jobs of a table in order."""

    def __init__(self, rows: Rows, say: Callable[[str], None], deadline: float) -> None:
        super().__init__(metric="done_", mode="max")
        self._rows = rows
        self._say = say
        self._deadline = deadline
        self._running: dict[str, Job] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        jobs = self._rows.jobs()
        waiting = [job for job in jobs if job not in self._running.values()]
        if not jobs or time.monotonic() > self._deadline:
            return str(Searcher.FINISHED)
        if not waiting:
            return None
        self._running[trial_id] = waiting[0]
        return waiting[0]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.pop(trial_id)
        if result is None or error:
            raise RuntimeError("a row could not be measured; see /tmp/ray/session_latest/logs")
        record = json.loads(result["record"])
        self._rows.tell(record)
        if record["kind"] == "training":
            left = len(self._rows.jobs())
            self._say(f"{record['path']:60} {100 * record['accuracy_validation']:.2f} % in {record['seconds_total']:.0f} s; {left} left")
        else:
            self._say(f"{len(record['scores'])} paths scored in {record['seconds']:.0f} s")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""


class RowWorker:
    """Measures rows in one process."""

    def __init__(self, pair: Pair, profile: Profile) -> None:
        torch.set_num_threads(1)
        self.services = services_of(pair)
        self.data = load_data(pair.data)
        self.pair = pair
        self.profile = profile
        self._trainers: dict[float, Trainer] = {}
        self._scorer = Scorer(self.trainer())

    def trainer(self, scale: float = 1.0) -> Trainer:
        """A trainer whose learning rates are ``scale`` times the recipe's."""
        if scale not in self._trainers:
            rates = {name: getattr(RECIPE, name) * scale for name in ("learning_rate", "joint_learning_rate")}
            recipe = RECIPE.model_copy(update=rates)
            placement = placement_of(self.pair)
            new = Trainer(self.services, self.pair.local, self.data, placement, self.profile.mode_of, recipe)
            # Activations do not depend on a learning rate.
            new.activations = next(iter(self._trainers.values()), new).activations
            self._trainers[scale] = new
        return self._trainers[scale]

    def run(self, job: Job) -> dict[str, Any]:
        blocks = self.services[self.pair.local].num_blocks
        if job["kind"] == "scores":
            started = time.monotonic()
            scores = self._scorer.score([parse_path(path, blocks) for path in job["paths"]])
            found = {str(path): vars(score) for path, score in scores.items()}
            return {"kind": "scores", "scores": found, "seconds": time.monotonic() - started}
        return {**job, **self._train(parse_path(job["path"], blocks), job["seed"], job["scale"])}

    def _train(self, path: InferencePath, seed: int, scale: float) -> dict[str, Any]:
        started = time.monotonic()
        trainer = self.trainer(scale)
        training = LinkTraining(trainer, path, seed)
        training.fit()
        seconds = {"fit": time.monotonic() - started}
        accuracies = {"fit": training.screen_accuracy()}
        for rung in (*RUNGS, RECIPE.total_steps):
            before = time.monotonic()
            training.advance(rung)
            seconds[str(rung)] = time.monotonic() - before
            accuracies[str(rung)] = training.screen_accuracy() if rung != RECIPE.total_steps else float("nan")
        before = time.monotonic()
        accuracy = trainer.accuracy(path, training.links, self.data.validation)
        validation_seconds = time.monotonic() - before
        test = trainer.accuracy(path, training.links, self.data.test.head(TEST_IMAGES))
        return {
            "rung_accuracies": accuracies,
            "rung_seconds": seconds,
            "validation_seconds": validation_seconds,
            "accuracy_validation": accuracy,
            "accuracy_test": test,
            "seconds_total": time.monotonic() - started,
        }


@lru_cache(maxsize=1)
def _worker(pair: str, profile: str) -> RowWorker:
    return RowWorker(PAIRS[pair], Profile.model_validate_json(profile))


class RowTrial(tune.Trainable):
    """One row a trial; actors are reused."""

    def setup(self, config: Job, settings: dict[str, str] | None = None) -> None:
        assert settings is not None
        self._settings = settings
        self._job = config

    def reset_config(self, new_config: Job) -> bool:
        self._job = new_config
        return True

    def step(self) -> dict[str, Any]:
        record = _worker(self._settings["pair"], self._settings["profile"]).run(self._job)
        return {"done_": 1, "record": json.dumps(record), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to restore."""
