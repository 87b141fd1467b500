"""A cluster of three hosts as an operator makes it: ``ray up``, a deployment, a search, a host that is lost, ``ray down``.

``make test-cluster`` runs this; plain ``pytest`` does not collect it. The tests stand in the order of events and share one cluster:
they run with ``-x`` as one. The hosts are namespaces on this machine (hosts.py). What differs from three real ones: the two cores are
shared, and what pip would download is there already (the hosts' venv begins as a copy of this one, so that ``pip install`` of the wheel
finds torch and Ray). ``cluster.yaml`` itself is used with other addresses and no other change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hosts import Room, RoomError, open_room

from code_ray.canaries import load_canaries
from code_ray.plan import read_plan
from code_ray.policy import ORIGINAL
from code_ray.service import read_spec
from code_ray.zoo import description_file

# The first test stands for the whole way up.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parent.parent.parent
PLAN = ROOT / "deployments/default_plan"
LOCAL, LENDER = "fashion-cnn", "efficientnet-lite0"
PROVIDERS = {"head": LOCAL, "lender": LENDER, "third": "third"}
ADDRESSES = {"head": 10, "lender": 11, "third": 12, "operator": 20}
VENV = "/opt/code_ray/venv/bin"
OPERATOR = (
    f"cd ~/operator; export PATH={VENV}:$PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.code_ray/secrets/auth_token "
    "RAY_USAGE_STATS_ENABLED=0;"
)
ON_HEAD = "cd /opt/code_ray; export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0;"
URL = f"http://10.99.0.{ADDRESSES['head']}:8000"
CLIENTS = 4
EVERYWHERE = r"find / \( -path /proc -o -path /sys -o -path /dev -o -path /srv/shared \) -prune -o -type f"
WEIGHTS = {
    LOCAL: r"-path '*/fashion-cnn/weights.safetensors'",
    LENDER: r"\( -path '*/efficientnet-lite0/weights.safetensors' -o -name 'efficientnet-lite0-*.pth' \)",
}
"""How ``find`` knows the files that hold a provider's weights."""
SEARCH = """
local: alexnet-digits
data: digits
hosts: {alexnet-fashion: {kappa: 1.0}}
vectors: [[1, 1, 2, 5], [1, 2, 3, 5], [2, 4, 4, 5], [2, 3, 3, 4], [2], [3], [1, 4], [2, 5]]
loss_points: 5.0
screen: 4
stopping: {max_trainings: 3, c_stop: 3, epsilon: 0.02}
confirm: 1
concurrency: 3
recipe: {samples: 300, fit_samples: 200, steps: 20, joint_steps: 2}
"""
"""A search loads all of its services in every worker, so it is one over services that everybody may have."""

BEGUN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGUN:6.0f} s  {text}", flush=True)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Three hosts with sshd, the package's wheel and the weights of their own provider, and the operator's machine."""
    print()
    try:
        with open_room(tmp_path_factory.mktemp("room"), say) as opened:
            _furnish(opened)
            yield opened
    except RoomError as error:
        pytest.skip(str(error))


def _furnish(room: Room) -> None:
    shared = room.files / "shared"
    _build_wheel(shared / "operator/dist")
    shutil.copytree(PLAN, shared / "plan")
    shutil.copy(Path(__file__).with_name("ask.py"), shared / "operator")
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
    say("three hosts and the operator's machine are up")


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
            args["router"] |= {"pinned": True, "keys_file": "/opt/code_ray/keys.json", "steering": "plan", "use": list(_borrowing())}
        else:
            args["options"] = {"pinned": True}
        application["args"] = args
    return config


def _borrowing() -> tuple[str, ...]:
    """Ids of the plan's paths that go through the lender."""
    plan = read_plan(PLAN / "plan.json")
    return tuple(planned.id for planned in plan.paths if plan.inference_path(planned).hosts)


@dataclass(frozen=True)
class Answer:
    """What came of one request: ``path`` is None where it failed, and ``said`` why; else ``said`` are the labels."""

    begun: float
    seconds: float
    path: str | None
    said: object


