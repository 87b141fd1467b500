"""Where replicas wait for a place, and why: Serve itself only says that an application is deploying."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.util.state import list_actors

from code_ray.errors import ConfigError, DeploymentError

WITHIN_S = 180.0
"""Time to start a Serve, load torch, and measure a provider's legs on a busy machine."""

_REPLICA = "SERVE_REPLICA::"
_LOOK_S = 1.0


def deploy(file: Path, within_s: float, say: Callable[[str], None]) -> None:
    """Give ``file`` to ``serve deploy`` and wait until every application in it runs. The caller has connected to the Ray cluster.

    Raises:
        ConfigError: for a file that names no applications.
        DeploymentError: where an application cannot be built, or does not run in time: what waits, and for what.
    """
    names = _applications(file)
    end = time.monotonic() + within_s
    given = subprocess.run([sys.executable, "-m", "ray.serve.scripts", "deploy", str(file)], capture_output=True, text=True, check=False)
    if given.returncode != 0:
        raise DeploymentError(f"'serve deploy' refuses {file}: {given.stderr.strip()[-2000:]}")
    told: dict[str, str] = {}
    while True:
        found = serve.status().applications
        states = {name: found[name].status if name in found else ApplicationStatus.NOT_STARTED for name in names}
        for name, state in states.items():
            if told.get(name) != state:
                told[name] = state
                say(f"{name}: {state.value}")
        if failed := [name for name, state in states.items() if state == ApplicationStatus.DEPLOY_FAILED]:
            raise DeploymentError("; ".join(f"application {name!r} cannot be deployed: {_cause(found[name].message)}" for name in failed))
        late = [name for name, state in states.items() if state != ApplicationStatus.RUNNING]
        if not late:
            return
        if time.monotonic() > end:
            reasons = [*waiting()] or [f"{name} is {states[name].value}" for name in late]
            raise DeploymentError(f"not running after {within_s:g} s: {', '.join(late)}. {' '.join(f'{reason}.' for reason in reasons)}")
        time.sleep(_LOOK_S)


def _applications(file: Path) -> list[str]:
    try:
        content = yaml.safe_load(file.read_text())
        return [str(application["name"]) for application in content["applications"]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} names no applications ({error!r}); see deployments/serve_config.yaml for one that does") from error


def _cause(message: str) -> str:
    """The last line of a traceback."""
    return message.strip().splitlines()[-1] if message.strip() else "see the controller's log below /tmp/ray/session_latest/logs/serve"


def waiting() -> list[str]:
    """For each replica that has no place on this cluster what it asks for, and which node could give it if it were free."""
    actors: Sequence[Any] = list_actors(address=ray.get_runtime_context().gcs_address, detail=True, limit=10_000)
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    held = [actor for actor in actors if actor.state == "ALIVE" and actor.required_resources]
    return [
        f"{_short(actor.name)} {_why(actor.required_resources, nodes, held)}"
        for actor in actors
        if actor.state == "PENDING_CREATION" and (actor.name or "").startswith(_REPLICA) and actor.required_resources
    ]


def _why(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, Any]], held: Sequence[Any]) -> str:
    asks = f"asks for {', '.join(f'{amount:g} {resource}' for resource, amount in sorted(wanted.items()))}"
    for resource, amount in wanted.items():
        if not any(node["Resources"].get(resource, 0.0) >= amount for node in nodes):
            return f"{asks}, and no node has so much {resource!r}"
    fitting = [node for node in nodes if all(node["Resources"].get(resource, 0.0) >= amount for resource, amount in wanted.items())]
    if not fitting:
        return f"{asks}, and no single node has all of it"
    return f"{asks}; {'; '.join(_taken(node, wanted, held) for node in fitting)}"


def _taken(node: Mapping[str, Any], wanted: Mapping[str, float], held: Sequence[Any]) -> str:
    here = [actor for actor in held if actor.node_id == node["NodeID"]]
    takers = {
        resource: [f"{_short(actor.name)} {actor.required_resources[resource]:g}" for actor in here if resource in actor.required_resources]
        for resource in wanted
    }
    told = [f"{node['Resources'][resource]:g} {resource} there ({', '.join(names)})" for resource, names in takers.items() if names]
    return f"node {node['NodeManagerAddress']} has it, of which others hold a part: {' and '.join(told) or 'none, it is starting'}"


def _short(name: str | None) -> str:
    """``application.deployment`` of a replica, or what an actor is called otherwise."""
    return (name or "an actor").removeprefix(_REPLICA).rsplit("#", 1)[0].replace("#", ".")
