"""Does borrowing need what the host learnt? The same search with the host and with its random-weight control, to the same rules.

python -m benchmarks.random_host [CONFIG.yaml] [--out runs/bench/random_host]      writes random_host.csv and .png; again, it goes on

At each speed-up every side serves the mixture of its trained paths that loses least on validation data; what they lose is
compared on test images, image by image.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import pyplot as plt

from code_ray.artifact import RunDirectory
from code_ray.controls import random_host
from code_ray.data import load_data
from code_ray.links import Link
from code_ray.path import InferencePath
from code_ray.plan import PlannedPath, load_leg_links, path_id
from code_ray.runner import walk
from code_ray.throughput import least_loss_mixture
from code_ray.training import Trainer
from code_ray.zoo import get_service
from search.campaign import PLANNED, Campaign
from search.config import SearchConfig, read_config
from search.launch import run_search
from search.problem import load_inputs, prepare
from search.trial import CALIBRATION_IMAGES

SPEEDUPS = (1.2, 1.4, 1.6, 1.8, 2.0)

Losses = npt.NDArray[np.float64]


def main() -> None:
    """Search twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("search/configs/demo_slow.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/random_host"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trained = read_config(options.config)
    sides = {"trained": trained, "random": with_random_hosts(trained, options.out)}
    lost = {name: side_losses(config, options.out / name) for name, config in sides.items()}
    rows = [compared(speedup, lost["trained"][speedup], lost["random"][speedup]) for speedup in SPEEDUPS]
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "random_host.csv", index=False, float_format="%.4g")
    draw(table, options.out / "random_host.png")
    print(table.round(2).to_string(index=False))


def with_random_hosts(config: SearchConfig, out: Path) -> SearchConfig:
    """The same search with the control of every host in its place, a service folder each."""
    images = load_data(config.data).train.images[:CALIBRATION_IMAGES]
    hosts = {}
    for name, host in config.hosts.items():
        control = random_host(get_service(name), images, config.seed)
        folder = out / control.name
        if not folder.exists():
            control.save(folder)
        hosts[str(folder.resolve())] = host
    return SearchConfig.model_validate(config.model_dump() | {"hosts": hosts, "controls": False})


def side_losses(config: SearchConfig, out: Path) -> dict[float, Losses | None]:
    """What each test image loses (points: 100 where the original is right and the answer is wrong) at each speed-up; None out of reach."""
    run_search(config, out, _say)
    campaign = Campaign(prepare(config, load_inputs(config), RunDirectory(out), _say), train=False)
    problem, known = campaign.problem, campaign.accuracies
    objective = problem.plan_objective
    paths = [objective.original.path, *known]
    costs = [objective.original.cost, *(cost for cost, _ in known.values())]
    accuracies = [problem.accuracy_original, *(accuracy for _, accuracy in known.values())]
    trainer = Trainer(problem.services, config.local, problem.data, config.placement, problem.profile.mode_of, config.recipe)
    test = problem.data.test.head(config.test_samples)
    hits: dict[InferencePath, Losses] = {}

    def right(path: InferencePath) -> Losses:
        if path not in hits:
            hits[path] = (trainer.predictions(path, links_of(campaign, path), test) == test.labels).astype(np.float64)
        return hits[path]

    found: dict[float, Losses | None] = {}
    for speedup in SPEEDUPS:
        rate = speedup / objective.original_seconds
        mixture = least_loss_mixture(costs, accuracies, problem.accuracy_original, objective.limits, rate)
        found[speedup] = None
        if mixture is not None:
            shares = {path: r / mixture.throughput for path, r in zip(paths, mixture.rates, strict=True) if r > 0}
            _say(f"{out.name} at {speedup:g}: " + ", ".join(f"{100 * share:.0f} % {path}" for path, share in shares.items()))
            found[speedup] = 100 * np.sum([share * (right(paths[0]) - right(path)) for path, share in shares.items()], axis=0)
    return found


def links_of(campaign: Campaign, path: InferencePath) -> dict[str, Link]:
    """The links that the search trained for ``path``."""
    problem = campaign.problem
    if not path.link_slots:
        return {}
    record = next(r for j, r in campaign.records.items() if j.path == path and j.role in PLANNED and j.fidelity == "trained")
    planned = PlannedPath(
        path=str(path), id=path_id(path, problem.services), accuracy=record["accuracy"], link_hashes=record["link_hashes"]
    )
    links: dict[str, Link] = {}
    for leg in walk(path, problem.config.placement):
        links |= load_leg_links(leg, path, planned, problem.services, problem.run.stores_dir / leg.provider)
    return links


def compared(speedup: float, trained: Losses | None, random: Losses | None) -> dict[str, Any]:
    """Mean losses of both sides, and of what the random side loses more, with half of its 95 % interval, paired by image."""
    row: dict[str, Any] = {"speedup": speedup}
    for name, losses in (("trained", trained), ("random", random)):
        row[f"{name}_loss_points"] = float("nan") if losses is None else float(losses.mean())
    if trained is not None and random is not None:
        more = random - trained
        row |= {"margin_points": float(more.mean()), "half_interval_95_points": float(1.96 * more.std(ddof=1) / math.sqrt(len(more)))}
    return row


def draw(table: pd.DataFrame, file: Path) -> None:
    """Loss by speed-up for both sides."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, colour in (("trained", "#0b6e4f"), ("random", "#b45309")):
        axes.plot(table.speedup, table[f"{name}_loss_points"], "o-", color=colour, label=f"{name} host")
    axes.set(xlabel="speed-up over the original", ylabel="average-accuracy loss on test images, points")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
