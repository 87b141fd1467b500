"""Table the paths of a pair of services: python -m benchmarks.pathbench PAIR [--minutes M]; again, it goes on."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.jobs import Workers
from benchmarks.pathbench.build import build
from benchmarks.pathbench.pairs import PAIRS


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--out", type=Path, default=Path("runs/pathbench"), help="where PAIR's journal lies")
    parser.add_argument("--tables", type=Path, default=Path(__file__).parent / "tables", help="where PAIR's CSVs are written")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="start no row after so long")
    parser.add_argument("--workers", type=int, default=2, help="rows measured at a time, each on a core")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that the workers share; without any they train on their cores")
    given = parser.parse_args()
    workers = Workers(given.workers, given.gpus)
    build(PAIRS[given.pair], given.out / given.pair, given.tables / given.pair, _say, given.minutes, workers)


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    main()
