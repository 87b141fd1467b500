"""The paper's experiments, small: what was measured is kept, and every number says how many seeds are behind it."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.experiments.__main__ import main
from benchmarks.experiments.board import ExperimentBoard, write_results
from benchmarks.experiments.config import CONFIGS, read_experiments
from benchmarks.experiments.measure import Worker
from benchmarks.experiments.parameters import write_parameters
from code_ray.journal import Journal

TINY = {
    "data": "digits",
    "local": "alexnet-digits",
    "hosts": ["alexnet-fashion"],
    "random": "alexnet-fashion",
    "hout": [1],
    "lin": [4],
    "ranks": [5],
    "rank_lin": 4,
    "skips": [[0, 4], [1, 4]],
    "skip_rank": 5,
    "exits": [1],
    "recipe": {"samples": 64, "fit_samples": 64, "screen_samples": 32, "steps": 2},
    "validation_images": 60,
    "test_images": 60,
    "seeds": [0, 1],
}


def test_experiments_that_were_killed_go_on_and_their_page_counts_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, tables, out = tmp_path / "tiny.yaml", tmp_path / "tables", tmp_path / "out"
    file.write_text(yaml.safe_dump(TINY))
    config = read_experiments(file)
    out.mkdir()
    worker = Worker(config, out / "hosts")
    board = ExperimentBoard(worker.sample, Journal(out / "journal.jsonl"), [], "training")
    while (job := board.jobs()[0])["seed"] == 0:
        for record in worker.run(job):
            board.tell(record)
    write_parameters(worker.sample, worker.services, tables)
    write_results(board.results, tables)
    kept = [record for record in board.journal.records() if record["record"] == "training"]
    # The process dies here; its CSVs are a part of what the journal knows, whose last line is torn.
    with (out / "journal.jsonl").open("a") as journal:
        journal.write("0000 {torn")

    def run(*more: str) -> str:
        command = ["experiments", "--config", str(file), "--tables", str(tables), "--out", str(out), "--workers", "1", *more]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return (out / "experiments.md").read_text()

    skip = next(line for line in run("--page").splitlines() if line.startswith("| [1, 4]"))
    assert skip.count("(1 of 2 seeds)") == 2, skip
    assert "missing (0 of 2 seeds)" in skip, "its time was not measured"
    whole = run("--only", "training")
    skip = next(line for line in whole.splitlines() if line.startswith("| [1, 4]"))
    assert skip.count("±") == 2, skip
    assert "1 of 2" not in skip, skip
    after = Journal(out / "journal.jsonl").records()
    assert [json.dumps(row, sort_keys=True) for row in after[: len(kept)]] == [json.dumps(row, sort_keys=True) for row in kept]
    trained = [(row["path"], row["seed"], row["scale"]) for row in after]
    assert len(set(trained)) == len(trained)
    assert {seed for _, seed, _ in trained} == {0, 1}


def test_configurations_that_ship_can_be_read() -> None:
    assert {read_experiments(file).local for file in CONFIGS.glob("*.yaml")} == {"alexnet-fashion", "alexnet-cifar10"}