class Asking:
    """Requests from the operator's machine, in the background."""

    def __init__(self, room: Room, key: str, seconds: float) -> None:
        command = f"cd ~/operator; exec {VENV}/python ask.py {URL} {key} {seconds:g} {CLIENTS}"
        self._process = subprocess.Popen(room.ssh("operator", command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.answers: list[Answer] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._process as process:
            for line in process.stdout or ():
                try:
                    self.answers.append(Answer(*json.loads(line)))
                except (ValueError, TypeError):
                    say(f"    client: {line.rstrip()}")

    def wait(self) -> list[Answer]:
        """All answers, when the time is over."""
        self._thread.join(300)
        assert self._process.returncode == 0
        return self.answers

    def since(self, moment: float) -> list[Answer]:
        """Answers to requests that began after ``moment``, in seconds since 1970."""
        return [answer for answer in list(self.answers) if answer.begun > moment]


def report(answers: list[Answer], what: str) -> None:
    assert answers
    seconds = sorted(answer.seconds for answer in answers)
    paths = ", ".join(f"{path}: {count}" for path, count in Counter(str(answer.path) for answer in answers).most_common())
    say(f"{what}: {len(answers)} requests, median {1000 * seconds[len(seconds) // 2]:.0f} ms, at most {seconds[-1]:.1f} s; {paths}")


def failures(answers: list[Answer]) -> list[object]:
    return [answer.said for answer in answers if answer.path is None]


def eventually(what: str, seconds: float, check: Callable[[], bool]) -> None:
    """Wait until ``check`` holds."""
    begun = time.monotonic()
    while not check():
        assert time.monotonic() - begun < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(1)
    say(f"{what}: after {time.monotonic() - begun:.0f} s")


def processes(room: Room, name: str) -> list[str]:
    """What runs on a host beside sshd and this question."""
    listed = room.run(name, "ps -eo pid=,args=").stdout.splitlines()
    return [line for line in listed if not any(known in line for known in ("sshd", "ps -eo"))]


def nodes(room: Room) -> list[dict[str, object]]:
    """Addresses, resources, labels and states of the cluster's nodes, as Ray tells them on the head."""
    program = 'import json, ray; ray.init(address="auto", logging_level="ERROR"); print(json.dumps(ray.nodes(), default=str))'
    done = room.run("head", f"{ON_HEAD} {VENV}/python -c '{program}'", check=False)
    return [node for node in json.loads(done.stdout.splitlines()[-1]) if node["Alive"]] if done.returncode == 0 else []


@pytest.fixture(scope="module")
def key(room: Room) -> str:
    """An API key of the deployment: clients on other machines need one."""
    return room.run("head", f"{ON_HEAD} {VENV}/python -m deployments keys add client --file keys.json").stdout.strip()


def test_ray_up_makes_one_cluster_of_the_three_with_their_labels_and_resources(room: Room) -> None:
    begun = time.monotonic()
    room.run("operator", f"{OPERATOR} ray up -y --no-config-cache cluster.yaml", timeout=400)
    say(f"ray up: {time.monotonic() - begun:.0f} s")
    eventually("all three hosts are in the cluster", 240, lambda: len(nodes(room)) == len(PROVIDERS))
    for node in nodes(room):
        (name,) = [name for name in PROVIDERS if node["NodeManagerAddress"] == f"10.99.0.{ADDRESSES[name]}"]
        resources, labels = node["Resources"], node["Labels"]
        assert isinstance(resources, dict)
        assert isinstance(labels, dict)
        assert resources[f"provider:{PROVIDERS[name]}"] == 1
        assert labels["provider"] == PROVIDERS[name]


def test_a_providers_weights_are_on_its_own_host_alone(room: Room) -> None:
    file = ROOT / f"code_ray/weights/{LOCAL}/weights.safetensors"
    for name, provider in PROVIDERS.items():
        found = {owner: room.run(name, f"{EVERYWHERE} {files} -print").stdout.split() for owner, files in WEIGHTS.items()}
        assert {owner for owner, files in found.items() if files} == {provider} & set(WEIGHTS), found
        # By their content too, whatever they are called.
        same = room.run(name, f"{EVERYWHERE} -size {file.stat().st_size}c -exec sha256sum {{}} +").stdout
        assert (hashlib.sha256(file.read_bytes()).hexdigest() in same) == (provider == LOCAL), same
    say("weights are on their own hosts alone")


def test_the_doctor_finds_nothing_in_the_way(room: Room) -> None:
    said = room.run("head", f"{ON_HEAD} {VENV}/python -m deployments doctor --run-dir /opt/code_ray/plan", check=False).stdout
    assert said.endswith("nothing is in the way\n"), said
    for name in ("head", "lender"):
        assert f"provider {PROVIDERS[name]!r} on 10.99.0.{ADDRESSES[name]}: services and" in said, said


@pytest.fixture(scope="module")
def right_labels() -> list[str]:
    """What the original path answers to the images that the client sends."""
    plan = read_plan(PLAN / "plan.json")
    assert plan.canaries is not None
    labels = read_spec(description_file(LOCAL)).labels
    return [labels[index] for index in load_canaries(PLAN / "canaries.safetensors", plan.canaries).logits[ORIGINAL].argmax(1)]


def borrowed(answers: list[Answer]) -> int:
    """How many of them took a path through the lender."""
    return sum(answer.path in _borrowing() for answer in answers)


def test_a_deployment_starts_with_each_part_on_its_own_host_and_answers_another_machine(room: Room, key: str) -> None:
    begun = time.monotonic()
    room.run("operator", f"{OPERATOR} ray rsync-up cluster.yaml serve.yaml /opt/code_ray/serve.yaml")
    room.watch("head", f"{ON_HEAD} {VENV}/python -m deployments deploy serve.yaml")
    say(f"deployed: {time.monotonic() - begun:.0f} s")
    parts = {name: sorted(line.split(":")[-1] for line in processes(room, name) if "ray::ServeReplica" in line) for name in PROVIDERS}
    assert parts == {"head": [f"provider-{LOCAL}", "router", "router"], "lender": [f"provider-{LENDER}"], "third": []}
    assert room.run("operator", f"curl -s -o /dev/null -w '%{{http_code}}' {URL}/v2/models/{LOCAL}").stdout == "401"
    answers = Asking(room, key, 10).wait()
    report(answers, "from another machine")
    assert failures(answers) == []
    assert borrowed(answers) > len(answers) / 2


def test_a_search_trains_on_several_hosts_and_its_plan_can_be_served(room: Room) -> None:
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(1):
            seen.update(name for name in PROVIDERS if any("PathTrial" in line for line in processes(room, name)))

    looking = threading.Thread(target=look)
    looking.start()
    begun = time.monotonic()
    out = "/srv/shared/runs/digits"
    try:
        printed = room.watch("head", f"{ON_HEAD} RAY_ADDRESS=10.99.0.10:6379 {VENV}/python -m search /srv/shared/search.yaml --out {out}")
    finally:
        over.set()
        looking.join()
    say(f"searched on {', '.join(sorted(seen))}: {time.monotonic() - begun:.0f} s")
    assert "the plan serves" in printed
    assert len(seen) > 1
    said = room.run("head", f"{ON_HEAD} {VENV}/python -m deployments doctor --run-dir {out}", check=False).stdout
    assert said.endswith("nothing is in the way\n"), said


def test_a_cut_link_costs_no_request_and_the_original_answers(room: Room, key: str, right_labels: list[str]) -> None:
    asking = Asking(room, key, 50)
    eventually("the lender is in use", 20, lambda: borrowed(asking.since(0)) > 20)
    cut = time.time()
    room.cut("lender")
    say("the lender's link is cut")
    time.sleep(20)
    room.join("lender")
    say("the lender's link is back")
    answers = asking.wait()
    report(answers, "with a cut")
    assert failures(answers) == []
    # Those on their way when it was cut wait for path_deadline_s at most.
    without = [answer for answer in answers if cut + 6 < answer.begun < cut + 19]
    assert without
    assert {answer.path for answer in without} == {ORIGINAL}
    assert all(answer.said == right_labels for answer in without)


def test_the_death_of_a_hosts_processes_costs_no_request_and_the_original_answers(room: Room, key: str, right_labels: list[str]) -> None:
    asking = Asking(room, key, 90)
    eventually("the lender is in use again", 60, lambda: borrowed(asking.since(time.time() - 2)) > 5)
    killed = time.time()
    room.kill("lender")
    say("every process of the lender is killed")
    answers = asking.wait()
    report(answers, "with a death")
    assert failures(answers) == []
    without = [answer for answer in answers if answer.begun > killed + 6]
    assert without
    assert {answer.path for answer in without} == {ORIGINAL}
    assert all(answer.said == right_labels for answer in without)


def test_ray_down_and_a_stop_on_each_host_leave_no_process(room: Room) -> None:
    begun = time.monotonic()
    room.run("operator", f"{OPERATOR} ray down -y cluster.yaml")
    say(f"ray down: {time.monotonic() - begun:.0f} s; left: { {name: len(processes(room, name)) for name in ('head', 'third')} }")
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    stop = f"for host in 10.99.0.10 10.99.0.12; do ssh -n {options} -i ~/.ssh/code_ray root@$host ray stop --force; done"
    room.run("operator", stop)
    eventually("no process is left on any host", 20, lambda: not any(processes(room, name) for name in ("head", "third")))
