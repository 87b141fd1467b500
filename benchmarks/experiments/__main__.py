"""The paper's experiments: python -m benchmarks.experiments [--only KIND] [--minutes M] [--page]; the same command again goes on."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.experiments.board import ExperimentBoard, pathbench_rows, read_results, write_results
from benchmarks.experiments.config import CONFIGS, Experiments, read_experiments
from benchmarks.experiments.hosts import load_services
from benchmarks.experiments.measure import ExperimentTrial
from benchmarks.experiments.page import write_page
from benchmarks.experiments.parameters import write_parameters
from benchmarks.experiments.sample import Sample
from benchmarks.jobs import Job, Record, Workers, run_on_tune
from code_ray.journal import Journal

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
FASHION = CONFIGS / "fashion.yaml"
KINDS_OF_JOBS = ("original", "training", "time", "rival")


def main() -> None:
    """Read the command line, measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=FASHION)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="where the journal and the hosts trained here lie")
    parser.add_argument("--tables", type=Path, help="where the CSVs are written, and read to go on (default: those of the configuration)")
    parser.add_argument("--alone", action="store_true", help="train everything here, also what benchmarks/pathbench has trained")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="begin nothing after so long")
    parser.add_argument("--only", choices=KINDS_OF_JOBS, help="only jobs of that kind")
    parser.add_argument("--page", action="store_true", help="train nothing: write the page and the pictures from the CSVs")
    parser.add_argument(
        "--docs", type=Path, help="where experiments.md and pictures/ are written (default: docs/, or --out of other configurations)"
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, each on a core")
    given = parser.parse_args()
    config = read_experiments(given.config)
    tables = given.tables or HERE / "tables" / given.config.stem
    docs = given.docs or (DOCS if given.config == FASHION and given.tables is None else given.out)
    if not given.page:
        measure(config, given, tables)
    write_page(config, tables, docs, known=[] if given.alone else pathbench_rows(config))
    _say(f"{docs / 'experiments.md'} is written")


def measure(config: Experiments, given: argparse.Namespace, tables: Path) -> None:
    """Measure what the journal and the CSVs below ``tables`` lack, and write the CSVs."""
    given.out.mkdir(parents=True, exist_ok=True)
    hosts = (given.out / "hosts").resolve()
    services = load_services(config, hosts, _say)
    sample = Sample(config, {name: service.num_blocks for name, service in services.items()})
    write_parameters(sample, services, tables)
    known = [] if given.alone else pathbench_rows(config)
    board = ExperimentBoard(sample, Journal(given.out / "journal.jsonl"), [*known, *read_results(tables)], given.only)
    try:
        if board.jobs():
            settings = {"config": config.model_dump_json(), "hosts": str(hosts)}
            run_on_tune(
                board,
                ExperimentTrial,
                settings,
                _say,
                Workers(given.workers),
                minutes=given.minutes,
                describe=lambda j, r: _line(board, j, r),
            )
    finally:
        write_results(board.results, tables)
        _say(f"{len(board.results.trained)} trainings are known; {len(board.jobs())} jobs are left")


def _line(board: ExperimentBoard, job: Job, records: list[Record]) -> str:
    found = ", ".join(f"{100 * record['accuracy_test']:.2f} %" for record in records if "accuracy_test" in record)
    what = job["paths"][0] if job["kind"] == "training" else job.get("name", job["kind"])
    return f"{what}, seed {job.get('seed', 0)}: {found}; {len(board.jobs())} jobs left"


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    main()
