"""Where replicas run: logical GPUs, real ones, what the cluster has not got, and a replica that cannot start."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import serve
from ray.serve import Application
from serving import BATCH, FIXED, HOST, LOCAL, Run, make_service, relative_difference, running_serve, tree_hash

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import DeploymentError
from code_ray.packing import unpacked
from deployments import build_app, build_provider, build_router
from deployments.builder import read_specs
from deployments.config import AppOptions, ProviderAppOptions, ProviderOptions, RouterAppOptions, RouterOptions
from deployments.provider import Provider, choose_device
from deployments.stores import open_plan

CUDA = torch.cuda.is_available()
GPU = FIXED.model_copy(update={"num_gpus": 1.0})
PATIENT = RouterOptions(path_deadline_s=60, request_deadline_s=120)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A cluster of 3 CPUs and one GPU, which is only a number where there is none."""
    with running_serve(num_cpus=3, num_gpus=1) as base:
        yield base


def app(run: Run, host: ProviderOptions) -> Application:
    return build_app(AppOptions(run_dir=run.root, providers={"alpha": FIXED, "beta": host}, router=PATIENT))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 2.0}, "the deployment needs 2 GPU and the cluster has 1; lower num_gpus"),
        ({"num_cpus": 3.0}, "the deployment needs 3.5 CPU and the cluster has 3; lower num_cpus"),
        ({"pinned": True}, "provider 'beta' is pinned and no node has the resource 'provider:beta'"),
    ],
    ids=["GPUs", "CPUs", "nodes"],
)
def test_more_than_the_cluster_has_is_refused_before_anything_starts(
    changes: dict[str, object], message: str, url: str, served_run: Run
) -> None:
    with pytest.raises(DeploymentError, match=message):
        app(served_run, FIXED.model_copy(update=changes))
    with pytest.raises(DeploymentError):
        build_provider(ProviderAppOptions(run_dir=served_run.root, provider="beta", options=ProviderOptions(num_cpus=3.5, num_gpus=2)))
    assert serve.status().applications == {}


def test_a_router_pinned_beside_the_local_service_wants_that_providers_node(url: str, served_run: Run) -> None:
    with pytest.raises(DeploymentError, match="no node has the resource 'provider:alpha'; start its node with --resources="):
        build_router(RouterAppOptions(run_dir=served_run.root, router=RouterOptions(pinned=True)))


def test_a_provider_with_a_gpu_is_placed_on_it_and_answers(url: str, served_run: Run, digits: DataSet) -> None:
    assert free_gpus() == 1.0
    serve.run(app(served_run, GPU), name="on-gpu")
    try:
        assert free_gpus() == 0.0
        images = digits.test.images[:BATCH]
        with Client(url, timeout_s=120) as client:
            answer = client.predict(LOCAL, images, path=served_run.id_of("cross"))
        assert answer.path == served_run.id_of("cross")
        assert relative_difference(answer.logits, served_run.logits("cross", images)) <= (1e-3 if CUDA else 1e-5)
    finally:
        serve.delete("on-gpu")


def free_gpus() -> float:
    return float(ray.available_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]


def test_a_replica_that_cannot_start_fails_its_deployment_with_the_cause(
    url: str, served_run: Run, digits: DataSet, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(served_run.root, tmp_path / "run"))
    folder = run_dir / f"stores/beta/services/{HOST}"
    shutil.rmtree(folder)
    make_service(HOST, digits, seed=9).save(folder)
    before = tree_hash(run_dir)
    options = ProviderAppOptions(run_dir=run_dir, provider="beta", options=FIXED)
    with pytest.raises(RuntimeError, match="provider-beta"):
        serve.run(build_provider(options), name="changed", route_prefix=None)
    try:
        message = serve.status().applications["changed"].deployments["provider-beta"].message
        assert "IntegrityError: service 'host' has content" in message
        assert "the plan was made for" in message
    finally:
        serve.delete("changed")
    assert tree_hash(run_dir) == before


@pytest.mark.skipif(CUDA, reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_an_error_with_the_fix(served_run: Run) -> None:
    run, plan = open_plan(served_run.root)
    options = ProviderOptions(device="cuda")
    with pytest.raises(DeploymentError, match="torch sees no GPU here; set it to 'auto' or 'cpu', or num_gpus to at least 1"):
        Provider("beta", plan, run, run, read_specs(run, plan), options)


@pytest.mark.parametrize(
    ("options", "device"),
    [
        (ProviderOptions(), "cpu"),
        (ProviderOptions(device="cpu", num_gpus=1), "cpu"),
        (ProviderOptions(num_gpus=1), "cuda" if CUDA else "cpu"),
    ],
)
def test_auto_takes_a_gpu_where_one_is_reserved_and_there(options: ProviderOptions, device: str) -> None:
    assert choose_device(options) == device


@pytest.mark.skipif(not CUDA, reason="torch sees no CUDA device on this machine")
def test_a_provider_on_cuda_computes_what_one_on_the_cpu_computes(
    served_run: Run, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else convolutions of float32 are computed in TF32, which is 1e-3 off.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    run, plan = open_plan(served_run.root)
    images = digits.test.images[: 2 * BATCH]
    outputs = []
    for device in ("cuda", "cpu"):
        options = ProviderOptions.model_validate({"device": device, "mode": "float32", "batch_size": BATCH})
        provider = Provider("alpha", plan, run, run, read_specs(run, plan), options)
        outputs.append(unpacked(asyncio.run(provider.run(plan.paths[0].leg_key(0), images))))
    on_cuda, on_cpu = outputs
    assert isinstance(on_cuda, np.ndarray)
    assert isinstance(on_cpu, np.ndarray)
    assert relative_difference(on_cuda, on_cpu) <= 1e-4
