"""Another version of a host's service: links fitted again by the host alone, and served without losing a request."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray import serve
from serving import (
    BATCH,
    FIXED,
    HOST,
    LOCAL,
    PLACEMENT,
    Load,
    Run,
    eventually,
    relative_difference,
    running_serve,
    turn,
    with_canaries,
    write_plan,
)
from torch import nn

from code_ray.blocks import ExecutionMode, content_hash
from code_ray.calibration import save_calibrations
from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import ArtifactError, PlanError, ServiceError
from code_ray.links import Link
from code_ray.plan import load_leg_links, read_plan
from code_ray.policy import ORIGINAL
from code_ray.runner import walk
from code_ray.service import Service, load_service
from code_ray.zoo import BUILDERS
from deployments import build_app
from deployments.config import AppOptions, RouterOptions
from deployments.upgrade import upgrade

ROUTER = RouterOptions(path_deadline_s=60, request_deadline_s=120, steering="plan")


def version(service: Service, noise: float, folder: Path) -> Path:
    """A folder with other weights: each differs by ``noise`` of its tensor's spread."""
    service.save(folder)
    other = load_service(folder, BUILDERS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.blocks.parameters():
            other_weight = weight + noise * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
            weight.copy_(other_weight.half())
    hashes = tuple(content_hash(block) for block in other.blocks)
    Service(other.spec.model_copy(update={"block_hashes": hashes}), other.blocks).save(folder)
    return folder


@pytest.fixture(scope="module")
def run(served_run: Run, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A plan with canaries and what its host needs to fit its links again."""
    root = tmp_path_factory.mktemp("plan") / "run"
    shutil.copytree(served_run.root, root)
    found = replace(served_run, root=root)
    images = digits.test.images[:BATCH]
    original = found.logits(ORIGINAL, images).argmax(1)
    agreements = [float((found.logits(name, images).argmax(1) == original).mean()) for name in found.paths]
    paths = tuple(p.model_copy(update={"agreement": share}) for p, share in zip(found.plan.paths, agreements, strict=True))
    plan = with_canaries(found, found.plan.model_copy(update={"paths": paths}), digits.validation.images[:8])
    write_plan(root, plan)
    save_calibrations(plan, found.services, digits.train.images, lambda _: ExecutionMode(), root / "stores")
    return replace(found, plan=plan)


def answers_of(root: Path, run: Run, host: Service) -> Run:
    """What lies in ``root``, as values: the new host with the links that were fitted again."""
    plan = read_plan(root / "plan.json")
    services = {**run.services, HOST: host}
    links: dict[str, dict[str, Link]] = {}
    for name, path in run.paths.items():
        planned = next(planned for planned in plan.paths if planned.path == str(path))
        links[name] = {}
        for leg in walk(path, PLACEMENT):
            links[name] |= load_leg_links(leg, path, planned, services, root / "stores" / leg.provider)
    return Run(root, plan, services, run.paths, links)


@pytest.fixture(scope="module")
def current(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    link: Path = tmp_path_factory.mktemp("deployed") / "current"
    turn(link, run.root)
    return link


@pytest.fixture(scope="module")
def url(current: Path) -> Iterator[str]:
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=current, providers={"alpha": FIXED, "beta": FIXED}, router=ROUTER)))
        yield base


def plan_in_force(url: str) -> str:
    with Client(url, timeout_s=60) as client:
        told: str = client.metadata(LOCAL)["parameters"]["plan"]
        return told


def test_a_version_that_answers_clients_otherwise_than_its_plan_says_is_refused_and_the_old_one_stays(
    url: str, current: Path, run: Run, digits: DataSet, tmp_path: Path
) -> None:
    before, images = plan_in_force(url), digits.test.images[:BATCH]
    upgrade(run.root, HOST, version(run.services[HOST], 0.01, tmp_path / "new"), tmp_path / "out")
    plan = read_plan(tmp_path / "out" / "plan.json")
    assert any(planned.agreement is not None and planned.agreement < 0.8 for planned in plan.paths)
    paths = tuple(planned.model_copy(update={"agreement": 1.0}) for planned in plan.paths)
    write_plan(tmp_path / "out", plan.model_copy(update={"paths": paths}))

    def refused() -> str:
        with Client(url, timeout_s=60) as client:
            return str(client.metadata(LOCAL)["parameters"]["plan_refused"])

    with Load(url, LOCAL, images) as load:
        turn(current, tmp_path / "out")
        eventually(lambda: "does not answer as the original does as often as before" in refused(), "nothing is refused")
    assert load.failures == []
    assert plan_in_force(url) == before


def test_a_host_upgrades_under_load_and_nothing_is_lost(url: str, current: Path, run: Run, digits: DataSet, tmp_path: Path) -> None:
    folder, out = version(run.services[HOST], 0.02, tmp_path / "new"), tmp_path / "out"
    command = [sys.executable, "-m", "deployments", "upgrade", HOST, str(folder), "--run-dir", str(run.root), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("with the new ones") == 3  # both crosses and the probe
    images = digits.test.images[:BATCH]
    host = load_service(folder, BUILDERS)
    new = answers_of(out, run, Service(host.spec.model_copy(update={"name": HOST}), host.blocks))
    with Load(url, LOCAL, images) as load, Load(url, HOST, images) as own:
        eventually(lambda: len(load.answers) > 5 and len(own.answers) > 5, "nothing is answered")
        turn(current, out)
        eventually(lambda: plan_in_force(url) == new.plan.id, "the plan is not in force")
        before = len(load.answers)
        eventually(lambda: len(load.answers) > before + 5, "nothing is answered any more")
    assert load.failures == own.failures == []
    with Client(url, timeout_s=120) as client:
        for name in ("cross", "raw cross", "probe"):
            answer = client.predict(LOCAL, images, path=run.id_of(name))
            assert relative_difference(answer.logits, new.logits(name, images)) < 1e-4
            assert relative_difference(answer.logits, run.logits(name, images)) > 1e-3
        # The host's own clients have the new version too.
        own_answer = client.predict(HOST, images).logits
    with torch.inference_mode():
        expected = nn.Sequential(*host.blocks)(host.preprocess(images)).numpy()
    assert relative_difference(own_answer, expected) < 1e-4


def test_fitted_links_are_nearer_to_what_they_made_than_the_old_ones(run: Run, tmp_path: Path) -> None:
    refits = upgrade(run.root, HOST, version(run.services[HOST], 0.05, tmp_path / "new"), tmp_path / "out")
    assert len(refits) == 3
    assert all(refit.after < 0.7 * refit.before for refit in refits), refits


@pytest.mark.parametrize(
    ("noise", "service", "error", "said"),
    [
        (3.0, HOST, PlanError, "too far from the one before; search again"),
        (0.0, HOST, ServiceError, "the version of 'host' that is served already"),
        (0.05, LOCAL, PlanError, "borrows from no service 'tiny'; there are: host"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, noise: float, service: str, error: type[Exception], said: str
) -> None:
    folder = version(run.services[HOST], noise, tmp_path / "new")
    with pytest.raises(error, match=said):
        upgrade(run.root, service, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_kept_activations_a_search_is_asked_for(served_run: Run, tmp_path: Path) -> None:
    folder = version(served_run.services[HOST], 0.05, tmp_path / "new")
    with pytest.raises(ArtifactError, match="nothing can be fitted again; a new search writes it"):
        upgrade(served_run.root, HOST, folder, tmp_path / "out")
