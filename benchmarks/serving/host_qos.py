"""What guests cost a host: its own open-loop traffic with and without them, how much is borrowed, and a surge.

python -m benchmarks.serving.host_qos [--rounds 5] [--kappa 0.2] [--out runs/bench]      writes host_qos.csv and host_qos_surge.csv

In every round the host has own traffic of 50 and of 80 % of its capacity, requests of 32 images at fixed moments, with and without guests
that ask for nearly kappa of its server. The host's replica has a core to itself, as a host has its machine: clients, proxy, router and the
local service share the other. Guests add to the work of those too, so what is measured is no less than what they cost the host.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.serving.open_loop import Answered, send_all
from benchmarks.serving.processes import replica_ids
from code_ray.data import load_data
from code_ray.plan import Plan, PlannedPath, read_plan
from code_ray.policy import ORIGINAL
from code_ray.service import Preprocessing
from code_ray.wire import encode_request
from code_ray.zoo import get_service
from deployments.config import DEFAULT_RUN_DIR
from deployments.routes import ProviderReport, provider_deployment
from examples.demo import deployed, say
from examples.load import Images

LOADS = (0.5, 0.8)
SECONDS, WARM_UP_S = 10.0, 5.0
IMAGES = 32
SURGE_S, BACK_S = 2.0, 0.1
DEMAND = 0.95
"""Guests ask for this part of kappa: of what is refused the local server would have to do the work."""


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
        with deployed(run_dir) as url:
            for name in plan.kappa:
                (replica,) = replica_ids(provider_deployment(plan.placement[name]))
                _give_core(replica, others[0])
            rows, surges = asyncio.run(_measure(url, run_dir, options.kappa, options.rounds))
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


async def _measure(url: str, run_dir: Path, kappa: float, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    plan, images = read_plan(run_dir / "plan.json"), load_data("fashion-mnist").test.images
    (host,) = plan.kappa
    own_requests = host_requests(get_service(host).spec.preprocessing)
    guest_requests = [images[first : first + IMAGES] for first in range(0, 8 * IMAGES, IMAGES)]
    server: DeploymentHandle[Any] = serve.get_deployment_handle(provider_deployment(plan.placement[host]), "default")
    # What was measured at start is what several processes on one core took: both kinds of traffic correct it.
    await asyncio.gather(
        send_all(url, host, own_requests, _moments(20, WARM_UP_S)),
        _send_guests(url, plan, most_borrowing(plan), guest_requests, 5, WARM_UP_S),
    )
    report: ProviderReport = await server.describe.remote()
    own_s = next(leg.seconds for key, leg in report.legs.items() if key.startswith(f"original-{host}"))
    guest_s = sum(leg.seconds for key, leg in report.legs.items() if key.startswith(f"{most_borrowing(plan).links_id}-"))
    rate = DEMAND * kappa / (guest_s * IMAGES)
    say(f"{host} serves {1 / own_s:.0f} images a second alone; guests send {rate * IMAGES:.0f} a second, {1e3 * guest_s:.2f} ms each")
    rows: list[dict[str, Any]] = []
    surges: list[dict[str, Any]] = []
    for number in range(rounds):
        for load in LOADS:
            for lent in (True, False) if number % 2 else (False, True):
                guests = _send_guests(url, plan, most_borrowing(plan), guest_requests, rate if lent else 0, SECONDS + 2)
                background = asyncio.create_task(guests)
                await asyncio.sleep(1.0)
                before: ProviderReport = await server.describe.remote()
                answers = await send_all(url, host, own_requests, _moments(load / (IMAGES * own_s), SECONDS))
                after: ProviderReport = await server.describe.remote()
                borrowed = await background
                good = [answer.seconds for answer in answers if answer.status == 200]
                p50, p99 = 1e3 * np.percentile(good, [50, 99])
                share = (after.guest_seconds - before.guest_seconds) / (after.at - before.at)
                row = {"round": number, "load": load, "guests": lent, "p50_ms": p50, "p99_ms": p99, "answered": len(good) / len(answers)}
                fell_back = sum(answer.path == ORIGINAL for answer in borrowed) / max(1, len(borrowed))
                rows.append(row | {"borrowed": share, "fell_back": fell_back})
        surge = await _surge(
            url, host, own_requests, server, _send_guests(url, plan, most_borrowing(plan), guest_requests, rate, SURGE_S + 2)
        )
        surges.append({"round": number, "guest_s": surge})
        say(f"round {number + 1} of {rounds}")
    return rows, surges


def most_borrowing(plan: Plan) -> PlannedPath:
    """The plan's path that runs most blocks of a host for each local one: what can fill a host's share."""

    def blocks(planned: PlannedPath) -> float:
        path = plan.inference_path(planned)
        borrowed = sum(s.stop - s.start for s in path.segments if s.service != plan.local)
        return borrowed / (1 + sum(s.stop - s.start for s in path.segments if s.service == plan.local))

    return max(plan.paths, key=blocks)


def _moments(rate: float, seconds: float) -> list[float]:
    return [float(moment) for moment in np.arange(0.0, seconds, 1 / rate)] if rate > 0 else []


async def _send_guests(url: str, plan: Plan, planned: PlannedPath, requests: list[Images], rate: float, seconds: float) -> list[Answered]:
    return await send_all(url, plan.local, requests, _moments(rate, seconds), pinned=planned.id)


def _give_core(replica: int, core: int) -> None:
    """Let every thread of a process run on one core, which this process and all else that it has started leave alone."""
    for thread in Path(f"/proc/{replica}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def host_requests(preprocessing: Preprocessing) -> list[Images]:
    """Images of noise in the shape that the host takes: what it makes of them takes as long."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (IMAGES, *preprocessing.image_shape), dtype=np.uint8) for _ in range(8)]


async def _surge(
    url: str, host: str, requests: list[Images], server: DeploymentHandle[Any], guests: Coroutine[Any, Any, list[Answered]]
) -> float:
    """Seconds that guests still computed, from ``BACK_S`` after the first own request of a surge on."""
    background = asyncio.create_task(guests)
    await asyncio.sleep(2.0)
    body, headers = encode_request(np.concatenate(requests))
    end = time.monotonic() + SURGE_S

    async def own(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            async with session.post(f"{url}/v2/models/{host}/infer", data=body, headers=headers) as response:
                await response.read()

    async with aiohttp.ClientSession() as session:
        surge = [asyncio.create_task(own(session)) for _ in range(6)]
        await asyncio.sleep(BACK_S)
        began: ProviderReport = await server.describe.remote()
        await asyncio.sleep(max(0.0, end - time.monotonic() - 0.2))
        ended: ProviderReport = await server.describe.remote()
        await asyncio.gather(*surge)
    await background
    return ended.guest_seconds - began.guest_seconds


if __name__ == "__main__":
    main()
