"""What reaches the last link: the same bits however it is asked for, computed once for paths that begin alike."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trained import CROSS, PATHS, apart

from code_ray import link_inputs
from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.link_inputs import Images, LinkInputs
from code_ray.links import Link
from code_ray.path import InferencePath, parse_path, path_from_vector
from code_ray.runner import PathRunner, make_links
from code_ray.service import Service

FLOAT32, BFLOAT16 = ExecutionMode(), ExecutionMode("bfloat16", channels_last=True)
COUNT = 200
"""Training images: three whole batches and a piece of one."""

SKIP = path_from_vector((1, 4), "tiny", 6)


@dataclass(frozen=True)
class Inputs:
    """Inputs of links of the service "tiny", from images."""

    cache: LinkInputs
    source: Images

    def turn_to(self, path: InferencePath, links: Mapping[str, Link]) -> None:
        legs, _ = apart(path)
        self.cache.turn_to(legs, links, self.source, links[path.link_slots[-1].key].spec.in_shape)

    def rows(self, split: str, indices: Tensor) -> Tensor:
        return self.cache.rows(split, indices)

    @property
    def seconds(self) -> dict[str, float]:
        return self.cache.seconds


@pytest.fixture
def inputs(tiny_services: dict[str, Service], digits: DataSet) -> Inputs:
    return make_inputs(tiny_services, digits)


def make_inputs(services: Mapping[str, Service], digits: DataSet, mode: ExecutionMode = FLOAT32) -> Inputs:
    splits = {"train": digits.train.head(COUNT), "validation": digits.validation}
    return Inputs(LinkInputs(services, lambda _: mode), Images(services["tiny"], splits))


def links_of(path: InferencePath, services: Mapping[str, Service], seed: int = 0) -> dict[str, Link]:
    torch.manual_seed(seed)
    return make_links(path, services)


def expected(
    path: InferencePath, services: Mapping[str, Service], links: Mapping[str, Link], digits: DataSet, mode: ExecutionMode = FLOAT32
) -> Tensor:
    """What the legs before the last link make of all training images, run in one go."""
    legs, _ = apart(path)
    runner = PathRunner(legs, services, links, lambda _: mode)
    return runner(services["tiny"].preprocess(digits.train.images[:COUNT]))


@pytest.mark.parametrize("mode", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rows_are_what_the_servers_compute_to_the_bit(
    path: InferencePath, mode: ExecutionMode, tiny_services: dict[str, Service], digits: DataSet
) -> None:
    inputs, links = make_inputs(tiny_services, digits, mode), links_of(path, tiny_services)
    inputs.turn_to(path, links)
    whole = expected(path, tiny_services, links, digits, mode)
    for asked in (torch.tensor([70, 3, 3]), torch.arange(10), torch.randperm(COUNT), torch.tensor([COUNT - 1, 0])):
        rows = inputs.rows("train", asked)
        assert rows.dtype == torch.float32
        assert torch.equal(rows, whole[asked])


@given(st.lists(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=20), min_size=1, max_size=8))
@settings(max_examples=40)
def test_neither_the_order_of_questions_nor_how_the_kept_rows_grew_changes_a_bit(
    tiny_services: dict[str, Service], digits: DataSet, questions: list[list[int]]
) -> None:
    inputs, links = make_inputs(tiny_services, digits), links_of(CROSS, tiny_services)
    inputs.turn_to(CROSS, links)
    whole = expected(CROSS, tiny_services, links, digits)
    for question in questions:
        assert torch.equal(inputs.rows("train", torch.tensor(question)), whole[question])


def test_splits_do_not_mix(inputs: Inputs, tiny_services: dict[str, Service], digits: DataSet) -> None:
    links = links_of(CROSS, tiny_services)
    inputs.turn_to(CROSS, links)
    train, validation = inputs.rows("train", torch.arange(64)), inputs.rows("validation", torch.arange(64))
    assert torch.equal(train, expected(CROSS, tiny_services, links, digits)[:64])
    assert not torch.equal(train, validation)
    assert set(inputs.seconds) == {"train", "validation"}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (SKIP, path_from_vector((1, 5), "tiny", 6)),
        (SKIP, path_from_vector((1,), "tiny", 6)),
        (SKIP, path_from_vector((1, 5), "tiny", 6, rank=2)),  # no link lies before the last one: its rank changes nothing there
        (path_from_vector((0, 2), "tiny", 6), path_from_vector((0, 4), "tiny", 6)),
        (CROSS, path_from_vector((1, 2, 4, 3), "tiny", 6, "host", 6)),
        (CROSS, path_from_vector((1, 2, 4), "tiny", 6, "host", 6)),
        (CROSS, CROSS),
    ],
    ids=str,
)
def test_what_is_kept_serves_paths_that_begin_alike(
    first: InferencePath, then: InferencePath, inputs: Inputs, tiny_services: dict[str, Service], digits: DataSet
) -> None:
    inputs.turn_to(first, links_of(first, tiny_services))
    inputs.rows("train", torch.arange(128))
    spent = dict(inputs.seconds)
    links = links_of(then, tiny_services)
    inputs.turn_to(then, links)
    rows = inputs.rows("train", torch.arange(128))
    assert inputs.seconds == spent
    assert torch.equal(rows, expected(then, tiny_services, links, digits)[:128])


@pytest.mark.parametrize(
    "then",
    [
        path_from_vector((2, 2, 4, 5), "tiny", 6, "host", 6),
        path_from_vector((1, 3, 4, 5), "tiny", 6, "host", 6),
        path_from_vector((1, 2, 3, 5), "tiny", 6, "host", 6),
        path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6, rank=2),
        path_from_vector((1, 2, 4, 5), "tiny", 6, "second", 6),
        parse_path("tiny[0:1] > host[1:4] > second[1:3] > tiny[5:6]", 6),
        SKIP,
        path_from_vector((0, 4), "tiny", 6),
    ],
    ids=str,
)
def test_another_beginning_drops_what_is_kept(
    then: InferencePath, inputs: Inputs, tiny_services: dict[str, Service], digits: DataSet
) -> None:
    inputs.turn_to(CROSS, links_of(CROSS, tiny_services))
    inputs.rows("train", torch.arange(COUNT))
    links = links_of(then, tiny_services)
    inputs.turn_to(then, links)
    assert not inputs.seconds
    assert torch.equal(inputs.rows("train", torch.arange(COUNT)), expected(then, tiny_services, links, digits))
    assert inputs.seconds["train"] > 0


def test_other_weights_of_an_earlier_link_are_another_beginning(inputs: Inputs, tiny_services: dict[str, Service], digits: DataSet) -> None:
    links = links_of(CROSS, tiny_services)
    inputs.turn_to(CROSS, links)
    before = inputs.rows("train", torch.arange(COUNT))
    with torch.no_grad():  # in place, as a joint training changes them
        next(links["link0"].parameters()).mul_(1.5)
    inputs.turn_to(CROSS, links)
    after = inputs.rows("train", torch.arange(COUNT))
    assert not torch.equal(before, after)
    assert torch.equal(after, expected(CROSS, tiny_services, links, digits))


def test_weights_of_the_last_link_are_no_part_of_the_beginning(inputs: Inputs, tiny_services: dict[str, Service]) -> None:
    links = links_of(CROSS, tiny_services)
    inputs.turn_to(CROSS, links)
    inputs.rows("train", torch.arange(64))
    spent = dict(inputs.seconds)
    with torch.no_grad():
        next(links["link1"].parameters()).mul_(1.5)
    inputs.turn_to(CROSS, links)
    inputs.rows("train", torch.arange(64))
    assert inputs.seconds == spent


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rows_too_many_to_keep_are_computed_and_the_same(
    path: InferencePath, inputs: Inputs, tiny_services: dict[str, Service], digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_inputs, "MAX_KEPT_VALUES", 0)
    links = links_of(path, tiny_services)
    inputs.turn_to(path, links)
    whole = expected(path, tiny_services, links, digits)
    assert torch.equal(inputs.rows("train", torch.arange(COUNT)), whole)
    for asked in (torch.tensor([150, 3, 3]), torch.arange(10, 50)):
        # Other batches sum in another order.
        torch.testing.assert_close(inputs.rows("train", asked), whole[asked], rtol=1e-5, atol=1e-5)
    assert not inputs.seconds


@pytest.mark.parametrize(("spare", "kept"), [(0, {"train"}), (-1, set())])
def test_the_limit_is_on_the_values_of_the_whole_split(
    spare: int,
    kept: set[str],
    inputs: Inputs,
    tiny_service: Service,
    tiny_services: dict[str, Service],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = COUNT * int(torch.Size(tiny_service.boundaries[1].shape).numel())
    monkeypatch.setattr(link_inputs, "MAX_KEPT_VALUES", values + spare)
    inputs.turn_to(SKIP, links_of(SKIP, tiny_services))
    inputs.rows("train", torch.arange(5))
    assert set(inputs.seconds) == kept


def test_the_last_rows_of_a_split_are_computed_once_too(inputs: Inputs, tiny_services: dict[str, Service]) -> None:
    inputs.turn_to(CROSS, links_of(CROSS, tiny_services))
    inputs.rows("train", torch.arange(COUNT))
    spent = dict(inputs.seconds)
    inputs.rows("train", torch.arange(COUNT))
    assert inputs.seconds == spent
