"""What Tune costs a search: trials a second of two workers under Tune, over those of two bare processes that train the same paths.

python -m benchmarks.tune_overhead [--rounds 3] [--out runs/bench]      writes tune_overhead.csv
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from queue import Empty
from typing import Any

import pandas as pd
import yaml

from code_ray.artifact import RunDirectory
from code_ray.profiling import Profile
from search.campaign import Job
from search.config import SearchConfig
from search.trial import Worker

WORKERS = 2
CONFIG = SearchConfig.model_validate(
    {
        "local": "alexnet-fashion",
        "data": "fashion-mnist",
        "hosts": {"alexnet-digits": {}},
        "vectors": [
            [lout, hin, hout, lin] for lout, lin in ((1, 4), (1, 5), (2, 4), (2, 5)) for hin, hout in ((2, 3), (2, 4), (3, 4), (3, 5))
        ],
        "loss_points": 100.0,
        "sampler": "random",
        "stopping": {"max_trainings": 16, "c_stop": 99, "epsilon": 0.0},
        "confirm": 0,
        "distilled_epochs": 0,
        "controls": False,
        "test_samples": 100,
        "recipe": {"samples": 1600, "steps": 100},
        "concurrency": WORKERS,
    }
)


def main() -> None:
    """Alternate Tune and bare processes, the same measured times and paths in both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="code_ray-overhead-") as name:
        folder = Path(name)
        (folder / "search.yaml").write_text(yaml.safe_dump(CONFIG.model_dump(mode="json")))
        profile = None
        for number in range(options.rounds):
            out = RunDirectory.create(folder / f"tune-{number}", CONFIG.model_dump(mode="json"))
            if profile is not None:
                shutil.copy(profile, out.profile_file)
            subprocess.run(
                [sys.executable, "-m", "search", "search.yaml", "--out", out.root.name], cwd=folder, check=True, capture_output=True
            )
            profile = out.profile_file
            under_tune = [record for record in out.journal.records() if record["role"] == "search"]
            jobs = [Job.from_config({key: record[key] for key in ("path", "fidelity", "seed", "role")}, 6) for record in under_tune]
            bare = train_bare(jobs, profile, folder / f"bare-{number}")
            rows.append({"round": number, "tune_rate": rate(under_tune), "bare_rate": rate(bare), "overhead_seconds": overhead(under_tune)})
            rows[-1]["ratio"] = rows[-1]["tune_rate"] / rows[-1]["bare_rate"]
            print({key: round(value, 3) for key, value in rows[-1].items()}, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "tune_overhead.csv", index=False)
    middle = table.median()
    print(f"median: {middle.ratio:.3f} of the rate of bare processes; {middle.overhead_seconds:.2f} s between two trials of a worker")


def train_bare(jobs: Sequence[Job], profile: Path, stores: Path) -> list[dict[str, Any]]:
    """Records of ``jobs``, trained in ``WORKERS`` processes of their own that take one after another."""
    context = multiprocessing.get_context("spawn")
    waiting: Any = context.Queue()
    done: Any = context.Queue()
    for job in jobs:
        waiting.put(job)
    processes = [context.Process(target=_work, args=(waiting, done, profile, stores)) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    records = [done.get() for _ in jobs]
    for process in processes:
        process.join()
    return records


def _work(waiting: Any, done: Any, profile: Path, stores: Path) -> None:
    worker = Worker(CONFIG, Profile.model_validate_json(profile.read_text()), stores)
    while True:
        try:
            job = waiting.get(timeout=1)
        except Empty:
            return
        *_, outcome = worker.train(job)
        assert isinstance(outcome, dict)
        done.put(outcome["record"])


def rate(records: Sequence[dict[str, Any]]) -> float:
    """Trials a second from the first start to the last end; the first trial of each worker, which loads data, is left out."""
    later = sorted(records, key=lambda record: float(record["started"]))[WORKERS:]
    return len(later) / (max(float(r["finished"]) for r in later) - min(float(r["started"]) for r in later))


def overhead(records: Sequence[dict[str, Any]]) -> float:
    """Mean seconds from the end of a trial to the start of the next one of the same worker."""
    ends: list[float] = []
    gaps: list[float] = []
    for record in sorted(records, key=lambda record: float(record["started"])):
        if len(ends) == WORKERS:
            # The worker that has waited longest took it.
            ends.sort()
            gaps.append(float(record["started"]) - ends.pop(0))
        ends.append(float(record["finished"]))
    return sum(gaps) / len(gaps)


if __name__ == "__main__":
    main()
