"""Fill a pair's table: every row is measured by a job on Ray Tune, and kept in a journal as soon as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.jobs import Job, Record, Workers, run_on_tune
from benchmarks.pathbench.measure import RowTrial, placement_of, services_of
from benchmarks.pathbench.pairs import Pair, tabled_paths
from benchmarks.pathbench.rows import Rows
from benchmarks.pathbench.tables import read_tables, write_tables
from code_ray.journal import Journal
from code_ray.profiling import Profile, measure_profile


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
            settings = {"pair": pair.name, "profile": profile.model_dump_json(), "device": "cuda" if workers.gpus else "cpu"}
            run_on_tune(rows, RowTrial, settings, say, workers, minutes=minutes, describe=lambda job, found: _line(rows, job, found))
    finally:
        write_tables(rows.records, profile, services, pair.local, tables)
        say(f"{len(rows.scores)} scores and {len(rows.trained)} trainings are in {tables}; {len(rows.jobs())} jobs are left")


def _line(rows: Rows, job: Job, records: list[Record]) -> str:
    if job["kind"] != "training":
        return f"{job['kind']}: {len(records)} rows"
    found = ", ".join(f"{100 * record['accuracy_validation']:.2f} %" for record in records)
    return f"{job['paths'][0]} and others like it: {found}; {len(rows.jobs())} jobs left"
