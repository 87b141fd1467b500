"""``cluster.yaml`` and its variants for clouds are what ``ray up`` accepts, and say what the deployments rely on."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from deployments.config import DEFAULT_RUN_DIR
from deployments.stores import open_plan

ROOT = Path(__file__).parent.parent
COMMANDS = ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


CLOUDS = sorted((ROOT / "deployments/clusters").glob("*.yaml"), key=lambda file: file.name)


@pytest.fixture
def config() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    node_type = prepared["available_node_types"][prepared["head_node_type"]]
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
def test_ray_accepts_the_clouds_with_a_node_for_each_provider_of_the_shipped_plan(file: Path) -> None:
    prepared = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(prepared)
    types = prepared["available_node_types"].values()
    _, plan = open_plan(DEFAULT_RUN_DIR)
    for provider in plan.placement.values():
        (own,) = [kind for kind in types if kind["labels"] == {"provider": provider}]
        assert own["resources"][f"provider:{provider}"] == 1
    assert sum(kind["min_workers"] for kind in types) == prepared["max_workers"] == len(types) - 1
    for command in (prepared["head_start_ray_commands"][-1], prepared["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command


@pytest.mark.parametrize("group", COMMANDS)
def test_every_command_is_valid_bash(config: dict[str, Any], group: str) -> None:
    for command in config[group]:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{command}\n{checked.stderr}"


def test_head_and_workers_carry_their_provider_and_want_the_token(config: dict[str, Any]) -> None:
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert '--resources="$(cat /opt/code_ray/resources.json)" --labels="$(cat /opt/code_ray/labels)"' in command
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_enable_autoscaler_v2=0" in head


def test_set_up_turns_a_hosts_provider_name_into_resource_and_label(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "provider").write_text("alpha\n")
    for command in config["setup_commands"]:
        if command.startswith("printf"):
            here = command.replace("/etc/code_ray", str(tmp_path)).replace("/opt/code_ray", str(tmp_path))
            subprocess.run(["bash", "-c", here], check=True)
    assert json.loads((tmp_path / "resources.json").read_text()) == {"provider:alpha": 1}
    assert (tmp_path / "labels").read_text() == "provider=alpha"


def test_it_installs_the_wheel_of_this_version(config: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    wheel = f"/opt/code_ray/dist/code_ray-{version}-py3-none-any.whl"
    assert sum(wheel in command for command in config["setup_commands"]) == 2
