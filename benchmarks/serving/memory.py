"""Ten minutes of mixed load with faults: does any process grow, is anything left in the object store?

python -m benchmarks.serving.memory [--minutes 10] [--profile default|throughput] [--out runs/bench]      writes memory.csv and memory.png

Requests of 1, 32 and 128 images, malformed ones among them; the host's replica is killed twice, then the local provider's twice, so that
one of each lives for four minutes and more. What counts is the memory that a process shares with nobody, after its first two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import ray
from matplotlib import pyplot as plt
from ray._private.internal_api import global_gc, memory_summary

from benchmarks.serving.malformed import AT_ONCE, Maker, send
from benchmarks.serving.processes import PROFILES, proxy_ids, replica_ids
from code_ray.client import AsyncClient
from code_ray.data import load_data
from code_ray.errors import RequestError
from code_ray.plan import read_plan
from deployments.config import DEFAULT_RUN_DIR
from examples.demo import deployed, say

EVERY_S, SETTLED_S, COLLECTED_S = 5.0, 120.0, 10.0
FAULTS = ((0.2, "host"), (0.4, "host"), (0.6, "local"), (0.8, "local"))
"""Whose replica is killed after which share of the time."""
MOST_GROWTH = 0.01
"""Share of its memory that a process may gain a minute."""
MOST_LEFT = 1
"""MiB in the object store that may be there beside what was: reports of providers come and go."""
SIZES = (1, 1, 1, 32, 32, 128)


def main() -> int:
    """0 where nothing grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--profile", choices=PROFILES, default="default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    os.environ |= PROFILES[options.profile]
    plan = read_plan(DEFAULT_RUN_DIR / "plan.json")
    (host,) = set(plan.placement.values()) - {plan.placement[plan.local]}
    with deployed(DEFAULT_RUN_DIR) as url:
        before = _store()
        replicas = {"host": f"provider-{host}", "local": f"provider-{plan.placement[plan.local]}"}
        table, answered, failures = asyncio.run(_load(url, plan.local, replicas, 60 * options.minutes))
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "memory.csv", index=False, float_format="%.6g")
        # What Ray's own futures refer to each other by waits for Python's collector: Ray asks all workers for it where its store fills.
        global_gc()  # type: ignore[no-untyped-call]
        time.sleep(COLLECTED_S)
        after = _store()
    growth = growths(table)
    draw(table, options.out / "memory.png")
    print(growth.round(4).to_string(index=False))
    print(f"{answered} answers, {len(failures)} failed {failures[:2]}; object store before and after:\n{before}\n{after}")
    left = _mebibytes(after) - _mebibytes(before)
    return int(bool(failures) or bool((growth.growth_a_minute > MOST_GROWTH).any()) or left > MOST_LEFT)


def _store() -> str:
    """What Ray says of the object store."""
    # By address: other clusters may be up on this machine.
    said: str = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)  # type: ignore[no-untyped-call]
    return said.strip().splitlines()[-1]


def _mebibytes(said: str) -> int:
    """Of "Plasma memory usage 3 MiB, 5 objects, ..."."""
    return int(said.split(" MiB")[0].split()[-1])


async def _load(url: str, service: str, replicas: Mapping[str, str], seconds: float) -> tuple[pd.DataFrame, int, list[str]]:
    images, end = load_data("fashion-mnist").test.images, time.monotonic() + seconds
    answered, failures, rows = 0, list[str](), list[dict[str, Any]]()
    begin = time.monotonic()

    async def good(client: AsyncClient, size: int) -> None:
        nonlocal answered
        while time.monotonic() < end:
            try:
                await client.predict(service, images[:size])
                answered += 1
            except RequestError as error:
                failures.append(f"{error.status}: {error}")

    async def bad(session: aiohttp.ClientSession, maker: Maker) -> None:
        number = 0
        while time.monotonic() < end:
            await asyncio.gather(*(send(session, url, maker.make(number + i)) for i in range(AT_ONCE)))
            number += AT_ONCE
            await asyncio.sleep(1.0)

    async def faults() -> None:
        for share, whose in FAULTS:
            await asyncio.sleep(begin + share * seconds - time.monotonic())
            say(f"the {whose} provider's replica is killed")
            for process in replica_ids(replicas[whose]):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    async def watch() -> None:
        while time.monotonic() < end:
            moment = time.monotonic() - begin
            groups = {"proxy": proxy_ids(), "router": replica_ids("router")}
            groups |= {whose: replica_ids(name) for whose, name in replicas.items()}
            for name, processes in groups.items():
                rows.extend({"seconds": moment, "process": f"{name} {p}", "bytes": own_bytes(p)} for p in processes)
            if int(moment) % 60 < EVERY_S:
                say(f"{answered} answers, {len(failures)} failed")
            await asyncio.sleep(EVERY_S)

    async with AsyncClient(url, timeout_s=60) as client, aiohttp.ClientSession() as session:
        await asyncio.gather(*(good(client, size) for size in SIZES), bad(session, Maker(service, images[:2], 0)), faults(), watch())
    return pd.DataFrame(rows), answered, failures


def own_bytes(process: int) -> int:
    """Memory that a process shares with nobody; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def growths(table: pd.DataFrame) -> pd.DataFrame:
    """Share of its memory that each process gained a minute, from two minutes after it was first seen on."""
    rows = []
    for process, seen in table[table.bytes > 0].groupby("process"):
        later = seen[seen.seconds >= seen.seconds.min() + SETTLED_S]
        if len(later) * EVERY_S >= 60:
            slope = np.polyfit(later.seconds / 60, later.bytes, 1)[0]
            rows.append({"process": process, "MiB": later.bytes.mean() / 2**20, "growth_a_minute": slope / later.bytes.mean()})
    return pd.DataFrame(rows, columns=["process", "MiB", "growth_a_minute"])


def draw(table: pd.DataFrame, file: Path) -> None:
    """Memory of each process over time."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for process, seen in table[table.bytes > 0].groupby("process"):
        axes.plot(seen.seconds / 60, seen.bytes / 2**20, label=str(process))
    axes.set(xlabel="minutes", ylabel="MiB that the process has alone", ylim=(0, None))
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
