"""``python -m search CONFIG.yaml --out DIR``: find the paths that pay. The same DIR again resumes.

``--known RUN --plan-only``: a new plan of what RUN measured, for another kappa, loss limit or objective, without training.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from code_ray.artifact import RunDirectory
from code_ray.errors import CodeRayError
from search.config import read_config
from search.launch import run_search


def main(arguments: list[str] | None = None) -> int:
    """Run a search; 0 when it finished, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a search configuration in YAML; see search/configs/")
    parser.add_argument("--out", type=Path, required=True, help="run directory; the same one again resumes")
    parser.add_argument("--known", type=Path, metavar="RUN", help="a finished search of the same services: what it measured counts here")
    parser.add_argument("--plan-only", action="store_true", help="train nothing: make the best plan of what is known")
    options = parser.parse_args(arguments)
    try:
        config = read_config(options.config)
        result = run_search(config, options.out, say=_say, known=options.known, train=not options.plan_only)
    except CodeRayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if (page := RunDirectory(options.out).report_file).exists():
        _say(f"to look at: {page}")
    _say(result["verdict"])
    _say(f"stopped because {result['stopped_because']}; {result['trainings']} trainings, {result['seconds']:.0f} s; see {options.out}")
    return 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
