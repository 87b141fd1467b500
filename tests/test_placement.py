"""What cannot be placed on a cluster is said by name and in time: ``python -m deployments deploy``, on a real Ray with its dashboard."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import serve
from serving import BATCH, Run, free_port

from code_ray.errors import ConfigError, DeploymentError
from deployments.placement import deploy


@pytest.fixture(scope="module", autouse=True)
def one_cpu_on_betas_node() -> Iterator[None]:
    """A cluster of one node with one CPU, which belongs to provider beta."""
    with pytest.MonkeyPatch.context() as patch:
        dashboard = free_port()
        patch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{dashboard}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        settings: dict[str, Any] = {"include_dashboard": True, "dashboard_port": dashboard, "log_to_driver": False}
        ray.init(address="local", num_cpus=1, resources={"provider:beta": 1}, logging_level=logging.ERROR, **settings)
        try:
            yield
            serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()


def write_config(folder: Path, run: Run, pinned: dict[str, bool]) -> Path:
    """An application for each provider in ``pinned``, each of which takes one CPU."""
    applications = [
        {
            "name": f"provider-{name}",
            "route_prefix": None,
            "import_path": "deployments:build_provider",
            "args": {
                "run_dir": str(run.root),
                "provider": name,
                "options": {"pinned": is_pinned, "mode": "float32", "batch_size": BATCH},
            },
        }
        for name, is_pinned in pinned.items()
    ]
    file = folder / "config.yaml"
    http = {"host": "127.0.0.1", "port": free_port()}
    file.write_text(yaml.safe_dump({"proxy_location": "HeadOnly", "http_options": http, "applications": applications}))
    return file


def test_what_cannot_be_placed_is_named_with_what_it_lacks(served_run: Run, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(DeploymentError, match=r"'provider-alpha' cannot be deployed: .*no node has the resource 'provider:alpha'"):
        deploy(write_config(tmp_path, served_run, {"alpha": True}), 120, said.append)
    deploy(write_config(tmp_path, served_run, {"alpha": False}), 120, said.append)
    assert said[-1] == "provider-alpha: RUNNING"
    with pytest.raises(DeploymentError) as late:
        deploy(write_config(tmp_path, served_run, {"alpha": False, "beta": True}), 15, said.append)
    message = str(late.value)
    assert "not running after 15 s: provider-beta." in message
    assert "provider-beta.provider-beta asks for 1 CPU, 0.01 provider:beta" in message
    assert "1 CPU there (provider-alpha.provider-alpha 1)" in message


def test_a_file_without_applications_is_refused_before_anything_is_deployed(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("http_options: {}\n")
    with pytest.raises(ConfigError, match="names no applications"):
        deploy(file, 1, print)
