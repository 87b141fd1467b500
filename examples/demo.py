"""The whole line once: search a plan, deploy it, load it over HTTP, compare the original, the best host-free plan and the pair.

python -m examples.demo --out runs/demo      (what `make demo` runs; the same --out again takes the search up where it is)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import yaml
from ray import serve
from ray.serve.handle import DeploymentHandle

from code_ray.artifact import RunDirectory, write_text
from code_ray.blocks import ExecutionMode
from code_ray.client import Client
from code_ray.data import load_data
from code_ray.errors import CodeRayError, DeploymentError
from code_ray.plan import Plan, read_plan
from code_ray.policy import ORIGINAL
from code_ray.profiling import Execution, Profile, median_seconds
from code_ray.runner import LegRunner
from code_ray.service import Service
from code_ray.zoo import get_service
from deployments import build_app
from deployments.config import AppOptions, RouterOptions, RouterSettings
from examples.load import Load, Measured
from examples.pictures import draw_demo, print_table

CONFIG = Path("search/configs/demo.yaml")
ARMS = ("original", "host_free", "pair")


@dataclass(frozen=True)
class Budget:
    """What suits the machine: the search, rounds of load and the seconds of each, images a request, requests in flight."""

    config: Path
    rounds: int
    seconds: float
    request_images: int
    in_flight: int


FAST = Budget(CONFIG, rounds=5, seconds=6.0, request_images=128, in_flight=10)
SLOW = Budget(CONFIG.with_name("demo_slow.yaml"), rounds=3, seconds=12.0, request_images=32, in_flight=6)
SLOW_SECONDS = 0.004
"""From so many seconds an image on a machine is slow: CPUs with bfloat16 arithmetic take about 1 ms, others 15."""


@dataclass
class Rounds:
    """What was measured, round by round. ``planned`` images a second by the programme, with the times the servers report."""

    bare_torch: list[float] = field(default_factory=list)
    arms: dict[str, list[Measured]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    planned: dict[str, float] = field(default_factory=dict)


def main() -> int:
    """Run the demo; 0 when it finished, 2 for what cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run directory of the search; demo.json and demo.png go there")
    parser.add_argument("--config", type=Path, help="search configuration (default: one that suits this machine)")
    parser.add_argument("--rounds", type=int, help="rounds of load (default: as many as suit this machine)")
    options = parser.parse_args()
    try:
        budget = fitting_budget()
        run_demo(replace(budget, config=options.config or budget.config, rounds=options.rounds or budget.rounds), options.out)
    except CodeRayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def fitting_budget() -> Budget:
    """What suits this machine, by the time its local service takes for an image at its better precision."""
    torch.set_num_threads(1)
    service = get_service(yaml.safe_load(FAST.config.read_text())["local"])
    images = np.zeros((16, *service.spec.preprocessing.sample_shape), np.uint8)
    runners = [LegRunner(list(service.blocks), ExecutionMode(dtype, channels_last=True)) for dtype in ("float32", "bfloat16")]
    seconds = min(median_seconds(partial(_classify, service, runner, images), repeats=3) for runner in runners) / len(images)
    budget = SLOW if seconds > SLOW_SECONDS else FAST
    say(f"{service.name} takes about {1e3 * seconds:.1f} ms an image here: the demo follows {budget.config}")
    return budget


def run_demo(budget: Budget, out: Path) -> None:
    """Search into ``out``, serve what was found under rounds of load, write ``demo.json`` and ``demo.png`` there."""
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "search", str(budget.config), "--out", str(out)], check=False).returncode
    if code != 0:
        raise CodeRayError(f"the search ended with exit code {code}; its message stands above")
    run = RunDirectory.open(out)
    plan = read_plan(run.plan_file)
    rounds = measure(plan, run, budget)
    summary = summarise(rounds, plan, json.loads(run.result_file.read_text()), budget, time.monotonic() - started)
    write_text(out / "demo.json", json.dumps(summary, indent=1) + "\n")
    draw_demo(summary, out / "demo.png")
    print_table(summary)
    print(f"pictures: {', '.join(str(file) for file in sorted(out.glob('*.png')))}")


