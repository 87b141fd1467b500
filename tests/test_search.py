"""Searches as users run them: ``python -m search`` on the smallest real pair, and what the run directory holds then (DESIGN 4)."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from code_ray.artifact import RunDirectory
from code_ray.blocks import content_hash
from code_ray.data import DataSet
from code_ray.links import Link
from code_ray.plan import load_leg_links, read_plan
from code_ray.runner import walk
from code_ray.service import Service, load_service
from code_ray.zoo import BUILDERS, ZOO, get_service
from search.config import read_config

PAIR: dict[str, Any] = {
    "local": "alexnet-digits",
    "data": "digits",
    "hosts": {"efficientnet-lite0": {"kappa": 1.0}},
    "vectors": [[1, 1, 2, 5], [1, 2, 3, 5], [2, 4, 4, 5], [2, 3, 3, 4], [2], [3], [1, 4], [2, 5]],
    "loss_points": 5.0,
    "screen": 4,
    "stopping": {"max_trainings": 3, "c_stop": 3, "epsilon": 0.02},
    "confirm": 1,
    "recipe": {"samples": 300, "fit_samples": 200, "steps": 20, "joint_steps": 2},
}
"""Four crosses, two exits and two skips with a recipe that takes seconds: it shows the plumbing, not a claim."""


def write_config(folder: Path, base: Mapping[str, Any], **changes: Any) -> Path:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**base, **changes}))
    return file


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "search", str(config), "--out", str(out)]


def search(config: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    """``python -m search`` in a process of its own, away from the repository."""
    return subprocess.run(command(config, out), cwd=config.parent, capture_output=True, text=True, check=False, timeout=200)


def complaints(stderr: str) -> list[str]:
    """What a search wrote to stderr, but for Ray's word on the token that guards its cluster."""
    return [line for line in stderr.splitlines() if "Token authentication is enabled" not in line]


def evaluations(out: Path) -> list[dict[str, Any]]:
    """The journal's records of paths that were trained or scored."""
    return [record for record in RunDirectory(out).journal.records() if record["role"] not in ("original", "distilled")]


def result_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "result.json").read_text()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def most_at_once(records: list[dict[str, Any]]) -> int:
    """How many trials these evaluations ran in at the same moment at most; paths scored together share one."""
    spans = {(float(record["started"]), float(record["finished"])) for record in records}
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


@pytest.fixture(scope="module")
def pair() -> dict[str, Service]:
    """The two services of the pair, as this process loads them."""
    return {name: get_service(name) for name in ("alexnet-digits", "efficientnet-lite0")}


@dataclass(frozen=True)
class Finished:
    """A search that ran to its end, seen from outside."""

    config: Path
    out: Path
    done: "subprocess.CompletedProcess[str]"

    @property
    def result(self) -> dict[str, Any]:
        return result_of(self.out)


@pytest.fixture(scope="module")
def finished(pair: dict[str, Service], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    config, out = write_config(folder, PAIR), folder / "runs" / "pair"
    return Finished(config, out, search(config, out))


def measured_directory(finished: Finished, config: Path, out: Path) -> None:
    """A run directory for ``config`` that knows the times of the finished search, so that they need not be measured again."""
    run = RunDirectory.create(out, read_config(config).model_dump(mode="json"))
    shutil.copy(finished.out / "profile.json", run.profile_file)


def test_a_search_ends_with_exit_code_0_and_nothing_on_stderr(finished: Finished) -> None:
    assert (finished.done.returncode, complaints(finished.done.stderr)) == (0, [])


def test_every_line_of_progress_has_its_time_and_every_evaluation_its_line(finished: Finished) -> None:
    lines = finished.done.stdout.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in lines)
    assert sum("least squares" in line or " -> " in line for line in lines) == len(evaluations(finished.out))
    assert re.search(r"original: \d\d\.\d\d % on validation, \d+ images a second", finished.done.stdout)
    assert lines[-2].endswith(finished.result["verdict"])
    assert lines[-1].endswith(f"see {finished.out}")


def test_a_run_directory_holds_what_users_rely_on_and_nothing_else(finished: Finished) -> None:
    texts = {"config.json", "result.json", "plan.json", "profile.json", "evaluations.csv", "journal.jsonl"}
    arrays = {"splits.npz", "teacher.npy", "canaries.safetensors"}
    pictures = {"pareto.png", "search_trace.png", "winning_plan.png", "forecasts.png"}
    assert {file.name for file in finished.out.iterdir()} == texts | arrays | pictures | {"stores", "report.html"}


