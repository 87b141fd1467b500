"""What a table holds, and which measurements it still lacks."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.jobs import Job, Record
from benchmarks.pathbench.pairs import Pair, beginning
from code_ray.controls import control_paths
from code_ray.journal import Journal
from code_ray.path import InferencePath

LEARNING_RATE_SCALES = (0.25, 0.5, 1.0)
TUNING_PATHS = 4
SEEDS = (0, 1, 2)


def randomised(path: InferencePath) -> InferencePath:
    """The same path through the random-weight host."""
    return control_paths(path)["random_host"]


class Rows:
    """What a table holds so far, and what is still to be measured."""

    def __init__(self, pair: Pair, paths: Sequence[InferencePath], journal: Journal, tabled: Sequence[Record]) -> None:
        self.pair = pair
        self.paths = list(paths)
        self.journal = journal
        self.failed: list[Job] = []
        self.original: Record | None = None
        self.scores: dict[str, Record] = {}
        self.trained: dict[tuple[str, int, float], Record] = {}
        for record in (*tabled, *journal.records()):
            self._take(record)

    @property
    def records(self) -> list[Record]:
        """All of it, paths in their order."""
        return [*([self.original] if self.original else []), *self.scores.values(), *self.trained.values()]

    def tell(self, record: Record) -> None:
        self.journal.append(record)
        self._take(record)

    def jobs(self) -> list[Job]:
        """Everything left whose place is known by now: the original, scores, one seed of every path, two more of the best fifth,
        the random host, at the learning rate that suits it.
        """
        borrowing = [path for path in self.paths if path.hosts]
        jobs: list[Job] = [] if self.original else [{"kind": "original"}]
        jobs += self._scores(self.paths) + self._trainings(self.paths)
        if not self._left(jobs):
            best = sorted(self.paths, key=lambda path: -self._accuracy(path, 1.0))[: len(self.paths) // 5]
            jobs += [job for seed in SEEDS[1:] for job in self._trainings(best, seed)]
            tuning = [randomised(path) for path in borrowing[:: max(1, len(borrowing) // TUNING_PATHS)]][:TUNING_PATHS]
            jobs += [job for scale in LEARNING_RATE_SCALES for job in self._trainings(tuning, scale=scale)]
            if not self._left(jobs):
                scale = max(LEARNING_RATE_SCALES, key=lambda s: sum(self._accuracy(path, s) for path in tuning))
                jobs += self._scores([randomised(path) for path in borrowing])
                jobs += self._trainings([randomised(path) for path in borrowing], scale=scale)
        return self._left(jobs)

    def _left(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job not in self.failed]

    def _accuracy(self, path: InferencePath, scale: float) -> float:
        row = self.trained.get((str(path), 0, scale))
        return float(row["accuracy_validation"]) if row else 0.0

    def _scores(self, paths: Sequence[InferencePath]) -> list[Job]:
        """Paths that leave the local service at the same place for the same block share one job."""
        batches: dict[tuple[object, ...], list[str]] = {}
        for path in paths:
            if str(path) not in self.scores:
                key = (path.lout, path.segments[1].service, path.segments[1].start) if path.hosts else ()
                batches.setdefault(key, []).append(str(path))
        return [{"kind": "score", "paths": batch} for batch in batches.values()]

    def _trainings(self, paths: Sequence[InferencePath], seed: int = 0, scale: float = 1.0) -> list[Job]:
        """Paths that begin alike share one job."""
        batches: dict[tuple[object, ...], list[str]] = {}
        for path in paths:
            if (str(path), seed, scale) not in self.trained:
                batches.setdefault(beginning(path), []).append(str(path))
        return [{"kind": "training", "paths": batch, "seed": seed, "scale": scale} for batch in batches.values()]

    def _take(self, record: Record) -> None:
        if record["record"] == "original":
            self.original = record
        elif record["record"] == "score":
            self.scores[record["path"]] = record
        else:
            self.trained[record["path"], int(record["seed"]), float(record["scale"])] = record
