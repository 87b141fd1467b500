"""A cluster of three hosts as an operator makes it: ``ray up``, a deployment, a search, hosts cut off and lost, ``ray down``.

``make test-cluster`` runs this; plain ``pytest`` does not collect it. The tests stand in the order of events and share one cluster:
they run with ``-x`` as one. The hosts are namespaces on this machine (hosts.py). What differs from three real ones: the two cores are
shared, and what pip would download is there already (the hosts' venv begins as a copy of this one, so that ``pip install`` of the wheel
finds torch and Ray). ``cluster.yaml`` itself is used with other addresses and no other change.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import URL, Asking, borrowed, failures, summary
from capture import capture
from furnish import (
    ADDRESSES,
    EVERYWHERE,
    LENDER,
    LOCAL,
    OWN,
    PLAN,
    PROVIDERS,
    ROOT,
    SERVICES,
    VENV,
    WEIGHTS,
    furnish,
    give_own_services,
)
from hosts import Room, RoomError, open_room
from traces import crossed, processes, raylets, watched
from weight_scan import Weights

from code_ray.canaries import load_canaries
from code_ray.plan import read_plan
from code_ray.policy import ORIGINAL
from code_ray.service import Service, read_spec
from code_ray.zoo import description_file

# The first test stands for the whole way up.
pytestmark = pytest.mark.timeout(600)

OPERATOR = (
    f"cd ~/operator; export PATH={VENV}:$PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.code_ray/secrets/auth_token "
    "RAY_USAGE_STATS_ENABLED=0;"
)
ON_HEAD = "cd /opt/code_ray; export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0;"
FOUND = "/srv/shared/runs/digits"
BEGUN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGUN:6.0f} s  {text}", flush=True)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Three hosts with sshd, the package's wheel and the weights of their own provider, and the operator's machine."""
    print()
    try:
        with open_room(tmp_path_factory.mktemp("room"), say) as opened:
            furnish(opened)
            yield opened
    except RoomError as error:
        pytest.skip(str(error))


def eventually(what: str, seconds: float, check: Callable[[], bool]) -> None:
    """Wait until ``check`` holds."""
    begun = time.monotonic()
    while not check():
        assert time.monotonic() - begun < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(1)
    say(f"{what}: after {time.monotonic() - begun:.0f} s")


def nodes(room: Room) -> list[dict[str, object]]:
    """Addresses, resources, labels and states of the cluster's nodes, as Ray tells them on the head."""
    program = 'import json, ray; ray.init(address="auto", logging_level="ERROR", log_to_driver=False); print(json.dumps(ray.nodes(), default=str))'
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


def test_the_doctor_names_what_is_wrong_on_each_host(room: Room) -> None:
    package = "/opt/code_ray/venv/lib/python3.*/site-packages/code_ray-*.dist-info/METADATA"
    room.run("lender", f"{EVERYWHERE} {WEIGHTS[LENDER]} -exec mv {{}} {{}}.away \\;")
    room.run("third", f"cp {package} /root/metadata && sed -i 's/^Version: .*/Version: 0.0.9/' {package}")
    room.run("third", "fallocate -l 200M /tmp/fill && mount -o remount,size=$(($(df -k --output=used /tmp | tail -1) + 6000))k /tmp")
    done = room.run("head", f"{ON_HEAD} {VENV}/python -m deployments doctor --run-dir /opt/code_ray/plan", check=False)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    lender, third = (f"10.99.0.{ADDRESSES[name]}" for name in ("lender", "third"))
    assert done.returncode == 1, done.stdout
    assert [line for line in wrong if f"node {third}" in line and "has code_ray 0.0.9 instead of" in line], done.stdout
    assert [line for line in wrong if f"on {third}" in line and "% full" in line and "free space" in line], done.stdout
    assert [line for line in wrong if f"provider {LENDER!r} on {lender}" in line], done.stdout
    assert len(wrong) == 3, done.stdout
    say("a missing weights file, another version and a full disk are named")
    room.run("third", f"rm /tmp/fill; mount -o remount,size=50% /tmp; cp /root/metadata {package}")
    undo = r"f={}; mv $f ${f%.away}"
    room.run("lender", f"{EVERYWHERE} -name '*.away' -exec sh -c '{undo}' \\;")


