"""kill -9 at random moments of a search: what is lost, what is done twice, and whether it ends by itself afterwards.

python -m benchmarks.kill_search [--kills 20] [--out runs/bench]      writes kill_search.csv; exit status 1 where anything was lost
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from code_ray.artifact import RunDirectory
from search.config import SearchConfig

CONFIG = SearchConfig.model_validate(
    {
        "local": "alexnet-digits",
        "data": "digits",
        "hosts": {},
        "screen": 6,
        "rungs": [50, 150],
        "stopping": {"max_trainings": 6, "c_stop": 6, "epsilon": 0.0},
        "confirm": 1,
        "recipe": {"samples": 900, "fit_samples": 300, "screen_samples": 300, "steps": 300},
    }
)


def main() -> int:
    """Run one search undisturbed, then one for each kill, from the same measured times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    moments = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory(prefix="code_ray-kill-") as name:
        folder = Path(name)
        (folder / "search.yaml").write_text(yaml.safe_dump(CONFIG.model_dump(mode="json")))
        finish(start(folder, "times"))
        prepare(folder, "whole")
        started = time.monotonic()
        finish(start(folder, "whole"))
        whole = time.monotonic() - started
        print(f"undisturbed: {len(records(folder, 'whole'))} records in {whole:.0f} s", flush=True)
        for number in range(options.kills):
            rows.append({"kill": number, **kill_once(folder, f"killed-{number}", moments.uniform(0.1, 1.0) * whole)})
            print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "kill_search.csv", index=False)
    bad = table[(table.lost > 0) | (table.done_twice > 0) | (table.status != 0)]
    print(
        f"{len(table)} kills: {table.lost.sum()} records lost, {table.done_twice.sum()} done twice, {(table.status != 0).sum()} did not end"
    )
    return int(len(bad) > 0)


def kill_once(folder: Path, out: str, after: float) -> dict[str, Any]:
    """Kill the driver of a search ``after`` seconds, let Ray's processes end, run the same command again."""
    prepare(folder, out)
    process = start(folder, out)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    kept = records(folder, out)
    status = finish(start(folder, out))
    found = records(folder, out)
    counts = Counter((record["path"], record.get("fidelity"), record.get("seed"), record["role"]) for record in found)
    return {
        "after_seconds": round(after, 1),
        "killed": killed,
        "records_at_kill": len(kept),
        "records": len(found),
        "lost": sum(record not in found for record in kept),
        "done_twice": sum(count - 1 for count in counts.values()),
        "status": status,
    }


def prepare(folder: Path, out: str) -> None:
    """A run directory that has the measured times already: they are measured before anything can be lost."""
    run = RunDirectory.create(folder / out, CONFIG.model_dump(mode="json"))
    shutil.copy(folder / "times" / "profile.json", run.profile_file)


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    """``python -m search`` on ``folder``'s configuration."""
    command = [sys.executable, "-m", "search", "search.yaml", "--out", out]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> int:
    """Exit status; -9 where it does not end within five minutes."""
    try:
        return process.wait(300)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def records(folder: Path, out: str) -> list[dict[str, Any]]:
    """What the journal of a run holds."""
    return RunDirectory(folder / out).journal.records()


if __name__ == "__main__":
    sys.exit(main())
