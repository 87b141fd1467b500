"""Table the paths of a pair of services: python -m benchmarks.pathbench PAIR [--minutes M]; again, it goes on."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.pathbench.build import build
from benchmarks.pathbench.pairs import PAIRS


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--out", type=Path, default=Path("runs/pathbench"), help="where PAIR's journal lies")
    parser.add_argument("--tables", type=Path, default=Path(__file__).parent / "tables", help="where PAIR's CSVs are written")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="start no row after so long")
    arguments = parser.parse_args()
    build(PAIRS[arguments.pair], arguments.out / arguments.pair, arguments.tables / arguments.pair, _say, arguments.minutes)


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    main()
