"""Numbers with what is behind them: mean over seeds, their spread, and how many seeds there are."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.experiments.board import Results, read_results
from benchmarks.experiments.config import Experiments
from benchmarks.experiments.sample import Sample
from benchmarks.jobs import Record
from code_ray.controls import RANDOM_SUFFIX
from code_ray.path import InferencePath

LIVE_FILE = "live.csv"


@dataclass(frozen=True)
class Reading:
    """A number by seed, of ``wanted`` seeds."""

    by_seed: Mapping[int, float]
    wanted: int

    @property
    def count(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """NaN where nothing was measured."""
        return statistics.mean(self.by_seed.values()) if self.by_seed else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 where there are fewer than two."""
        return float(np.std(list(self.by_seed.values()), ddof=1)) if self.count > 1 else 0.0

    def text(self, digits: int = 1) -> str:
        """``84.4 ± 0.2``, with a word on seeds where some are missing."""
        if not self.by_seed:
            return f"missing (0 of {self.wanted} seeds)"
        number = f"{self.mean:.{digits}f}"
        if self.count > 1:
            number += f" ± {self.spread:.{digits}f}"
        return number if self.count >= self.wanted else f"{number} ({self.count} of {self.wanted} seeds)"


@dataclass(frozen=True)
class Readings:
    """What was measured, by path; ``lives``: images a second over the original's, by arm, round by round."""

    results: Results
    sample: Sample
    parameters: pd.DataFrame
    services: pd.DataFrame
    lives: Mapping[str, Reading]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.sample.config.seeds

    @property
    def original(self) -> dict[str, float]:
        """Accuracy of the local service in per cent, ``validation`` and ``test``; NaN where it was not measured yet."""
        row = self.results.originals[0] if self.results.originals else {}
        return {split: 100 * float(row.get(f"accuracy_{split}", "nan")) for split in ("validation", "test")}

    def of(self, path: InferencePath, column: str = "accuracy_test", factor: float = 100.0) -> Reading:
        """A column of the trainings of a path; through a random host at the learning rate that was chosen for it."""
        randoms = [name for name in path.hosts if name.endswith(RANDOM_SUFFIX)]
        scale = self.results.scale(randoms[0], self.sample) if randoms else 1.0
        rows = {seed: self.results.trained.get((str(path), seed, scale or 0.0)) for seed in self.seeds}
        return self._reading({seed: row[column] for seed, row in rows.items() if row and column in row}, factor)

    def time(self, path: InferencePath, where: str = "local") -> Reading:
        """Milliseconds an image at the local server, or at the host; of a random host's path those of its host's."""
        text = str(path).replace(RANDOM_SUFFIX + "[", "[")
        rows = {seed: self.results.times.get((seed, text)) for seed in self.seeds}
        return self._reading({seed: row[f"tau_{where}_ms"] for seed, row in rows.items() if row}, 1.0)

    def rival(self, name: str, column: str, factor: float = 1.0) -> Reading:
        """A column of what was measured of a rival that is no path."""
        rows = {seed: self.results.rivals.get((name, seed)) for seed in self.seeds}
        return self._reading({seed: row[column] for seed, row in rows.items() if row and column in row}, factor)

    def parameters_of(self, path: InferencePath) -> dict[str, int]:
        """Parameters of the path's ``links``, of the local blocks that it leaves out (``skipped``) and the ``host`` blocks it runs."""
        row = self.parameters.loc[str(path).replace(RANDOM_SUFFIX + "[", "[")].to_dict()
        return {str(name): int(value) for name, value in row.items()}

    def best(self, paths: Iterable[InferencePath]) -> InferencePath:
        """The path that is best on validation images, mean over seeds; of those that were trained.

        Raises:
            LookupError: where none was.
        """
        trained = [path for path in paths if self.of(path).count]
        if not trained:
            raise LookupError("none of the paths was trained yet")
        return max(trained, key=lambda path: self.of(path, "accuracy_validation").mean)

    def _reading(self, by_seed: dict[int, float], factor: float) -> Reading:
        return Reading({seed: factor * float(value) for seed, value in by_seed.items()}, len(self.seeds))


def ratio(above: Reading, below: Reading) -> Reading:
    """Seed by seed, of the seeds that both have."""
    return Reading({s: above.by_seed[s] / below.by_seed[s] for s in above.by_seed if s in below.by_seed}, above.wanted)


def compensation(reached: Reading, base: Reading, original: float) -> Reading:
    """(A_p - A_base) / (A_0 - A_base) in per cent, seed by seed; none where the original is not known, or the base loses nothing."""
    if not original > base.mean:
        return Reading({}, reached.wanted)
    both = [seed for seed in reached.by_seed if seed in base.by_seed]
    pairs = {seed: (reached.by_seed[seed], base.by_seed[seed]) for seed in both}
    return Reading({seed: 100 * (a - b) / (original - b) for seed, (a, b) in pairs.items()}, reached.wanted)


def read_readings(config: Experiments, tables: Path, known: Sequence[Record]) -> Readings:
    """What the CSVs below ``tables`` say, and ``known`` trainings."""
    services = pd.read_csv(tables / "services.csv", index_col="name")
    sample = Sample(config, {str(name): int(blocks) for name, blocks in services.blocks.items()})
    parameters = pd.read_csv(tables / "parameters.csv", index_col="path")
    return Readings(Results([*known, *read_results(tables)]), sample, parameters, services, read_lives(tables / LIVE_FILE))


def read_lives(file: Path) -> dict[str, Reading]:
    """Each live arm's images a second over the original's in the same round; nothing where none was measured."""
    if not file.exists():
        return {}
    rates = pd.read_csv(file).pivot(index="round", columns="arm", values="images_per_second")
    ratios = {str(arm): (rates[arm] / rates["original"]).dropna() for arm in rates}
    return {arm: Reading(dict(enumerate(some)), len(some)) for arm, some in ratios.items()}
