"""Searches that begin with what another one measured."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from code_ray.artifact import RunDirectory
from code_ray.distillation import CHANNELS
from code_ray.errors import ArtifactError
from code_ray.plan import read_plan
from search.campaign import Campaign
from search.carry_over import carry_over
from search.config import SearchConfig
from search.launch import run_search
from search.problem import load_inputs, prepare

BASE: dict[str, Any] = {
    "local": "alexnet-digits",
    "data": "digits",
    "hosts": {"alexnet-fashion": {"kappa": 1.0}},
    "vectors": [[1, 2, 3, 5], [2], [1, 4]],
    "loss_points": 60.0,
    "screen": 0,
    "stopping": {"max_trainings": 2, "c_stop": 9, "epsilon": 0.0},
    "confirm": 0,
    "controls": False,
    "concurrency": 1,
    "test_samples": 100,
    "recipe": {"samples": 200, "fit_samples": 200, "screen_samples": 100, "steps": 4},
}


def search(folder: Path, out: str, known: str | None = None, *, train: bool = True, **changes: Any) -> dict[str, Any]:
    config = SearchConfig.model_validate({**BASE, **changes})
    return run_search(config, folder / out, lambda _: None, known=known and folder / known, train=train)  # type: ignore[arg-type]


def records(folder: Path, out: str) -> list[dict[str, Any]]:
    return [record for record in RunDirectory(folder / out).journal.records() if record["role"] == "search"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the search ``first`` has trained two of three paths."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "first.yaml").write_text(yaml.safe_dump(BASE))
    # In a process of its own, as its Ray would stay in this one.
    command = [sys.executable, "-m", "search", "first.yaml", "--out", "first"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(records(folder, "first")) == 2
    return folder


def test_a_new_plan_of_what_is_known_takes_other_limits_and_trains_nothing(runs: Path) -> None:
    before = json.loads((runs / "first" / "result.json").read_text())
    after = search(runs, "strict", "first", train=False, loss_points=0.0)
    assert records(runs, "strict") == records(runs, "first")
    assert after["stopped_because"] == "no training was asked for"
    assert after["deployed"]["throughput_ratio"] < before["deployed"]["throughput_ratio"]
    assert after["deployed"]["average_accuracy_loss_points"] <= 0.0
    # The space is the same, so the times are.
    assert (runs / "strict" / "profile.json").read_bytes() == (runs / "first" / "profile.json").read_bytes()


def test_a_new_plan_of_what_is_known_keeps_to_another_network(runs: Path) -> None:
    before = json.loads((runs / "first" / "result.json").read_text())
    assert before["best"]["network_share"] is None
    edges = {"alexnet-digits": {"alexnet-fashion": 0.001}, "alexnet-fashion": {"alexnet-digits": 0.001}}
    after = search(runs, "by modem", "first", train=False, bandwidth_mbit_per_s=edges)
    assert 0 <= after["best"]["network_share"] <= 1 + 1e-6
    assert after["deployed"]["throughput_ratio"] <= before["deployed"]["throughput_ratio"] + 1e-9
    # A copy of the model on the host is of use for as many images as come there: two a second.
    assert 1 < after["arms"]["replica"]["throughput_ratio"] < 1.1
    assert before["arms"]["replica"]["throughput_ratio"] == pytest.approx(2.0)


def test_a_new_plan_may_have_activations_cross_as_float16_and_says_what_that_costs(runs: Path) -> None:
    shutil.copytree(runs / "first", runs / "float32")
    profile = runs / "float32" / "profile.json"
    profile.write_text(profile.read_text().replace('"bfloat16"', '"float32"'))
    plain, after = (search(runs, str(payload), "float32", train=False, payload=payload) for payload in (None, "float16"))
    assert plain["payload_costs"] is None
    plan = read_plan(runs / "float16" / "plan.json")
    hosted = {planned.path: planned for planned in plan.paths if plan.inference_path(planned).hosts}
    assert hosted
    assert {planned.path: planned.payload for planned in plan.paths} == {
        p.path: "float16" if p.path in hosted else None for p in plan.paths
    }
    assert set(after["payload_costs"]) == set(hosted)
    assert all(abs(points) < 2 for points in after["payload_costs"].values())
    assert "Activations cross as float16" in (runs / "float16" / "report.html").read_text()
    # Links and times are those of before.
    assert [planned.link_hashes for planned in plan.paths] == [p.link_hashes for p in read_plan(runs / "None" / "plan.json").paths]
    assert (runs / "float16" / "profile.json").read_bytes() == (runs / "None" / "profile.json").read_bytes()


def test_a_plan_of_known_paths_has_their_links(runs: Path) -> None:
    search(runs, "again", "first", train=False, loss_points=50.0)
    links = {file.relative_to(runs / "first") for file in (runs / "first" / "stores").rglob("*.safetensors")}
    assert links
    assert {file.relative_to(runs / "again") for file in (runs / "again" / "stores").rglob("*.safetensors")} == links


def test_a_search_goes_on_from_what_is_known_and_repeats_none_of_it(runs: Path) -> None:
    settings = SearchConfig.model_validate({**BASE, "stopping": {**BASE["stopping"], "max_trainings": 3}})
    run = RunDirectory.create(runs / "longer", settings.model_dump(mode="json"))
    inputs = load_inputs(settings)
    carry_over(RunDirectory(runs / "first"), settings, run, 6, lambda _: None)
    campaign = Campaign(prepare(settings, inputs, run, lambda _: None))
    (job,) = campaign.ask()
    assert job.path not in {known.path for known in campaign.records}
    assert {str(known.path) for known in campaign.records} == {record["path"] for record in records(runs, "first")}


def test_what_was_measured_of_a_host_that_is_gone_is_left_behind_and_times_are_measured_anew(runs: Path) -> None:
    search(runs, "alone", "first", train=False, hosts={}, vectors=[[2], [1, 4]])
    assert records(runs, "alone") == [record for record in records(runs, "first") if "alexnet-fashion" not in record["path"]]
    assert "alexnet-fashion" not in (runs / "alone" / "profile.json").read_text()


def test_confirmed_and_longer_trainings_of_paths_outside_the_new_space_are_left_behind(runs: Path) -> None:
    # A limit that binds: a longer training is worth something then, whatever the times.
    whole = {"confirm": 2, "refine": {"paths": 2, "times": 2}, "controls": True, "loss_points": 1.0}
    (runs / "whole.yaml").write_text(yaml.safe_dump(BASE | whole))
    command = [sys.executable, "-m", "search", "whole.yaml", "--out", "whole", "--known", "first"]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert {record["role"] for record in RunDirectory(runs / "whole").journal.records()} >= {"refine", "confirm"}
    after = search(runs, "narrow", "whole", train=False, vectors=[[1, 4]], **whole)
    assert all("alexnet-fashion" not in path for path in after["deployed"]["paths"])


@pytest.mark.parametrize(
    ("known", "changes", "message"),
    [
        ("first", {"recipe": {**BASE["recipe"], "steps": 5}}, "was measured with other settings of recipe"),
        ("first", {"seed": 7}, "was measured with other settings of seed"),
        (
            "first",
            {"providers": {"alexnet-fashion": "elsewhere"}, "trust": "shared"},
            "keeps links of 'alexnet-fashion' under another provider",
        ),
        ("nothing", {}, "is not a run directory with a plan.json"),
    ],
)
def test_what_was_measured_otherwise_does_not_count(runs: Path, known: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        search(runs, "refused", known, train=False, **changes)
    assert not (runs / "refused").exists()


def test_the_command_says_what_it_took_over(runs: Path) -> None:
    command = [sys.executable, "-m", "search", "first.yaml", "--out", "told", "--known", "first", "--plan-only"]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    # Beside the search's own those of the original and of the small networks.
    assert f"{1 + len(CHANNELS) + len(records(runs, 'first'))} evaluations taken over from first" in done.stdout
