"""The pair beside its bound and beside what a user would do instead, each at its own best batch size, alternating in one run.

python -m benchmarks.serving.pair [--profile throughput|default] [--run-dir DIR] [--rounds 5] [--out runs/bench]
writes pair.csv, pair_rounds.csv, pair.png

Arms: the original, the best plan without a host, the pair (this project, through HTTP); one deployment of plain Ray Serve behind
FastAPI, with and without ``@serve.batch``; LitServe; a full replica of the model on the second core; bare torch on one core. All of
them are up all the time, one is loaded. CPU seconds are those of the process alone, per image answered; memory is what it shares with nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.serving.lit_serve import Running, lit_serve
from benchmarks.serving.memory import own_bytes
from benchmarks.serving.plain_serve import batched_app, plain_app
from benchmarks.serving.processes import PROFILES, family, process_ids, proxy_ids, replica_ids
from code_ray.artifact import RunDirectory
from code_ray.data import Split, load_data
from code_ray.plan import Plan, read_plan
from code_ray.profiling import Execution, best_execution
from code_ray.zoo import get_service
from deployments import build_app
from deployments.config import DEFAULT_RUN_DIR, AppOptions, RouterOptions, RouterSettings
from examples.demo import allowed_paths, bare_torch, planned_rate, say, serve_up
from examples.load import WARM_UP_S, Load

OURS = {"original": "original", "host-free plan": "host_free", "pair": "pair"}
OTHERS = {"plain Ray Serve": "plain", "Ray Serve + @serve.batch": "batched", "replica on the second core": "replica"}
LIT = "LitServe"
REQUEST_IMAGES, IN_FLIGHT, SECONDS, LOOK_S = 64, 10, 12.0, 3.0
"""Images of a request; requests under way for each server of an arm; seconds of a load, and between two looks at the bound meanwhile."""
TWO_SERVERS = ("pair", "replica on the second core")
TICKS = os.sysconf("SC_CLK_TCK")


class PlainLoad(Load):
    """The same load for ``plain_serve``, whose answers are logits."""

    def __init__(self, url: str, split: Split, request_images: int, in_flight: int) -> None:
        super().__init__(url, "", split, request_images, in_flight)
        self._route = f"{url}/infer"
        self._requests = [(split.images[s].tobytes(), {"Content-Type": "application/octet-stream"}, s) for _, _, s in self._requests]
        self.labels: tuple[str, ...] = ()

    async def _send(self, session: aiohttp.ClientSession, body: bytes, headers: dict[str, str]) -> tuple[list[str], str] | None:
        async with session.post(self._route, data=body, headers=headers) as response:
            content = await response.read()
            if response.status != 200:
                return None
            logits = np.frombuffer(self._logits(content), np.float32).reshape(-1, len(self.labels))
            return [self.labels[i] for i in logits.argmax(1)], "plain"

    def _logits(self, content: bytes) -> bytes:
        return content


class LitLoad(PlainLoad):
    """The same load for ``lit_serve``."""

    def __init__(self, url: str, split: Split, request_images: int, in_flight: int) -> None:
        super().__init__(url, split, request_images, in_flight)
        self._route = f"{url}/predict"
        json = {"Content-Type": "application/json"}
        self._requests = [(f'{{"images": "{b64encode(body).decode()}"}}'.encode(), json, s) for body, _, s in self._requests]

    def _logits(self, content: bytes) -> bytes:
        return b64decode(content[len('{"logits":"') : -len('"}')])


def main() -> None:
    """Load all arms in turn and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="throughput", help="of all that Ray serves")
    parser.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIR)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    os.environ |= PROFILES[options.profile]
    torch.set_num_threads(1)
    plan = read_plan(RunDirectory.open(options.run_dir).plan_file)
    best = best_execution(get_service(plan.local))
    say(f"{plan.local}: {1e3 * best.seconds:.2f} ms an image in {best.mode}, batches of {best.batch_size}")
    with everything(options.run_dir, plan, best) as url, lit_serve(plan.local, best) as lit:
        rows = asyncio.run(_measure(url, lit, plan, best, options.rounds))
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "pair_rounds.csv", index=False, float_format="%.5g")
    found = summary(table)
    found.to_csv(options.out / "pair.csv", float_format="%.4g")
    draw(found, options.out / "pair.png")
    print(found.round(3).to_string())


@contextmanager
def everything(run_dir: Path, plan: Plan, best: Execution) -> Iterator[str]:
    """Every arm up on one Ray; yields the URL before the application's name."""
    # Logical CPUs: an arm that is not loaded does nothing.
    with serve_up(num_cpus=8) as url:
        serve.run(plain_app(plan.local, best), name="plain", route_prefix="/plain")
        serve.run(batched_app(plan.local, best), name="batched", route_prefix="/batched")
        serve.run(plain_app(plan.local, best, num_replicas=2), name="replica", route_prefix="/replica")
        serve.run(build_app(AppOptions(run_dir=run_dir, router=RouterOptions(steering="plan"))), route_prefix="/")
        yield url


