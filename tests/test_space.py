"""The space: how many paths there are, what bounds it, and features that tell them apart (DESIGN 2.1)."""

import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.path import InferencePath, Kind, path_from_vector
from code_ray.path_space import KINDS
from code_ray.space import enumerate_paths, feature_matrix

ONE = {"host": 6}
TWO = {"host": 6, "second": 4}


def count_kinds(paths: list[InferencePath]) -> dict[str, int]:
    return dict(Counter(path.kind for path in paths))


def test_two_services_of_six_blocks_have_225_crosses_and_15_skips() -> None:
    assert count_kinds(enumerate_paths("local", 6, ONE)) == {"cross": 225, "skip": 15, "exit": 5, "probe": 90}


def test_a_host_of_ten_blocks_gives_675_crosses() -> None:
    assert count_kinds(enumerate_paths("local", 6, {"host": 10}, kinds=["cross"])) == {"cross": 675}


@given(st.integers(2, 9), st.integers(2, 9))
def test_the_space_is_the_product_of_local_gaps_and_host_runs(local_blocks: int, host_blocks: int) -> None:
    gaps, runs = local_blocks * (local_blocks - 1) // 2, host_blocks * (host_blocks - 1) // 2
    found = count_kinds(enumerate_paths("local", local_blocks, {"host": host_blocks}))
    assert found == {"cross": gaps * runs, "skip": gaps, "exit": local_blocks - 1, "probe": local_blocks * runs}


@pytest.mark.parametrize("hosts", [ONE, TWO, {"host": 10}])
def test_every_path_is_there_once_and_leads_back_to_its_vector(hosts: dict[str, int]) -> None:
    paths = enumerate_paths("local", 6, hosts, ranks=(None, 5, 25))
    assert len(set(paths)) == len(paths)
    assert len({str(path) for path in paths}) == len(paths)
    for path in paths:
        host = path.hosts[0] if path.hosts else None
        assert path_from_vector(path.vector, "local", 6, host, hosts.get(host or ""), path.rank) == path


def test_the_original_is_not_among_them() -> None:
    assert "original" not in count_kinds(enumerate_paths("local", 6, TWO))


@pytest.mark.parametrize(("min_lout", "crosses", "probes"), [(0, 225, 90), (1, 150, 75), (4, 15, 30), (5, 0, 15)])
def test_min_lout_binds_what_leaves_the_local_server_alone(min_lout: int, crosses: int, probes: int) -> None:
    paths = enumerate_paths("local", 6, ONE, min_lout=min_lout)
    assert all(path.lout >= min_lout for path in paths if path.hosts)
    found = count_kinds(paths)
    assert (found.get("cross", 0), found["probe"], found["skip"], found["exit"]) == (crosses, probes, 15, 5)


def test_ranks_multiply_crosses_and_skips_only() -> None:
    found = count_kinds(enumerate_paths("local", 6, ONE, ranks=(None, 5, 25)))
    assert found == {"cross": 3 * 225, "skip": 3 * 15, "exit": 5, "probe": 90}


def test_each_host_brings_its_own_crosses_and_probes() -> None:
    paths = enumerate_paths("local", 6, TWO)
    assert Counter(path.hosts for path in paths if path.kind == "cross") == {("host",): 225, ("second",): 15 * 6}
    assert Counter(path.hosts for path in paths if path.kind == "probe") == {("host",): 90, ("second",): 6 * 6}
    assert count_kinds(paths)["skip"] == 15


def test_without_hosts_there_are_skips_and_exits() -> None:
    assert count_kinds(enumerate_paths("local", 6, {})) == {"skip": 15, "exit": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_can_be_asked_for_alone_and_twice_is_once(kind: Kind) -> None:
    alone = enumerate_paths("local", 6, ONE, kinds=[kind, kind])
    assert set(count_kinds(alone)) == {kind}
    assert alone == [path for path in enumerate_paths("local", 6, ONE) if path.kind == kind]


@pytest.mark.parametrize("hosts", [{}, ONE, TWO, {"a": 3, "b": 3, "c": 12}])
def test_features_are_finite_within_one_and_tell_all_paths_apart(hosts: dict[str, int]) -> None:
    paths = enumerate_paths("local", 6, hosts, ranks=(None, 1, 5, 25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = feature_matrix(paths, hosts)
    assert features.shape[0] == len(paths)
    assert np.isfinite(features).all()
    assert features.min() >= -1
    assert features.max() <= 1
    assert len(np.unique(features, axis=0)) == len(paths)


def test_features_do_not_depend_on_the_paths_beside_them() -> None:
    paths = enumerate_paths("local", 6, TWO)
    assert np.array_equal(feature_matrix(paths, TWO)[::7], feature_matrix(paths[::7], TWO))
