"""Searches replayed on a table: what a sampler asks is answered, and charged, from what was measured once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.jobs import Record
from benchmarks.pathbench.pairs import PAIRS, Pair
from benchmarks.pathbench.tables import read_tables
from code_ray.errors import ArtifactError
from code_ray.objective import Objective, PaperObjective, PlanObjective
from code_ray.path import InferencePath, original_path, parse_path
from code_ray.profiling import Profile
from code_ray.reward import Reward
from code_ray.sampler import Sampler
from code_ray.scoring import Score
from code_ray.service import Service
from code_ray.space import Candidate, is_faster
from code_ray.throughput import Limits
from code_ray.zoo import get_service

SCORE_FIELDS = [field.name for field in fields(Score)]


@dataclass(frozen=True)
class Setting:
    """What a search maximises: the plan under ``loss_points``, or the paper's reward where that is None; host share ``kappa``."""

    loss_points: float | None
    kappa: float

    @property
    def name(self) -> str:
        what = "reward" if self.loss_points is None else f"loss {self.loss_points:g}"
        return f"{what}, kappa {self.kappa:g}"


SETTINGS = [Setting(loss, kappa) for kappa in (1.0, 0.5) for loss in (0.5, 1.0, 2.3, None)]


@dataclass(frozen=True)
class Table:
    """A pair's trained paths through the host itself: costs, scores, and a row for each seed."""

    pair: Pair
    original: Candidate
    accuracy_original: float
    accuracy_screen: float
    candidates: tuple[Candidate, ...]
    scores: Mapping[InferencePath, Score]
    rows: Mapping[InferencePath, list[Record]]
    host_blocks: int
    sides: Mapping[str, tuple[int, ...]]

    @property
    def full_training_seconds(self) -> float:
        """Mean seconds of a full training without looks at rungs, validation included: the unit of cost."""
        return sum(self.seconds(row) for rows in self.rows.values() for row in rows[:1]) / len(self.rows)

    def accuracy(self, path: InferencePath, restart: int) -> float:
        """Validation accuracy of a path's training in one restart: one of its seeds."""
        return float(self.row(path, restart)["accuracy_validation"])

    def row(self, path: InferencePath, restart: int) -> Record:
        rows = self.rows[path]
        return rows[zlib.crc32(f"{path} {restart}".encode()) % len(rows)]

    def seconds(self, row: Record, until: int | None = None, *, looks: bool = False) -> float:
        """What a training took, up to a rung or to the end, with a look at the screened images at every rung or without."""
        rungs = [rung for rung in self.pair.rungs if until is None or rung <= until]
        seconds = row["seconds_fit"] + sum(row[f"seconds_{rung}"] for rung in rungs)
        if looks or until is not None:
            seconds += sum(row[f"seconds_screen_{rung}"] for rung in rungs)
        rest = 0.0 if until is not None else row[f"seconds_{self.pair.recipe.total_steps}"] + row["seconds_validation"]
        return float(seconds + rest)

    def objective(self, setting: Setting) -> Objective:
        """What ``setting`` maximises."""
        limits = Limits({self.pair.host: setting.kappa, self.pair.local: 1.0}, setting.loss_points or 0.0)
        if setting.loss_points is not None:
            return PlanObjective(self.original, self.accuracy_original, limits, self.pair.local)
        return PaperObjective(self.original, self.accuracy_original, limits, self.pair.local, Reward(self.accuracy_original - 0.007))

    def faster(self, setting: Setting) -> list[Candidate]:
        """P' of Algorithm 1."""
        limits = self.objective(setting).limits
        return [c for c in self.candidates if is_faster(c, self.original, self.pair.local, limits)]

    def best(self, setting: Setting, restart: int) -> float:
        """Value of the plan that an exhaustive search returns."""
        return self.objective(setting).value({c.path: (c.cost, self.accuracy(c.path, restart)) for c in self.faster(setting)})


def load_table(name: str, tables: Path) -> Table:
    """The table of pair ``name`` below ``tables``; paths that were not trained or not scored are left out.

    Raises:
        ArtifactError: where there is none.
    """
    pair, folder = PAIRS[name], tables / name
    if not (folder / "profile.json").exists():
        raise ArtifactError(f"{folder} holds no table; python -m benchmarks.pathbench {name} --tables {tables} makes one")
    services: dict[str, Service] = {service: get_service(service) for service in (pair.local, pair.host)}
    blocks = services[pair.local].num_blocks
    profile = Profile.model_validate_json((folder / "profile.json").read_text())
    scores: dict[InferencePath, Score] = {}
    rows: dict[InferencePath, list[Record]] = {}
    whole: Record = {}
    for record in read_tables(folder):
        if record["record"] == "original":
            whole = record
            continue
        path = parse_path(record["path"], blocks)
        if set(path.hosts) - {pair.host}:
            continue  # a control
        if record["record"] == "score":
            scores[path] = Score(*(record[field] for field in SCORE_FIELDS))
        elif record["scale"] == 1.0:
            rows.setdefault(path, []).append(record)
    known = [path for path in rows if path in scores]
    original = original_path(pair.local, blocks)
    return Table(
        pair,
        Candidate(original, profile.cost(original, services)),
        whole["accuracy_validation"],
        whole["accuracy_screen"],
        tuple(Candidate(path, profile.cost(path, services)) for path in known),
        scores,
        {path: rows[path] for path in known},
        services[pair.host].num_blocks,
        {name: service.sides for name, service in services.items()},
    )


@dataclass(frozen=True)
class Step:
    """After one more training: what was spent so far, in full trainings, and the value of the plan that would be returned now."""

    cost: float
    value: float


def replay(sampler: Sampler, table: Table, restart: int, *, rungs: bool) -> Iterator[Step]:
    """Every training of a search with one trial at a time; ``rungs`` lets the sampler stop trainings there."""
    spent, unit = 0.0, table.full_training_seconds
    while proposals := sampler.ask():
        for proposal in proposals:
            path = proposal.path
            if proposal.fidelity == "fit":
                score = table.scores[path]
                spent += score.seconds
                sampler.tell(proposal, score.accuracy, score)
                continue
            row = table.row(path, restart)
            stopped_at = next((r for r in table.pair.rungs if not _goes_on(sampler, table, path, row, r)), None) if rungs else None
            if stopped_at is not None:
                spent += table.seconds(row, stopped_at)
                sampler.stop(path)
            else:
                spent += table.seconds(row, looks=rungs)
                sampler.tell(proposal, float(row["accuracy_validation"]))
            yield Step(spent / unit, sampler.objective.value(sampler.chosen))


def _goes_on(sampler: Sampler, table: Table, path: InferencePath, row: Record, rung: int) -> bool:
    lost = 100 * (table.accuracy_screen - row[f"accuracy_{rung}"])
    return sampler.keep_training(path, rung, rung / table.pair.recipe.total_steps, lost)
