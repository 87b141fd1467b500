"""What guests cost a host: its own open-loop traffic with and without them, how much is borrowed, and a surge.

python -m benchmarks.serving.host_qos [--rounds 5] [--kappa 0.2] [--out runs/bench]      writes host_qos.csv and host_qos_surge.csv

In every round the host has own traffic of 50 and of 80 % of its capacity, requests of 32 images at fixed moments, with and without guests
that ask for more than kappa of its server. Its replica has a core to itself, as a host has its machine, and is called as routers call it:
HTTP would be served by the other core, where guests cost time that is not the host's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.serving.processes import replica_ids
from code_ray.data import load_data
from code_ray.plan import Plan, PlannedPath, read_plan
from code_ray.zoo import get_service
from deployments.config import DEFAULT_RUN_DIR
from deployments.routes import ProviderReport, Refusal, provider_deployment
from examples.demo import deployed, say
from examples.load import Images

LOADS = (0.5, 0.8)
SECONDS, WARM_UP_S = 20.0, 5.0
IMAGES = 32
SURGE_S, BACK_S = 2.0, 0.1
DEMAND = 2.5
"""Guests ask for so many times kappa."""


def main() -> None:
    """Measure, compare within rounds, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kappa", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="code_ray-qos-") as folder:
        run_dir = with_kappa(options.kappa, Path(folder) / "run")
        first, *others = sorted(os.sched_getaffinity(0))
        if not others:
            raise SystemExit("this takes two cores: one for the host's server")
        os.sched_setaffinity(0, {first})
        plan = read_plan(run_dir / "plan.json")
        with deployed(run_dir):
            for name in plan.kappa:
                (replica,) = replica_ids(provider_deployment(plan.placement[name]))
                _give_core(replica, others[0])
            rows, surges = asyncio.run(_measure(run_dir, options.kappa, options.rounds))
    options.out.mkdir(parents=True, exist_ok=True)
    table, surge = pd.DataFrame(rows), pd.DataFrame(surges)
    table.to_csv(options.out / "host_qos.csv", index=False, float_format="%.4g")
    surge.to_csv(options.out / "host_qos_surge.csv", index=False, float_format="%.4g")
    wide = table.pivot(index=["round", "load"], columns="guests")
    compared = pd.DataFrame(
        {
            "p99 with / without": wide.p99_ms[True] / wide.p99_ms[False],
            "p50 with / without": wide.p50_ms[True] / wide.p50_ms[False],
            "answered with / without": wide.answered[True] / wide.answered[False],
            "borrowed": wide.borrowed[True],
        }
    )
    print(table.groupby(["load", "guests"]).median().drop(columns="round").round(3).to_string())
    print(compared.groupby("load").median().round(3).to_string())
    print(f"kappa {options.kappa:g}; in a surge guests ran for {1e3 * surge.guest_s.median():.0f} ms (median) and", end=" ")
    print(f"{1e3 * surge.guest_s.max():.0f} ms (most) from {1e3 * BACK_S:.0f} ms on, of {SURGE_S:g} s")


def with_kappa(kappa: float, run_dir: Path) -> Path:
    """The shipped plan with another share on offer."""
    shutil.copytree(DEFAULT_RUN_DIR, run_dir)
    plan = json.loads((run_dir / "plan.json").read_text())
    plan["kappa"] = dict.fromkeys(plan["kappa"], kappa)
    (run_dir / "plan.json").write_text(json.dumps(plan))
    return run_dir


@dataclass(frozen=True)
class Traffic:
    """Requests for a leg: the same ``value``, (n, ...), again and again."""

    server: DeploymentHandle[Any]
    key: str
    value: Images

    async def send(self, rate: float, seconds: float) -> list[tuple[float, bool]]:
        """Requests a second for some seconds: how long each took, and whether it was answered."""
        begin = time.monotonic()

        async def one(moment: float) -> tuple[float, bool]:
            await asyncio.sleep(begin + moment - time.monotonic())
            sent = time.monotonic()
            answer = await self.server.run.remote(self.key, self.value)
            return time.monotonic() - sent, not isinstance(answer, Refusal)

        moments = [number / rate for number in range(int(seconds * rate))] if rate > 0 else []
        return list(await asyncio.gather(*(one(moment) for moment in moments)))

    async def again_and_again(self, rate: float) -> None:
        """Requests a second until it is cancelled."""
        while True:
            await self.send(rate, 1.0)
            await asyncio.sleep(0.0 if rate > 0 else 1.0)


