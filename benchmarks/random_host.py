"""Does borrowing need what the host learnt? The same search with the host and with its random-weight control, to the same rules.

python -m benchmarks.random_host [CONFIG.yaml] [--out runs/bench/random_host]      writes random_host.csv and .png; again, it goes on

At each speed-up every side serves the mixture of its trained paths that loses least on validation data; what they lose is
compared on test images, image by image.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from code_ray.artifact import RunDirectory
from code_ray.controls import random_host
from code_ray.data import load_data
from code_ray.throughput import FloatArray
from code_ray.zoo import get_service
from search.campaign import Campaign
from search.config import SearchConfig, read_config
from search.launch import run_search
from search.measuring import Hits, measure_test
from search.plannable import plannable
from search.problem import load_inputs, prepare
from search.results import Arm, arm_at, lost_points, mean_and_half_interval, plan_of
from search.trial import CALIBRATION_IMAGES

SPEEDUPS = (1.4, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0)

COLUMNS = ["speedup", "trained_loss_points", "trained_borrowed", "random_loss_points", "random_borrowed", "margin_points"]
COLUMNS += ["half_interval_95_points"]

Side = tuple[dict[float, Arm | None], Hits]


def main() -> None:
    """Search twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("search/configs/demo_slow.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/random_host"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trained = read_config(options.config)
    sides = {"trained": trained, "random": with_random_hosts(trained, options.out)}
    found = {name: best_arms(config, options.out / name) for name, config in sides.items()}
    table = pd.DataFrame([compared(speedup, found) for speedup in SPEEDUPS]).reindex(columns=COLUMNS)
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


def best_arms(config: SearchConfig, out: Path) -> Side:
    """Search; the arm that loses least at each speed-up, None where that is out of reach, and which test images its paths get right."""
    inputs = load_inputs(config)
    run_search(config, out, _say)
    campaign = Campaign(prepare(config, inputs, RunDirectory(out), _say), train=False)
    arms = {speedup: arm_at(campaign.problem, plannable(campaign), speedup) for speedup in SPEEDUPS}
    used = [path for arm in arms.values() if arm is not None for path in arm.shares]
    return arms, measure_test(campaign.problem, plan_of(campaign.problem, campaign, used), {})


def compared(speedup: float, sides: dict[str, Side]) -> dict[str, Any]:
    """Mean loss of every side on test images, the share of the images that it sends through a host, and what the random side loses
    more, with half of its 95 % interval, paired by image.
    """
    row: dict[str, Any] = {"speedup": speedup}
    lost: dict[str, FloatArray] = {}
    for name, (arms, hits) in sides.items():
        if (arm := arms[speedup]) is not None:
            lost[name] = lost_points(arm, hits)
            row[f"{name}_loss_points"] = float(lost[name].mean())
            row[f"{name}_borrowed"] = sum(share for path, share in arm.shares.items() if path.hosts)
    if len(lost) == len(sides):
        row["margin_points"], row["half_interval_95_points"] = mean_and_half_interval(lost["random"] - lost["trained"])
    return row


def draw(table: pd.DataFrame, file: Path) -> None:
    """Loss by speed-up for both sides; the bars are the 95 % interval of what lies between them, a ring a plan that borrows nothing."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    bars = {"trained": None, "random": table.half_interval_95_points}
    for name, colour in (("trained", "#0b6e4f"), ("random", "#b45309")):
        axes.errorbar(table.speedup, table[f"{name}_loss_points"], bars[name], color=colour, capsize=4, label=f"{name} host")
        filled = np.where(table[f"{name}_borrowed"] > 0, colour, "white")
        axes.scatter(table.speedup, table[f"{name}_loss_points"], color=filled, edgecolor=colour, zorder=3)
    axes.set(xlabel="speed-up over the original", ylabel="average-accuracy loss on test images, points")
    axes.set_title("bars: 95 % interval of the difference; rings: a plan that borrows nothing", fontsize=9)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
