"""Measurements as jobs on Ray Tune: each is kept as soon as it comes, so that a run that was killed goes on."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.search import Searcher

Job = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Workers:
    """How many jobs run at a time, each on a core of its own, and the GPUs that the workers share."""

    count: int
    gpus: int = 0


class Board(Protocol):
    """What is measured, and what is still to be: ``jobs`` in order; those in ``failed`` are not among them."""

    failed: list[Job]

    def jobs(self) -> list[Job]: ...

    def tell(self, record: Record) -> None: ...


def run_on_tune(
    board: Board,
    trial: type[JobTrial],
    settings: Mapping[str, Any],
    say: Callable[[str], None],
    workers: Workers,
    *,
    minutes: float,
    describe: Callable[[Job, list[Record]], str],
) -> None:
    """Run the jobs of ``board``, at most ``minutes`` long: none is begun after that."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(
        address="local",
        num_cpus=workers.count,
        num_gpus=workers.gpus or None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    searcher = JobList(board, say, time.monotonic() + 60 * minutes, describe)
    share = {"cpu": 1, "gpu": workers.gpus / workers.count}
    trainable = tune.with_resources(tune.with_parameters(trial, settings=dict(settings)), share)
    try:
        with tempfile.TemporaryDirectory(prefix="jobs-") as storage:
            config = tune.TuneConfig(
                metric="done_", mode="max", search_alg=searcher, num_samples=-1, max_concurrent_trials=workers.count, reuse_actors=True
            )
            tune.Tuner(trainable, tune_config=config, run_config=tune.RunConfig(storage_path=storage, verbose=0)).fit()
    finally:
        ray.shutdown()


class JobList(Searcher):
    """Hands Tune the jobs of a board in order."""

    def __init__(self, board: Board, say: Callable[[str], None], deadline: float, describe: Callable[[Job, list[Record]], str]) -> None:
        super().__init__(metric="done_", mode="max")
        self._board = board
        self._say = say
        self._deadline = deadline
        self._describe = describe
        self._running: dict[str, Job] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        jobs = self._board.jobs()
        waiting = [job for job in jobs if job not in self._running.values()]
        if not jobs or time.monotonic() > self._deadline:
            return str(Searcher.FINISHED)
        if not waiting:
            return None
        self._running[trial_id] = waiting[0]
        return waiting[0]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self._running.pop(trial_id)
        if result is None or error:
            self._board.failed.append(job)
            self._say(f"{job} could not be measured; see /tmp/ray/session_latest/logs")
            return
        records = json.loads(result["records"])
        for record in records:
            self._board.tell(record)
        self._say(self._describe(job, records))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""


class JobTrial(tune.Trainable):
    """One job a trial; actors are reused."""

    def setup(self, config: Job, settings: dict[str, Any] | None = None) -> None:
        assert settings is not None
        self._settings = settings
        self._job = config

    @abstractmethod
    def measure(self, settings: dict[str, Any], job: Job) -> list[Record]:
        """The records of a job."""

    def reset_config(self, new_config: Job) -> bool:
        self._job = new_config
        return True

    def step(self) -> dict[str, Any]:
        return {"done_": 1, "records": json.dumps(self.measure(self._settings, self._job)), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to restore."""
