"""Requests of one image, many clients: this project in its throughput profile beside plain Ray Serve with FastAPI.

python -m benchmarks.serving.single_image [--service alexnet-fashion] [--rounds 5] [--out runs/bench]    writes single_image.csv, .png

Each arm is a Ray of its own, all of them up at once, one of them loaded at a time; the order turns from round to round. One core is
the model's; proxy, router and the 64 clients share what is left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import ray
from matplotlib import pyplot as plt
from ray import serve

from benchmarks.serving.plain_serve import batched_app, plain_app
from benchmarks.serving.processes import PROFILES
from code_ray.data import load_data
from code_ray.path import original_path
from code_ray.plan import Plan, PlannedPath
from code_ray.profiling import best_execution
from code_ray.service import Service
from code_ray.wire import encode_request
from code_ray.zoo import get_service
from deployments import build_app
from deployments.config import AppOptions
from examples.demo import free_port, say
from examples.load import Images

ARMS = ("code_ray, throughput profile", "code_ray, default profile", "Ray Serve + FastAPI", "Ray Serve + @serve.batch")
CLIENTS = 64
SECONDS, WARM_UP_S = 5.0, 1.0


def main() -> None:
    """Serve in a child of its own, or load all arms in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", default="alexnet-fashion")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--serve", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_arm(options.serve, options.service)
        return
    service = get_service(options.service)
    images = load_data("fashion-mnist").test.images[:1]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        urls = {arm: stack.enter_context(child(arm, options.service)) for arm in ARMS}
        for number in range(options.rounds):
            turn = number % len(ARMS)
            for arm in (*ARMS[turn:], *ARMS[:turn]):
                rows.append({"round": number, "arm": arm} | asyncio.run(load(urls[arm], arm, service, images)))
            say(f"round {number + 1} of {options.rounds}: " + ", ".join(f"{row['arm']} {row['rps']:.0f}" for row in rows[-len(ARMS) :]))
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "single_image.csv", index=False, float_format="%.4g")
    summary = table.groupby("arm", sort=False).median(numeric_only=True).drop(columns="round")
    rates = table.pivot(index="round", columns="arm", values="rps")
    summary["times_plain"] = [(rates[arm] / rates[ARMS[2]]).median() for arm in summary.index]
    summary["times_batched"] = [(rates[arm] / rates[ARMS[3]]).median() for arm in summary.index]
    draw(summary, options.out / "single_image.png")
    print(summary.round(2).to_string())


def serve_arm(arm: str, service_name: str) -> None:
    """Deploy one arm, say where, and stay until standard input ends."""
    service, best = get_service(service_name), best_execution(get_service(service_name))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    with tempfile.TemporaryDirectory(prefix="code_ray-single-") as folder:
        if arm.startswith("code_ray"):
            run_dir = original_alone(service, Path(folder))
            options = {"run_dir": run_dir, "providers": {service.name: {"mode": str(best.mode), "batch_size": best.batch_size}}}
            app = build_app(AppOptions.model_validate(options))
        else:
            app = (plain_app if arm == ARMS[2] else batched_app)(service_name, best)
        serve.run(app, route_prefix="/")
        print(f"URL http://127.0.0.1:{port}", flush=True)
        sys.stdin.read()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def original_alone(service: Service, root: Path) -> Path:
    """A run directory whose plan is one service of the zoo as it is."""
    path = PlannedPath(path=str(original_path(service.name, service.num_blocks)), id="original", accuracy=1.0, link_hashes={})
    plan = Plan(
        local=service.name,
        num_blocks=service.num_blocks,
        services={service.name: service.content_hash},
        placement={service.name: service.name},
        kappa={},
        loss_points=0.0,
        paths=(path,),
    )
    (root / "stores" / service.name).mkdir(parents=True)
    (root / "plan.json").write_text(plan.model_dump_json())
    return root


@contextmanager
def child(arm: str, service: str) -> Iterator[str]:
    """An arm in a process of its own; yields its URL."""
    flags = PROFILES["throughput" if "throughput" in arm else "default"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", **flags}
    command = [sys.executable, "-m", "benchmarks.serving.single_image", "--serve", arm, "--service", service]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = next((line.split()[1] for line in process.stdout if line.startswith("URL ")), None)
        if url is None:
            raise SystemExit(f"{arm} did not start; its messages stand above")
        say(f"{arm} is up at {url}")
        yield url
    finally:
        process.stdin.close()
        process.wait(timeout=60)


async def load(url: str, arm: str, service: Service, images: Images) -> dict[str, float]:
    """Requests a second, median and 99th percentile of their milliseconds, in a closed loop."""
    if arm.startswith("code_ray"):
        route = f"{url}/v2/models/{service.name}/infer"
        body, headers = encode_request(images)
    else:
        route, body, headers = f"{url}/infer", images.tobytes(), {"Content-Type": "application/octet-stream"}
    latencies: list[float] = []
    failed = 0
    begin = time.monotonic() + WARM_UP_S
    end = begin + SECONDS

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        while (sent := time.monotonic()) < end:
            async with session.post(route, data=body, headers=headers) as response:
                await response.read()
                failed += response.status != 200
            if begin <= time.monotonic() < end:
                latencies.append(time.monotonic() - sent)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(one(session) for _ in range(CLIENTS)))
    if failed:
        raise SystemExit(f"{arm}: {failed} requests failed: its figures mean nothing")
    p50, p99 = 1e3 * np.percentile(latencies, [50, 99])
    return {"rps": len(latencies) / SECONDS, "p50_ms": float(p50), "p99_ms": float(p99)}


def draw(summary: pd.DataFrame, file: Path) -> None:
    """Requests a second by arm."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    bars = axes.barh(list(summary.index), summary.rps, color=["#0b6e4f", "#7fb8a4", "#b45309", "#e0a458"])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set(xlabel=f"requests of one image a second, {CLIENTS} clients")
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
