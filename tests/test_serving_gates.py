"""Gated paths over Ray Serve and HTTP: what a path is not sure of is answered by the original, counted, and planned with."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray import serve
from serving import BATCH, FIXED, LOCAL, Run, eventually, exported, relative_difference, running_serve, write_plan

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.gating import Gate, confidence, make_gates
from code_ray.plan import PlannedPath
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.config import AppOptions, RouterOptions

GATED = ("exit", "cross")


def gate_of(name: str, run: Run, digits: DataSet) -> Gate:
    """The gate of a path at a third of the images."""
    images = digits.validation.images
    original = run.logits(ORIGINAL, images).argmax(1)
    (gate,) = make_gates(run.logits(name, images), original, digits.validation.labels, (0.33,))
    return gate


def gated(name: str, run: Run, digits: DataSet) -> PlannedPath:
    """The plan's entry of a path behind its gate."""
    planned, gate = run.planned(name), gate_of(name, run, digits)
    text = str(replace(run.paths[name], rerun=gate.rerun))
    changes = {"path": text, "id": f"{planned.id}-{gate.rerun:g}", "links": planned.id, "threshold": gate.threshold, "accuracy": 0.91}
    return planned.model_copy(update=changes)


@pytest.fixture(scope="module")
def entries(served_run: Run, digits: DataSet) -> dict[str, PlannedPath]:
    return {name: gated(name, served_run, digits) for name in GATED}


@pytest.fixture(scope="module")
def url(served_run: Run, entries: dict[str, PlannedPath], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The original and two gated paths, whose plain forms are not in the plan."""
    root: Path = tmp_path_factory.mktemp("gates") / "run"
    shutil.copytree(served_run.root, root)
    write_plan(root, served_run.plan.model_copy(update={"paths": (served_run.planned(ORIGINAL), *entries.values())}))
    router = RouterOptions(steering="plan", path_deadline_s=60, request_deadline_s=120)
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=root, providers={"alpha": FIXED, "beta": FIXED}, router=router)))
        yield base


@pytest.mark.parametrize("name", GATED)
def test_what_a_path_is_not_sure_of_the_original_answers(
    name: str, url: str, served_run: Run, entries: dict[str, PlannedPath], digits: DataSet
) -> None:
    images = digits.test.images[: 5 * BATCH]
    plain, original = served_run.logits(name, images), served_run.logits(ORIGINAL, images)
    threshold = entries[name].threshold
    assert threshold is not None
    unsure = confidence(plain) < threshold
    assert 0 < unsure.sum() < len(images)
    with Client(url, timeout_s=120) as client:
        answer = client.predict(LOCAL, images, path=entries[name].id)
    assert answer.path == entries[name].id
    assert relative_difference(answer.logits[unsure], original[unsure]) <= 1e-5
    assert relative_difference(answer.logits[~unsure], plain[~unsure]) <= 1e-5


def test_reruns_are_counted_and_their_share_follows_the_traffic(
    url: str, served_run: Run, entries: dict[str, PlannedPath], digits: DataSet
) -> None:
    entry = entries["exit"]
    plain = served_run.logits("exit", digits.test.images[:400])
    threshold = entry.threshold
    assert threshold is not None
    surest = digits.test.images[:400][np.argsort(-confidence(plain))[:64]]

    def rerun(client: Client) -> float:
        return next(float(path["rerun"]) for path in client.metadata(LOCAL)["parameters"]["paths"] if path["id"] == entry.id)

    with Client(url, timeout_s=120) as client:
        before = rerun(client)
        for _ in range(30):
            client.predict(LOCAL, surest, path=entry.id)
        assert 0 <= rerun(client) < 0.6 * before
    eventually(lambda: "reruns_total" in exported(), "no rerun is exported")
    found = {labels["path"]: value for labels, value in exported()["reruns_total"]}
    assert found[entry.id] > 0


def test_metadata_says_which_paths_are_gated(url: str, entries: dict[str, PlannedPath]) -> None:
    with Client(url, timeout_s=120) as client:
        paths = {path["id"]: path for path in client.metadata(LOCAL)["parameters"]["paths"]}
    assert set(paths) == {ORIGINAL, *(entry.id for entry in entries.values())}
    assert "rerun" not in paths[ORIGINAL]
    assert {paths[entry.id]["kind"] for entry in entries.values()} == set(GATED)
    assert all(0 <= paths[entry.id]["rerun"] < 1 for entry in entries.values())
