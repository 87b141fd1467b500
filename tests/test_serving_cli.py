"""The command line: ``serve run`` of one application, and of one per provider; what imports build; the shipped configuration."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema
from serving import BATCH, LOCAL, Run, free_port, relative_difference

import deployments
from benchmarks.serving.processes import PROFILES
from code_ray.client import Client
from code_ray.data import DataSet
from deployments.config import DEFAULT_RUN_DIR
from deployments.stores import open_plan

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "deployments/serve_config.yaml"


MANY = 512
MOST_BY_VALUE = 4 << 20
"""Bytes of a message that Serve sends by value where it does so, which the throughput profile would."""


def small() -> dict[str, Any]:
    """Options of a provider, as they stand in a file."""
    return {"num_cpus": 0.5, "mode": "float32", "batch_size": BATCH}


def application(name: str, route: str | None, builder: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "route_prefix": route, "import_path": f"deployments:{builder}", "args": args}


@pytest.fixture
def config_file(served_run: Run, tmp_path: Path) -> Path:
    """Both ways to deploy a plan side by side: one application, and one per provider with a router."""
    run_dir, router = str(served_run.root), {"path_deadline_s": 60, "request_deadline_s": 120}
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            application("whole", "/whole", "build_app", run_dir=run_dir, router=router, providers={"alpha": small(), "beta": small()}),
            application("provider-alpha", None, "build_provider", run_dir=run_dir, provider="alpha", options=small()),
            application("renamed", None, "build_provider", run_dir=run_dir, provider="beta", options=small()),
            application("router", "/", "build_router", run_dir=run_dir, router=router, applications={"beta": "renamed"}),
        ],
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@contextmanager
def serve_run(config_file: Path, log_file: Path, profile: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """``serve run`` on a Ray of its own, ended as by Ctrl-C."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", **profile}
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | settings
    command = [str(Path(sys.executable).parent / "serve"), "run", "--address", "local", str(config_file)]
    with log_file.open("wb") as log, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_serve_run_serves_a_plan_whole_and_provider_by_provider(
    config_file: Path, served_run: Run, digits: DataSet, tmp_path: Path, profile: dict[str, str]
) -> None:
    port = yaml.safe_load(config_file.read_text())["http_options"]["port"]
    images, cross = np.resize(digits.test.images, (MANY, *digits.test.images.shape[1:])), served_run.id_of("cross")
    left_at = served_run.services[LOCAL].boundaries[served_run.paths["cross"].lout].shape
    assert MANY * math.prod(left_at) * 4 > MOST_BY_VALUE
    log_file = tmp_path / "log"
    with serve_run(config_file, log_file, profile) as process:
        for prefix in ("", "/whole"):
            with Client(f"http://127.0.0.1:{port}{prefix}", timeout_s=120) as client:
                end = time.monotonic() + 120
                while not client.is_ready():
                    assert process.poll() is None, log_file.read_text()
                    assert time.monotonic() < end, log_file.read_text()
                    time.sleep(0.2)
                answer = client.predict(LOCAL, images, path=cross)
                assert answer.path == cross
                assert relative_difference(answer.logits, served_run.logits("cross", images)) <= 1e-5


def test_serve_run_of_what_is_no_run_directory_ends_with_the_reason(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "serve"), "run", "--address", "local", "deployments:build_app", f"run_dir={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode != 0
    assert f"ArtifactError: {tmp_path} is not a run directory with a plan.json; give the --out of a search" in ended.stderr


def test_importing_the_package_builds_nothing_and_starts_nothing() -> None:
    program = (
        "import sys, ray, deployments\n"
        "from deployments import build_app, build_provider, build_router\n"
        "assert not ray.is_initialized()\n"
        "assert 'deployments.builder' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_the_package_has_no_other_late_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'application'"):
        _ = deployments.application


def test_rays_own_schema_accepts_the_shipped_configuration() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    assert config.http_options.host == "127.0.0.1"
    assert [a.route_prefix for a in config.applications] == [None] * (len(config.applications) - 1) + ["/"]


def test_the_shipped_configuration_builds_every_provider_of_the_shipped_plan_and_the_router() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    _, plan = open_plan(DEFAULT_RUN_DIR)
    for described in config.applications:
        module, _, name = described.import_path.partition(":")
        assert module == "deployments"
        built = call_user_app_builder_with_args_if_necessary(getattr(deployments, name), described.args)
        assert isinstance(built, Application)
    named = [described.args["provider"] for described in config.applications if "provider" in described.args]
    assert sorted(named) == sorted(set(plan.placement.values()))
