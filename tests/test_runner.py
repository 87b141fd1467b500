"""The walk: which provider runs what, in one call, and that legs together compute what the modules do one by one."""

from collections.abc import Sequence

import pytest
import torch
from conftest import GREY
from torch import Tensor, nn
from trained import PLACEMENT, apart

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.path import InferencePath, Segment, original_path, parse_path, path_from_vector
from code_ray.runner import Leg, LegRunner, PathRunner, leg_modules, make_links, slot_spec, walk
from code_ray.service import Service, build_service

ONE_SERVER = dict.fromkeys(PLACEMENT, "a")


def cross(*vector: int, rank: int | None = None) -> InferencePath:
    return path_from_vector(vector, "tiny", 6, "host", 6, rank)


def described(path: InferencePath, placement: dict[str, str]) -> list[tuple[str, list[str]]]:
    """The legs of a path, see ``as_text``."""
    return as_text(walk(path, placement))


def as_text(legs: Sequence[Leg]) -> list[tuple[str, list[str]]]:
    """Legs as (provider, steps), each step as text."""
    return [(leg.provider, [str(step) if isinstance(step, Segment) else step.key for step in leg.steps]) for leg in legs]


LOCAL_HALF, HOST_PART, HEAD = ("a", ["tiny[0:1]"]), ("b", ["link0", "host[1:4]", "link1"]), ("a", ["tiny[5:6]"])


@pytest.mark.parametrize(
    ("path", "legs"),
    [
        (original_path("tiny", 6), [("a", ["tiny[0:6]"])]),
        (cross(1, 2, 4, 5), [LOCAL_HALF, HOST_PART, HEAD]),
        (cross(0, 2, 4, 5), [HOST_PART, HEAD]),
        (cross(1, 4), [("a", ["tiny[0:1]", "link0", "tiny[4:6]"])]),
        (cross(0, 4), [("a", ["link0", "tiny[4:6]"])]),
        (cross(3), [("a", ["tiny[0:3]", "link0"])]),
        (cross(1, 2, 4), [LOCAL_HALF, HOST_PART]),
        (cross(0, 2, 4), [HOST_PART]),
    ],
    ids=["original", "cross", "cross of raw inputs", "skip", "skip of raw inputs", "exit", "probe", "probe of raw inputs"],
)
def test_a_walk_is_the_legs_of_each_kind(path: InferencePath, legs: list[tuple[str, list[str]]]) -> None:
    assert described(path, PLACEMENT) == legs


@pytest.mark.parametrize("lout", [0, 1, 3])
def test_both_links_of_a_cross_live_with_the_host(lout: int) -> None:
    owners = {
        step.key: leg.provider for leg in walk(cross(lout, 1, 5, 5), PLACEMENT) for step in leg.steps if not isinstance(step, Segment)
    }
    assert owners == {"link0": "b", "link1": "b"}


def test_a_host_on_the_local_services_server_is_part_of_one_leg() -> None:
    assert described(cross(1, 2, 4, 5), ONE_SERVER) == [("a", ["tiny[0:1]", "link0", "host[1:4]", "link1", "tiny[5:6]"])]


def test_two_hosts_on_one_path_are_a_leg_each_and_a_link_lives_where_it_leads() -> None:
    path = parse_path("tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]", 6)
    assert described(path, PLACEMENT) == [
        ("a", ["tiny[0:1]"]),
        ("b", ["link0", "host[2:4]"]),
        ("c", ["link1", "second[1:3]", "link2"]),
        ("a", ["tiny[5:6]"]),
    ]


def test_two_hosts_of_one_provider_are_one_leg() -> None:
    path = parse_path("tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]", 6)
    placement = {**PLACEMENT, "second": "b"}
    assert described(path, placement) == [
        ("a", ["tiny[0:1]"]),
        ("b", ["link0", "host[2:4]", "link1", "second[1:3]", "link2"]),
        ("a", ["tiny[5:6]"]),
    ]


def test_a_path_that_visits_a_host_twice_visits_its_server_twice() -> None:
    path = parse_path("tiny[0:1] > host[1:2] > tiny[3:4] > host[3:4] > tiny[5:6]", 6)
    assert [leg.provider for leg in walk(path, PLACEMENT)] == ["a", "b", "a", "b", "a"]


def test_an_empty_host_segment_leaves_its_links_at_the_host() -> None:
    path = InferencePath(6, (Segment("tiny", 0, 1), Segment("host", 2, 2), Segment("tiny", 5, 6)))
    assert described(path, PLACEMENT) == [LOCAL_HALF, ("b", ["link0", "link1"]), HEAD]