def test_result_json_has_every_key_that_tools_rely_on(finished: Finished) -> None:
    result = finished.result
    best = "vector kind host accuracy_validation accuracy_test accuracy_original_test throughput_ratio average_accuracy_loss_points"
    best += " reward reward_original host_share host_efficiency"
    assert set(best.split()) <= set(result["best"])
    for arm in ("original", "host_free", "paper_pair", "mixture", "replica", "probe"):
        assert {"throughput_ratio", "average_accuracy_loss_points"} <= set(result["arms"][arm])
    assert set(result["controls"]) == {"random_host", "links_only", "skip"}
    assert set(result["fixed_speedups"]) == {"1.4", "1.6", "1.8"}
    assert (result["sampler"], result["objective"], result["seed"], type(result["stopped_because"])) == ("gp", "plan", 0, str)


@pytest.mark.parametrize("name", ["config.json", "result.json", "plan.json", "profile.json"])
def test_json_files_hold_no_number_that_only_python_reads(name: str, finished: Finished) -> None:
    strange: list[str] = []
    json.loads((finished.out / name).read_text(), parse_constant=strange.append)
    assert strange == []


def test_the_counts_of_result_json_are_those_of_the_journal(finished: Finished) -> None:
    result, records = finished.result, evaluations(finished.out)
    assert result["trainings"] == sum(record["fidelity"] == "trained" for record in records)
    assert result["screened"] == sum(record["fidelity"] == "fit" for record in records)
    assert 0 < result["screened"] <= PAIR["screen"]
    assert sum(record["role"] == "search" and record["fidelity"] == "trained" for record in records) <= 3
    assert 4 <= result["candidates"] <= result["paths_enumerated"] == len(PAIR["vectors"])
    assert result["seconds"] > max(record["finished"] for record in records) - min(record["started"] for record in records)


def test_result_json_says_what_is_left_and_how_often_forecasts_held(finished: Finished) -> None:
    result, records = finished.result, evaluations(finished.out)
    forecast = [record for record in records if "expected_low" in record]
    assert all(record in forecast for record in records if (record["role"], record["fidelity"]) == ("search", "trained"))
    inside = sum(record["expected_low"] <= record["accuracy"] <= record["expected_high"] for record in forecast)
    assert result["forecast_coverage"] == {"nominal": 0.95, "share_inside": inside / len(forecast), "trainings": len(forecast)}
    assert result["left"]["paths"] == result["candidates"] - len(forecast)
    assert result["left"]["expected_improvement"] >= 0
    assert result["left"]["bound"] >= result["left"]["value"] >= 1


def test_all_controls_of_the_leading_cross_were_trained(finished: Finished) -> None:
    for role, control in finished.result["controls"].items():
        assert control is not None, role
        assert 0 <= control["accuracy_validation"] <= 1
    assert {"random_host", "links_only"} <= {record["role"] for record in evaluations(finished.out)}


def test_the_arms_stand_in_the_order_that_theory_wants(finished: Finished) -> None:
    ratio = {name: arm["throughput_ratio"] for name, arm in finished.result["arms"].items()}
    assert ratio["original"] == pytest.approx(1)
    assert (ratio["replica"], ratio["replica_host_free"]) == (2, pytest.approx(2 * ratio["host_free"]))
    rising = ("host_free", "mixture"), ("paper_pair", "mixture"), ("host_free", "distilled"), ("distilled", "mixture_distilled")
    assert all(1 - 1e-9 <= ratio[less] <= ratio[more] + 1e-9 for less, more in rising), ratio
    assert all(arm["average_accuracy_loss_points"] <= PAIR["loss_points"] + 1e-6 for arm in finished.result["arms"].values())


def test_the_plan_begins_with_the_original_and_its_links_load_from_their_stores(finished: Finished, pair: dict[str, Service]) -> None:
    plan = read_plan(finished.out / "plan.json")
    assert plan.inference_path(plan.paths[0]).kind == "original"
    plan.check_services(pair)
    for planned in plan.paths:
        path, links = plan.inference_path(planned), dict[str, Link]()
        for leg in walk(path, plan.placement):
            links |= load_leg_links(leg, path, planned, pair, finished.out / "stores" / leg.provider)
        assert set(links) == {slot.key for slot in path.link_slots}


def test_links_lie_below_the_stores_of_their_providers_only(finished: Finished) -> None:
    places = {file.relative_to(finished.out).parts[:-1] for file in finished.out.parent.rglob("*link*.safetensors")}
    assert places <= {("stores", "alexnet-digits"), ("stores", "efficientnet-lite0")}
    assert ("stores", "efficientnet-lite0") in places


def test_evaluations_csv_has_the_rows_of_the_journal(finished: Finished) -> None:
    columns = ["path", "fidelity", "seed", "role", "accuracy_fit", "accuracy", "seconds"]
    columns += ["divergence", "explained", "expected_low", "expected_high"]
    table = pd.read_csv(finished.out / "evaluations.csv")[columns].astype(object)
    rows = table.where(table.notna(), None).to_dict("records")
    assert rows == [{name: record.get(name) for name in columns} for record in evaluations(finished.out)]
    assert all(table[name].notna().any() for name in columns)