async def _measure(url: str, lit: Running, plan: Plan, best: Execution, rounds: int) -> list[dict[str, Any]]:
    data = load_data("fashion-mnist")
    bare = bare_torch(plan.local, best, data.test.images)
    router: DeploymentHandle[Any] = serve.get_deployment_handle("router", "default")
    arms, rows = (*OURS, *OTHERS, LIT), list[dict[str, Any]]()
    for number in range(rounds):
        rows.append({"round": number, "arm": "bare torch", "images_per_second": await asyncio.to_thread(bare)})
        turn = number % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            row: dict[str, Any] = {"round": number, "arm": arm}
            in_flight = IN_FLIGHT * (2 if arm in TWO_SERVERS else 1)
            if arm in OURS:
                await router.reconfigure.remote(RouterSettings(use=allowed_paths(plan, OURS[arm]), steering="plan").model_dump(mode="json"))
                load = Load(url, plan.local, data.test, REQUEST_IMAGES, in_flight)
            elif arm == LIT:
                load = LitLoad(lit.url, data.test, REQUEST_IMAGES, in_flight)
                load.labels = data.labels
            else:
                # Serve's own batching takes single images; a request of many is a batch already.
                size = 1 if OTHERS[arm] == "batched" else REQUEST_IMAGES
                load = PlainLoad(f"{url}/{OTHERS[arm]}", data.test, size, in_flight if size > 1 else 128)
                load.labels = data.labels
            before = cpu_seconds(arm, plan, lit)
            running = asyncio.create_task(load.run(SECONDS, data.labels, number / rounds))
            bound = await _bound_meanwhile(running, url, plan.local) if arm in OURS else None
            measured = await running
            spent = cpu_seconds(arm, plan, lit)
            # The load's own warm-up is in these seconds, so they are shared out over all that was answered in them.
            images = measured.images * (SECONDS + WARM_UP_S) / SECONDS
            row |= {f"{name}_cpu_ms": 1e3 * (spent[name] - before[name]) / max(images, 1) for name in spent}
            row |= {
                "images_per_second": measured.images_per_second,
                "failed": measured.failed,
                "MiB": sum(map(own_bytes, servers(arm, plan, lit))) / 2**20,
            }
            rows.append(row if bound is None else row | {"bound": bound})
        say(
            f"round {number + 1} of {rounds}: "
            + ", ".join(f"{row['arm']} {row['images_per_second']:.0f}" for row in rows[-1 - len(arms) :])
        )
    return rows


async def _bound_meanwhile(running: asyncio.Task[Any], url: str, service: str) -> float:
    """The programme's images a second, the median over a load's time. At its end servers have the machine for themselves, one by one: what
    they measure then bounds another load.
    """
    bounds = []
    while not (await asyncio.wait({running}, timeout=LOOK_S))[0]:
        bounds.append(await asyncio.to_thread(planned_rate, url, service))
    return statistics.median(bounds)


def servers(arm: str, plan: Plan, lit: Running) -> set[int]:
    """The processes that hold models of an arm; of LitServe, those of its HTTP as well."""
    if arm == LIT:
        return family(lit.process)
    if arm in OURS:
        providers = set(plan.placement.values()) if arm == "pair" else {plan.placement[plan.local]}
        return {process for provider in providers for process in replica_ids(f"provider-{provider}")}
    return process_ids(f"ray::ServeReplica:{OTHERS[arm]}:")


def cpu_seconds(arm: str, plan: Plan, lit: Running) -> dict[str, float]:
    """CPU seconds so far of client, proxy, router and servers."""
    groups = {"client": {os.getpid()}, "proxy": proxy_ids(), "servers": servers(arm, plan, lit)}
    groups["router"] = replica_ids("router") if arm in OURS else set()
    return {name: sum(map(_cpu, processes)) for name, processes in groups.items()}


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: medians, and medians of the ratios within a round."""
    found = table.groupby("arm", sort=False).median(numeric_only=True).drop(columns="round")
    rates = table.pivot(index="round", columns="arm", values="images_per_second")
    for name, below in (("of_original", "original"), ("of_bare_torch", "bare torch")):
        found[name] = [statistics.median(rates[arm] / rates[below]) for arm in found.index]
    found["of_bound"] = found.images_per_second / found.bound
    return found


def draw(found: pd.DataFrame, file: Path) -> None:
    """Images a second by arm; a line at the bound of each arm of ours."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axes.barh(list(found.index), found.images_per_second, color="#0b6e4f")
    for place, (rate, bound, ratio) in enumerate(zip(found.images_per_second, found.bound, found.of_original, strict=True)):
        if not np.isnan(bound):
            axes.vlines(bound, place - 0.4, place + 0.4, color="black", linewidth=2)
        axes.annotate(f"{ratio:.2f}", (np.fmax(rate, bound), place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.margins(x=0.08)
    axes.invert_yaxis()
    axes.set(xlabel="images a second (numbers: times the original, lines: bound by the programme)")
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
