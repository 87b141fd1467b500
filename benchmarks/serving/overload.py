"""What is given up, and when: open-loop load that rises from 0.2 to 2 times what the original serves alone, or to ``--to`` times.

python -m benchmarks.serving.overload [--run-dir DIR] [--seconds 60] [--to 2] [--profile default|throughput] [--out runs/bench]
writes overload.csv, overload.png

Every request has 32 images and a deadline. The plan's paths are known by their validation accuracies, so the average accuracy that
was served follows from the paths that answers name.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.serving.open_loop import Answered, send_all
from benchmarks.serving.processes import PROFILES
from code_ray.data import load_data
from code_ray.plan import read_plan
from code_ray.policy import ORIGINAL
from deployments.config import DEFAULT_RUN_DIR, RouterSettings
from examples.demo import deployed, say
from examples.load import Load

REQUEST_IMAGES = 32
FROM = 0.2
IN_FLIGHT = 8
"""Requests under way of the closed loop that finds what the original serves alone, and the plan."""
BINS = 30


def main() -> None:
    """Load, bin by time, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIR)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--to", type=float, default=2.0, help="times what the original serves, at the end (default: %(default)g)")
    parser.add_argument("--profile", choices=PROFILES, default="default")
    parser.add_argument("--deadline-ms", type=float, default=2000.0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    os.environ |= PROFILES[options.profile]
    plan = read_plan(options.run_dir / "plan.json")
    with deployed(options.run_dir) as url:
        found, alone, whole = asyncio.run(_measure(url, plan.local, options.seconds, options.to, options.deadline_ms))
    accuracies = {ORIGINAL if path.id == ORIGINAL else path.id: path.accuracy for path in plan.paths}
    table = binned(found, options.seconds, options.to, accuracies)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "overload.csv", index=False, float_format="%.4g")
    draw(table, whole / alone, options.deadline_ms, options.out / "overload.png")
    print(table.to_string(index=False, float_format="%.3f"))
    print(f"original alone {alone:.0f} images a second; plan in a closed loop {whole:.0f}, {whole / alone:.2f} times as many")


async def _measure(url: str, service: str, seconds: float, to: float, deadline_ms: float) -> tuple[list[Answered], float, float]:
    data = load_data("fashion-mnist")
    router: DeploymentHandle[Any] = serve.get_deployment_handle("router", "default")
    load, rates = Load(url, service, data.test, REQUEST_IMAGES, IN_FLIGHT), []
    for use in ((), None):
        await router.reconfigure.remote(RouterSettings(use=use, steering="plan").model_dump(mode="json"))
        rates.append((await load.run(8.0, data.labels)).images_per_second)
    alone, whole = rates
    say(f"original {alone:.0f} images a second, plan {whole:.0f}; now the load rises from {FROM:g} to {to:g} times the former")
    await router.reconfigure.remote(RouterSettings(steering="load").model_dump(mode="json"))
    due = rising(alone / REQUEST_IMAGES, seconds, to)
    requests = [data.test.images[i : i + REQUEST_IMAGES] for i in range(0, len(data.test.images) - REQUEST_IMAGES, REQUEST_IMAGES)]
    return await send_all(url, service, requests, due, deadline_ms), alone, whole


def rising(rate: float, seconds: float, to: float) -> list[float]:
    """Moments at which to send, so that the rate of requests rises in a line from ``FROM`` to ``to`` times ``rate``."""
    total = rate * seconds * (FROM + to) / 2
    slope = (to - FROM) / seconds
    # rate (FROM t + slope t^2 / 2) = number
    return [float((-FROM + np.sqrt(FROM**2 + 2 * slope * number / rate)) / slope) for number in range(int(total))]


def binned(found: list[Answered], seconds: float, to: float, accuracies: Mapping[str, float]) -> pd.DataFrame:
    """By time: the load, what was answered, its average accuracy beside the original's in points, latency, refusals."""
    rows = []
    for part in range(BINS):
        low, high = part * seconds / BINS, (part + 1) * seconds / BINS
        mine = [answer for answer in found if low <= answer.due < high]
        good = [answer for answer in mine if answer.status == 200]
        paths = [answer.path or ORIGINAL for answer in good]
        lost = [100 * (accuracies[ORIGINAL] - accuracies[path]) for path in paths]
        statuses = [answer.status for answer in mine]
        rows.append(
            {
                "load": FROM + (to - FROM) * (low + high) / 2 / seconds,
                "requests": len(mine),
                "answered": len(good) / max(1, len(mine)),
                "original_share": float(np.mean([path == ORIGINAL for path in paths])) if paths else np.nan,
                "lost_points": float(np.mean(lost)) if lost else np.nan,
                "p50_ms": 1e3 * float(np.percentile([a.seconds for a in good], 50)) if good else np.nan,
                "p99_ms": 1e3 * float(np.percentile([a.seconds for a in good], 99)) if good else np.nan,
                "refused": sum(status in (429, 503) for status in statuses),
                "failed": sum(status not in (200, 429, 503) for status in statuses),
            }
        )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, bound: float, deadline_ms: float, file: Path) -> None:
    """Three pictures over the load: accuracy given up, latency, refusals."""
    figure, (above, middle, below) = plt.subplots(3, 1, figsize=(7, 8), sharex=True, layout="constrained")
    above.plot(table.load, table.lost_points, marker="o", color="#0b6e4f")
    above.set(ylabel="average-accuracy loss, points", title="open-loop load, times what the original serves alone", ylim=(-0.05, None))
    middle.plot(table.load, table.p99_ms, marker="o", color="#b45309", label="99 %")
    middle.plot(table.load, table.p50_ms, marker="o", color="#1d4ed8", label="median")
    middle.axhline(deadline_ms, color="grey", linestyle=":", label="deadline")
    middle.set(ylabel="milliseconds to an answer", yscale="log")
    middle.legend()
    below.bar(table.load, 100 * (1 - table.answered), width=0.7 * float(table.load.diff().median()), color="#991b1b")
    below.set(ylabel="not answered, %", xlabel="load / original alone", ylim=(0, max(5.0, 110 * (1 - table.answered.min()))))
    for axes in (above, middle, below):
        axes.axvline(1.0, color="grey", linewidth=0.8)
        axes.axvline(bound, color="black", linewidth=0.8, linestyle="--")
    below.annotate("plan, closed loop ", (bound, below.get_ylim()[1] * 0.8), ha="right", fontsize=9)
    if (table.answered == 1).all():
        below.annotate("every request was answered", (0.5, 0.4), xycoords="axes fraction", ha="center", fontsize=9)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
