"""Spaces as arrays: rows stand for paths, in chunks, and describe them as the paths themselves do (DESIGN 2.1)."""

from dataclasses import replace
from itertools import combinations, combinations_with_replacement, permutations, product
from typing import Any

import numpy as np
import pytest

from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.path_space import COLUMNS, HIN, HOST, LOUT, PathSpace, class_columns
from code_ray.space import enumerate_paths, feature_matrix

WHOLE = PathSpace("local", 6, {"host": 5, "second": 3}, ranks=(None, 4, 16))
SPACES = {
    "whole": WHOLE,
    "without hosts": PathSpace("local", 6, {}),
    "inputs stay at home": replace(WHOLE, min_lout=2),
    "reduced links alone": replace(WHOLE, ranks=(4, 16)),
    "one kind": replace(WHOLE, kinds=("probe",)),
    "kinds in another order": replace(WHOLE, kinds=("exit", "cross", "skip")),
    "fewest blocks": PathSpace("local", 2, {"host": 2}),
    "two hosts on a path": replace(WHOLE, min_lout=2, hosts_per_path=2),
    "three hosts on a path": PathSpace("local", 3, {"host": 3, "second": 2, "third": 3}, ranks=(4,), hosts_per_path=3),
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def all_rows(space: PathSpace, size: int = 1 << 16) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for chunk in space.chunks(size) for row in chunk]


def links(path: InferencePath) -> set[object]:
    """What decides a link: where it leads from and to, its rank, and whether it is that of a skip."""
    return {(slot.source, slot.target, slot.rank, path.kind == "skip") for slot in path.link_slots}


@each_space
def test_a_row_leads_to_its_path_and_back(space: PathSpace) -> None:
    for chunk in space.chunks():
        paths = [space.path(row) for row in chunk]
        assert np.array_equal(space.rows(paths), chunk)


@each_space
def test_chunks_hold_every_row_once_however_small_they_are(space: PathSpace) -> None:
    whole = all_rows(space)
    assert len({*whole}) == len(whole) == len(space) > 0
    for size in (1, 7, 100):
        assert all(0 < len(chunk) <= size and chunk.shape[1] >= len(COLUMNS) for chunk in space.chunks(size))
        assert all_rows(space, size) == whole


@each_space
def test_chunks_hold_the_paths_that_are_enumerated_in_their_order(space: PathSpace) -> None:
    bounds: dict[str, Any] = {
        "kinds": space.kinds,
        "min_lout": space.min_lout,
        "ranks": space.ranks,
        "hosts_per_path": space.hosts_per_path,
    }
    enumerated = enumerate_paths(space.local, space.num_blocks, space.hosts, **bounds)
    assert [space.path(row) for chunk in space.chunks(50) for row in chunk] == space.paths() == enumerated
    assert len({*enumerated}) == len(space)


@each_space
def test_a_space_is_what_its_bounds_leave_of_all_vectors(space: PathSpace) -> None:
    n, expected = space.num_blocks, set()
    vectors: list[tuple[tuple[str, ...], tuple[int, ...]]] = [((), (lout,)) for lout in range(1, n)]
    vectors += [((), gap) for gap in combinations(range(n), 2)]
    for hosts in (way for count in range(1, space.hosts_per_path + 1) for way in permutations(space.hosts, count)):
        runs = [sum(way, ()) for way in product(*(combinations_with_replacement(range(1, space.hosts[host]), 2) for host in hosts))]
        vectors += [(hosts, (lout, *run)) for lout in range(space.min_lout, n) for run in runs]
        vectors += [(hosts, (lout, *run, lin)) for lout, lin in combinations(range(n), 2) if lout >= space.min_lout for run in runs]
    for hosts, vector in vectors:
        first, then = next(iter(hosts), None), {host: space.hosts[host] for host in hosts[1:]}
        for rank in space.ranks if len(vector) % 2 == 0 else (None,):
            path = path_from_vector(vector, "local", n, first, space.hosts.get(first or ""), rank, then)
            if path.kind in space.kinds:
                expected.add(path)
    assert set(space.paths()) == expected


