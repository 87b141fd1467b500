"""What guests cost a host: its own open-loop traffic with and without them, how much is borrowed, and a surge.

python -m benchmarks.serving.host_qos [--rounds 5] [--kappa 0.3] [--out runs/bench]      writes host_qos.csv and host_qos_surge.csv

In every round the host has own traffic of 50 and of 80 % of its capacity, beside a local service under full load that may borrow
(guests) or not. So what differs is the guests alone: clients, proxy and router do the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.serving.open_loop import send_all
from code_ray.data import load_data
from code_ray.plan import read_plan
from code_ray.service import Preprocessing
from code_ray.wire import encode_request
from code_ray.zoo import get_service
from deployments.config import DEFAULT_RUN_DIR, RouterSettings
from deployments.routes import ProviderReport, provider_deployment
from examples.demo import deployed, say
from examples.load import Images, Load

LOADS = (0.5, 0.8)
SECONDS = 8.0
HOST_IMAGES, GUEST_IMAGES, GUEST_IN_FLIGHT = 8, 32, 6
SURGE_S, BACK_S = 2.0, 0.1


def main() -> None:
    """Measure, compare within rounds, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kappa", type=float, default=0.3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="code_ray-qos-") as folder:
        run_dir = with_kappa(options.kappa, Path(folder) / "run")
        with deployed(run_dir) as url:
            rows, surges = asyncio.run(_measure(url, run_dir, options.rounds))
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


async def _measure(url: str, run_dir: Path, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    plan, data = read_plan(run_dir / "plan.json"), load_data("fashion-mnist")
    (host,) = plan.kappa
    requests = host_requests(get_service(host).spec.preprocessing)
    router: DeploymentHandle[Any] = serve.get_deployment_handle("router", "default")
    server: DeploymentHandle[Any] = serve.get_deployment_handle(provider_deployment(plan.placement[host]), "default")
    guests = Load(url, plan.local, data.test, GUEST_IMAGES, GUEST_IN_FLIGHT)
    seconds = await _own_seconds(server, host)
    say(f"{host} serves {1 / seconds:.0f} images a second alone")
    rows: list[dict[str, Any]] = []
    surges: list[dict[str, Any]] = []
    for number in range(rounds):
        for load in LOADS:
            due = [float(moment) for moment in np.arange(0.0, SECONDS, HOST_IMAGES * seconds / load)]
            for lent in (True, False) if number % 2 else (False, True):
                await router.reconfigure.remote(RouterSettings(use=None if lent else (), steering="plan").model_dump(mode="json"))
                background = asyncio.create_task(guests.run(SECONDS + 1, data.labels))
                await asyncio.sleep(1.5)
                before: ProviderReport = await server.describe.remote()
                answers = await send_all(url, host, requests, due)
                after: ProviderReport = await server.describe.remote()
                background.cancel()
                await asyncio.gather(background, return_exceptions=True)
                good = [answer.seconds for answer in answers if answer.status == 200]
                p50, p99 = 1e3 * np.percentile(good, [50, 99])
                share = (after.guest_seconds - before.guest_seconds) / (after.at - before.at)
                row = {"round": number, "load": load, "guests": lent, "p50_ms": p50, "p99_ms": p99}
                rows.append(row | {"answered": len(good) / len(answers), "borrowed": share})
        surges.append({"round": number, "guest_s": await _surge(url, host, requests, server, guests, router, data.labels)})
        say(f"round {number + 1} of {rounds}")
    return rows, surges


def host_requests(preprocessing: Preprocessing) -> list[Images]:
    """Images of noise in the shape that the host takes: what it makes of them takes as long."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (HOST_IMAGES, *preprocessing.image_shape), dtype=np.uint8) for _ in range(8)]


async def _own_seconds(server: DeploymentHandle[Any], host: str) -> float:
    """Seconds an image of the host's own service, as its server measures them, packing included."""
    report: ProviderReport = await server.describe.remote()
    return next(leg.seconds for key, leg in report.legs.items() if key.startswith(f"original-{host}"))


async def _surge(
    url: str,
    host: str,
    requests: list[Images],
    server: DeploymentHandle[Any],
    guests: Load,
    router: DeploymentHandle[Any],
    labels: tuple[str, ...],
) -> float:
    """Seconds that guests still computed, from ``BACK_S`` after the first own request of a surge on."""
    await router.reconfigure.remote(RouterSettings(use=None, steering="plan").model_dump(mode="json"))
    background = asyncio.create_task(guests.run(SURGE_S + 4, labels))
    await asyncio.sleep(3.0)
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
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    return ended.guest_seconds - began.guest_seconds


if __name__ == "__main__":
    main()