TWICE = parse_path("tiny[0:1] > host[1:2] > tiny[3:4] > host[3:4] > tiny[5:6]", 6)
TWO_HOSTS = parse_path("tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]", 6)
EMPTY_SEGMENT = InferencePath(6, (Segment("tiny", 0, 1), Segment("host", 2, 2), Segment("tiny", 5, 6)))
LINKED = [cross(1, 2, 4, 5), cross(0, 2, 4, 5), cross(1, 4), cross(0, 4), cross(3), cross(1, 2, 4), TWICE, TWO_HOSTS, EMPTY_SEGMENT]
ON_PROVIDERS = pytest.mark.parametrize("placement", [PLACEMENT, ONE_SERVER], ids=["providers", "one server"])


@pytest.mark.parametrize(
    ("path", "before", "behind"),
    [
        (cross(1, 2, 4, 5), [LOCAL_HALF, ("b", ["link0", "host[1:4]"])], [("b", ["link1"]), HEAD]),
        (cross(0, 2, 4, 5), [("b", ["link0", "host[1:4]"])], [("b", ["link1"]), HEAD]),
        (cross(1, 4), [LOCAL_HALF], [("a", ["link0", "tiny[4:6]"])]),
        (cross(0, 4), [], [("a", ["link0", "tiny[4:6]"])]),
        (cross(3), [("a", ["tiny[0:3]"])], [("a", ["link0"])]),
        (cross(1, 2, 4), [LOCAL_HALF, ("b", ["link0", "host[1:4]"])], [("b", ["link1"])]),
        (EMPTY_SEGMENT, [LOCAL_HALF, ("b", ["link0"])], [("b", ["link1"]), HEAD]),
        (TWO_HOSTS, [LOCAL_HALF, ("b", ["link0", "host[2:4]"]), ("c", ["link1", "second[1:3]"])], [("c", ["link2"]), HEAD]),
    ],
    ids=["cross", "cross of raw inputs", "skip", "skip of raw inputs", "exit", "probe", "empty host segment", "two hosts"],
)
def test_a_path_comes_apart_before_its_last_link(
    path: InferencePath, before: list[tuple[str, list[str]]], behind: list[tuple[str, list[str]]]
) -> None:
    assert tuple(map(as_text, apart(path))) == (before, behind)


def test_a_leg_that_holds_all_links_is_cut_at_the_last() -> None:
    before, behind = apart(TWICE, ONE_SERVER)
    assert as_text(before) == [("a", ["tiny[0:1]", "link0", "host[1:2]", "link1", "tiny[3:4]", "link2", "host[3:4]"])]
    assert as_text(behind) == [("a", ["link3", "tiny[5:6]"])]


@ON_PROVIDERS
@pytest.mark.parametrize("path", LINKED, ids=str)
def test_both_parts_of_a_path_together_are_its_walk(path: InferencePath, placement: dict[str, str]) -> None:
    whole, (before, behind) = walk(path, placement), apart(path, placement)
    steps = [[(leg.provider, step) for leg in legs for step in leg.steps] for legs in (whole, (*before, *behind))]
    assert steps[0] == steps[1]
    assert behind[0].steps[0] == path.link_slots[-1]
    # Only the leg with the link is cut.
    assert len(whole) <= len(before) + len(behind) <= len(whole) + 1


@ON_PROVIDERS
@pytest.mark.parametrize("mode", [ExecutionMode(), ExecutionMode("bfloat16", channels_last=True)], ids=str)
@pytest.mark.parametrize("path", LINKED, ids=str)
def test_both_parts_of_a_path_one_after_another_compute_what_it_does_to_the_bit(
    path: InferencePath, mode: ExecutionMode, placement: dict[str, str], tiny_services: dict[str, Service], digits: DataSet
) -> None:
    torch.manual_seed(0)
    links = make_links(path, tiny_services)
    whole, before, behind = (
        PathRunner(legs, tiny_services, links, lambda _: mode) for legs in (walk(path, placement), *apart(path, placement))
    )
    inputs = tiny_services["tiny"].preprocess(digits.test.images[:10])
    assert torch.equal(behind(before(inputs)), whole(inputs))


@pytest.mark.parametrize("vector", [(1, 2, 4, 5), (0, 1, 3, 4), (2, 4), (3,), (1, 2, 4)])
def test_links_have_the_shapes_of_the_boundaries_they_join(vector: tuple[int, ...], tiny_services: dict[str, Service]) -> None:
    path = cross(*vector)
    links = make_links(path, tiny_services)
    assert list(links) == [slot.key for slot in path.link_slots]
    for slot in path.link_slots:
        assert links[slot.key].spec == slot_spec(slot, path, tiny_services)
        for (name, position), shape in zip(
            (slot.source, slot.target), (links[slot.key].spec.in_shape, links[slot.key].spec.out_shape), strict=True
        ):
            assert shape == tiny_services[name].boundaries[position].shape


def test_a_link_into_a_hosts_input_has_no_relu_and_the_others_have(tiny_services: dict[str, Service]) -> None:
    specs = {
        vector: [link.spec.relu for link in make_links(cross(*vector), tiny_services).values()]
        for vector in [(1, 1, 4, 5), (1, 2, 4, 5), (1, 2, 4)]
    }
    assert specs == {(1, 1, 4, 5): [False, True], (1, 2, 4, 5): [True, True], (1, 2, 4): [True, False]}


