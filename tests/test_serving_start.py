"""What is wrong before a deployment starts is said before it starts; where only a replica can know, it says so itself."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import ValidationError
from serving import FIXED, HOST, LOCAL, Run, make_service, tree_hash

from code_ray.data import DataSet
from code_ray.errors import ArtifactError, CodeRayError, ConfigError, IntegrityError, PlanError, ServiceError
from deployments import build_app, build_provider, build_router
from deployments.builder import read_specs
from deployments.config import AppOptions, ProviderAppOptions, ProviderOptions, RouterAppOptions, RouterOptions
from deployments.provider import Provider
from deployments.stores import open_plan

Damage = Callable[[Path], None]


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left() -> Iterator[None]:
    """A provider in this process measures Ray's object store, which starts a Ray that later modules would meet."""
    yield
    ray.shutdown()


@pytest.fixture
def run_dir(served_run: Run, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(served_run.root, tmp_path / "run"))


def change_plan(**changes: Any) -> Damage:
    def change(run_dir: Path) -> None:
        file = run_dir / "plan.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def remove(name: str) -> Damage:
    return lambda run_dir: (run_dir / name).unlink()


def overwrite(name: str, text: str) -> Damage:
    def write(run_dir: Path) -> None:
        (run_dir / name).write_text(text)

    return write


def planned(path: str) -> dict[str, Any]:
    return {"path": path, "id": "some-id", "accuracy": 1, "link_hashes": {}}


ORIGINAL = planned("tiny[0:6]")
HOST_FOLDER = f"stores/beta/services/{HOST}"
UNUSABLE: list[tuple[str, Damage, type[CodeRayError], str]] = [
    ("no plan", remove("plan.json"), ArtifactError, "is not a run directory with a plan.json; give the --out of a search"),
    ("an empty plan", overwrite("plan.json", ""), PlanError, "plan.json is malformed"),
    ("half a plan", overwrite("plan.json", '{"local": "tiny"'), PlanError, "plan.json is malformed"),
    ("a plan of the future", change_plan(schema_version=2), PlanError, "malformed at schema_version"),
    ("no path", change_plan(paths=[]), PlanError, r"paths\[0\] is not the original path of 'tiny'"),
    ("what is no path", change_plan(paths=[planned("x")]), PlanError, "'x' is not a path"),
    ("a path without its original", change_plan(paths=[planned("tiny[0:3] > logits")]), PlanError, r"paths\[0\] is not the original path"),
    ("an unknown host", change_plan(paths=[ORIGINAL, planned("tiny[0:1] > x[1:2] > logits")]), PlanError, "'x', which has no provider"),
    ("blocks a host has not", change_plan(paths=[ORIGINAL, planned("tiny[0:1] > host[1:9] > logits")]), PlanError, "has 6"),
    ("another number of blocks", change_plan(num_blocks=5, paths=[planned("tiny[0:5]")]), PlanError, "has 6"),
    ("an unknown local service", change_plan(local="x"), PlanError, "'x', which has no provider"),
    ("a service without a provider", change_plan(placement={"tiny": "alpha"}), PlanError, "'host', which has no provider"),
    ("a share of nobody", change_plan(kappa={"x": 0.5}), PlanError, "'x', which has no provider"),
    ("a host without a share", change_plan(kappa={}), PlanError, "borrows from 'host', whose kappa is not a share"),
    ("a share of nothing", change_plan(kappa={"host": 0}), PlanError, "borrows from 'host', whose kappa is not a share"),
    ("no service.json", remove(f"{HOST_FOLDER}/service.json"), ServiceError, "is not a service folder"),
    ("half a service.json", overwrite(f"{HOST_FOLDER}/service.json", "{"), ServiceError, "service.json is malformed"),
]


@pytest.mark.parametrize(("damage", "error", "message"), [case[1:] for case in UNUSABLE], ids=[case[0] for case in UNUSABLE])
@pytest.mark.parametrize("builder", ["app", "provider", "router"])
def test_a_run_directory_that_cannot_be_served_is_named_before_anything_starts(
    builder: str, damage: Damage, error: type[CodeRayError], message: str, run_dir: Path
) -> None:
    damage(run_dir)
    before = tree_hash(run_dir)
    with pytest.raises(error, match=message):
        build(builder, run_dir)
    assert tree_hash(run_dir) == before


