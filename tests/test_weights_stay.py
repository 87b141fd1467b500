"""With ``trust: split`` a host's weights are nowhere but with the host: not in the search, not in what Ray and Tune keep (DESIGN 3.3)."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from test_search import command, evaluations, write_config
from trained import CROSS, PATHS, PLACEMENT, make_service, make_small_services, tiny_trainer, train_path
from weight_scan import RUN, Weights, keep_copies

from code_ray.blocks import ExecutionMode
from code_ray.cost_table import cost_table
from code_ray.data import DataSet
from code_ray.errors import IntegrityError
from code_ray.own_party import OwnParty
from code_ray.party import Survey
from code_ray.path_space import PathSpace
from code_ray.plan import read_plan, save_links
from code_ray.profiling import Times, measure_times, profile_of
from code_ray.relay import OWN, Relay, met_by
from code_ray.service import Service
from code_ray.training import Trainer

SEARCH: dict[str, Any] = {
    "local": "tiny",
    "data": "digits",
    "hosts": {"host": {"kappa": 1.0}},
    "trust": "split",
    "vectors": [[1, 1, 2, 5], [1, 2, 3, 5], [0, 1, 2, 5], [1, 4]],
    "kinds": ["cross", "skip"],
    "loss_points": 30.0,
    "screen": 2,
    "stopping": {"max_trainings": 2, "c_stop": 2},
    "rivals": 1,
    "confirm": 0,
    "distilled_epochs": 0,
    "concurrency": 1,
    "recipe": {"samples": 200, "fit_samples": 100, "steps": 10, "joint_steps": 10},
}


@pytest.fixture(scope="module")
def small_services(digits: DataSet) -> dict[str, Service]:
    return make_small_services(digits)


def host_party(services: dict[str, Service]) -> OwnParty:
    return OwnParty({"host": services["host"]}, {"host": PLACEMENT["host"]}, lambda _: ExecutionMode())


def test_a_hosts_times_cost_every_path_of_a_space_and_tell_no_shape_of_the_host(small_services: dict[str, Service]) -> None:
    here = {"tiny": small_services["tiny"]}
    placement = {name: PLACEMENT[name] for name in ("tiny", "host")}
    space = PathSpace("tiny", 6, {"host": 6}, ranks=(None, 2), sides={"tiny": here["tiny"].sides})
    paths = space.link_paths()
    through = [path for path in paths if path.hosts]
    told = met_by("b", through, lambda name: OWN if name in here else "b", lambda name, position: here[name].boundaries[position])
    survey = Survey(paths=tuple(map(str, through)), num_blocks=6, placement=placement, boundaries=told)
    times = host_party(small_services).measure(Survey.model_validate_json(survey.model_dump_json()))
    assert set(told) == {"tiny"}
    assert Times.model_validate_json(times.model_dump_json()) == times
    assert all(re.fullmatch(r"(tiny|host)\[\d\] > (tiny|host)\[\d\],rank=(None|2)", key) for key in times.link_seconds["b"])
    profile = profile_of([measure_times(paths, here, placement, batch_sizes=(16,)), times], placement)
    rows, table = space.rows(space.paths()), cost_table(space, profile, here)
    costs = [profile.cost(path, here) for path in space.paths()]
    assert np.allclose(table.seconds(rows), [[cost.at(provider) for provider in table.providers] for cost in costs])
    assert all(cost.at("b") > 0 for path, cost in zip(space.paths(), costs, strict=True) if path.hosts)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_path_whose_parties_take_links_from_their_stores_answers_as_one_process_does(
    path: Any, small_services: dict[str, Service], digits: DataSet, tmp_path: Path
) -> None:
    together = tiny_trainer(small_services, digits)
    links = train_path(together, path, seed=1, fit_only=True).links
    hashes = save_links(path, "links", links, PLACEMENT, tmp_path)
    relay = Relay(hosts_apart(small_services, digits).parties, path, seed=2)
    relay.load("links", hashes, str(tmp_path))
    images = digits.test.images[:100]
    assert np.array_equal(relay.logits(images), together.logits(path, links, digits.test.head(100)))


def test_a_party_refuses_links_that_are_not_the_recorded_ones(small_services: dict[str, Service], digits: DataSet, tmp_path: Path) -> None:
    trainer = hosts_apart(small_services, digits)
    hashes = train_and_save(trainer, tmp_path)
    with pytest.raises(IntegrityError, match="link1 is not the link the plan names"):
        Relay(trainer.parties, CROSS, seed=0).load("links", hashes | {"link1": hashes["link0"]}, str(tmp_path))


def hosts_apart(services: dict[str, Service], digits: DataSet) -> Trainer:
    """The trainer of "tiny" with each host at a party of its own."""
    parties = {
        PLACEMENT[name]: OwnParty({name: services[name]}, {name: PLACEMENT[name]}, lambda _: ExecutionMode()) for name in ("host", "second")
    }
    return tiny_trainer({"tiny": services["tiny"]}, digits, parties={**parties})


def train_and_save(trainer: Trainer, folder: Path) -> dict[str, str]:
    return Relay(trainer.parties, CROSS, seed=0).save("links", str(folder))


@dataclass(frozen=True)
class Providers:
    """Two providers' services with weights that were never seen before, each in a folder that only its own node knows of.

    ``environment`` is that of a command at the local service's provider, ``raylets`` are process ids, the local provider's first.
    """

    services: dict[str, Service]
    environment: dict[str, str]
    raylets: list[int]
    logs: Path

    @property
    def weights(self) -> Weights:
        return Weights(self.services)


@pytest.fixture(scope="module")
def providers(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    folder, seed = tmp_path_factory.mktemp("providers"), int.from_bytes(os.urandom(4), "little")
    services = {name: make_service(name, digits, seed + number) for number, name in enumerate(("tiny", "host"))}
    knows = {}
    for name, service in services.items():
        service.save(folder / f"of-{name}" / name)
        knows[name] = {"CODE_RAY_SERVICES": str(folder / f"of-{name}")}
    at_home: dict[str, Any] = {"num_cpus": 1, "labels": {"provider": "tiny"}, "resources": {"provider:tiny": 1}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**at_home, "env_vars": knows["tiny"], "object_store_memory": 1 << 27})
    lent = cluster.add_node(num_cpus=1, labels={"provider": "host"}, env_vars=knows["host"], object_store_memory=1 << 27)
    try:
        assert cluster.head_node is not None
        raylets = [node.all_processes["raylet"][0].process.pid for node in (cluster.head_node, lent)]
        logs = Path(cluster.head_node.get_logs_dir_path())
        environment = {**os.environ, **knows["tiny"], "RAY_ADDRESS": cluster.address, "TMPDIR": str(folder)}
        yield Providers(services, environment, raylets, logs)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def search(providers: Providers, config: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(config, out), env=providers.environment, cwd=config.parent, capture_output=True, text=True, check=False, timeout=200
    )


def test_a_search_over_services_that_are_on_their_own_nodes_alone_leaves_no_weights_anywhere(providers: Providers, tmp_path: Path) -> None:
    shared = search(providers, write_config(tmp_path, SEARCH, trust="shared"), tmp_path / "shared")
    assert shared.returncode == 2
    assert "no service is called 'host'" in shared.stderr
    out, kept, over = tmp_path / "run", tmp_path / "kept", threading.Event()
    keeping = threading.Thread(target=keep_copies, args=(out, kept, over))
    keeping.start()
    try:
        done = search(providers, write_config(tmp_path, SEARCH), out)
    finally:
        over.set()
        keeping.join()
    assert done.returncode == 0, done.stderr
    records = evaluations(out)
    assert {"search", "random_host"} <= {
        record["role"] for record in records if "host" in record["path"] and record["fidelity"] == "trained"
    }
    plan = read_plan(out / "plan.json")
    assert plan.services == {name: service.content_hash for name, service in providers.services.items()}
    assert any(plan.inference_path(planned).hosts for planned in plan.paths), "no path of the plan borrows"
    assert json.loads((out / "result.json").read_text())["failed"] == {}
    assert {file.parent.name for file in (out / "stores").rglob("*link0-link1.safetensors")} == {"host"}
    assert list(kept.rglob("tuner.pkl"))
    weights = providers.weights
    for found, looked in (weights.find_in_files(out, kept, providers.logs), weights.find_in_stores(providers.raylets)):
        assert looked > 10_000
        assert found == {}


def test_weights_that_are_put_into_an_object_store_or_a_log_are_found(providers: Providers) -> None:
    (providers.logs / "planted.log").write_bytes(
        b"odd" + next(providers.services["tiny"].blocks[2].parameters()).bfloat16().view(torch.uint8).numpy().tobytes()
    )
    program = f"""