def test_a_link_into_a_hosts_input_has_no_relu_even_where_that_input_is_never_negative(
    tiny_services: dict[str, Service], digits: DataSet
) -> None:
    spec = tiny_services["host"].spec
    unshifted = GREY.model_copy(update={"mean": (0.0,)})
    blocks = tiny_services["host"].blocks
    host = build_service("host", spec.builder, spec.builder_args, blocks, unshifted, digits.labels, digits.train.images[:4])
    assert host.boundaries[0].nonnegative
    assert not make_links(cross(1, 1, 4, 5), {**tiny_services, "host": host})["link0"].spec.relu


def by_hand(path: InferencePath, services: dict[str, Service], links: dict[str, nn.Module], value: Tensor) -> Tensor:
    """Blocks and links of a path one after another, as the definition of a path says."""
    with torch.inference_mode():
        for index, segment in enumerate(path.segments):
            for block in services[segment.service].blocks[segment.start : segment.stop]:
                value = block(value)
            if f"link{index}" in links:
                value = links[f"link{index}"](value)
    return value


@pytest.mark.parametrize(
    "text",
    [
        "tiny[0:6]",
        "tiny[0:1] > host[1:4] > tiny[5:6]",
        "tiny[0:0] > host[0:3] > tiny[4:6] | rank=3",
        "tiny[0:2] > tiny[4:6] | rank=2",
        "tiny[0:3] > logits",
        "tiny[0:1] > host[1:4] > logits",
        "tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]",
    ],
)
@ON_PROVIDERS
def test_legs_together_compute_what_the_modules_do_one_by_one(
    text: str, placement: dict[str, str], tiny_services: dict[str, Service], digits: DataSet
) -> None:
    path = parse_path(text, 6)
    torch.manual_seed(0)
    links = make_links(path, tiny_services)
    inputs = tiny_services["tiny"].preprocess(digits.test.images[:10])
    runner = PathRunner(walk(path, placement), tiny_services, links, lambda _: ExecutionMode())
    expected = by_hand(path, tiny_services, dict(links), inputs)
    assert expected.shape == (10, 10)
    torch.testing.assert_close(runner(inputs), expected, rtol=1e-5, atol=1e-6)


def test_the_batch_size_does_not_change_the_logits(tiny_services: dict[str, Service], digits: DataSet) -> None:
    path = cross(1, 2, 4, 5)
    runner = PathRunner(walk(path, PLACEMENT), tiny_services, make_links(path, tiny_services), lambda _: ExecutionMode())
    inputs = tiny_services["tiny"].preprocess(digits.test.images[:33])
    expected = runner(inputs, batch_size=33)
    for batch_size in (1, 7, 16, 64):
        torch.testing.assert_close(runner(inputs, batch_size=batch_size), expected, rtol=1e-5, atol=1e-5)


def test_every_provider_runs_in_its_own_mode(tiny_services: dict[str, Service]) -> None:
    path = cross(1, 2, 4, 5)
    modes = {"a": ExecutionMode(), "b": ExecutionMode("bfloat16", channels_last=True)}
    runner = PathRunner(walk(path, PLACEMENT), tiny_services, make_links(path, tiny_services), modes.__getitem__)
    assert [leg.mode for leg in runner.legs] == [modes["a"], modes["b"], modes["a"]]
    assert [{parameter.dtype for parameter in leg.module.parameters()} for leg in runner.legs] == [
        {torch.float32},
        {torch.bfloat16},
        {torch.float32},
    ]


@pytest.mark.parametrize(
    "mode", [ExecutionMode(), ExecutionMode(channels_last=True), ExecutionMode("bfloat16", channels_last=True)], ids=str
)
def test_what_a_leg_hands_on_is_float32_in_standard_layout(mode: ExecutionMode, tiny_services: dict[str, Service]) -> None:
    leg = Leg("a", (Segment("tiny", 0, 2),))
    modules = leg_modules(leg, tiny_services, {})
    inputs = torch.rand(4, *tiny_services["tiny"].boundaries[0].shape)
    output = LegRunner(modules, mode)(inputs)
    assert (output.dtype, output.is_contiguous()) == (torch.float32, True)
    with torch.inference_mode():
        expected = nn.Sequential(*modules)(inputs)
    torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02 if mode.dtype == "bfloat16" else 1e-5)


def test_a_leg_is_made_of_the_services_own_blocks(tiny_services: dict[str, Service]) -> None:
    path = cross(1, 2, 4, 5)
    links = make_links(path, tiny_services)
    modules = leg_modules(walk(path, PLACEMENT)[1], tiny_services, links)
    assert modules == [links["link0"], *tiny_services["host"].blocks[1:4], links["link1"]]
