"""``cluster.yaml`` and its variants for clouds are what ``ray up`` accepts, and say what the deployments rely on; the one for Kubernetes is
what Ray, Serve and Kubernetes read alike.
"""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import V1NetworkPolicy, V1PodTemplateSpec, V1Service
from pydantic import BaseModel
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema

from deployments.config import DEFAULT_RUN_DIR, ProviderAppOptions, RouterAppOptions
from deployments.routes import provider_deployment
from deployments.stores import open_plan

ROOT = Path(__file__).parent.parent
COMMANDS = ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


KUBERAY = ROOT / "deployments/clusters/kuberay.yaml"
CLOUDS = sorted({*KUBERAY.parent.glob("*.yaml")} - {KUBERAY}, key=lambda file: file.name)

# Of the fields that KubeRay has of its own (about 1.7), those that fit here. The API server drops others without a word.
SPEC = {"rayClusterConfig", "serveConfigV2", "serveService", "upgradeStrategy", "excludeHeadPodFromServeSvc"}
CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", "headServiceAnnotations", "gcsFaultToleranceOptions"}
GROUP = {"template", "rayStartParams", "labels", "resources"}
HEAD = GROUP | {"serviceType", "headService", "enableIngress"}
WORKERS = GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"}


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


@pytest.fixture
def kubernetes() -> dict[str, list[dict[str, Any]]]:
    """The objects of the variant for Kubernetes by kind."""
    objects = [*yaml.safe_load_all(KUBERAY.read_text())]
    return {kind: [found for found in objects if found["kind"] == kind] for kind in ("RayService", "Service", "NetworkPolicy", "Secret")}


@pytest.fixture
def ray_service(kubernetes: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    (found,) = kubernetes["RayService"]
    return found


@pytest.fixture
def groups(ray_service: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's group, and the workers'."""
    cluster = ray_service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.fixture
def applications(ray_service: dict[str, Any]) -> list[dict[str, Any]]:
    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    assert ServeDeploySchema.model_validate(config).http_options.host == "0.0.0.0"
    found: list[dict[str, Any]] = config["applications"]
    return found


def test_kubernetes_and_kuberay_know_every_field(
    kubernetes: dict[str, list[dict[str, Any]]], ray_service: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    parts: list[tuple[type[BaseModel], Any]] = [(V1PodTemplateSpec, group["template"]) for group in groups]
    parts += [(V1Service, found) for found in kubernetes["Service"]]
    parts += [(V1NetworkPolicy, found) for found in kubernetes["NetworkPolicy"]]
    for model, part in parts:
        # The models know fields by their Python names too, which Kubernetes does not: those would come back by another name.
        assert model.model_validate(part).model_dump(mode="json", by_alias=True, exclude_none=True) == part
    assert ray_service["apiVersion"] == "ray.io/v1"
    assert ray_service.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert ray_service["spec"].keys() <= SPEC
    assert ray_service["spec"]["upgradeStrategy"] == {"type": "None"}
    assert ray_service["spec"]["rayClusterConfig"].keys() <= CLUSTER
    assert groups[0].keys() <= HEAD
    for workers in groups[1:]:
        assert workers.keys() <= WORKERS
        # KubeRay refuses labels there, and resources in both places.
        assert not workers["rayStartParams"].keys() & {"labels", "resources", "num-cpus"}


def test_kuberays_pods_start_ray_with_options_that_it_has(groups: list[dict[str, Any]]) -> None:
    options = {name.removeprefix("--") for option in start.params for name in option.opts}
    assert "num-cpus" in options
    for group in groups:
        assert group["rayStartParams"].keys() <= options


def test_ray_reads_a_group_for_each_provider_of_the_shipped_plan(ray_service: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    cluster = {"metadata": {"name": "code-ray", "namespace": "code-ray"}, "spec": ray_service["spec"]["rayClusterConfig"]}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    _, plan = open_plan(DEFAULT_RUN_DIR)
    assert types.keys() == {"headgroup", *plan.placement.values()}
    assert types["headgroup"]["resources"]["CPU"] == 0
    for provider in plan.placement.values():
        (own,) = [kind for kind in types.values() if kind["labels"] == {"provider": provider}]
        assert own["resources"][f"provider:{provider}"] == 1
        assert own["min_workers"] == own["max_workers"] == 1
    for group in groups[1:]:
        assert types[group["groupName"]]["labels"] == {"provider": group["groupName"]}
        assert group["replicas"] == 1


def test_serve_accepts_the_applications_of_serve_config_each_on_its_providers_node(applications: list[dict[str, Any]]) -> None:
    shipped = yaml.safe_load((ROOT / "deployments/serve_config.yaml").read_text())["applications"]
    assert [(app["name"], app["import_path"]) for app in applications] == [(app["name"], app["import_path"]) for app in shipped]
    _, plan = open_plan(DEFAULT_RUN_DIR)
    for app in applications:
        if "provider" in app["args"]:
            provider = ProviderAppOptions.model_validate(app["args"]).provider
            name = provider_deployment(provider)
        else:
            assert RouterAppOptions.model_validate(app["args"]).router.keys_file is not None
            provider, name = plan.placement[plan.local], "router"
        (deployment,) = app["deployments"]
        assert deployment["name"] == name
        assert deployment["ray_actor_options"]["label_selector"] == {"provider": provider}


def test_only_its_own_group_mounts_a_providers_volume_and_only_the_routers_the_keys(
    groups: list[dict[str, Any]], applications: list[dict[str, Any]]
) -> None:
    router = applications[-1]
    keys_dir = str(Path(router["args"]["router"]["keys_file"]).parent)
    for group in groups:
        pod, provider = group["template"]["spec"], group.get("groupName")
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert {*mounted.values()} == volumes.keys()
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume]
        assert claims == ([f"code-ray-{provider}"] if provider else [])
        for app in applications:
            if app["deployments"][0]["ray_actor_options"]["label_selector"]["provider"] == provider:
                assert str(Path(app["args"]["run_dir"]).parent) in mounted
        has_keys = provider == router["deployments"][0]["ray_actor_options"]["label_selector"]["provider"]
        assert [volume["secret"] for volume in volumes.values() if "secret" in volume] == [{"secretName": "code-ray-keys"}] * has_keys
        assert (keys_dir in mounted) == has_keys


def test_kuberay_makes_the_token_no_secret_is_written_down_and_the_dashboard_stays_inside(
    kubernetes: dict[str, list[dict[str, Any]]], ray_service: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    assert kubernetes["Secret"] == []
    assert ray_service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    for group in groups:
        # A value here would take the place of KubeRay's own.
        names = {variable["name"] for container in group["template"]["spec"]["containers"] for variable in container["env"]}
        assert not {name for name in names if name.startswith("RAY_AUTH")}
        assert group["template"]["metadata"]["labels"] == {"app": "code-ray"}
    assert groups[0]["serviceType"] == "ClusterIP"
    assert groups[0]["enableIngress"] is False
    (service,) = kubernetes["Service"]
    assert [port["port"] for port in service["spec"]["ports"]] == [8000]
    all_pods, ingress = [policy["spec"] for policy in kubernetes["NetworkPolicy"]]
    assert all_pods["podSelector"] == {"matchLabels": {"app": "code-ray"}}
    assert all("from" in rule for rule in all_pods["ingress"])
    assert ingress["podSelector"]["matchLabels"] == service["spec"]["selector"] == {"app": "code-ray", "ray.io/group": "fashion-cnn"}
    assert ingress["ingress"] == [{"ports": [{"port": 8000}]}]