async def _measure(run_dir: Path, kappa: float, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    plan, images = read_plan(run_dir / "plan.json"), load_data("fashion-mnist").test.images[:IMAGES]
    (host,) = plan.kappa
    server: DeploymentHandle[Any] = serve.get_deployment_handle(provider_deployment(plan.placement[host]), "default")
    own = Traffic(server, f"original-{host}:0", get_service(host).spec.preprocessing.noise(IMAGES))
    guest = Traffic(server, most_borrowing(plan).leg_key(0), images)
    # What was measured at start is what several processes on one core took: both kinds of traffic correct it.
    await asyncio.gather(own.send(10, WARM_UP_S), guest.send(5, WARM_UP_S))
    report: ProviderReport = await server.describe.remote()
    own_s, guest_s = (report.legs[traffic.key].seconds for traffic in (own, guest))
    rate = DEMAND * kappa / (guest_s * IMAGES)
    say(f"{host} serves {1 / own_s:.0f} images a second alone; guests ask for {rate * IMAGES:.0f} a second, {1e3 * guest_s:.2f} ms each")
    rows: list[dict[str, Any]] = []
    surges: list[dict[str, Any]] = []
    for number in range(rounds):
        for load in LOADS:
            for lent in (True, False) if number % 2 else (False, True):
                background = asyncio.create_task(guest.again_and_again(rate if lent else 0.0))
                if lent:
                    await _use_up(guest)
                before: ProviderReport = await server.describe.remote()
                answers = await own.send(load / (IMAGES * own_s), SECONDS)
                after: ProviderReport = await server.describe.remote()
                background.cancel()
                p50, p99 = 1e3 * np.percentile([seconds for seconds, answered in answers if answered], [50, 99])
                row = {"round": number, "load": load, "guests": lent, "p50_ms": p50, "p99_ms": p99}
                row["answered"] = sum(answered for _, answered in answers) / len(answers)
                row["borrowed"] = (after.guest_seconds - before.guest_seconds) / (after.at - before.at)
                rows.append(row)
        surges.append({"round": number, "guest_s": await _surge(own, guest, rate)})
        say(f"round {number + 1} of {rounds}")
    return rows, surges


async def _use_up(guest: Traffic) -> None:
    """Ask until the first refusal: by then guests have used what they may run ahead."""
    while not isinstance(await guest.server.run.remote(guest.key, guest.value), Refusal):
        await asyncio.sleep(0.02)


def most_borrowing(plan: Plan) -> PlannedPath:
    """Of the plan's paths that begin at a host, that which runs most of its blocks for each local one."""

    def blocks(planned: PlannedPath) -> float:
        path = plan.inference_path(planned)
        borrowed = sum(s.stop - s.start for s in path.segments if s.service != plan.local)
        return borrowed / (1 + sum(s.stop - s.start for s in path.segments if s.service == plan.local))

    raw = [planned for planned in plan.paths if plan.inference_path(planned).lout == 0]
    if not raw:
        raise SystemExit("this takes a plan with a path that sends raw inputs to its host")
    return max(raw, key=blocks)


def _give_core(replica: int, core: int) -> None:
    """Let every thread of a process run on one core, which this process and all else that it has started leave alone."""
    for thread in Path(f"/proc/{replica}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


async def _surge(own: Traffic, guest: Traffic, rate: float) -> float:
    """Seconds that guests still computed, from ``BACK_S`` after the first own request of a surge on."""
    background = asyncio.create_task(guest.send(rate, SURGE_S + 2))
    await asyncio.sleep(2.0)
    end = time.monotonic() + SURGE_S

    async def again_and_again() -> None:
        while time.monotonic() < end:
            await own.server.run.remote(own.key, own.value)

    surge = [asyncio.create_task(again_and_again()) for _ in range(6)]
    await asyncio.sleep(BACK_S)
    began: ProviderReport = await own.server.describe.remote()
    await asyncio.sleep(max(0.0, end - time.monotonic() - 0.2))
    ended: ProviderReport = await own.server.describe.remote()
    await asyncio.gather(*surge, background)
    return ended.guest_seconds - began.guest_seconds


if __name__ == "__main__":
    main()
