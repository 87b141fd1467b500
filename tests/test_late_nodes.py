"""The Serve part of ``deployments/clusters/kuberay.yaml``, given to a Ray cluster of a head alone, as KubeRay does; its nodes come later."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from serving import eventually, free_port

from code_ray.client import Client
from code_ray.errors import RequestError

FILE = Path(__file__).parent.parent / "deployments/clusters/kuberay.yaml"
WITHIN_S = 150.0
CODE = [sys.executable, "-m"]


@pytest.fixture
def head() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        dashboard = free_port()
        patch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{dashboard}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": dashboard})
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield cluster
            serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]


def serve_config(keys_file: Path, port: int) -> dict[str, Any]:
    """What the file gives to Serve, but for what a machine that is all nodes at once cannot have: volumes, and a proxy for each node."""
    config: dict[str, Any] = yaml.safe_load(next(yaml.safe_load_all(FILE.read_text()))["spec"]["serveConfigV2"])
    for application in config["applications"]:
        del application["args"]["run_dir"]
    config["applications"][-1]["args"]["router"]["keys_file"] = str(keys_file)
    return {**config, "proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}


def states() -> dict[str, str]:
    return {name: application.status.value for name, application in serve.status().applications.items()}


def test_applications_wait_for_their_providers_nodes_and_then_answer(head: Cluster, tmp_path: Path) -> None:
    keys, port = tmp_path / "keys.json", free_port()
    made = subprocess.run([*CODE, "deployments", "keys", "add", "shop", "--file", str(keys)], capture_output=True, text=True, check=True)
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(serve_config(keys, port)))
    subprocess.run([*CODE, "ray.serve.scripts", "deploy", str(file)], check=True, capture_output=True)
    time.sleep(5)
    assert set(states().values()) == {"DEPLOYING"}
    nodes = {}
    for provider in ("fashion-cnn", "efficientnet-lite0"):
        node = head.add_node(num_cpus=2, labels={"provider": provider}, resources={f"provider:{provider}": 1})
        nodes[node.node_id] = provider
    eventually(lambda: set(states().values()) == {"RUNNING"}, "every application runs", WITHIN_S)
    alive = [(actor.name or "", actor.node_id) for actor in list_actors(detail=True, limit=1000) if actor.state == "ALIVE"]
    places = {(name.split("#")[1], nodes.get(node or "")) for name, node in alive if name.startswith("SERVE_REPLICA::")}
    assert places == {("router", "fashion-cnn"), *((f"provider-{name}", name) for name in nodes.values())}
    with Client(f"http://127.0.0.1:{port}", key=made.stdout.strip(), timeout_s=60) as client:
        answer = client.predict("fashion-cnn", np.zeros((4, 28, 28), np.uint8))
        assert answer.logits.shape == (4, 10)
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(RequestError, match="an API key is needed"):
        client.predict("fashion-cnn", np.zeros((1, 28, 28), np.uint8))
