"""Two services on the same frames, live: each asked alone, asked together path by path, and behind one pass of the host for both.

python -m benchmarks.serving.trunk [--rounds 5] [--kappa 1 0.25] [--out runs/trunk]     writes trunk_rounds.csv, trunk.csv, trunk.png

``fashion-cnn`` by the shipped plan, and ``fashion-kinds`` (``benchmarks.serving.kinds``), whose links a search trains behind that plan's
trunks first; again, all of that is kept. Every arm answers frames for both services, over the same pair of paths, which share a trunk, and
the originals, one service by its path and the other by its original among them, at the rates that the router's programme gives them: with a
small share of the host (``--kappa``) it has to come down to these sooner. Rates are frames a second, each answered by both; accuracies are of all frames that were answered, ``lost`` points beside what the
original says of the same frames; ``bound`` is the programme's by the times that the servers measured, ``borrowed`` the share of the answers
that are not an original's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import numpy.typing as npt
import pandas as pd
import ray
import yaml
from matplotlib import pyplot as plt
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.serving.kinds import NAME, data_file, make_all, service_dir
from code_ray.artifact import RunDirectory, write_text
from code_ray.client import AsyncClient
from code_ray.data import Split, load_data
from code_ray.joining import join
from code_ray.own_data import read_data
from code_ray.plan import Plan, PlannedTrunk, read_plan
from code_ray.policy import ORIGINAL
from code_ray.profiling import best_execution
from code_ray.runner import LegRunner
from code_ray.wire import GROUPED
from code_ray.zoo import get_service
from deployments.config import DEFAULT_RUN_DIR, RouterSettings
from examples.demo import deployed, planned_rate, say
from examples.load import WARM_UP_S
from search.config import read_config
from search.launch import run_search

REQUEST_IMAGES, IN_FLIGHT, SECONDS = 64, 8, 6.0
SEARCH: dict[str, Any] = {
    "loss_points": 0.4,
    "screen": 12,
    "stopping": {"max_trainings": 5, "c_stop": 4, "epsilon": 0.02},
    "rivals": 0,
    "confirm": 0,
    "controls": False,
    "distilled_epochs": 0,
    "validation_samples": 4000,
    "recipe": {"samples": 12800, "fit_samples": 1000, "screen_samples": 500, "steps": 400},
}


def main() -> None:
    """Make what is missing, load every arm in every round, compare within rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.0, 0.25], help="shares of the host's server (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/trunk"))
    options = parser.parse_args()
    run_dir = joined(options.out)
    plan = read_plan(RunDirectory.open(run_dir).plan_file)
    trunk = max(plan.trunks, key=lambda trunk: sum(planned.accuracy for planned, _ in plan.behind(trunk)))
    say(" and ".join(planned.path for planned, _ in plan.behind(trunk)))
    fashion, kinds = load_data("fashion-mnist"), read_data(data_file(options.out))
    truth = [np.array(data.labels)[data.test.labels] for data in (fashion, kinds)]
    originals = [right_alone(name, fashion.test, labels) for name, labels in zip(plan.tasked, truth, strict=True)]
    rows = []
    for kappa in options.kappa:
        lent = plan.model_copy(update={"kappa": dict.fromkeys(plan.kappa, kappa)})
        write_text(RunDirectory(run_dir).plan_file, lent.model_dump_json(indent=1) + "\n")
        with deployed(run_dir) as url:
            rows += [
                {"kappa": kappa, **row} for row in asyncio.run(_measure(url, lent, trunk, fashion.test, truth, originals, options.rounds))
            ]
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "trunk_rounds.csv", index=False, float_format="%.5g")
    found = summary(table)
    found.to_csv(options.out / "trunk.csv", float_format="%.4g")
    draw(found, options.out / "trunk.png")
    print(found.round(3).to_string())


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row a kappa and arm: medians, and medians of the ratios within a round."""
    rates = table.pivot(index=["kappa", "round"], columns="arm", values="frames_per_second")
    found = table.groupby(["kappa", "arm"], sort=False).median(numeric_only=True).drop(columns="round")
    for name, below in (("times_separate", "separate"), ("times_alone", "each alone")):
        found[name] = [(rates[arm] / rates[below]).loc[kappa].median() for kappa, arm in found.index]
    return found


def joined(out: Path) -> Path:
    """A run directory for both services; what is there already is kept."""
    make_all(out)
    os.environ["CODE_RAY_SERVICES"] = str(service_dir(out).parent.resolve())
    host = next(iter(read_plan(RunDirectory.open(DEFAULT_RUN_DIR).plan_file).kappa))
    local = read_plan(RunDirectory.open(DEFAULT_RUN_DIR).plan_file).local
    content = SEARCH | {"local": NAME, "data": str(data_file(out)), "hosts": {host: {"kappa": 1.0}}, "trunk": str(DEFAULT_RUN_DIR)}
    content |= {"providers": {NAME: local, host: host}, "trust": "shared"}
    config_file = out / "kinds.yaml"
    config_file.write_text(yaml.safe_dump(content, sort_keys=False))
    run_search(read_config(config_file), out / "kinds", say)
    ray.shutdown()  # servers get a Ray of their own
    shutil.rmtree(out / "both", ignore_errors=True)
    join(RunDirectory(DEFAULT_RUN_DIR), RunDirectory(out / "kinds"), out / "both")
    return out / "both"


async def _measure(
    url: str,
    plan: Plan,
    trunk: PlannedTrunk,
    frames: Split,
    truth: Sequence[npt.NDArray[np.str_]],
    originals: Sequence[npt.NDArray[np.bool_]],
    rounds: int,
) -> list[dict[str, Any]]:
    services = list(plan.tasked)
    arms: dict[str, tuple[str, ...]] = {
        "originals": (),
        "each alone": tuple(trunk.paths.values()),
        "separate": tuple(trunk.separate),
        "trunk": (trunk.id, *trunk.separate),
    }
    router: DeploymentHandle[Any] = serve.get_deployment_handle("router", "default")
    rows = []
    async with AsyncClient(url, timeout_s=60) as client:
        for number in range(rounds):
            turn = number % len(arms)
            names = list(arms)
            for arm in (*names[turn:], *names[:turn]):
                await router.reconfigure.remote(RouterSettings(use=arms[arm], steering="plan").model_dump(mode="json"))
                load = _Load(client, services, frames, truth, originals, arm == "each alone")
                row: dict[str, Any] = {"round": number, "arm": arm, **await load.run(number / rounds)}
                if arm != "each alone":  # whose programmes know nothing of each other
                    row["bound"] = await asyncio.to_thread(planned_rate, url, GROUPED.join(services))
                rows.append(row)
            say(", ".join(f"{row['arm']} {row['frames_per_second']:.0f}" for row in rows[-len(arms) :]))
    return rows


def right_alone(name: str, frames: Split, truth: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Which frames a service gets right by itself: what other answers to the same frames are compared with."""
    service = get_service(name)
    runner = LegRunner(list(service.blocks), best_execution(service).mode)
    parts = np.array_split(frames.images, len(frames) // REQUEST_IMAGES)
    chosen = np.concatenate([runner(service.preprocess(images)).argmax(1).numpy() for images in parts])
    return np.array(np.array(service.labels)[chosen] == truth)


class _Load:
    """Closed loop: ``IN_FLIGHT`` requests of ``REQUEST_IMAGES`` frames are always under way. ``alone``: two requests, one a service."""

    def __init__(
        self,
        client: AsyncClient,
        services: Sequence[str],
        frames: Split,
        truth: Sequence[npt.NDArray[np.str_]],
        originals: Sequence[npt.NDArray[np.bool_]],
        alone: bool,
    ) -> None:
        self._client, self._services, self._frames, self._truth, self._alone = client, services, frames, truth, alone
        self._originals = originals
        self._next, self._answered, self._borrowed = 0, 0, 0
        self._right, self._lost = np.zeros((2, len(services)), np.int64)

    async def run(self, begin_at: float) -> dict[str, Any]:
        self._next = int(begin_at * (len(self._frames) // REQUEST_IMAGES))
        begin = time.monotonic() + WARM_UP_S
        await asyncio.gather(*(self._one_client(begin, begin + SECONDS) for _ in range(IN_FLIGHT)))
        answered = max(self._answered, 1)
        named = {f"accuracy {service}": float(right) / answered for service, right in zip(self._services, self._right, strict=True)}
        named |= {f"lost {service}": 100 * float(lost) / answered for service, lost in zip(self._services, self._lost, strict=True)}
        return {
            "frames_per_second": self._answered / SECONDS,
            **named,
            "borrowed": self._borrowed / answered / len(self._services),
        }

    async def _one_client(self, begin: float, end: float) -> None:
        while time.monotonic() < end:
            at = slice(*(REQUEST_IMAGES * (self._next % (len(self._frames) // REQUEST_IMAGES) + step) for step in (0, 1)))
            self._next += 1
            images = self._frames.images[at]
            if self._alone:
                asked = (self._client.predict(name, images) for name in self._services)
                answers = dict(zip(self._services, await asyncio.gather(*asked), strict=True))
            else:
                answers = await self._client.predict_together(self._services, images)
            if begin <= time.monotonic() < end:
                self._answered += len(images)
                self._borrowed += len(images) * sum(answers[name].path != ORIGINAL for name in self._services)
                for n, name in enumerate(self._services):
                    right = np.array(answers[name].labels) == self._truth[n][at]
                    self._right[n] += right.sum()
                    self._lost[n] += int(self._originals[n][at].sum()) - int(right.sum())


def draw(table: pd.DataFrame, file: Path) -> None:
    """Frames a second by share of the host and arm; a line at the bound."""
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.4 * len(table)), layout="constrained")
    colours = {"originals": "#94a3b8", "trunk": "#0b6e4f"}
    names = [f"{arm}, kappa {kappa:g}" for kappa, arm in table.index]
    axes.barh(names, table.frames_per_second, color=[colours.get(arm, "#b45309") for _, arm in table.index])
    for n, (rate, bound, times) in enumerate(zip(table.frames_per_second, table.bound, table.times_separate, strict=True)):
        axes.annotate(f"  {rate:.0f}  ({times:.2f} x separate)", (np.nanmax([rate, bound]), n), va="center", fontsize=8)
        if not np.isnan(bound):
            axes.vlines(bound, n - 0.4, n + 0.4, color="black", linewidth=2)
    axes.invert_yaxis()
    axes.margins(x=0.4)
    axes.set(xlabel="frames a second, each answered by both services\n(lines: bound by the programme)")
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
