"""What samplers cost on a table: python -m benchmarks.pathbench.compare PAIR [--restarts N]; writes CSVs and a picture.

What restarts.csv holds of samplers that are not run is kept: each may have as many restarts as time allows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
# Two searches at a time: more threads than cores make each of them three times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from benchmarks.pathbench.pairs import PAIRS
from benchmarks.pathbench.replay import SETTINGS, Setting, Table, load_table, replay
from benchmarks.pathbench.rivals import OptunaSampler
from code_ray.greedy_sampler import GreedySampler
from code_ray.printed_sampler import PrintedSampler
from code_ray.sampler import Sampler, Stopping

SHARE = 0.97
STOPPING = Stopping(max_trainings=16, patience=6, epsilon=0.01)
SCREEN = 96

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "code_ray": partial(GreedySampler, predictor="gp", screen=SCREEN),
    "ridge": partial(GreedySampler, predictor="ridge", screen=SCREEN),
    "gp without scores": partial(GreedySampler, predictor="gp", screen=0),
    "constant accuracy": partial(GreedySampler, predictor="constant"),
    "optuna tpe": partial(OptunaSampler, kind="tpe"),
    "optuna gp": partial(OptunaSampler, kind="gp"),
    "printed": PrintedSampler,
    "random": partial(GreedySampler, predictor="random"),
}


def restart(table: Table, setting: Setting, name: str, number: int, most: int) -> dict[str, Any]:
    """One search to its end by our rule of stopping, and one of ``most`` trainings until it has 97 % of the best plan."""
    hosts = {table.pair.host: table.host_blocks}
    objective, best = table.objective(setting), table.best(setting, number)
    nothing = objective.value({})
    rungs = name in ("code_ray", "ridge")  # two that differ in their predictor alone

    def make(stopping: Stopping) -> Sampler:
        return SAMPLERS[name](table.faster(setting), objective, stopping, hosts, seed=number, sides=table.sides)

    spent = 0.0
    reached = 0.0 if nothing >= SHARE * best else float("nan")
    if np.isnan(reached):
        for step in replay(make(Stopping(most, sys.maxsize, 0.0)), table, number, rungs=rungs):
            spent = step.cost
            if step.value >= SHARE * best:
                reached = step.cost
                break
    sampler = make(STOPPING)
    steps = list(replay(sampler, table, number, rungs=rungs))
    return {
        "setting": setting.name,
        "sampler": name,
        "restart": number,
        "cost_until_97": reached,
        "cost_at_the_end": spent,
        "cost_until_stopped": steps[-1].cost if steps else 0.0,
        "returned_over_best": (steps[-1].value if steps else nothing) / best,
        "best": best,
        "trained": len(sampler.trained),
        "stopped_because": sampler.stopped_because,
    }


def _reported(rows: Sequence[Future[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield row.result()
        if number % 50 == 0:
            print(f"{number} of {len(rows)} searches", flush=True)


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """A row a setting and sampler: mean, median and quartiles of the cost, and what was returned."""
    # A search that does not get there is charged what it had spent when it was broken off: that is the least it costs.
    results = results.assign(cost=results.cost_until_97.fillna(results.cost_at_the_end))
    groups = results.groupby(["setting", "sampler"], sort=False)
    return pd.DataFrame(
        {
            "restarts": groups.restart.nunique(),
            "mean_cost": groups.cost.mean(),
            "median_cost": groups.cost.median(),
            "quarter_cost": groups.cost.quantile(0.25),
            "three_quarters_cost": groups.cost.quantile(0.75),
            "share_that_got_there": groups.cost_until_97.apply(lambda cost: float(cost.notna().mean())),
            "mean_returned": groups.returned_over_best.mean(),
            "worst_returned": groups.returned_over_best.min(),
            "mean_cost_until_stopped": groups.cost_until_stopped.mean(),
        }
    ).reset_index()


def _with_others(results: pd.DataFrame, file: Path, settings: Sequence[str]) -> pd.DataFrame:
    """``results``, and what ``file`` holds of samplers that were not run now, in order of settings and samplers."""
    if file.exists():
        before = pd.read_csv(file)
        results = pd.concat([before[~before.sampler.isin(results.sampler)], results], ignore_index=True)
    order = {name: i for i, name in enumerate([*settings, *SAMPLERS])}
    return results.sort_values(["setting", "sampler", "restart"], key=lambda column: column.map(order).fillna(column), kind="stable")


def draw(table: pd.DataFrame, title: str, file: Path) -> None:
    """Mean cost of each sampler in each setting, with quartiles."""
    settings, samplers = list(dict.fromkeys(table.setting)), list(dict.fromkeys(table.sampler))
    figure, axes = plt.subplots(figsize=(12, 5), layout="constrained")
    width = 0.8 / len(samplers)
    for k, name in enumerate(samplers):
        rows = table[table.sampler == name].set_index("setting").loc[settings]
        x = np.arange(len(settings)) + k * width
        # A search that ends by itself and never gets there has no cost until then, however little it spent.
        got_there = rows.share_that_got_there > 0
        axes.bar(x, rows.mean_cost.where(got_there), width, label=name if got_there.any() else f"{name}: never")
        axes.vlines(x[got_there], rows.quarter_cost[got_there], rows.three_quarters_cost[got_there], color="black", linewidth=1)
    axes.axhline(12, color="grey", linestyle=":", linewidth=1)
    axes.set(yscale="symlog", ylabel="full trainings until 97 % of the best plan", title=title)
    axes.set_xticks(np.arange(len(settings)) + 0.4, settings, rotation=20, ha="right")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--most", type=int, default=100, help="trainings after which a search that did not get there is broken off")
    parser.add_argument("--samplers", nargs="*", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--tables", type=Path, default=Path(__file__).parent / "tables")
    options = parser.parse_args()
    table = load_table(options.pair, options.tables)
    jobs = [(s, name, n) for s in SETTINGS for name in options.samplers for n in range(options.restarts)]
    with ProcessPoolExecutor(2) as pool:
        rows = [pool.submit(restart, table, *job, options.most) for job in jobs]
        results = pd.DataFrame(list(_reported(rows)))
    folder = options.tables / options.pair
    results = _with_others(results, folder / "restarts.csv", [setting.name for setting in SETTINGS])
    found = summary(results)
    results.to_csv(folder / "restarts.csv", index=False, float_format="%.5g")
    found.to_csv(folder / "comparison.csv", index=False, float_format="%.5g")
    counts = "-".join(str(count) for count in sorted({found.restarts.min(), found.restarts.max()}))
    draw(found, f"{options.pair}: {len(table.candidates)} paths, {counts} restarts", folder / "comparison.png")
    print(found.round(2).to_string())


if __name__ == "__main__":
    main()
