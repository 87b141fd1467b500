"""Servers killed under load, again and again: no client loses an answer.

python -m benchmarks.serving.kills [--kills 10] [--profile default|throughput] [--out runs/bench]      writes kills.csv

The shipped plan on three nodes of one machine: two routers on the head, a node for each provider. Eight clients send requests of 32
images with the client library's retries; a replica is killed by SIGKILL, a node by the loss of all its processes. Without the local
provider's node nothing can answer: there clients do not retry, and every request has to be refused by 503 instead, and soon.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.serving.processes import PROFILES, replica_ids
from code_ray.client import RETRIES, AsyncClient, Client
from code_ray.data import load_data
from code_ray.errors import RequestError
from code_ray.plan import read_plan
from deployments import build_provider, build_router
from deployments.config import DEFAULT_RUN_DIR, ProviderAppOptions, ProviderOptions, RouterAppOptions, RouterOptions
from deployments.routes import provider_deployment
from examples.demo import free_port, say
from examples.load import Images

CLIENTS, REQUEST_IMAGES = 8, 32
RECOVERY_S = 60.0
NO_ANSWER = "local's node"
PAUSE_S = 0.1
"""Between a refusal and the next request."""
OUTAGE_S = 10.0
"""Load goes on for so long after a kill: routers know of it after seconds, and until then the plan looks whole."""


@dataclass
class Answers:
    """(begin, end) of each answer by the monotonic clock, of each 503 where nobody retries, and what went wrong."""

    times: list[tuple[float, float]] = field(default_factory=list)
    refusals: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Nodes:
    """A head, and a node for each provider, which can be lost and comes back."""

    def __init__(self, providers: Iterable[str]) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self._nodes = {name: self._add(name) for name in providers}
        self.address: str = self._cluster.address

    def lose(self, provider: str) -> None:
        """Kill every process of a provider's node, and start another node in its place a moment later."""
        self._cluster.remove_node(self._nodes[provider], allow_graceful=False)
        time.sleep(2.0)
        self._nodes[provider] = self._add(provider)

    def _add(self, provider: str) -> Any:
        return self._cluster.add_node(num_cpus=1, resources={f"provider:{provider}": 1.0})

    def shutdown(self) -> None:
        """End everything."""
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


def main() -> int:
    """0 where no client lost an answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--profile", choices=PROFILES, default="default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    os.environ |= PROFILES[options.profile]
    plan = read_plan(DEFAULT_RUN_DIR / "plan.json")
    local = plan.placement[plan.local]
    (host,) = set(plan.placement.values()) - {local}
    with deployed_on_nodes((local, host)) as (url, nodes):
        victims: dict[str, Callable[[], None]] = {
            "host": lambda: _kill(f"provider-{host}"),
            "local": lambda: _kill(f"provider-{local}"),
            "router": lambda: _kill("router"),
            "host's node": lambda: nodes.lose(host),
            NO_ANSWER: lambda: nodes.lose(local),
        }
        rows = [_round(url, plan.local, name, kill, n) for n in range(options.kills) for name, kill in victims.items()]
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "kills.csv", index=False, float_format="%.3g")
    print(
        table.groupby("victim").agg(
            kills=("kill", "count"),
            answers=("answers", "sum"),
            failed=("failed", "sum"),
            slowest_s=("slowest_s", "max"),
            refused=("refused", "sum"),
            slowest_refusal_s=("slowest_refusal_s", "max"),
            recovered_s=("recovered_s", "max"),
        )
    )
    return int(table.failed.sum() > 0)


@contextmanager
def deployed_on_nodes(providers: Sequence[str]) -> Iterator[tuple[str, Nodes]]:
    """The shipped plan, a node for each of its providers; yields its URL and the nodes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    nodes = Nodes(providers)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        for name in providers:
            pinned = ProviderAppOptions(provider=name, options=ProviderOptions(pinned=True))
            serve.run(build_provider(pinned), name=provider_deployment(name), route_prefix=None)
        # A CPU each: those of the providers' nodes are taken, so that routers are on the head.
        router = RouterOptions(replicas=2, num_cpus=1, path_deadline_s=3, steering="plan")
        serve.run(build_router(RouterAppOptions(router=router)), name="router", route_prefix="/")
        yield f"http://127.0.0.1:{port}", nodes
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
        nodes.shutdown()


def _kill(deployment: str) -> None:
    os.kill(min(replica_ids(deployment, application=deployment)), signal.SIGKILL)


def _round(url: str, service: str, victim: str, kill: Callable[[], None], number: int) -> dict[str, Any]:
    """Load, kill once, wait until the plan is whole again. Ray starts nodes from the main thread alone, so the load has another."""
    answers, stop = Answers(), threading.Event()
    load = threading.Thread(target=lambda: asyncio.run(_load(url, service, answers, stop, retried=victim != NO_ANSWER)))
    load.start()
    try:
        _until(lambda: len(answers.times) > 3 * CLIENTS, "nothing is answered")
        moment = time.monotonic()
        kill()
        time.sleep(OUTAGE_S)
        with Client(url) as client:
            _until(lambda: _is_whole(client, service), "the plan is not whole again")
        recovered = time.monotonic() - moment
    finally:
        stop.set()
        load.join()
    row = {"victim": victim, "kill": number, "answers": len(answers.times), "failed": len(answers.failures)}
    row |= {"slowest_s": max(end - begin for begin, end in answers.times if end > moment), "refused": len(answers.refusals)}
    row |= {"slowest_refusal_s": max((end - begin for begin, end in answers.refusals), default=0.0), "recovered_s": recovered}
    say(
        f"{victim}, kill {number + 1}: {row['answers']} answers, {row['failed']} failed {answers.failures[:1] or ''}, {row['refused']} refused, {recovered:.0f} s"
    )
    return row


async def _load(url: str, service: str, answers: Answers, stop: threading.Event, retried: bool) -> None:
    images = load_data("fashion-mnist").test.images[:REQUEST_IMAGES]
    async with AsyncClient(url, timeout_s=60, retries=RETRIES if retried else 0) as client:
        await asyncio.gather(*(_send(client, service, images, answers, stop, retried) for _ in range(CLIENTS)))


async def _send(client: AsyncClient, service: str, images: Images, answers: Answers, stop: threading.Event, retried: bool) -> None:
    while not stop.is_set():
        begin = time.monotonic()
        try:
            await client.predict(service, images)
        except RequestError as error:
            if not retried and error.status == 503:
                answers.refusals.append((begin, time.monotonic()))
                await asyncio.sleep(PAUSE_S)
            else:
                answers.failures.append(f"{error.status}: {error}")
        else:
            answers.times.append((begin, time.monotonic()))


def _until(check: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + RECOVERY_S
    while not check():
        if time.monotonic() > end:
            say(f"after {RECOVERY_S:.0f} s {what}")
            return
        time.sleep(0.2)


def _is_whole(client: Client, service: str) -> bool:
    """Whether every path of the plan has a rate again, with every breaker closed."""
    parameters = client.metadata(service)["parameters"]
    borrowing = [path["images_per_second"] for path in parameters["paths"] if path["kind"] in ("cross", "probe")]
    return any(rate > 0 for rate in borrowing) and set(parameters["breakers"].values()) <= {"closed"}


if __name__ == "__main__":
    sys.exit(main())