@pytest.mark.parametrize("name", ["pareto", "search_trace", "winning_plan", "forecasts"])
def test_pictures_are_pngs_of_a_size_to_look_at_with_something_on_them(name: str, finished: Finished) -> None:
    with Image.open(finished.out / f"{name}.png") as picture:
        assert picture.format == "PNG"
        assert all(250 <= side <= 3000 for side in picture.size)
        assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 10


def test_the_indices_of_the_splits_are_stored_with_the_run(finished: Finished, digits: DataSet) -> None:
    stored = np.load(finished.out / "splits.npz")
    for name, split in (("train", digits.train), ("validation", digits.validation), ("test", digits.test)):
        assert np.array_equal(stored[name], split.indices)


def test_two_trials_run_at_a_time_and_never_more(finished: Finished) -> None:
    assert most_at_once(evaluations(finished.out)) == 2


def test_the_blocks_of_both_services_are_after_the_search_what_they_were(finished: Finished, pair: dict[str, Service]) -> None:
    assert finished.done.returncode == 0
    for name, service in pair.items():
        after = load_service(ZOO[name](), BUILDERS)
        assert [content_hash(block) for block in after.blocks] == [content_hash(block) for block in service.blocks]
        assert read_plan(finished.out / "plan.json").services[name] == after.content_hash


def test_a_finished_search_run_again_changes_nothing(finished: Finished) -> None:
    before = contents(finished.out)
    again = search(finished.config, finished.out)
    assert (again.returncode, complaints(again.stderr)) == (0, [])
    assert "this search has finished" in again.stdout
    assert again.stdout.splitlines()[-2].endswith(finished.result["verdict"])
    assert contents(finished.out) == before


def test_a_report_that_was_deleted_is_written_again_from_the_journal(finished: Finished, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "run"))
    for name in ("result.json", "plan.json", "evaluations.csv"):
        (out / name).unlink()
    again = search(finished.config, out)
    assert (again.returncode, complaints(again.stderr)) == (0, [])
    for name in ("journal.jsonl", "plan.json", "evaluations.csv"):
        assert (out / name).read_bytes() == (finished.out / name).read_bytes()
    assert result_of(out) == finished.result | {"seconds": result_of(out)["seconds"]}


def test_where_nothing_pays_the_original_alone_is_deployed(finished: Finished, tmp_path: Path) -> None:
    # Links fitted to five images lose accuracy on every path, and no loss is allowed.
    recipe = {"samples": 10, "fit_samples": 5, "steps": 0}
    config, out = write_config(tmp_path, PAIR, loss_points=0, recipe=recipe, controls=False, confirm=0), tmp_path / "run"
    measured_directory(finished, config, out)
    done = search(config, out)
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    result, plan = result_of(out), read_plan(out / "plan.json")
    assert result["verdict"].startswith("nothing pays")
    assert result["verdict"] in done.stdout
    assert [plan.inference_path(planned).kind for planned in plan.paths] == ["original"]
    assert list(result["deployed"]["paths"].values()) == [1.0]
    assert {"kind": "original", "vector": [], "host_share": 0, "average_accuracy_loss_points": 0}.items() <= result["best"].items()
    assert result["trainings"] > 0


def test_a_space_without_a_path_deploys_the_original_alone(tmp_path: Path) -> None:
    # A search file for crosses and probes whose last host has gone.
    out, hostless = tmp_path / "run", {"local": "alexnet-digits", "data": "digits", "hosts": {}, "kinds": ["cross", "probe"]}
    done = search(write_config(tmp_path, hostless), out)
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    result = result_of(out)
    assert (result["candidates"], result["trainings"], result["best"]["kind"]) == (0, 0, "original")
    assert result["stopped_because"] == "no path in the space is faster than the original"
    assert len(read_plan(out / "plan.json").paths) == 1
    assert list(pd.read_csv(out / "evaluations.csv").columns[:2]) == ["path", "fidelity"]


def test_the_printed_algorithm_runs_through_and_trains_one_path_at_a_time(finished: Finished, tmp_path: Path) -> None:
    changes = {"sampler": "printed", "objective": "paper", "screen": 0, "reward": {"accuracy_min_below_original": 0.7}}
    config, out = write_config(tmp_path, PAIR, **changes), tmp_path / "run"
    measured_directory(finished, config, out)
    done = search(config, out)
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    result, records = result_of(out), evaluations(out)
    assert (result["sampler"], result["objective"]) == ("printed", "paper")
    assert {record["fidelity"] for record in records} == {"trained"}
    assert most_at_once([record for record in records if record["role"] == "search"]) == 1
    assert result["best"]["reward"] >= result["best"]["reward_original"]
