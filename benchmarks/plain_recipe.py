"""How long links take to the accuracy that the plain recipe ends with: random start, cross-entropy, all links together, the best of
three learning rates.

python -m benchmarks.plain_recipe [--steps 150] [--fit-samples 600] [--paths 12] [--out runs/bench]      writes plain_recipe.csv, a path
at a time, and .png; steps and images are those of search/configs/demo_slow.yaml

Seconds are of training alone; validation is left out on both sides. The plain recipe is charged for its best learning rate only,
and not for the original's logits, which it does not look at. Ours is: they are computed once for all paths, as a search does, and each
path is charged its part of those that it has looked at. ``share_with_all_logits``: of all of them, before the first step.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import torch
from matplotlib import pyplot as plt

from code_ray.data import load_data
from code_ray.path import path_from_vector
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

LEARNING_RATES = (1e-3, 3e-3, 1e-2)
IMAGES = 2_000
CHECKS = (0, 10, 20, 30, 40, 50, 60, 75, 90, 100, 125, 150, 200, 250, 300, 400, 500)


def main() -> None:
    """Train every path both ways, one after another on one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="batches of the plain recipe; ours may take as many")
    parser.add_argument("--fit-samples", type=int, default=600, help="images that least squares looks at")
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    services = {name: get_service(name) for name in (LOCAL, HOST)}
    modes = {name: best_execution(service, (32, 64)).mode for name, service in services.items()}
    data = load_data("fashion-mnist")

    def trainer(recipe: Recipe, teacher: torch.Tensor | None = None) -> Trainer:
        placement = {name: name for name in services}
        return Trainer(services, LOCAL, data, placement, lambda provider: modes[provider], recipe, teacher=teacher)

    ours = Recipe(samples=32 * options.steps, fit_samples=options.fit_samples, steps=options.steps, joint_steps=0)
    started = time.perf_counter()
    teacher = trainer(ours).teacher(torch.arange(ours.samples))
    # Warm for all paths, as a search's workers are; the plain recipe's too.
    warm = trainer(ours, teacher)
    warm_plain = [trainer(plain_recipe(options.steps, rate)) for rate in LEARNING_RATES]
    teacher_seconds = (time.perf_counter() - started) / options.paths
    print(f"the original's logits on {ours.samples} images: {teacher_seconds:.2f} s a path", flush=True)
    rows = []
    for vector in VECTORS[: options.paths]:
        path = path_from_vector(vector, LOCAL, services[LOCAL].num_blocks, HOST, services[HOST].num_blocks)
        plain = [run_plain(LinkTraining(each, path, seed=0), options.steps) for each in warm_plain]
        mine = LinkTraining(warm, path, seed=0)
        rows.append({"path": str(path), "kind": path.kind, **compare(plain, mine, teacher_seconds)})
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
        pd.DataFrame(rows).to_csv(options.out / "plain_recipe.csv", index=False)
    table = pd.DataFrame(rows)
    draw(table, options.out / "plain_recipe.png")
    share, whole = table.share_of_time, table.share_with_all_logits
    print(
        f"{len(table)} paths: median {100 * share.median():.1f} % of the plain recipe's time, from {100 * share.min():.1f} to "
        f"{100 * share.max():.1f} %; with all logits before the first step {100 * whole.median():.1f} %"
    )


def compare(plain: Sequence[tuple[float, float]], mine: LinkTraining, teacher_seconds: float) -> dict[str, Any]:
    """The plain recipe's best end, and when ours was there (infinite, after -1 steps, where it never was). ``plain`` as ``LEARNING_RATES``."""
    goal, seconds = max(plain)
    started = time.perf_counter()
    mine.fit()
    fitted = time.perf_counter() - started
    spent, reached, reached_steps, used, accuracy = fitted, float("inf"), -1, 1.0, 0.0
    steps = mine.recipe.steps
    # The fit of a link to the original's logits looks at as many images as other fits do.
    to_logits = mine.path.link_slots[-1].target == (LOCAL, mine.path.num_blocks)
    seen = mine.recipe.fit_samples if to_logits else 0
    for step in (check for check in CHECKS if check <= steps):
        started = time.perf_counter()
        mine.advance(step)
        spent += time.perf_counter() - started
        accuracy = mine.accuracy("validation", IMAGES)
        if accuracy >= goal and reached_steps < 0:
            used = max(seen, step * mine.recipe.batch_size) / mine.recipe.samples
            reached, reached_steps = spent + used * teacher_seconds, step
    return {
        "plain_accuracy": goal,
        "plain_learning_rate": LEARNING_RATES[plain.index((goal, seconds))],
        "plain_seconds": seconds,
        "fit_seconds": fitted,
        "teacher_seconds": teacher_seconds,
        "reached_after_steps": reached_steps,
        "reached_after_seconds": reached,
        "share_of_time": reached / seconds,
        "share_with_all_logits": (reached + (1 - used) * teacher_seconds) / seconds,
        "accuracy": accuracy,
        "seconds": spent + teacher_seconds,
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
    for n, share in enumerate(table.share_of_time):
        if math.isinf(share):
            axes.annotate("not reached in as many steps ", (150, n), ha="right", va="center", color="white", fontsize=7)
    axes.axvline(20, color="#b91c1c", linestyle=":")
    axes.invert_yaxis()
    axes.set(xlabel="time to the plain recipe's accuracy, % of its time")
    axes.tick_params(axis="y", labelsize=7)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
