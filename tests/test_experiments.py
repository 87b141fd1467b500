"""The paper's experiments, small: what was measured is kept, and every number says how many seeds are behind it."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.experiments.__main__ import main
from benchmarks.experiments.board import ExperimentBoard, write_results
from benchmarks.experiments.config import CONFIGS, read_experiments
from benchmarks.experiments.live_plan import make_live_plan
from benchmarks.experiments.measure import Worker
from benchmarks.experiments.parameters import write_parameters
from benchmarks.experiments.readings import read_readings
from benchmarks.experiments.rival_server import Distilled
from benchmarks.experiments.rivals import live_paths
from code_ray.blocks import ExecutionMode
from code_ray.journal import Journal
from code_ray.plan import load_leg_links
from code_ray.runner import LegRunner, walk
from deployments.stores import open_plan

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


def test_live_arms_are_served_from_what_was_trained_and_stand_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, tables, out = tmp_path / "tiny.yaml", tmp_path / "tables", tmp_path / "out"
    file.write_text(yaml.safe_dump({**TINY, "rival_samples": 256}))
    config = read_experiments(file)
    worker = Worker(config, out / "hosts")
    write_parameters(worker.sample, worker.services, tables)
    paths = live_paths(read_readings(config, tables, []))
    assert list(paths) == ["exit-1"], "without another architecture there is no probe and no cross"
    live = make_live_plan(worker, paths, out, seed=0)
    run, plan = open_plan(live.run_dir)
    planned = {entry.id: entry for entry in plan.paths}
    assert live.uses.keys() == {"exit-1", "exit-1-gated"}
    plain, gated = (planned[live.uses[arm][0]] for arm in ("exit-1", "exit-1-gated"))
    assert gated.links == plain.id
    assert gated.threshold
    (leg,) = walk(plan.inference_path(gated), plan.placement)
    assert load_leg_links(leg, plan.inference_path(gated), gated, worker.services, run.stores_dir / leg.provider)
    before = (live.run_dir / "plan.json").stat().st_mtime_ns
    assert make_live_plan(worker, paths, out, seed=0) == live
    assert (live.run_dir / "plan.json").stat().st_mtime_ns == before, "it was trained again"
    make_live_plan(worker, paths, out, seed=1)
    assert planned["original"] in open_plan(live.run_dir)[1].paths
    assert open_plan(live.run_dir)[1] != plan, "another seed asks for other links"

    images, mode = worker.data.test.images, ExecutionMode()
    sure, unsure = (Distilled(config.local, 16, live.networks["distilled-16"][0], threshold, mode) for threshold in (0.0, 1.1))
    local = worker.services[config.local]
    original = LegRunner(list(local.blocks), mode)(local.preprocess(images))
    assert torch.allclose(unsure.logits(images), original, atol=1e-5), "all of it is made again"
    assert not torch.allclose(sure.logits(images), original, atol=1e-1)

    (tables / "live.csv").write_text(
        "round,arm,images_per_second\n0,original,100\n0,exit-1,300\n1,original,200\n1,exit-1,400\n1,int8,300\n"
    )
    command = ["experiments", "--config", str(file), "--tables", str(tables), "--out", str(out), "--page"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    cells = {line.split(" | ")[0]: line.split(" | ")[3] for line in (out / "experiments.md").read_text().splitlines() if " | " in line}
    assert cells["| exit behind block 1"] == "2.50 ± 0.71"
    assert cells["| int8, static, a range from 256 images"] == "1.50"
    assert cells["| the original in float32"] == "-"


def test_configurations_that_ship_can_be_read() -> None:
    assert {read_experiments(file).local for file in CONFIGS.glob("*.yaml")} == {"alexnet-fashion", "alexnet-cifar10"}