@pytest.fixture(scope="module")
def right_labels() -> list[str]:
    """What the original path answers to the images that the client sends."""
    plan = read_plan(PLAN / "plan.json")
    assert plan.canaries is not None
    description = description_file(LOCAL)
    assert description is not None
    labels = read_spec(description).labels
    return [labels[index] for index in load_canaries(PLAN / "canaries.safetensors", plan.canaries).logits[ORIGINAL].argmax(1)]


def test_a_deployment_starts_with_each_part_on_its_own_host_and_answers_another_machine(room: Room, key: str) -> None:
    begun = time.monotonic()
    room.run("operator", f"{OPERATOR} ray rsync-up cluster.yaml serve.yaml /opt/code_ray/serve.yaml")
    room.watch("head", f"{ON_HEAD} {VENV}/python -m deployments deploy serve.yaml")
    say(f"deployed: {time.monotonic() - begun:.0f} s")
    parts = {name: sorted(line.split(":")[-1] for line in processes(room, name) if "ray::ServeReplica" in line) for name in PROVIDERS}
    assert parts == {"head": [f"provider-{LOCAL}", "router", "router"], "lender": [f"provider-{LENDER}"], "third": []}
    assert room.run("operator", f"curl -s -o /dev/null -w '%{{http_code}}' {URL}/v2/models/{LOCAL}").stdout == "401"
    answers = Asking(room, key, 10).wait()
    say(f"from another machine: {summary(answers)}")
    assert failures(answers) == []
    assert borrowed(answers) > len(answers) / 2


@pytest.fixture(scope="module")
def services(room: Room) -> dict[str, Service]:
    """Services with fresh weights, each on its own host alone, by the host's name."""
    return give_own_services(room)


@pytest.fixture(scope="module")
def weights(services: dict[str, Service]) -> Weights:
    """The weights of both owners."""
    return Weights({service.name: service for service in services.values()})


def test_a_search_over_services_that_are_on_their_own_hosts_alone_trains_on_both(room: Room, services: dict[str, Service]) -> None:
    run = room.files / "shared/runs/digits"
    begun = time.monotonic()
    with watched(room, run) as seen:
        printed = room.watch("head", f"{ON_HEAD} RAY_ADDRESS=10.99.0.10:6379 {VENV}/python -m search /srv/shared/search.yaml --out {FOUND}")
    say(f"searched: {time.monotonic() - begun:.0f} s; seen at work: {sorted(seen)}")
    assert "the plan serves" in printed
    assert "Traceback" not in printed
    assert seen == {("head", "trial"), ("lender", "party")}
    plan = read_plan(run / "plan.json")
    assert plan.services == {service.name: service.content_hash for service in services.values()}
    assert any(plan.inference_path(planned).hosts for planned in plan.paths), "no path of the plan borrows"


def test_no_weights_of_either_owner_crossed_the_switch_or_are_anywhere_but_at_home(room: Room, weights: Weights) -> None:
    begun = time.monotonic()
    assert crossed(weights, room.files / "searched", say) == []
    for name in room.hosts:
        files, read = weights.find_in_files(*room.written(name), room.root(name) / "tmp/ray")
        stores, held = weights.find_in_stores(raylets(room, name))
        say(f"{name}: {read / 1e6:.1f} MB in files, {held / 1e6:.1f} MB in the object store")
        assert [file.endswith(f"/{SERVICES}/{OWN.get(name)}/weights.safetensors") for file in files] == [True] * (name in OWN), files
        assert stores == {}
    # The run directory with what each party left there, and Tune's storage as it was while the search ran.
    kept = room.files / "kept"
    assert list(kept.rglob("tuner.pkl"))
    found_in_run, read = weights.find_in_files(room.files / "shared/runs", kept)
    assert found_in_run == {}
    say(f"nobody's weights are elsewhere: {read / 1e6:.1f} MB in the run directory and Tune's storage; {time.monotonic() - begun:.0f} s")


