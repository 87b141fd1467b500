"""How much of bare torch is left over HTTP, by images a request: the local service alone, then the shipped plan.

python -m benchmarks.request_size [--out runs/bench]      writes request_size.csv and request_size.png
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from ray import serve
from ray.serve.handle import DeploymentHandle

from code_ray.data import load_data
from code_ray.plan import Plan, read_plan
from code_ray.profiling import Execution, best_execution
from code_ray.zoo import get_service
from deployments.config import DEFAULT_RUN_DIR, RouterSettings
from examples.demo import bare_torch, deployed, say
from examples.load import Load

SIZES = (16, 32, 64, 128, 256)
IMAGES_IN_FLIGHT = 1280
ROUNDS = 3
SECONDS = 4.0


def main() -> None:
    """Measure every size in every round and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    out: Path = parser.parse_args().out
    plan = read_plan(DEFAULT_RUN_DIR / "plan.json")
    best = best_execution(get_service(plan.local))
    with deployed(DEFAULT_RUN_DIR) as url:
        rows = asyncio.run(_measure(plan, best, url))
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows).groupby(["arm", "request_images"], as_index=False).median()
    table.to_csv(out / "request_size.csv", index=False)
    _draw(table, out / "request_size.png")
    print(table.to_string(index=False, float_format="%.3f"))


async def _measure(plan: Plan, best: Execution, url: str) -> list[dict[str, Any]]:
    data = load_data("fashion-mnist")
    bare = bare_torch(plan.local, best, data.test.images)
    router: DeploymentHandle[Any] = serve.get_deployment_handle("router", "default")
    rows = []
    for number in range(ROUNDS):
        speed = await asyncio.to_thread(bare)
        for size in SIZES:
            load = Load(url, plan.local, data.test, size, max(4, IMAGES_IN_FLIGHT // size))
            for arm, use in (("original", ()), ("pair", None)):
                await router.reconfigure.remote(RouterSettings(use=use, steering="plan").model_dump(mode="json"))
                measured = await load.run(SECONDS, data.labels)
                rows.append(
                    {
                        "arm": arm,
                        "request_images": size,
                        "images_per_second": measured.images_per_second,
                        "over_bare_torch": measured.images_per_second / speed,
                        "failed": measured.failed,
                    }
                )
        say(f"round {number + 1} of {ROUNDS}: bare torch {speed:.0f} images a second")
    return rows


def _draw(table: pd.DataFrame, file: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for arm, group in table.groupby("arm"):
        axes.plot(group.request_images, group.over_bare_torch, marker="o", label=str(arm))
    axes.axhline(1.0, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="images a request", ylabel="images a second / bare torch, one thread", ylim=(0, None))
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