def build(builder: str, run_dir: Path, router: RouterOptions = RouterOptions()) -> object:  # noqa: B008
    if builder == "app":
        return build_app(AppOptions(run_dir=run_dir, router=router))
    if builder == "provider":
        return build_provider(ProviderAppOptions(run_dir=run_dir, provider="beta"))
    return build_router(RouterAppOptions(run_dir=run_dir, router=router))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere is not a run directory"):
        build_app(AppOptions(run_dir=tmp_path / "nowhere"))


def test_a_search_that_has_not_finished_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="its search has not finished: run the same search again"):
        build_app(AppOptions(run_dir=tmp_path))


def test_a_service_that_is_nowhere_is_named(run_dir: Path) -> None:
    shutil.rmtree(run_dir / HOST_FOLDER)
    with pytest.raises(ServiceError, match="host is not a service folder"):
        build_app(AppOptions(run_dir=run_dir))


def test_options_of_an_unknown_provider_are_refused(served_run: Run) -> None:
    with pytest.raises(ConfigError, match=r"'providers' names \['gamma'\], which the plan does not; there are: alpha, beta"):
        build_app(AppOptions(run_dir=served_run.root, providers={"gamma": ProviderOptions()}))
    with pytest.raises(ConfigError, match="'provider' is 'gamma', which the plan does not know; there are: alpha, beta"):
        build_provider(ProviderAppOptions(run_dir=served_run.root, provider="gamma"))


@pytest.mark.parametrize("builder", ["app", "router"])
def test_a_path_that_the_plan_does_not_hold_is_refused(builder: str, served_run: Run) -> None:
    with pytest.raises(ConfigError, match=r"'use' names \['nowhere'\], which the plan does not hold; there are:"):
        build(builder, served_run.root, RouterOptions(use=("nowhere",)))


@pytest.mark.parametrize(
    "options",
    [{"mode": "float16"}, {"batch_size": 0}, {"num_gpus": -1}, {"device": "tpu"}, {"threads": 0}, {"burst_s": 0}, {"gpus": 1}],
    ids=lambda options: next(iter(options)),
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        ProviderOptions.model_validate(options)


def start(name: str, run_dir: Path) -> Provider:
    """A provider's server in this process, as its replica makes it."""
    run, plan = open_plan(run_dir)
    return Provider(name, plan, run, run, read_specs(run, plan), FIXED)


def links_file(run_dir: Path, served_run: Run) -> Path:
    return run_dir / f"stores/beta/{served_run.id_of('cross')}-link0-link1.safetensors"


def test_links_that_are_cut_short_are_named_when_their_provider_starts(run_dir: Path, served_run: Run) -> None:
    file = links_file(run_dir, served_run)
    file.write_bytes(file.read_bytes()[:-100])
    before = tree_hash(run_dir)
    with pytest.raises(
        PlanError, match=f"links of path {served_run.id_of('cross')} cannot be loaded from .*copy the provider's store again"
    ):
        start("beta", run_dir)
    start("alpha", run_dir)
    assert tree_hash(run_dir) == before


def test_links_of_another_path_are_not_taken_for_these(run_dir: Path, served_run: Run) -> None:
    _, plan = open_plan(run_dir)
    swapped = [p.model_copy(update={"link_hashes": {"link0": "0" * 64, "link1": "0" * 64}}) if p.link_hashes else p for p in plan.paths]
    (run_dir / "plan.json").write_text(plan.model_copy(update={"paths": tuple(swapped)}).model_dump_json())
    with pytest.raises(IntegrityError, match="is not the link the plan names"):
        start("beta", run_dir)


def test_another_version_of_a_service_is_not_served(run_dir: Path, digits: DataSet) -> None:
    shutil.rmtree(run_dir / HOST_FOLDER)
    make_service(HOST, digits, seed=9).save(run_dir / HOST_FOLDER)
    before = tree_hash(run_dir)
    with pytest.raises(IntegrityError, match=r"service 'host' has content .*, the plan was made for .*; search again"):
        start("beta", run_dir)
    assert tree_hash(run_dir) == before


def test_weights_that_are_not_the_recorded_ones_are_not_served(run_dir: Path) -> None:
    file = run_dir / f"stores/alpha/services/{LOCAL}/weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="of 'tiny' is not what its hash"):
        start("alpha", run_dir)