def test_weights_that_are_sent_through_ray_or_put_into_a_log_are_found(room: Room, weights: Weights) -> None:
    with capture(room.network, room.files / "planted"):
        room.run("head", f"{ON_HEAD} {VENV}/python /srv/shared/operator/plant.py {LENDER} {OWN['lender']}")
    found = crossed(weights, room.files / "planted", say)
    say(f"found: {found}")
    # The object, and what was small enough for a message.
    assert {of.split()[-1] for _, of in found} == {"torch.float32", "torch.bfloat16"}
    assert {ends for ends, _ in found} == {"10.99.0.11 > 10.99.0.10"}
    for name in ("head", "lender"):
        assert weights.find_in_stores(raylets(room, name))[0], f"not in the object store of {name}"
    log = "tmp/ray/session_latest/logs/planted.log"
    room.run("lender", f"cp /{SERVICES}/{OWN['lender']}/weights.safetensors /{log}")
    assert [Path(file).name for file in weights.find_in_files(room.root("lender") / "tmp/ray")[0]] == ["planted.log"]
    room.run("lender", f"rm /{log}")


def test_the_plan_that_was_found_can_be_served_by_hosts_with_their_own_stores(room: Room, services: dict[str, Service]) -> None:
    for service in services.values():
        folder = room.files / "shared/described" / service.name
        folder.mkdir(parents=True)
        (folder / "service.json").write_text(service.spec.model_dump_json())
    for name in PROVIDERS:
        others = [(PROVIDERS[host], service.name) for host, service in services.items() if host != name]
        told = [
            f"rm -rf {provider}; mkdir -p {provider}/services; cp -r /srv/shared/described/{of} {provider}/services"
            for provider, of in others
        ]
        room.run(name, f"cp -r {FOUND} /opt/code_ray/found; cd /opt/code_ray/found/stores; {'; '.join(told)}")
    said = room.run("head", f"{ON_HEAD} {VENV}/python -m deployments doctor --run-dir /opt/code_ray/found", check=False).stdout
    assert said.endswith("nothing is in the way\n"), said


def test_a_host_whose_link_was_cut_for_a_while_costs_no_request_and_is_used_again(room: Room, key: str) -> None:
    asking = Asking(room, key, 200)
    eventually("the lender is in use", 20, lambda: borrowed(asking.since(0)) > 20)
    room.cut("lender")
    say("the lender's link is cut")
    time.sleep(20)
    room.mend("lender")
    mended = time.time()
    say("the lender's link is whole again")
    # Serve may have missed three health checks and then makes another replica.
    eventually("the lender is in use again", 150, lambda: borrowed(asking.since(mended)) > 20)
    answers = asking.stop()
    say(f"with a link cut for 20 s: {summary(answers)}")
    assert failures(answers) == []


def test_a_host_whose_link_is_cut_and_whose_processes_die_costs_no_request_and_the_original_answers(
    room: Room, key: str, right_labels: list[str]
) -> None:
    asking = Asking(room, key, 50)
    eventually("the lender is in use", 20, lambda: borrowed(asking.since(0)) > 20)
    cut = time.time()
    room.cut("lender")
    say("the lender's link is cut")
    time.sleep(20)
    room.kill("lender")
    killed = time.time()
    say("every process of the lender is killed")
    answers = asking.wait()
    say(
        f"with a lost host: {summary(answers)}; {len(asking.since(cut))} of them after the cut, {len(asking.since(killed))} after the death"
    )
    assert failures(answers) == []
    # Those on their way when it was cut wait for path_deadline_s at most.
    without = asking.since(cut + 6)
    assert without
    assert asking.since(killed)
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
