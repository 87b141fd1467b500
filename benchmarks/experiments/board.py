"""What the experiments have measured so far, and what is still to be measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.experiments.config import Experiments
from benchmarks.experiments.sample import SCALES, Sample
from benchmarks.jobs import Job, Record
from benchmarks.pathbench.pairs import PAIRS
from benchmarks.pathbench.tables import read_tables
from code_ray.controls import RANDOM_SUFFIX
from code_ray.distillation import CHANNELS
from code_ray.journal import Journal

KINDS = ("original", "training", "time", "rival")
PATHBENCH_TABLES = Path(__file__).parents[1] / "pathbench/tables"
PATHBENCH_TEST_IMAGES = 2_500


class Results:
    """Records by what they are of; trainings by (path, seed, scale)."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.originals: list[Record] = []
        self.trained: dict[tuple[str, int, float], Record] = {}
        self.times: dict[tuple[int, str], Record] = {}
        self.rivals: dict[tuple[str, int], Record] = {}
        for record in records:
            self.take(record)

    def take(self, record: Record) -> None:
        if record["record"] == "original":
            self.originals = [record]
        elif record["record"] == "training":
            self.trained[record["path"], int(record["seed"]), float(record["scale"])] = record
        elif record["record"] == "time":
            self.times[int(record["seed"]), record["path"]] = record
        else:
            self.rivals[record["name"], int(record["seed"])] = record

    @property
    def records(self) -> list[Record]:
        """All of it, as it came."""
        return [*self.originals, *self.trained.values(), *self.times.values(), *self.rivals.values()]

    def scale(self, random: str, sample: Sample) -> float | None:
        """At which scale of the learning rate the tuning path of a random host is best on validation images; None until all are known."""
        rows = [self.trained.get((str(sample.tuning(random)), 0, scale)) for scale in SCALES]
        if any(row is None for row in rows):
            return None
        return max(zip(rows, SCALES, strict=True), key=lambda pair: float(pair[0]["accuracy_validation"]) if pair[0] else 0.0)[1]

    def scales(self, sample: Sample) -> dict[str, float]:
        """Of all random hosts for which it is known."""
        config = sample.config
        names = [config.random, *([config.other.host] if config.other else [])]
        found = {name + RANDOM_SUFFIX: self.scale(name + RANDOM_SUFFIX, sample) for name in names}
        return {name: scale for name, scale in found.items() if scale is not None}


class ExperimentBoard:
    """The jobs that are left, those that a first page needs before others, seed after seed; ``only`` those of one kind."""

    def __init__(self, sample: Sample, journal: Journal, known: Sequence[Record], only: str | None = None) -> None:
        self.sample = sample
        self.only = only
        self.journal = journal
        self.results = Results([*known, *journal.records()])
        self.failed: list[Job] = []

    def tell(self, record: Record) -> None:
        self.journal.append(record)
        self.results.take(record)

    def jobs(self) -> list[Job]:
        config, results = self.sample.config, self.results
        jobs: list[Job] = [] if results.originals else [{"kind": "original"}]
        scales = results.scales(self.sample)
        for name in [config.random, *([config.other.host] if config.other else [])]:
            random = name + RANDOM_SUFFIX
            if random not in scales:
                jobs += self._missing(
                    [{"kind": "training", "paths": [str(self.sample.tuning(random))], "seed": 0, "scale": s} for s in SCALES]
                )
        for early in (True, False):
            for seed in config.seeds:
                jobs += self._missing(self.sample.jobs(seed, early=early, scales=scales))
                if early:
                    untimed = any((seed, str(path)) not in results.times for path in self.sample.timed())
                    jobs += [{"kind": "time", "seed": seed}] if untimed else []
                    jobs += self._rivals(seed)
        return [job for job in jobs if job not in self.failed and self.only in (None, job["kind"])]

    def _missing(self, jobs: Sequence[Job]) -> list[Job]:
        left = []
        for job in jobs:
            paths = [path for path in job["paths"] if (path, job["seed"], job["scale"]) not in self.results.trained]
            if paths:
                left.append({**job, "paths": paths})
        return left

    def _rivals(self, seed: int) -> list[Job]:
        names = [*(f"distilled-{channels}" for channels in CHANNELS), "int8", "float32"]
        return [{"kind": "rival", "name": name, "seed": seed} for name in names if (name, seed) not in self.results.rivals]


def read_results(folder: Path) -> list[Record]:
    """The records that ``write_results`` wrote; none where there are none yet."""
    records: list[Record] = []
    for kind in KINDS:
        file = folder / f"{kind}s.csv"
        if file.exists():
            for row in pd.read_csv(file).to_dict("records"):
                records.append({"record": kind, **{str(key): value for key, value in row.items() if not _absent(value)}})
    return records


def write_results(results: Results, folder: Path) -> None:
    """A CSV for each kind of record, but for what other tables hold already."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        rows = [{k: v for k, v in row.items() if k != "record"} for row in results.records if row["record"] == kind and "source" not in row]
        if rows:
            pd.DataFrame(rows).to_csv(folder / f"{kind}s.csv", index=False, float_format="%.6g")


def pathbench_rows(config: Experiments, folder: Path = PATHBENCH_TABLES) -> list[Record]:
    """Trainings of the same paths by the same recipe that the tables of pathbench hold, each with its ``source``. They know no gates, so
    that exits are trained here.
    """
    if config.known is None:
        return []
    pair = PAIRS[config.known]
    if (pair.recipe, pair.data, pair.local, PATHBENCH_TEST_IMAGES) != (config.recipe, config.data, config.local, config.test_images):
        return []
    kept = ("record", "path", "seed", "scale", "accuracy_validation", "accuracy_test", "seconds")
    rows = []
    for row in read_tables(folder / config.known):
        if row["record"] == "training" and not row["path"].endswith("logits"):
            seconds = sum(value for key, value in row.items() if key.startswith("seconds"))
            rows.append({key: value for key, value in {**row, "seconds": seconds}.items() if key in kept} | {"source": "pathbench"})
    return rows


def _absent(value: Any) -> bool:
    return isinstance(value, float) and value != value
