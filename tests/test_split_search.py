"""Searches whose hosts are parties of their own: actors at their providers (DESIGN 3.3); whole runs are in test_weights_stay.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from safetensors.torch import load_file
from trained import make_small_services

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.errors import ConfigError, LinkError, ServiceError
from code_ray.path import InferencePath, path_from_vector
from code_ray.profiling import measure_profile
from code_ray.relay import Relay
from search.campaign import Job
from search.config import SearchConfig
from search.parties import RemoteParty, start_parties
from search.problem import load_services
from search.trial import Worker


@dataclass(frozen=True)
class Pair:
    """Two small services in folders, and a cluster with a node for each of their providers; ``node`` is the host's.

    ``workers`` by trust, each with its stores.
    """

    config: SearchConfig
    path: InferencePath
    host: str
    node: str
    workers: dict[str, Worker]


@pytest.fixture(scope="module")
def pair(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("services")
    local, host = (str(folder / name) for name in ("tiny", "host"))
    for name, service in make_small_services(digits).items():
        service.save(folder / name)
    recipe = {"samples": 128, "fit_samples": 64, "steps": 8, "joint_steps": 4, "batch_size": 16, "fit_entry": True}
    config = SearchConfig.model_validate({"local": local, "data": "digits", "hosts": {host: {}}, "recipe": recipe})
    path = path_from_vector((1, 2, 4, 5), local, 6, host, 6)
    profile = measure_profile([path], load_services(config), config.placement, batch_sizes=(16,))
    # What was fastest is chance; in bfloat16 images near a boundary change sides with the batch that they are in.
    plain = {name: execution.model_copy(update={"mode": ExecutionMode()}) for name, execution in profile.executions.items()}
    profile = profile.model_copy(update={"executions": plain})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "labels": {"provider": "tiny"}, "include_dashboard": False})
    lent = cluster.add_node(num_cpus=1, labels={"provider": "host"})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        workers = {}
        for trust in ("split", "shared"):
            trusting = config.model_copy(update={"trust": trust})
            workers[trust] = Worker(trusting, profile, folder / trust, parties=start_parties(trusting, profile))
        yield Pair(config, path, host, lent.node_id, workers)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def tensors(folder: Path) -> dict[str, Any]:
    return {key: tensor for file in folder.rglob("*.safetensors") for key, tensor in load_file(file).items()}


def test_a_host_in_an_actor_gives_the_links_and_accuracies_of_one_process(pair: Pair) -> None:
    job, records, stores = Job(pair.path, "trained", 0, "search"), {}, {}
    for trust, worker in pair.workers.items():
        (outcome,) = worker.train(job)
        assert isinstance(outcome, dict)
        records[trust] = outcome["record"]
        assert set(worker.services) == {pair.config.local} | ({pair.host} if trust == "shared" else set())
        stores[trust] = {str(file.relative_to(worker.stores_dir)): load_file(file) for file in worker.stores_dir.rglob("*.safetensors")}
    assert set(stores["split"]) == set(stores["shared"])
    ((name, shared),) = stores["shared"].items()
    assert name.startswith("host/")
    split = stores["split"][name]
    assert max(float((split[key] - shared[key]).abs().max() / shared[key].abs().max()) for key in shared) <= 1e-4
    for name in ("accuracy", "accuracy_fit"):
        assert records["split"][name] == records["shared"][name]


def test_a_score_across_parties_is_that_of_one_process(pair: Pair) -> None:
    split, shared = (worker.score([Job(pair.path, "fit", 0, "search")])[0]["record"] for worker in pair.workers.values())
    for name, tolerance in (("accuracy", 0.01), ("divergence", 0.02), ("explained", 0.02)):
        assert split[name] == pytest.approx(shared[name], abs=tolerance)


def test_a_party_runs_on_its_providers_node_and_says_what_it_refuses(pair: Pair) -> None:
    parties = pair.workers["split"].trainer.parties
    party = parties.others["host"]
    assert isinstance(party, RemoteParty)
    assert ray.get(party.actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())) == pair.node
    part = parties.invite(pair.path, 0)["host"]
    part.turn_to(0, "origin")
    with pytest.raises(LinkError, match=r"^float64 .* came where float32 .* was declared"):
        part.receive(0, "train", np.zeros((4, 4, 14, 14), np.float64))


def test_a_provider_without_a_node_is_named(pair: Pair) -> None:
    config = pair.config.model_copy(update={"trust": "split", "providers": {pair.host: "beta"}})
    with pytest.raises(ConfigError, match=r"no node of the cluster has the label provider=beta, there are: host, tiny"):
        start_parties(config)


def ask_for_ever(relay: Relay) -> None:
    """Ray does not wait for a process that it kills: it may answer once more."""
    while True:
        relay.turn_to(0)


def test_a_party_that_is_lost_ends_a_training_with_its_provider(pair: Pair) -> None:
    parties = pair.workers["split"].trainer.parties
    party = parties.others["host"]
    assert isinstance(party, RemoteParty)
    relay = Relay(parties, pair.path, 0)
    ray.kill(party.actor)
    with pytest.raises(ServiceError, match=r"provider 'host' was lost while it took part in the search"):
        ask_for_ever(relay)
