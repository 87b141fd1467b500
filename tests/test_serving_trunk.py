"""Services that are asked together over Ray Serve and HTTP: one pass of the host for both, each one's own answer, and what if it goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from serving import BATCH, FIXED, HOST, LOCAL, Run, eventually, handle_of, relative_difference, replica_id, running_serve
from trunks import OTHER, make_other_run

from code_ray.access import KeyFile
from code_ray.artifact import RunDirectory
from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.packing import unpacked
from code_ray.plan import Plan, PlannedTrunk, read_plan
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.config import AppOptions, RouterOptions

GROUP = f"{LOCAL}+{OTHER}"
HOST_OPTIONS = FIXED.model_copy(update={"burst_s": 1000.0})


@pytest.fixture(scope="module")
def runs(served_run: Run, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {LOCAL: served_run, OTHER: make_other_run(tmp_path_factory.mktemp("other"), served_run, digits)}


@pytest.fixture(scope="module")
def joined(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both plans, joined by the command."""
    out = tmp_path_factory.mktemp("joined") / "run"
    command = [sys.executable, "-m", "deployments", "join", str(runs[LOCAL].root), str(runs[OTHER].root), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"one pass for {runs[LOCAL].paths['raw cross']} and {runs[OTHER].paths['cross']}" in done.stdout
    assert f"ask {GROUP} for an answer of each" in done.stdout
    return out


@pytest.fixture(scope="module")
def plan(joined: Path) -> Plan:
    return read_plan(RunDirectory.open(joined).plan_file)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A file of two keys: one for everything, and one for a single service."""
    known, wide = KeyFile().with_key("wide", None, None)
    known, narrow = known.with_key("narrow", (LOCAL,), None)
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(known.model_dump_json())
    return file, wide, narrow


@pytest.fixture(scope="module")
def url(joined: Path, keys: tuple[Path, str, str]) -> Iterator[str]:
    router = RouterOptions(path_deadline_s=5, request_deadline_s=120, steering="plan", keys_file=keys[0])
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=joined, providers={"alpha": FIXED, "beta": HOST_OPTIONS}, router=router)))
        yield base


@pytest.fixture
def client(url: str, keys: tuple[Path, str, str]) -> Iterator[Client]:
    with Client(url, key=keys[1], timeout_s=120, retries=0) as client:
        yield client


def trunk_with(path: str, plan: Plan, runs: dict[str, Run]) -> PlannedTrunk:
    return next(trunk for trunk in plan.trunks if trunk.paths[OTHER] == runs[OTHER].id_of(path))


@pytest.mark.parametrize("name", ["cross", "probe"])
@pytest.mark.parametrize("shared", [True, False], ids=["behind the trunk", "one by one"])
def test_each_service_answers_what_its_own_path_answers(
    name: str, shared: bool, client: Client, plan: Plan, runs: dict[str, Run], digits: DataSet
) -> None:
    images, trunk = digits.test.images[:BATCH], trunk_with(name, plan, runs)
    wanted = trunk.id if shared else trunk.separate[0]
    answers = client.predict_together([LOCAL, OTHER], images, path=wanted)
    for service, path in ((LOCAL, "raw cross"), (OTHER, name)):
        logits = runs[service].logits(path, images)
        assert answers[service].path == wanted
        assert relative_difference(answers[service].logits, logits) <= 1e-5
        assert answers[service].labels == [digits.labels[i] for i in logits.argmax(1)]


def test_one_service_may_be_answered_by_its_path_and_the_other_by_its_original(
    client: Client, plan: Plan, runs: dict[str, Run], digits: DataSet
) -> None:
    images, path = digits.test.images[:BATCH], runs[OTHER].id_of("cross")
    answers = client.predict_together([LOCAL, OTHER], images, path=f"{ORIGINAL}+{path}")
    for service, name in ((LOCAL, "original"), (OTHER, "cross")):
        assert answers[service].path == f"{ORIGINAL}+{path}"
        assert relative_difference(answers[service].logits, runs[service].logits(name, images)) <= 1e-5


def test_the_host_runs_once_and_hands_on_what_each_service_needs(url: str, plan: Plan, runs: dict[str, Run], digits: DataSet) -> None:
    trunk, images = trunk_with("probe", plan, runs), digits.test.images[:BATCH]
    host = handle_of("provider-beta")
    local_part, logits = host.run.remote(trunk.leg_key(0), images).result(timeout_s=60)
    end = runs[LOCAL].services[LOCAL].boundaries[5].shape
    assert unpacked(ray.get(local_part)).shape == (BATCH, *end)
    assert relative_difference(unpacked(ray.get(logits)), runs[OTHER].logits("probe", images)) <= 1e-5
    report = host.describe.remote().result(timeout_s=60).legs
    legs = [report[run.planned(name).leg_key(0)] for run, name in ((runs[LOCAL], "raw cross"), (runs[OTHER], "probe"))]
    fan = report[trunk.leg_key(0)]
    assert sum(fan.branch_bytes) == fan.out_bytes == sum(leg.out_bytes for leg in legs)
    assert fan.in_bytes == legs[0].in_bytes


def test_the_server_says_which_services_can_be_asked_together(
    client: Client, url: str, keys: tuple[Path, str, str], plan: Plan, runs: dict[str, Run]
) -> None:
    models = httpx.get(f"{url}/v2", headers={"Authorization": f"Bearer {keys[1]}"}, timeout=60, trust_env=False).json()["models"]
    assert GROUP in models
    for name in (GROUP, f"{OTHER}+{LOCAL}"):
        told = client.metadata(name)
        assert told["name"] == GROUP
        assert [output["name"] for output in told["outputs"]] == [f"{s}.{o}" for s in (LOCAL, OTHER) for o in ("logits", "label")]
    kinds = {path["id"]: path["kind"] for path in told["parameters"]["paths"]}
    mixed = {name: "separate" for trunk in plan.trunks for name in trunk.separate}
    assert kinds == {ORIGINAL: "original"} | {trunk.id: "trunk" for trunk in plan.trunks} | mixed
    assert sum(path["share"] for path in told["parameters"]["paths"]) == pytest.approx(1)


def test_services_alone_are_answered_as_ever(client: Client, runs: dict[str, Run], digits: DataSet) -> None:
    images = digits.test.images[:BATCH]
    for service in (LOCAL, OTHER):
        answer = client.predict(service, images, path=runs[service].id_of("cross"))
        assert relative_difference(answer.logits, runs[service].logits("cross", images)) <= 1e-5
    assert client.predict(HOST, images).path == ORIGINAL


@pytest.mark.parametrize("services", [[LOCAL, HOST], [LOCAL, OTHER, "nobody"], [OTHER, OTHER]])
def test_what_is_not_answered_together_is_unknown(services: list[str], client: Client, digits: DataSet) -> None:
    with pytest.raises(RequestError, match=r"is unknown; there are: .*tiny\+other") as caught:
        client.predict_together(services, digits.test.images[:2])
    assert caught.value.status == 404


def test_whoever_may_ask_one_service_may_not_ask_it_with_others(url: str, keys: tuple[Path, str, str], digits: DataSet) -> None:
    images = digits.test.images[:2]
    with Client(url, key=keys[2], timeout_s=120) as client:
        assert client.predict(LOCAL, images).labels
        for order in ([LOCAL, OTHER], [OTHER, LOCAL]):
            with pytest.raises(RequestError, match="key 'narrow'") as caught:
                client.predict_together(order, images)
            assert caught.value.status == 403


def test_a_host_that_hangs_leaves_both_originals_and_is_used_again_once_it_was_replaced(
    client: Client, plan: Plan, runs: dict[str, Run], digits: DataSet
) -> None:
    trunk, images = trunk_with("cross", plan, runs), digits.test.images[:BATCH]
    assert client.predict_together([LOCAL, OTHER], images, path=trunk.id)[OTHER].path == trunk.id
    killed = replica_id("provider-beta")
    # Not killed at once: Serve would hand the request to the next replica, which may be up before the path's deadline.
    os.kill(killed, signal.SIGSTOP)
    answers = client.predict_together([LOCAL, OTHER], images, path=trunk.id)
    os.kill(killed, signal.SIGKILL)
    for service in (LOCAL, OTHER):
        assert answers[service].path == ORIGINAL
        assert relative_difference(answers[service].logits, runs[service].logits("original", images)) <= 1e-5
    eventually(
        lambda: client.predict_together([LOCAL, OTHER], images, path=trunk.id)[OTHER].path == trunk.id, "the trunk did not come back"
    )
    assert replica_id("provider-beta") != killed