@contextmanager
def serve_up(num_cpus: int) -> Iterator[str]:
    """A Ray of its own with so many logical CPUs, and Serve on it without an application; yields its URL."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Serve gives its proxy 5 s to start, which a busy machine takes.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.shutdown()


@contextmanager
def deployed(run_dir: Path) -> Iterator[str]:
    """A deployment of the plan in ``run_dir`` on a Ray of its own with one CPU a provider; yields its URL."""
    # The router and the clients use what the providers' two CPUs leave over.
    with serve_up(num_cpus=2) as url:
        serve.run(build_app(AppOptions(run_dir=run_dir, router=RouterOptions(steering="plan"))), route_prefix="/")
        yield url


def measure(plan: Plan, run: RunDirectory, budget: Budget) -> Rounds:
    """Deploy ``plan`` and load each arm in every round; the order turns, so that no arm always comes first."""
    say("deploying ...")
    with deployed(run.root) as url:
        return asyncio.run(_load(plan, run, url, budget))


async def _load(plan: Plan, run: RunDirectory, url: str, budget: Budget) -> Rounds:
    profile = Profile.model_validate_json(run.profile_file.read_text())
    data = load_data(json.loads(run.config_file.read_text())["data"])
    load = Load(url, plan.local, data.test, budget.request_images, budget.in_flight)
    bare = bare_torch(plan.local, profile.executions[plan.local], data.test.images)
    router: DeploymentHandle[Any] = serve.get_deployment_handle("router", "default")
    rounds = Rounds()
    for number in range(budget.rounds):
        rounds.bare_torch.append(await asyncio.to_thread(bare))
        for arm in (*ARMS[number % 3 :], *ARMS[: number % 3]):
            await router.reconfigure.remote(RouterSettings(use=allowed_paths(plan, arm), steering="plan").model_dump(mode="json"))
            # All arms of a round begin at the same image: on a slow machine they would have few in common otherwise.
            measured = await load.run(budget.seconds, data.labels, number / budget.rounds)
            if not measured.images:
                raise DeploymentError(
                    f"{url} answered none of {measured.failed} requests; look into Ray's logs below /tmp/ray/session_latest"
                )
            rounds.arms[arm].append(measured)
            rounds.planned[arm] = await asyncio.to_thread(planned_rate, url, plan.local)
        speeds = ", ".join(f"{arm} {rounds.arms[arm][-1].images_per_second:.0f}" for arm in ARMS)
        say(f"round {number + 1} of {budget.rounds}, images a second: bare torch {rounds.bare_torch[-1]:.0f}, {speeds}")
    return rounds


def allowed_paths(plan: Plan, arm: str) -> tuple[str, ...] | None:
    """Ids of the paths an arm may use beside the original; None: all of them."""
    if arm == "pair":
        return None
    return () if arm == "original" else tuple(p.id for p in plan.paths if not plan.inference_path(p).hosts)


def planned_rate(url: str, service: str) -> float:
    """Images a second on all paths, by the programme with the times that the servers report now."""
    with Client(url) as client:
        return float(sum(path["images_per_second"] for path in client.metadata(service)["parameters"]["paths"]))


def bare_torch(service_name: str, best: Execution, images: np.ndarray[Any, np.dtype[np.uint8]]) -> Callable[[], float]:
    """A function that gives images a second of the local model in this process, one thread, in the mode and at the batch size
    that were found fastest.
    """
    service = get_service(service_name)
    runner, batch = LegRunner(list(service.blocks), best.mode), images[: best.batch_size]

    def rate() -> float:
        torch.set_num_threads(1)
        return len(batch) / median_seconds(partial(_classify, service, runner, batch), repeats=25)

    return rate


def _classify(service: Service, runner: LegRunner, batch: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    return runner(service.preprocess(batch))


def summarise(rounds: Rounds, plan: Plan, result: dict[str, Any], budget: Budget, seconds: float) -> dict[str, Any]:
    """The content of ``demo.json``; ratios are medians over rounds of the ratio within a round."""
    arms = {arm: _summarise_arm(measured) for arm, measured in rounds.arms.items()}
    bare = statistics.median(rounds.bare_torch)
    loss = {arm: _loss_points(rounds, arm) for arm in ("pair", "host_free")}
    all_measured = [m for measured in rounds.arms.values() for m in measured]
    vectors = {ORIGINAL: plan.inference_path(plan.paths[0])} | {p.id: plan.inference_path(p) for p in plan.paths[1:]}
    pair_images = sum((m.paths for m in rounds.arms["pair"]), start=Counter[str]())
    return {
        "measured_ratio": _ratio(rounds, "pair", "original"),
        "predicted_ratio": rounds.planned["pair"] / rounds.planned["original"],
        "host_value": _ratio(rounds, "pair", "host_free"),
        "average_accuracy_loss_points": loss["pair"][0],
        "half_interval_95_points": loss["pair"][1],
        **arms,
        "host_free_average_accuracy_loss_points": loss["host_free"][0],
        "loss_limit_points": plan.loss_points,
        "pair_paths": [
            {"kind": vectors[i].kind, "vector": list(vectors[i].vector), "share_of_images": n / pair_images.total()}
            for i, n in pair_images.most_common()
        ],
        "bare_torch_images_per_second": bare,
        "original_over_bare_torch": statistics.median(
            m.images_per_second / b for m, b in zip(rounds.arms["original"], rounds.bare_torch, strict=True)
        ),
        "requests": sum(len(m.latencies) for m in all_measured),
        "failed": sum(m.failed for m in all_measured),
        "request_images": budget.request_images,
        "requests_in_flight": budget.in_flight,
        "rounds": len(rounds.bare_torch),
        "arms_by_model": result["arms"],
        "controls": result["controls"],
        "trainings": result["trainings"],
        "candidates": result["candidates"],
        "seconds": seconds,
    }


def _ratio(rounds: Rounds, above: str, below: str) -> float:
    pairs = zip(rounds.arms[above], rounds.arms[below], strict=True)
    return statistics.median(a.images_per_second / b.images_per_second for a, b in pairs)


def _loss_points(rounds: Rounds, arm: str) -> tuple[float, float]:
    """What an arm's answers lose against the original's answers to the same images, and half its 95 % interval, in points."""
    times = sum(m.answered for m in rounds.arms["original"])
    original = sum(m.right for m in rounds.arms["original"]) / np.maximum(times, 1)
    answered = np.where(times > 0, sum(m.answered for m in rounds.arms[arm]), 0)
    right = np.where(times > 0, sum(m.right for m in rounds.arms[arm]), 0)
    lost = answered * original - right
    mean = lost.sum() / answered.sum()
    # An image that was answered several times counts once towards how much is known.
    return float(100 * mean), float(196 * np.sqrt(np.square(lost - answered * mean).sum()) / answered.sum())


def _summarise_arm(measured: list[Measured]) -> dict[str, float]:
    latencies_ms = 1e3 * np.concatenate([m.latencies for m in measured])
    return {
        "images_per_second": statistics.median(m.images_per_second for m in measured),
        "accuracy": float(sum(m.right.sum() for m in measured)) / sum(m.images for m in measured),
        "p50_ms": float(np.percentile(latencies_ms, 50)),
        "p99_ms": float(np.percentile(latencies_ms, 99)),
    }


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
