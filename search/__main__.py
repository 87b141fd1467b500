"""``python -m search CONFIG.yaml --out DIR``: find the paths that pay. The same DIR again resumes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from code_ray.errors import CodeRayError
from search.config import read_config
from search.launch import run_search


def main(arguments: list[str] | None = None) -> int:
    """Run a search; 0 when it finished, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m search", description=__doc__)
    parser.add_argument("config", type=Path, help="a search configuration in YAML; see search/configs/")
    parser.add_argument("--out", type=Path, required=True, help="run directory; the same one again resumes")
    options = parser.parse_args(arguments)
    try:
        config = read_config(options.config)
        result = run_search(config, options.out, say=_say)
    except CodeRayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    _say(result["verdict"])
    _say(f"stopped because {result['stopped_because']}; {result['trainings']} trainings, {result['seconds']:.0f} s; see {options.out}")
    return 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