def test_the_last_two_features_are_the_octaves_that_links_bridge_where_sides_are_known() -> None:
    sides = {"local": (28, 28, 14, 14, 7, 7, 1), "host": (56, 28, 14, 7, 1)}
    space = PathSpace("local", 6, {"host": 4, "second": 4}, sides=sides)
    vectors = {(0, 1, 2, 2): (1, 0), (4, 2, 3, 5): (2, 0), (0, 3, 3, 1): (1, 2), (1, 2, 2): (0, np.log2(14))}
    vectors |= {(1, 5): (0, 2), (4,): (0, np.log2(7))}
    paths = [path_from_vector(vector, "local", 6, "host" if len(vector) > 2 else None, 4) for vector in vectors]
    assert np.allclose(space.features(space.rows(paths))[:, -2:], [*vectors.values()])
    unknown = path_from_vector((0, 1, 2, 2), "local", 6, "second", 4)
    assert space.features(space.rows([unknown]))[0, -2:].tolist() == [0, 0]


@each_space
def test_features_of_rows_are_those_of_their_paths_and_do_not_depend_on_the_chunk(space: PathSpace) -> None:
    whole = np.concatenate(list(space.chunks()))
    features = space.features(whole)
    paths = [space.path(row) for row in whole]
    assert np.array_equal(features, feature_matrix(paths, space.hosts, hosts_per_path=space.hosts_per_path))
    assert np.array_equal(features, np.concatenate([space.features(chunk) for chunk in space.chunks(9)]))


def test_features_are_the_same_in_a_space_of_fewer_ranks_or_kinds() -> None:
    for smaller in (replace(WHOLE, ranks=(16,)), replace(WHOLE, kinds=("skip", "cross"), min_lout=1)):
        paths = smaller.paths()
        assert np.array_equal(smaller.features(smaller.rows(paths)), WHOLE.features(WHOLE.rows(paths)))


@each_space
def test_a_space_holds_its_paths_and_neither_the_original_nor_what_its_bounds_shut_out(space: PathSpace) -> None:
    inside = set(space.paths())
    assert all(path in space for path in inside)
    assert original_path("local", space.num_blocks) not in space
    strangers = [
        *(path for other in SPACES.values() for path in other.paths() if path not in inside),
        *PathSpace("other", space.num_blocks, space.hosts).paths(),
        *PathSpace("local", space.num_blocks, {"stranger": 5}, kinds=("cross", "probe")).paths(),
        *PathSpace("local", space.num_blocks, {"host": 9}, kinds=("probe",)).paths()[-1:],
    ]
    assert not [str(path) for path in strangers if path in space]


def test_through_two_hosts_features_say_which_follow_each_other_and_what_their_links_bridge() -> None:
    sides = {"local": (28, 14, 7, 1), "host": (56, 28, 14, 1), "second": (28, 7, 7, 1)}
    space = PathSpace("local", 3, {"host": 3, "second": 3}, sides=sides, hosts_per_path=2)
    there = path_from_vector((1, 2, 2, 1, 1, 2), "local", 3, "host", 3, then={"second": 3})
    back = path_from_vector((1, 2, 2, 1, 1, 2), "local", 3, "second", 3, then={"host": 3})
    alone = path_from_vector((1, 2, 2, 2), "local", 3, "host", 3)
    features = space.features(space.rows([there, back, alone]))
    classes = class_columns(space.hosts, 2)
    assert features[:, :classes].tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    # 14 -> 28, 14 -> 28, 7 -> 7; 14 -> 7, 7 -> 56, 28 -> 7; 14 -> 28, 14 -> 7
    assert features[:, -2:].round(9).tolist() == [[2, 0], [4, 2], [1, 1]]
    assert features[:, -5:-2].round(3).tolist() == [[0, 0.667, -0.667], [0, 0.667, -0.667], [0, 0, 0]]


@pytest.mark.parametrize("space", [WHOLE, SPACES["two hosts on a path"]], ids=["one host", "two hosts"])
def test_siblings_leave_the_local_service_at_the_same_place_for_the_same_block_of_the_same_host(space: PathSpace) -> None:
    whole = np.concatenate(list(space.chunks()))
    hosted = whole[whole[:, HOST] >= 0]
    for row in hosted[:: len(hosted) // 20]:
        alike = whole[(whole[:, [HOST, LOUT, HIN]] == row[[HOST, LOUT, HIN]]).all(axis=1)]
        found = space.siblings(row)
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, alike.tolist()))
        assert row.tolist() in found.tolist()


@each_space
def test_a_few_paths_have_every_link_of_the_space(space: PathSpace) -> None:
    few = space.link_paths()
    assert all(path in space for path in few)
    assert set().union(*map(links, few)) == set().union(*map(links, space.paths()))


def test_the_paths_that_have_every_link_are_few() -> None:
    wide = PathSpace("local", 16, {"host": 16}, ranks=(None, 4))
    assert len(wide.link_paths()) < len(wide) / 10
