"""The arms of the page's table of rivals, live through HTTP, alternating in one run.

python -m benchmarks.experiments.live [--rounds 5] [--profile throughput|default] [--out runs/live]     then: ... --page

Links and small networks are trained at the first seed, and kept below --out; ``live.csv`` beside the other tables has a row an arm and
round. The original and all paths are served by this project, what is no path by plain Ray Serve; everything is up all the time, one arm
is loaded: requests of 64 images, ten under way for each server that the arm has.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.experiments.board import pathbench_rows
from benchmarks.experiments.config import CONFIGS, Experiments, read_experiments
from benchmarks.experiments.live_plan import LivePlan, make_live_plan
from benchmarks.experiments.measure import Worker
from benchmarks.experiments.readings import LIVE_FILE, read_lives, read_readings
from benchmarks.experiments.rival_server import distilled_app, int8_app
from benchmarks.experiments.rivals import live_paths
from benchmarks.serving.memory import own_bytes
from benchmarks.serving.pair import IN_FLIGHT, REQUEST_IMAGES, PlainLoad
from benchmarks.serving.plain_serve import plain_app
from benchmarks.serving.processes import PROFILES, replica_ids
from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.profiling import Execution, best_execution
from code_ray.zoo import get_service
from deployments import build_app
from deployments.config import AppOptions, RouterOptions, RouterSettings
from examples.demo import say, serve_up
from examples.load import Load

SECONDS = 6.0
TWO_SERVERS = ("replica", "pair", "pair-gated", "probe", "probe-gated")


def main() -> None:
    """Train what is missing, load every arm in every round, write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / "fashion.yaml")
    parser.add_argument("--tables", type=Path, help="where the other tables lie (default: those of the configuration)")
    parser.add_argument("--profile", choices=PROFILES, default="throughput", help="of all that Ray serves")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a load (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=Path("runs/live"))
    options = parser.parse_args()
    os.environ |= PROFILES[options.profile]
    torch.set_num_threads(1)
    config = read_experiments(options.config)
    tables = options.tables or Path(__file__).parent / "tables" / options.config.stem
    if not (tables / "services.csv").exists():
        parser.error(f"{tables} holds no experiments; run python -m benchmarks.experiments first, or give another --tables")
    plan, data = prepare(config, tables, options.out)
    best = best_execution(get_service(config.local))
    say(f"{config.local}: {1e3 * best.seconds:.2f} ms an image in {best.mode}, batches of {best.batch_size}")
    with everything(config, plan, best) as url:
        asyncio.run(_measure(url, config.local, plan, data, options.rounds, options.seconds, tables / LIVE_FILE))
    for arm, reading in read_lives(tables / LIVE_FILE).items():
        print(f"{arm:20} {reading.text(2)}")


def prepare(config: Experiments, tables: Path, out: Path) -> tuple[LivePlan, DataSet]:
    """The plan of the live arms, and the data on which accuracies are reported."""
    paths = live_paths(read_readings(config, tables, pathbench_rows(config)))
    # Hosts that are trained here are on none of these paths.
    services = [name for name in config.hosts if name not in config.trained_here]
    worker = Worker(config.model_copy(update={"hosts": tuple(services), "trained_here": ()}), out / "hosts")
    return make_live_plan(worker, paths, out, config.seeds[0]), worker.data


@contextmanager
def everything(config: Experiments, plan: LivePlan, best: Execution) -> Iterator[str]:
    """Every arm up on one Ray; yields the URL before the application's name."""
    apps = {"plain": plain_app(config.local, best), "int8": int8_app(config.local, config.data)}
    apps["float32"] = plain_app(config.local, best.model_copy(update={"mode": ExecutionMode(channels_last=True)}))
    for arm, (file, threshold) in plan.networks.items():
        apps[arm] = distilled_app(config.local, config.data, int(arm.split("-")[1]), file, threshold, best.mode)
    # Logical CPUs: an arm that is not loaded does nothing.
    with serve_up(num_cpus=len(apps) + 6) as url:
        for name, app in apps.items():
            serve.run(app, name=name, route_prefix=f"/{name}")
        serve.run(plain_app(config.local, best, num_replicas=2), name="replica", route_prefix="/replica")
        serve.run(build_app(AppOptions(run_dir=plan.run_dir, router=RouterOptions(steering="plan"))), route_prefix="/")
        yield url


async def _measure(url: str, service: str, plan: LivePlan, data: DataSet, rounds: int, seconds: float, file: Path) -> None:
    router: DeploymentHandle[Any] = serve.get_deployment_handle("router", "default")
    uses = {"original": (), **plan.uses}
    arms = [*uses, "plain", "replica", "float32", "int8", *plan.networks]
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        turn = number * len(arms) // rounds
        for arm in (*arms[turn:], *arms[:turn]):
            in_flight = IN_FLIGHT * (2 if arm in TWO_SERVERS else 1)
            if arm in uses:
                await router.reconfigure.remote(RouterSettings(use=uses[arm], steering="plan").model_dump(mode="json"))
                load = Load(url, service, data.test, REQUEST_IMAGES, in_flight)
            else:
                load = PlainLoad(f"{url}/{arm}", data.test, REQUEST_IMAGES, in_flight)
                load.labels = data.labels
            measured = await load.run(seconds, data.labels, number / rounds)
            row = {"round": number, "arm": arm, "images_per_second": measured.images_per_second, "failed": measured.failed}
            row["accuracy"] = measured.right.sum() / max(measured.images, 1)
            rows.append(row | {"MiB": sum(map(own_bytes, _servers(arm, arm in uses))) / 2**20})
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.5g")
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{row['arm']} {row['images_per_second']:.0f}" for row in rows[-len(arms) :]))


def _servers(arm: str, is_path: bool) -> set[int]:
    """The processes that hold an arm's models; of paths those of both providers."""
    return replica_ids("provider-") if is_path else replica_ids("", application=arm)


if __name__ == "__main__":
    main()
