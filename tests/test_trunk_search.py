"""Searches for a service that shares trunks with another one's plan, as users run them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from serving import HOST, LOCAL, make_run, make_service
from trunks import OTHER, RECIPE

from code_ray.artifact import RunDirectory
from code_ray.data import DataSet
from code_ray.gated_objective import GatedPlanObjective
from code_ray.joining import join
from code_ray.path import original_path, path_from_vector
from code_ray.plan import read_plan
from code_ray.policy import ORIGINAL
from code_ray.space import Candidate
from code_ray.throughput import Limits, PathCost
from search.results import best_behind_trunks

VECTORS = {ORIGINAL: (), "long": (0, 2, 4, 5), "short": (0, 2, 3, 5), "at home first": (1, 2, 4, 5)}


def test_a_plan_has_a_path_behind_every_trunk_whichever_it_would_use_alone(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {LOCAL: make_service(LOCAL, digits, 0), HOST: make_service(HOST, digits, 1)}
    first = make_run(tmp_path / "first", own, digits, vectors=VECTORS)
    folder = tmp_path / "services"
    for name, service in {OTHER: make_service(OTHER, digits, 7), HOST: own[HOST]}.items():
        service.save(folder / name)
    monkeypatch.setenv("CODE_RAY_SERVICES", str(folder))
    config = {
        "local": OTHER,
        "data": "digits",
        "hosts": {HOST: {"kappa": first.plan.kappa[HOST]}},
        "providers": {OTHER: first.plan.placement[LOCAL], HOST: first.plan.placement[HOST]},
        "trust": "shared",
        "trunk": str(first.root),
        "kinds": ["probe"],
        "loss_points": 50.0,
        "rerun_shares": [],
        "screen": 0,
        "stopping": {"max_trainings": 4, "c_stop": 4},
        "rivals": 0,
        "confirm": 0,
        "controls": False,
        "distilled_epochs": 0,
        "recipe": RECIPE.model_dump(),
    }
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "search", str(file), "--out", str(tmp_path / "second")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = read_plan(RunDirectory(tmp_path / "second").plan_file)
    probes = {hout: path_from_vector((0, 2, hout), OTHER, 6, HOST, 6) for hout in (3, 4)}
    assert {found.inference_path(planned) for planned in found.paths[1:]} == set(probes.values())
    both = join(RunDirectory(first.root), RunDirectory(tmp_path / "second"), tmp_path / "both")
    assert {tuple(path for _, path in both.behind(trunk)) for trunk in both.trunks} == {
        (first.paths[name], probes[hout]) for name, hout in (("long", 4), ("short", 3))
    }


def test_behind_a_trunk_measured_gates_are_worth_what_they_are_and_a_plain_path_no_more_than_itself() -> None:
    original = Candidate(original_path(LOCAL, 6), PathCost({"a": 0.001}))
    objective = GatedPlanObjective(original, 0.9, Limits({"a": 1.0, "b": 1.0}, 0.4, {}), "a", (0.05,))
    plain = path_from_vector((0, 2, 4, 5), LOCAL, 6, HOST, 6)
    gated = replace(plain, rerun=0.05)
    known = {plain: (PathCost({"a": 1e-5, "b": 2e-4}), 0.893), gated: (PathCost({"a": 6e-5, "b": 2e-4}), 0.8965)}
    # With the gate that it expects of the plain path the objective thinks more of that.
    assert objective.value({plain: known[plain]}) > objective.value({gated: known[gated]})
    assert best_behind_trunks(cast(Any, SimpleNamespace(plan_objective=objective)), known) == [gated]
