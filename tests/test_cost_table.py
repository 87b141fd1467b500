"""Costs by the chunk: the table of a space says of each path what the profile says of it (DESIGN 2.3)."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from code_ray.blocks import ExecutionMode
from code_ray.cost_table import cost_table
from code_ray.path_space import PathSpace
from code_ray.profiling import Execution, Profile, spec_key
from code_ray.runner import slot_spec, walk
from code_ray.service import Service
from code_ray.throughput import FloatArray, Limits

SPACE = PathSpace("tiny", 6, {"host": 6, "second": 6}, ranks=(None, 3))
TWO_HOSTS = replace(SPACE, min_lout=3, hosts_per_path=2)
PLACEMENTS = {
    "a server for each": {"tiny": "a", "host": "b", "second": "c"},
    "a host at the local service's provider": {"tiny": "a", "host": "a", "second": "c"},
    "both hosts at one provider": {"tiny": "a", "host": "b", "second": "b"},
}
each_placement = pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())


def profile_of(space: PathSpace, services: Mapping[str, Service], placement: Mapping[str, str]) -> Profile:
    """Times drawn by chance, so that one taken for another shows, of every block and of the links that a search would measure.

    The local service computes in half as many bytes as the hosts.
    """
    rng = np.random.default_rng(0)
    links: dict[str, dict[str, float]] = {}
    for path in space.link_paths():
        for leg in walk(path, placement):
            for step in leg.steps:
                if step in path.link_slots:
                    links.setdefault(leg.provider, {})[spec_key(slot_spec(step, path, services))] = rng.uniform(1e-6, 1e-3)
    return Profile(
        executions={
            name: Execution(mode=ExecutionMode("bfloat16" if name == space.local else "float32"), batch_size=8, seconds=1e-3)
            for name in services
        },
        block_seconds={name: tuple(rng.uniform(1e-5, 1e-3, service.num_blocks).tolist()) for name, service in services.items()},
        link_seconds=links,
        pack_seconds_per_byte=1e-7,
        placement=dict(placement),
    )


def by_the_table(space: PathSpace, profile: Profile, services: Mapping[str, Service], chunk: int = 1 << 16) -> FloatArray:
    costs = cost_table(space, profile, services)
    assert costs.providers[0] == costs.local_provider == "a"
    return np.concatenate([costs.seconds(rows) for rows in space.chunks(chunk)])


def one_by_one(space: PathSpace, profile: Profile, services: Mapping[str, Service]) -> FloatArray:
    """Seconds of each path on each provider, first the local one, as ``Profile.cost`` adds them up."""
    providers = dict.fromkeys(profile.placement[name] for name in (space.local, *space.hosts))
    costs = [profile.cost(path, services) for path in space.paths()]
    assert all(set(cost.seconds) <= set(providers) for cost in costs)
    return np.array([[cost.at(provider) for provider in providers] for cost in costs])


@each_placement
@pytest.mark.parametrize(
    "space",
    [
        SPACE,
        replace(SPACE, min_lout=2),
        replace(SPACE, hosts={}),
        replace(SPACE, kinds=("cross", "skip"), ranks=(5, None, 2)),
    ],
    ids=["whole", "inputs stay at home", "without hosts", "reduced links first"],
)
def test_every_path_costs_what_the_profile_says(space: PathSpace, placement: dict[str, str], tiny_services: dict[str, Service]) -> None:
    services = {name: tiny_services[name] for name in (space.local, *space.hosts)}
    profile = profile_of(space, services, {name: placement[name] for name in services})
    found, expected = by_the_table(space, profile, services), one_by_one(space, profile, services)
    assert found.shape == (len(space), len({*profile.placement.values()}))
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-15)
    # What was drawn tells paths apart, so that no two could be mixed up unseen.
    assert len(np.unique(expected.round(12), axis=0)) > 0.9 * len(space)


@each_placement
def test_every_path_takes_of_servers_and_network_what_the_profile_says(
    placement: dict[str, str], tiny_services: dict[str, Service]
) -> None:
    profile = profile_of(TWO_HOSTS, tiny_services, placement)
    providers = list(dict.fromkeys(placement.values()))
    edges = {edge: 1e3 * (number + 1) for number, edge in enumerate(permutations(providers, 2))}
    limits = Limits(dict.fromkeys(providers, 1.0), 2.3, edges)
    costs = cost_table(TWO_HOSTS, profile, tiny_services)
    found = np.concatenate([costs.taken(rows, limits) for rows in TWO_HOSTS.chunks()])
    expected = limits.seconds([profile.cost(path, tiny_services) for path in TWO_HOSTS.paths()])
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert (expected[:, len(providers) :] > 0).any(axis=0).all()  # some path crosses each edge


@each_placement
def test_the_size_of_a_chunk_changes_no_cost(placement: dict[str, str], tiny_services: dict[str, Service]) -> None:
    profile = profile_of(SPACE, tiny_services, placement)
    whole, parts = (by_the_table(SPACE, profile, tiny_services, chunk) for chunk in (1 << 16, 11))
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("provider", ["a", "b"])
def test_packing_costs_what_leaves_the_provider_alone(provider: str, tiny_services: dict[str, Service]) -> None:
    space = replace(SPACE, hosts={"host": 6})
    services = {name: tiny_services[name] for name in ("tiny", "host")}
    profile = profile_of(space, services, {"tiny": "a", "host": provider})
    free, dear = (
        by_the_table(space, profile.model_copy(update={"pack_seconds_per_byte": seconds}), services).sum(axis=1) for seconds in (0.0, 1.0)
    )
    leaves = [provider == "b" and bool(path.hosts) for path in space.paths()]
    assert (dear > free).tolist() == leaves
