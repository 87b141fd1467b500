"""What each host has before ``ray up``: the package's wheel, its provider's name, store and weights; and what the operator has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml
from hosts import Room
from trained import make_service

from code_ray.data import load_data
from code_ray.plan import read_plan
from code_ray.service import Service

ROOT = Path(__file__).parent.parent.parent
PLAN = ROOT / "deployments/default_plan"
LOCAL, LENDER = "fashion-cnn", "efficientnet-lite0"
PROVIDERS = {"head": LOCAL, "lender": LENDER, "third": "third"}
ADDRESSES = {"head": 10, "lender": 11, "third": 12, "operator": 20}
VENV = "/opt/code_ray/venv/bin"
EVERYWHERE = r"find / \( -path /proc -o -path /sys -o -path /dev -o -path /srv/shared \) -prune -o -type f"
WEIGHTS = {
    LOCAL: r"-path '*/fashion-cnn/weights.safetensors'",
    LENDER: r"\( -path '*/efficientnet-lite0/weights.safetensors' -o -name 'efficientnet-lite0-*.pth' \)",
}
"""How ``find`` knows the files that hold a provider's weights."""
OWN = {"head": "tiny", "lender": "host"}
"""A small service of each host's own, for the search."""
SERVICES = "root/.local/share/code_ray/services"
SEARCH = f"""
local: tiny
data: digits
hosts: {{host: {{kappa: 1.0}}}}
providers: {{tiny: {LOCAL}, host: {LENDER}}}
trust: split
vectors: [[1, 1, 2, 5], [1, 2, 3, 5], [0, 1, 2, 5], [1, 4]]
kinds: [cross, skip]
loss_points: 30.0
screen: 2
stopping: {{max_trainings: 2, c_stop: 2}}
rivals: 1
confirm: 0
distilled_epochs: 0
concurrency: 1
recipe: {{samples: 200, fit_samples: 100, steps: 10, joint_steps: 10}}
"""


def furnish(room: Room) -> None:
    """Start three hosts and the operator's machine, and put on each what is its own."""
    shared = room.files / "shared"
    _build_wheel(shared / "operator/dist")
    shutil.copytree(PLAN, shared / "plan")
    for program in ("ask.py", "plant.py"):
        shutil.copy(Path(__file__).with_name(program), shared / "operator")
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    config["provider"] |= {"head_ip": "10.99.0.10", "worker_ips": ["10.99.0.11", "10.99.0.12"]}
    (shared / "operator/cluster.yaml").write_text(yaml.safe_dump(config, sort_keys=False, width=1000))
    (shared / "operator/serve.yaml").write_text(yaml.safe_dump(_serve_config(), sort_keys=False))
    (shared / "search.yaml").write_text(SEARCH)
    for name, number in ADDRESSES.items():
        room.add(name, number)
        room.run(name, f"ln -s {sys.prefix} /opt/code_ray/venv")
        for owner, files in WEIGHTS.items():
            if PROVIDERS.get(name) != owner:
                room.run(name, f"{EVERYWHERE} {files} -exec rm {{}} +")
    for name, provider in PROVIDERS.items():
        room.run(name, f"mkdir /etc/code_ray && echo {provider} > /etc/code_ray/provider")
        # Each with its own store, the local service's with its weights too; and the canaries.
        room.run(name, "cp -r /srv/shared/plan /opt/code_ray/plan")
        foreign = [f"stores/{other}" for other in WEIGHTS if other != provider] + ["canaries.safetensors"] * (provider != LOCAL)
        room.run(name, f"cd /opt/code_ray/plan && rm -r {' '.join(foreign)}")
    service = f"/opt/code_ray/plan/stores/{LOCAL}/services"
    room.run("head", f"mkdir {service} && cp -r {ROOT}/code_ray/weights/{LOCAL} {service}")
    key = (room.files / "key").read_text()
    room.run("operator", f"umask 077; cp -r /srv/shared/operator ~; printf %s '{key}' > ~/.ssh/code_ray; mkdir -p ~/.code_ray/secrets")
    room.run("operator", f"umask 077; RAY_USAGE_STATS_ENABLED=0 {VENV}/ray get-auth-token --generate > ~/.code_ray/secrets/auth_token")
    room.run("operator", f"{VENV}/pip install -q --force-reinstall --no-deps ~/operator/dist/*.whl")
    room.say("three hosts and the operator's machine are up")


def give_own_services(room: Room) -> dict[str, Service]:
    """Make services with weights that nobody has seen before, and put each on its own host alone; by the names of the hosts."""
    digits, seed = load_data("digits"), int.from_bytes(os.urandom(4), "little")
    services = {host: make_service(name, digits, seed + number) for number, (host, name) in enumerate(OWN.items())}
    for host, service in services.items():
        folder = room.root(host) / SERVICES
        folder.mkdir(parents=True, exist_ok=True)
        service.save(folder / service.name)
    return services


def _build_wheel(folder: Path) -> None:
    """The package as ``pip wheel`` makes it, less the weights of the one provider here whose weights ship with it."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    (whole,) = folder.glob("*.whl")
    stripped = folder / "stripped"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            if entry.filename != f"code_ray/weights/{LOCAL}/weights.safetensors":
                target.writestr(entry, source.read(entry))
    stripped.replace(whole)


def _serve_config() -> dict[str, object]:
    """The shipped configuration for a cluster and for clients elsewhere. Only paths through the lender are used, and they always."""
    config: dict[str, object] = yaml.safe_load((ROOT / "deployments/serve_config.yaml").read_text())
    config["http_options"] = {"host": "0.0.0.0", "port": 8000}
    applications = config["applications"]
    assert isinstance(applications, list)
    for application in applications:
        args = application["args"] | {"run_dir": "/opt/code_ray/plan"}
        if application["name"] == "router":
            args["router"] |= {"pinned": True, "keys_file": "/opt/code_ray/keys.json", "steering": "plan", "use": list(borrowing())}
        else:
            args["options"] = {"pinned": True}
        application["args"] = args
    return config


def borrowing() -> tuple[str, ...]:
    """Ids of the plan's paths that go through the lender."""
    plan = read_plan(PLAN / "plan.json")
    return tuple(planned.id for planned in plan.paths if plan.inference_path(planned).hosts)
