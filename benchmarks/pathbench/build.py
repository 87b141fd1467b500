"""Fill a pair's table: every row is measured by a job on Ray Tune, and kept in a journal as soon as it is."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from benchmarks.pathbench.measure import RowTrial, placement_of, services_of
from benchmarks.pathbench.pairs import Pair, tabled_paths
from benchmarks.pathbench.rows import Job, Rows
from benchmarks.pathbench.tables import read_tables, write_tables
from code_ray.journal import Journal
from code_ray.profiling import Profile, measure_profile


@dataclass(frozen=True)
class Workers:
    """How many rows are measured at a time, each on a core of its own, and the GPUs that the workers share."""

    count: int
    gpus: int


def build(pair: Pair, out: Path, tables: Path, say: Callable[[str], None], minutes: float, workers: Workers) -> None:
    """Measure what is missing, at most ``minutes`` long, and write the tables. Times of blocks and links are those of a core."""
    out.mkdir(parents=True, exist_ok=True)
    services = services_of(pair)
    paths = tabled_paths(pair, services[pair.local], services[pair.host])
    profile_file = next((file for file in (out / "profile.json", tables / "profile.json") if file.exists()), out / "profile.json")
    if not profile_file.exists():
        torch.set_num_threads(1)
        profile_file.write_text(measure_profile(paths, services, placement_of(pair), say).model_dump_json(indent=1))
    profile = Profile.model_validate_json(profile_file.read_text())
    rows = Rows(pair, paths, Journal(out / "journal.jsonl"), read_tables(tables))
    try:
        if rows.jobs():
            _run_on_tune(rows, profile, say, minutes, workers)
    finally:
        write_tables(rows.records, profile, services, pair.local, tables)
        say(f"{len(rows.scores)} scores and {len(rows.trained)} trainings are in {tables}; {len(rows.jobs())} jobs are left")


def _run_on_tune(rows: Rows, profile: Profile, say: Callable[[str], None], minutes: float, workers: Workers) -> None:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(
        address="local",
        num_cpus=workers.count,
        num_gpus=workers.gpus or None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    searcher = JobList(rows, say, time.monotonic() + 60 * minutes)
    settings = {"pair": rows.pair.name, "profile": profile.model_dump_json(), "device": "cuda" if workers.gpus else "cpu"}
    share = {"cpu": 1, "gpu": workers.gpus / workers.count}
    trainable = tune.with_resources(tune.with_parameters(RowTrial, settings=settings), share)
    with tempfile.TemporaryDirectory(prefix="pathbench-") as storage:
        config = tune.TuneConfig(
            metric="done_", mode="max", search_alg=searcher, num_samples=-1, max_concurrent_trials=workers.count, reuse_actors=True
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
        job = self._running.pop(trial_id)
        if result is None or error:
            self._rows.failed.append(job)
            self._say(f"{job} could not be measured; see /tmp/ray/session_latest/logs")
            return
        records = json.loads(result["records"])
        for record in records:
            self._rows.tell(record)
        if job["kind"] == "training":
            found = ", ".join(f"{100 * record['accuracy_validation']:.2f} %" for record in records)
            self._say(f"{job['paths'][0]} and others like it: {found}; {len(self._rows.jobs())} jobs left")
        else:
            self._say(f"{job['kind']}: {len(records)} rows")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""
