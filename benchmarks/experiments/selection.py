"""Experiment 4: which path Algorithm 1 takes, replayed on the table of all crosses of the AlexNet pair (benchmarks/pathbench)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.experiments.board import PATHBENCH_TABLES, Results
from benchmarks.jobs import Record
from benchmarks.pathbench.replay import Setting, Table, load_table, replay
from code_ray.greedy_sampler import GreedySampler
from code_ray.objective import PaperObjective
from code_ray.printed_sampler import PrintedSampler
from code_ray.reward import average_accuracy
from code_ray.sampler import Sampler, Stopping
from code_ray.throughput import cycle_throughput, pair_throughput

PAPER = Setting(None, 1.0)
STOPPING = Stopping(max_trainings=16, patience=3, epsilon=0.01)
BATCH = 32
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "Algorithm 1 as printed": PrintedSampler,
    "repaired": partial(GreedySampler, predictor="gp", screen=0),
    "code_ray's": partial(GreedySampler, predictor="gp", screen=96),
}


@dataclass(frozen=True)
class Selection:
    """``paths``: a row for each cross, with its reward by either reading of throughput; ``iterations``: the reward of the path that would
    be returned after each training, a row for each sampler, restart and training, of paths up to ``most_lin``: there the paper's space ends; ``exits``: a row for each
    early exit.
    """

    paths: pd.DataFrame
    iterations: pd.DataFrame
    most_lin: int
    exits: pd.DataFrame

    def best(self, reading: str = "", *, whole: bool = False) -> Any:
        """The row of the path with the highest reward, by the programme ("") or the ``"_cycle"``; ``whole``: of all lin."""
        paths = self.paths if whole else self.paths[self.paths.lin <= self.most_lin]
        return paths.iloc[int(paths[f"reward{reading}"].to_numpy().argmax())]


def select(pair: str, restarts: int, results: Results, most_lin: int, tables: Path = PATHBENCH_TABLES) -> Selection:
    """Replay the samplers on the table of ``pair``; rewards also count what was trained of its paths here, on other seeds."""
    table = load_table(pair, tables)
    return Selection(_rewards(table, results), pd.DataFrame(_iterations(table, restarts, most_lin)), most_lin, _exits(table))


def _exits(table: Table) -> pd.DataFrame:
    rows = []
    for candidate in table.candidates:
        if candidate.path.kind == "exit":
            found = [100 * float(row["accuracy_test"]) for row in table.rows[candidate.path]]
            tau_l = 1e3 * candidate.cost.at(table.pair.local)
            rows.append({"lout": candidate.path.lout, "tau_local_ms": tau_l, "test": np.mean(found), "seeds": len(found)})
    return pd.DataFrame(rows).sort_values("lout")


def _rewards(table: Table, results: Results) -> pd.DataFrame:
    crosses = [c for c in table.candidates if c.path.kind == "cross"]
    objective = table.objective(PAPER)
    assert isinstance(objective, PaperObjective)
    t0, (tau_l, tau_h) = objective.original_seconds, objective.pair_seconds(crosses)
    more: dict[str, list[Record]] = {}
    for (path, _, scale), row in results.trained.items():
        if scale == 1.0 and "source" not in row:
            more.setdefault(path, []).append(row)
    rows = [[*table.rows[c.path], *more.get(str(c.path), [])] for c in crosses]
    frame = pd.DataFrame({"path": [str(c.path) for c in crosses], "vector": [str(list(c.path.vector)) for c in crosses]})
    frame["lin"] = [c.path.vector[-1] for c in crosses]
    frame["seeds"] = [len(found) for found in rows]
    frame["spread"] = [np.std([row["accuracy_test"] for row in found], ddof=1) if len(found) > 1 else 0.0 for found in rows]
    for split in ("validation", "test"):
        frame[split] = [np.mean([row[f"accuracy_{split}"] for row in found]) for found in rows]
    th_l, th_h = pair_throughput(t0, tau_l, tau_h, PAPER.kappa)
    frame["ratio"], frame["average"] = (
        (th_l + th_h) * t0,
        average_accuracy(table.accuracy_original, frame.validation.to_numpy(), th_l, th_h),
    )
    frame["ratio_cycle"] = t0 * cycle_throughput(t0, tau_l, tau_h, PAPER.kappa, own=BATCH, offloaded=BATCH)
    frame["average_cycle"] = (table.accuracy_original + frame.validation) / 2
    for reading in ("", "_cycle"):
        frame[f"reward{reading}"] = objective.reward(frame[f"average{reading}"].to_numpy(), frame[f"ratio{reading}"].to_numpy())
    frame["tau_local_ms"] = 1e3 * tau_l
    frame["less_local"] = 100 * (1 - tau_l / t0)
    frame["loss"] = 100 * (table.accuracy_original - frame.average)
    frame["loss_cycle"] = 100 * (table.accuracy_original - frame.average_cycle)
    return frame


def _iterations(table: Table, restarts: int, most_lin: int) -> list[dict[str, object]]:
    objective, hosts = table.objective(PAPER), {table.pair.host: table.host_blocks}
    crosses = [c for c in table.faster(PAPER) if c.path.kind == "cross" and c.path.vector[-1] <= most_lin]
    rows: list[dict[str, object]] = []
    for name, make in SAMPLERS.items():
        for restart in range(restarts):
            best = objective.value({c.path: (c.cost, table.accuracy(c.path, restart)) for c in crosses})
            sampler = make(crosses, objective, STOPPING, hosts, seed=restart, sides=table.sides)
            for number, step in enumerate(replay(sampler, table, restart, rungs=False), start=1):
                rows.append({"sampler": name, "restart": restart, "iteration": number, "reward": step.value, "best": best})
    return rows
