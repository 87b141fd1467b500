"""What would keep a plan from being served here, found before it is tried: python -m deployments doctor.

On every node of a running Ray cluster, else on this machine: versions, disks, the token, each provider's node, its services and links,
the port.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from code_ray.artifact import RunDirectory
from code_ray.errors import CodeRayError
from code_ray.plan import Plan, load_leg_links
from code_ray.runner import walk
from code_ray.zoo import stored_spec
from deployments.plan_watch import read_offer
from deployments.stores import check_blocks, open_plan, services_known_to

PACKAGES = ("code_ray", "ray", "torch", "numpy")
FULLEST = 0.95
"""From this share on Ray runs nothing more on a node (``local_fs_capacity_threshold``)."""
ANSWER_S = 60.0
"""How long a node may take: the first task on it starts a process and imports torch."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is as it should be, and what was found; where it is not, what to do."""

    about: str
    is_good: bool
    said: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.is_good else 'WRONG'} {self.about}: {self.said}"


def examine(run_dir: Path, host: str, port: int) -> Iterator[Finding]:
    """All findings, one after the other. The caller has connected to a Ray cluster where one is to be looked at."""
    try:
        run, plan = open_plan(run_dir)
        specs = {name: stored_spec(name, run.stores_dir / plan.placement[name]) for name in plan.services}
        check_blocks(plan, specs)
    except CodeRayError as error:
        yield Finding("plan", False, str(error))
        return
    yield Finding("plan", True, f"{len(plan.paths)} paths of {plan.local!r}, providers {', '.join(sorted(set(plan.placement.values())))}")
    yield _port(host, port)
    if not ray.is_initialized():
        yield Finding("cluster", True, "no Ray runs here; 'serve run' starts one on this machine")
        yield from _told(look_at_disks(tempfile.gettempdir(), str(run_dir)), "this machine")
        for provider in sorted(set(plan.placement.values())):
            yield from _told(look_at_store(provider, str(run_dir)), "this machine")
        return
    yield _token()
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    yield from _versions(nodes)
    for node in nodes:
        session = Path(node["ObjectStoreSocketName"]).parent.parent
        yield from _asked(node, look_at_disks, str(session), str(run_dir))
    for provider in sorted(set(plan.placement.values())):
        yield from _provider(provider, nodes, run_dir)


def look_at_store(provider: str, run_dir: str) -> list[tuple[str, bool, str]]:
    """What a provider's own node says of its services, links and canaries; findings as plain values, since they travel."""
    about = f"provider {provider!r}"
    try:
        run, plan = open_plan(Path(run_dir))
        links = _load(provider, run, plan)
        canaries = read_offer(run, plan, provider).canaries
    except CodeRayError as error:
        return [(about, False, str(error))]
    told = f"services and {links} links are those of plan {plan.id}"
    if provider == plan.placement[plan.local] and canaries is None:
        told += "; it has no canaries, so wrong answers will not be noticed (a new search writes them)"
    return [(about, True, told)]


def look_at_disks(*places: str) -> list[tuple[str, bool, str]]:
    """What a node says of the disks that folders are on, those of them that it has; findings as plain values."""
    told = []
    for place in filter(os.path.exists, places):
        disk = shutil.disk_usage(place)
        share = 1 - disk.free / disk.total
        said = f"{100 * share:.0f} % full, {disk.free / 2**30:.1f} GiB free"
        if share >= FULLEST:
            told.append((f"disk of {place}", False, f"{said}; Ray runs nothing there from {100 * FULLEST:.0f} % on: free space"))
        else:
            told.append((f"disk of {place}", True, said))
    return told


