"""Predicted beside measured throughput of paths over a network, as it is and at 50 Mbit/s each way.

python -m benchmarks.transfers [--mbit 50] [--seconds 8] [--out runs/bench]      writes transfers.csv; needs root, ip and tc

Two Ray nodes, each in a network namespace of its own with a veth pair between: the router and the local service on one, the host on the
other. Every path is asked for by name and loaded through HTTP; what is predicted is the programme's answer for that path alone, by the times
that the servers measured meanwhile and the network that the router measured when it started. Links are random: they take as long.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import ray
from ray import serve

from code_ray.artifact import RunDirectory, write_text
from code_ray.client import AsyncClient, Client
from code_ray.data import load_data
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.plan import Plan, PlannedPath, path_id, read_plan, save_links
from code_ray.policy import ORIGINAL
from code_ray.runner import make_links
from code_ray.throughput import Limits, best_mixture
from code_ray.zoo import get_service
from deployments import build_app
from deployments.config import AppOptions, ProviderOptions, RouterOptions
from deployments.network import EdgeSpeed, Network
from deployments.routes import ProviderReport, make_routes, provider_deployment
from examples.demo import free_port, say

LOCAL, HOST = "fashion-cnn", "alexnet-fashion"
VECTORS = [(0, 1, 3), (0, 1, 4, 5), (1, 2, 4, 4), (2, 2, 3, 5), (3, 2, 4, 5), (3, 2, 3, 6), (4, 3, 5, 6), (5, 3, 5, 6)]
SIDES = {LOCAL: ("coderay-a", "10.99.77.1"), HOST: ("coderay-b", "10.99.77.2")}
"""The namespace of each provider's node, and its address."""
REQUEST_IMAGES, IN_FLIGHT, WARM_UP_S, DEADLINE_S = 16, 8, 4.0, 60.0


def main() -> int:
    """0 where the median error is at most a quarter, with and without the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return compare(options.mbit, options.seconds, options.out)
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc"))):
        print("nothing was measured: network namespaces need root, ip and tc")
        return 0
    with two_nodes():
        command = [sys.executable, "-m", "benchmarks.transfers", "--inside", "--mbit", str(options.mbit)]
        command += ["--seconds", str(options.seconds), "--out", str(options.out)]
        return subprocess.run(within(LOCAL, *command), check=False).returncode


def within(provider: str, *command: str) -> list[str]:
    """A command to run where a provider's node is."""
    return ["ip", "netns", "exec", SIDES[provider][0], *command]


@contextmanager
def two_nodes() -> Iterator[None]:
    """A Ray node in each of two network namespaces, joined by a veth pair; all of it is gone afterwards."""
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for name, _ in SIDES.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
        (a, _), (b, _) = SIDES.values()
        subprocess.run(["ip", "link", "add", "wire", "netns", a, "type", "veth", "peer", "wire", "netns", b], check=True)
        for provider, (_, address) in SIDES.items():
            subprocess.run(within(provider, "ip", "address", "add", f"{address}/24", "dev", "wire"), check=True)
            for device in ("lo", "wire"):
                subprocess.run(within(provider, "ip", "link", "set", device, "up"), check=True)
        head = SIDES[LOCAL][1]
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "OMP_NUM_THREADS": "1",
        }
        with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
            for provider, (_, address) in SIDES.items():
                role = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={folder}"] if address == head else []
                role = role or [f"--address={head}:6379"]
                command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address}", "--num-cpus=2"]
                command += ["--object-store-memory=300000000", f'--resources={{"provider:{provider}": 1}}', *role]
                nodes.append(subprocess.Popen(within(provider, *command), stdout=subprocess.DEVNULL))
                time.sleep(8.0 if address == head else 0.0)
            yield
            for node in reversed(nodes):
                node.terminate()
                node.wait(90)  # Ray drains a node for up to 30 s before it ends what runs there
    finally:
        for node in nodes:
            if node.poll() is None:
                node.kill()
        for name, _ in SIDES.values():
            subprocess.run(["ip", "netns", "delete", name], check=False)


def limit_edges(mbit: float | None) -> None:
    """What leaves either namespace goes at so many Mbit/s from now on; None: as fast as it can."""
    for provider in SIDES:
        subprocess.run(within(provider, "tc", "qdisc", "delete", "dev", "wire", "root"), check=False, stderr=subprocess.DEVNULL)
        if mbit is not None:
            rule = ["tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms"]
            subprocess.run(within(provider, "tc", "qdisc", "add", "dev", "wire", "root", *rule), check=True)


