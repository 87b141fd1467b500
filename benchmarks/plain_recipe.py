"""How long links take to the accuracy that the plain recipe ends with: random start, cross-entropy, all links together, the best of
three learning rates.

python -m benchmarks.plain_recipe [--steps 150] [--paths 12] [--out runs/bench]      writes plain_recipe.csv, a path at a time, and .png

Seconds are of training alone; validation is left out on both sides. The plain recipe is charged for its best learning rate only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import torch
from matplotlib import pyplot as plt

from code_ray.data import load_data
from code_ray.path import InferencePath, path_from_vector
from code_ray.profiling import best_execution
from code_ray.recipe import Recipe
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import get_service

LOCAL, HOST = "alexnet-fashion", "alexnet-digits"
VECTORS = (
    *((1, 2, 3, 4), (1, 3), (1, 2, 4), (2,), (0, 1, 3, 4), (2, 3, 4, 5), (1, 4), (2, 3, 3), (3,), (1, 4, 4, 5), (2, 5), (0, 1, 2)),
    *((1, 1, 5, 5), (2, 2, 2, 3), (1, 5), (0, 2, 4)),
)
"""Crosses, skips, probes and exits in turn."""

LEARNING_RATES = (3e-4, 1e-3, 3e-3)
IMAGES = 2_000
CHECKS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 100, 125, 150, 200, 300, 400, 500)


def main() -> None:
    """Train every path both ways, one after another on one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="batches of the plain recipe; ours may take as many")
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    services = {name: get_service(name) for name in (LOCAL, HOST)}
    modes = {name: best_execution(service, (32, 64)).mode for name, service in services.items()}
    data = load_data("fashion-mnist")
    rows = []
    for vector in VECTORS[: options.paths]:
        path = path_from_vector(vector, LOCAL, services[LOCAL].num_blocks, HOST, services[HOST].num_blocks)

        def train(recipe: Recipe, path: InferencePath = path) -> LinkTraining:
            # A trainer of its own: nothing is left over from another run.
            trainer = Trainer(services, LOCAL, data, {name: name for name in services}, lambda provider: modes[provider], recipe)
            return LinkTraining(trainer, path, seed=0)

        rows.append({"path": str(path), "kind": path.kind, **compare(train, options.steps)})
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
        pd.DataFrame(rows).to_csv(options.out / "plain_recipe.csv", index=False)
    table = pd.DataFrame(rows)
    draw(table, options.out / "plain_recipe.png")
    share = table.share_of_time
    print(
        f"{len(table)} paths: median {100 * share.median():.1f} % of the plain recipe's time, from {100 * share.min():.1f} to {100 * share.max():.1f} %"
    )


def compare(train: Any, steps: int) -> dict[str, Any]:
    """The plain recipe's best end, and when ours was there (infinite where it never was)."""
    plain = [run_plain(train(plain_recipe(steps, rate)), steps) for rate in LEARNING_RATES]
    best = max(range(len(plain)), key=lambda number: plain[number][0])
    goal, seconds = plain[best]
    mine = train(Recipe(samples=32 * steps, steps=steps, joint_steps=0))
    started = time.perf_counter()
    mine.fit()
    spent, reached, accuracy = time.perf_counter() - started, float("inf"), 0.0
    for step in (check for check in CHECKS if check <= steps):
        started = time.perf_counter()
        mine.advance(step)
        spent += time.perf_counter() - started
        accuracy = mine.accuracy("validation", IMAGES)
        reached = spent if accuracy >= goal and reached == float("inf") else reached
    return {
        "plain_accuracy": goal,
        "plain_learning_rate": LEARNING_RATES[best],
        "plain_seconds": seconds,
        "reached_after_seconds": reached,
        "share_of_time": reached / seconds,
        "accuracy": accuracy,
        "seconds": spent,
    }


def plain_recipe(steps: int, rate: float) -> Recipe:
    """All links from the first batch on, labels alone."""
    return Recipe(samples=32 * steps, steps=0, joint_steps=steps, joint_learning_rate=rate, distillation=0.0)


def run_plain(training: LinkTraining, steps: int) -> tuple[float, float]:
    """(validation accuracy, seconds of training) of links that were never fitted."""
    started = time.perf_counter()
    training.advance(steps)
    seconds = time.perf_counter() - started
    return training.accuracy("validation", IMAGES), seconds


def draw(table: pd.DataFrame, file: Path) -> None:
    """A bar a path: share of the plain recipe's time."""
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(table) + 1.5), layout="constrained")
    axes.barh(table.kind + " " + table.path, 100 * table.share_of_time.clip(upper=1.5), color="#0b6e4f")
    axes.axvline(20, color="#b91c1c", linestyle=":")
    axes.invert_yaxis()
    axes.set(xlabel="time to the accuracy that the plain recipe ends with, % of its time")
    axes.tick_params(axis="y", labelsize=7)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
