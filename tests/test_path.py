"""Paths: the vector both ways, its bounds, the text both ways, links in their places (DESIGN 2.1)."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.errors import PathError
from code_ray.path import InferencePath, Segment, original_path, parse_path, path_from_vector

Vector = tuple[int, ...]


def accepted(length: int, local_blocks: int, host_blocks: int) -> set[Vector]:
    """Every vector of that length that makes a path, among all integers round the bounds."""
    found = set()
    for vector in product(range(-1, max(local_blocks, host_blocks) + 2), repeat=length):
        try:
            path_from_vector(vector, "local", local_blocks, "host", host_blocks)
        except PathError:
            continue
        found.add(vector)
    return found


@pytest.mark.parametrize(("host_blocks", "count"), [(6, 225), (10, 675)])
def test_cross_vectors_are_exactly_those_within_the_bounds(host_blocks: int, count: int) -> None:
    expected = {
        (lout, hin, hout, lin)
        for lout, hin, hout, lin in product(range(6), range(host_blocks), range(host_blocks), range(6))
        if lout < lin and 1 <= hin <= hout
    }
    assert accepted(4, 6, host_blocks) == expected
    assert len(expected) == count


def test_skip_exit_and_probe_vectors_are_exactly_those_within_the_bounds() -> None:
    assert accepted(2, 6, 6) == {(lout, lin) for lout, lin in product(range(6), repeat=2) if lout < lin}
    assert len(accepted(2, 6, 6)) == 15
    assert accepted(1, 6, 6) == {(lout,) for lout in range(1, 6)}
    assert accepted(3, 6, 6) == {(lout, hin, hout) for lout, hin, hout in product(range(6), repeat=3) if 1 <= hin <= hout}
    assert accepted(0, 6, 6) == {()}


@st.composite
def paths(draw: st.DrawFn) -> InferencePath:
    """A path with a vector, for services of 2 to 12 blocks."""
    local_blocks, host_blocks = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    rank = draw(st.none() | st.integers(1, 64))
    lin = draw(st.integers(1, local_blocks - 1))
    lout = draw(st.integers(0, lin - 1))
    hin = draw(st.integers(1, host_blocks - 1))
    hout = draw(st.integers(hin, host_blocks - 1))
    vector: Vector = draw(st.sampled_from([(lin,), (lout, lin), (lout, hin, hout), (lout, hin, hout, lin)]))
    return path_from_vector(vector, "local", local_blocks, "host", host_blocks, rank)


@given(paths())
def test_vector_and_text_lead_back_to_the_same_path(path: InferencePath) -> None:
    assert path_from_vector(path.vector, "local", path.num_blocks, "host", 12, path.rank) == path
    assert parse_path(str(path), path.num_blocks) == path


@given(paths())
def test_kind_follows_from_the_vectors_length(path: InferencePath) -> None:
    assert path.kind == {1: "exit", 2: "skip", 3: "probe", 4: "cross"}[len(path.vector)]
    assert path.hosts == (("host",) if len(path.vector) > 2 else ())
    assert path.ends_in_head == (len(path.vector) in (2, 4))
    assert len(path.link_slots) == {"exit": 1, "skip": 1, "probe": 2, "cross": 2}[path.kind]


def test_a_cross_vector_means_the_papers_blocks() -> None:
    path = path_from_vector([1, 2, 4, 5], "local", 6, "host", 6)
    assert path.segments == (Segment("local", 0, 1), Segment("host", 1, 4), Segment("local", 5, 6))
    assert path.lout == 1
    assert [(slot.source, slot.target) for slot in path.link_slots] == [(("local", 1), ("host", 1)), (("host", 4), ("local", 5))]
    assert [slot.key for slot in path.link_slots] == ["link0", "link1"]


def test_the_original_path_has_no_link_and_an_empty_vector() -> None:
    path = original_path("local", 6)
    assert (path.kind, path.vector, path.link_slots, path.hosts) == ("original", (), (), ())
    assert path_from_vector([], "local", 6) == path
    assert parse_path(str(path), 6) == path


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([3, 1, 1, 3], r"\[3, 1, 1, 3\] is outside the space: it needs 0 <= lout < lin <= 5"),
        ([0, 1, 1, 6], r"0 <= lout < lin <= 5"),
        ([0, 0, 1, 5], r"1 <= hin <= hout <= 5 of 'host'"),
        ([0, 3, 2, 5], r"1 <= hin <= hout <= 5 of 'host'"),
        ([0, 1, 6, 5], r"1 <= hin <= hout <= 5 of 'host'"),
        ([0], r"an exit needs at least one block"),
        ([1.5, 3], r"\[1.5, 3\] is not 0 to 4 integers"),
        ([True, 3], r"is not 0 to 4 integers"),
        ([0, 1, 2, 3, 4], r"is not 0 to 4 integers"),
    ],
)
def test_a_vector_outside_the_space_is_refused_with_its_bounds(vector: list[int], message: str) -> None:
    with pytest.raises(PathError, match=message):
        path_from_vector(vector, "local", 6, "host", 6)


def test_a_vector_that_borrows_needs_a_host() -> None:
    with pytest.raises(PathError, match=r"\[0, 1, 1, 5\] borrows blocks but no host is given"):
        path_from_vector([0, 1, 1, 5], "local", 6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "logits",
        "local",
        "local[0:1] host[0:1]",
        "local[0:1] > host[0:5]",  # neither head nor logits
        "local[0:6] > logits",  # both
        "local[1:6]",  # does not begin at the input
        "local[0:2] > local[1:6]",  # out of order
        "local[0:2] > local[2:6]",  # skips nothing
        "local[0:1] > host[3:2] > local[5:6]",  # runs backwards
        "local[0:1] > host[0:2] > local[5:7]",  # past the end
        "local[0:1] > local[5:6] | rank=0",
        "local[0:1] > local[5:6] | rank=many",
    ],
)
def test_text_that_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(PathError):
        parse_path(text, 6)


def test_a_path_through_two_hosts_has_text_links_and_a_vector_with_the_blocks_of_both() -> None:
    text = "local[0:1] > first[2:4] > second[1:3] > local[5:6] | rank=8"
    path = parse_path(text, 6)
    assert str(path) == text
    assert path.hosts == ("first", "second")
    assert [(slot.source[0], slot.target[0], slot.rank) for slot in path.link_slots] == [
        ("local", "first", 8),
        ("first", "second", 8),
        ("second", "local", 8),
    ]
    assert path.vector == (1, 3, 4, 2, 3, 5)
    assert path_from_vector(path.vector, "local", 6, "first", 6, 8, {"second": 4}) == path


def test_a_path_that_comes_back_on_its_way_has_no_vector() -> None:
    path = parse_path("local[0:1] > first[2:4] > local[3:4] > second[1:3] > local[5:6]", 6)
    with pytest.raises(PathError, match="comes back to 'local' on its way"):
        _ = path.vector


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ((1, 2, 3, 1, 4, 5), "1 <= hin <= hout <= 3 of 'second'"),
        ((1, 2, 3, 1, 2, 1, 2, 5), "not 0 to 6 integers.*hin and hout of each host in turn"),
    ],
)
def test_a_vector_through_two_hosts_keeps_to_the_blocks_of_each(vector: tuple[int, ...], message: str) -> None:
    with pytest.raises(PathError, match=message):
        path_from_vector(vector, "local", 6, "first", 6, then={"second": 4})