def _load(provider: str, run: RunDirectory, plan: Plan) -> int:
    """Load a provider's services and links as its server does, hashes and all; how many links there are."""
    services, store = services_known_to(provider, plan, run.stores_dir), run.stores_dir / provider
    paths = [(planned, plan.inference_path(planned)) for planned in plan.all_paths]
    found = {
        (planned.links_id, link)
        for planned, path in paths
        for leg in walk(path, plan.placement)
        if leg.provider == provider
        for link in load_leg_links(leg, path, planned, services, store)
    }
    return len(found)


def versions_here() -> dict[str, str]:
    """Python's and the packages' versions in this process."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _port(host: str, port: int) -> Finding:
    about = f"port {host}:{port}"
    with socket.socket() as probe:
        probe.settimeout(2.0)
        if probe.connect_ex((host, port)) != 0:
            return Finding(about, True, "free")
    try:
        answer = httpx.get(f"http://{host}:{port}/v2", timeout=5.0, trust_env=False)
        ours = answer.status_code in (401, 403) or answer.json().get("name") == "code_ray"
    except (httpx.HTTPError, ValueError, AttributeError):
        ours = False
    if ours:
        return Finding(about, True, "code_ray answers there already")
    return Finding(about, False, "something else listens there; stop it, or set another port in http_options")


def _token() -> Finding:
    about, file = "token", Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return Finding(about, False, "RAY_AUTH_MODE is not 'token': whoever reaches this cluster can run code on it; set it on every node")
    if "RAY_AUTH_TOKEN" not in os.environ:
        if not file.exists():
            return Finding(about, False, f"{file} is not there; make one with 'ray get-auth-token --generate' and copy it to every node")
        if file.stat().st_mode & 0o077:
            return Finding(about, False, f"{file} can be read by others, and lets them run code on every node; chmod 600 {file}")
    return Finding(about, True, "only those who have it can join")


def _versions(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    here = versions_here()
    for node in nodes:
        about = f"node {node['NodeManagerAddress']}"
        there = _run_on(node, versions_here)
        if isinstance(there, Finding):
            yield there
            continue
        wrong = [f"{name} {there.get(name)} instead of {wanted}" for name, wanted in here.items() if there.get(name) != wanted]
        if wrong:
            yield Finding(about, False, f"has {', '.join(wrong)}; install the same as here")
        else:
            yield Finding(about, True, ", ".join(f"{name} {number}" for name, number in here.items()))


def _provider(provider: str, nodes: list[dict[str, Any]], run_dir: Path) -> Iterator[Finding]:
    resource, about = f"provider:{provider}", f"provider {provider!r}"
    own = [node for node in nodes if node["Resources"].get(resource, 0) > 0]
    labelled = [node for node in nodes if node.get("Labels", {}).get("provider") == provider]
    if not own and not labelled:
        yield Finding(about, True, "no node is its own (a pinned provider needs one with its resource and label, see cluster.yaml)")
    elif not own:
        start = f"ray start --resources='{{\"{resource}\": 1}}' --labels=provider={provider}"
        yield Finding(about, False, f"its node has the label and not the resource {resource!r}; start it with: {start}")
    for node in own or nodes[:1]:
        yield from _asked(node, look_at_store, provider, str(run_dir))


def _asked(node: Mapping[str, Any], look: Any, *args: str) -> Iterator[Finding]:
    told = _run_on(node, look, *args)
    yield from [told] if isinstance(told, Finding) else _told(told, node["NodeManagerAddress"])


def _told(found: list[tuple[str, bool, str]], where: str) -> Iterator[Finding]:
    for about, is_good, said in found:
        yield Finding(f"{about} on {where}", is_good, said)


def _run_on(node: Mapping[str, Any], work: Any, *args: str) -> Any:
    """What ``work`` returns on a node, or a finding where it does not run there."""
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(work).options(num_cpus=0, scheduling_strategy=strategy)
    try:
        return ray.get(task.remote(*args), timeout=ANSWER_S)
    except (RayError, TimeoutError) as error:
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return Finding(f"node {node['NodeManagerAddress']}", False, f"cannot run a task ({cause}); is the package installed there?")