import numpy, ray
from code_ray.zoo import get_service
ray.init(address="{providers.environment["RAY_ADDRESS"]}", log_to_driver=False)
reference = ray.put(next(get_service("tiny").blocks[1].parameters()).half().numpy())
"""
    subprocess.run([sys.executable, "-c", program], env=providers.environment, check=True, timeout=100, cwd=Path(__file__).parent.parent)
    weights = providers.weights
    found, _ = weights.find_in_files(providers.logs)
    assert list(found) == [str(providers.logs / "planted.log")]
    found, _ = weights.find_in_stores(providers.raylets)
    assert list(found) == [f"object store of raylet {providers.raylets[0]}"]
    assert next(iter(found.values())).of.startswith("tiny ")


@pytest.mark.parametrize("form", ["float32", "float16", "bfloat16"])
def test_a_run_of_weights_is_found_wherever_it_begins_and_a_shorter_one_or_anothers_is_not(
    form: str, small_services: dict[str, Service]
) -> None:
    weights = Weights({"host": small_services["host"]})
    dtype = getattr(torch, form)
    rng = np.random.default_rng(0)
    for layout in ("contiguous", "channels last"):
        tensor = next(small_services["host"].blocks[2].parameters()).to(dtype)
        content = (tensor if layout == "contiguous" else tensor.permute(0, 2, 3, 1)).contiguous().reshape(-1).view(torch.uint8).numpy()
        for place in range(97):
            data = rng.integers(0, 256, 4096, np.uint8)
            data[place : place + RUN] = content[4 * place : 4 * place + RUN]
            assert weights.find(data) is not None, (layout, place)
            data[place + RUN // 2] ^= 255
            assert weights.find(data) is None, (layout, place)
    another = next(small_services["second"].blocks[2].parameters()).to(dtype).reshape(-1).view(torch.uint8).numpy()
    assert weights.find(another) is None


def test_one_weight_among_zeros_is_no_sign_of_anything_and_two_are(digits: DataSet) -> None:
    service, data = make_service("host", digits, 1), np.zeros(4096, np.uint8)
    last = service.blocks.state_dict()["5.16.weight"]
    planted = np.array([0.1, 0.3], np.float32)
    for count in (1, 2):
        last.zero_()
        last[3, 5 : 5 + count] = torch.from_numpy(planted[:count])
        data[1000 : 1000 + 4 * count] = planted[:count].view(np.uint8)
        assert (Weights({"host": service}).find(data) is not None) == (count == 2)