def compare(mbit: float, seconds: float, out: Path) -> int:
    """Deploy and load every path without and with the limit."""
    ray.init(address=f"{SIDES[LOCAL][1]}:6379", log_to_driver=False, logging_level=logging.WARNING)
    while len(ray.nodes()) < len(SIDES):  # type: ignore[no-untyped-call]
        time.sleep(0.5)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    url = f"http://127.0.0.1:{port}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        write_text(run.plan_file, write_links(run).model_dump_json())
        for limit in (None, mbit):
            limit_edges(limit)
            provider = ProviderOptions(pinned=True, burst_s=60.0)
            router = RouterOptions(path_deadline_s=DEADLINE_S, request_deadline_s=DEADLINE_S, shadow_share=0.0)
            options = AppOptions(run_dir=run.root, providers=dict.fromkeys(SIDES, provider), router=router)
            serve.run(build_app(options), name="transfers", route_prefix="/")
            rows += [{"limit_mbit_per_s": limit, **row} for row in load_paths(url, read_plan(run.plan_file), seconds)]
            serve.delete("transfers")
    ray.shutdown()
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "transfers.csv", index=False)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    groups = {"without a limit": table.limit_mbit_per_s.isna(), f"at {mbit:g} Mbit/s": table.limit_mbit_per_s.notna()}
    errors = {name: statistics.median(table.error[chosen]) for name, chosen in groups.items()}
    print("median error: " + ", ".join(f"{error:.1%} {name}" for name, error in errors.items()))
    return int(max(errors.values()) > 0.25)


def write_links(run: RunDirectory) -> Plan:
    """A plan of ``VECTORS`` whose links are random and lie in their stores."""
    services = {name: get_service(name) for name in SIDES}
    blocks = {name: service.num_blocks for name, service in services.items()}
    placement = {name: name for name in SIDES}
    planned = [PlannedPath(path=str(original_path(LOCAL, blocks[LOCAL])), id=ORIGINAL, accuracy=0.9, link_hashes={})]
    for vector in VECTORS:
        path: InferencePath = path_from_vector(vector, LOCAL, blocks[LOCAL], HOST, blocks[HOST])
        identifier = path_id(path, services)
        hashes = save_links(path, identifier, make_links(path, services), placement, run.stores_dir)
        planned.append(PlannedPath(path=str(path), id=identifier, accuracy=0.9, link_hashes=hashes))
    hashes = {name: service.content_hash for name, service in services.items()}
    kappa, paths = {HOST: 1.0}, tuple(planned)
    return Plan(local=LOCAL, num_blocks=blocks[LOCAL], services=hashes, placement=placement, kappa=kappa, loss_points=0.0, paths=paths)


def load_paths(url: str, plan: Plan, seconds: float) -> Iterator[dict[str, float | str]]:
    """Predicted and measured images a second of each path with a host."""
    routes = make_routes(plan, {name: get_service(name).num_blocks for name in SIDES})[LOCAL]
    providers = {name: serve.get_deployment_handle(provider_deployment(name), "transfers") for name in SIDES}
    with Client(url) as client:
        found = client.metadata(LOCAL)["parameters"]["network"]
    speeds = {(e["from"], e["to"]): EdgeSpeed(e["delay_ms"] / 1e3, e["mbit_per_s"] * 1e6 / 8) for e in found}
    network = Network(LOCAL, {name: name for name in SIDES}, speeds)
    say(
        f"network: {', '.join(f'{a} to {b}: {8e-6 * s.bytes_per_second:.1f} Mbit/s, {1e3 * s.delay_s:.1f} ms' for (a, b), s in speeds.items())}"
    )
    limits = Limits(plan.budgets, plan.loss_points, network.bandwidth)
    for planned, vector in zip(plan.paths[1:], VECTORS, strict=True):
        measured = asyncio.run(load_path(url, planned.id, seconds))
        reports: dict[str, ProviderReport] = {name: handle.describe.remote("").result() for name, handle in providers.items()}
        cost = routes[planned.id].cost(reports, network)
        mixture = best_mixture([cost], [planned.accuracy], planned.accuracy, limits)
        used = limits.used(mixture, [cost])
        binds = max(used, key=lambda name: used[name])
        predicted = mixture.throughput
        row: dict[str, float | str] = {"path": str(list(vector)), "predicted": predicted, "measured": measured}
        row["error"] = abs(predicted / measured - 1)
        sent = {f"bytes_{name}": cost.payload_bytes[edge] for name, edge in (("out", (LOCAL, HOST)), ("back", (HOST, LOCAL)))}
        yield row | sent | {"binds": binds if isinstance(binds, str) else " to ".join(binds)}
        say(f"{vector}: predicted {predicted:.1f}, measured {measured:.1f} images a second")


async def load_path(url: str, path: str, seconds: float) -> float:
    """Images a second over ``path``, asked for by ``IN_FLIGHT`` clients at a time; answers over another path do not count."""
    images = load_data("fashion-mnist").test.images
    begin = time.monotonic() + WARM_UP_S
    answered = 0

    async def ask(client: AsyncClient, first: int) -> None:
        nonlocal answered
        while time.monotonic() < begin + seconds:
            answer = await client.predict(LOCAL, images[first : first + REQUEST_IMAGES], path=path)
            if begin <= time.monotonic() < begin + seconds and answer.path == path:
                answered += len(answer.labels)

    async with AsyncClient(url, timeout_s=DEADLINE_S) as client:
        await asyncio.gather(*(ask(client, number * REQUEST_IMAGES) for number in range(IN_FLIGHT)))
    return answered / seconds


if __name__ == "__main__":
    sys.exit(main())
