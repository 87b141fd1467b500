"""Activations that cross between float32 servers as float16: what is computed, what it weighs, what it costs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from serving import BATCH, FIXED, PLACEMENT, Run, relative_difference
from test_cost_table import profile_of
from test_split_training import split_trainer
from trained import make_small_services, tiny_trainer

from code_ray.artifact import write_text
from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.packing import unpacked
from code_ray.path import parse_path, path_from_vector
from code_ray.path_space import PathSpace
from code_ray.plan import Plan
from code_ray.profiling import hop_bytes
from code_ray.relay import Relay
from code_ray.runner import LegRunner, PathRunner, handed_on, leg_modules, make_links, walk
from code_ray.service import Service
from deployments.builder import read_specs
from deployments.provider import Provider
from deployments.stores import open_plan

CROSS = path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6)
APART = {"tiny": "a", "host": "b", "second": "c"}


def test_numbers_beyond_the_range_of_float16_stay_numbers_and_only_float32_is_changed() -> None:
    wide = torch.tensor([1e9, -1e9, 0.1, 2049.0])
    assert torch.equal(handed_on(wide, "float16"), torch.tensor([65504.0, -65504.0, 0.1, 2048.0], dtype=torch.float16))
    assert handed_on(wide, None) is wide
    for kept in (wide.bfloat16(), torch.tensor([7])):
        assert handed_on(kept, "float16") is kept


@pytest.mark.parametrize("mode", [ExecutionMode(), ExecutionMode(channels_last=True)], ids=str)
def test_a_path_rounds_where_it_leaves_a_provider_and_nowhere_else(
    mode: ExecutionMode, tiny_services: dict[str, Service], digits: DataSet
) -> None:
    torch.manual_seed(0)
    links = make_links(CROSS, tiny_services)
    inputs = tiny_services["tiny"].preprocess(digits.test.images[:10])
    legs = walk(CROSS, APART)
    value = inputs
    for number, leg in enumerate(legs):
        value = LegRunner(leg_modules(leg, tiny_services, links), mode)(value)
        if number < len(legs) - 1:
            value = value.half().float()
    rounded = PathRunner(legs, tiny_services, links, lambda _: mode, payload="float16")(inputs)
    exact = PathRunner(legs, tiny_services, links, lambda _: mode)(inputs)
    assert torch.equal(rounded, value)
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 1e-2
    at_one = walk(CROSS, dict.fromkeys(APART, "a"))
    both = (PathRunner(at_one, tiny_services, links, lambda _: mode, payload=payload)(inputs) for payload in (None, "float16"))
    assert torch.equal(*both)


@pytest.mark.parametrize("text", ["tiny[0:1] > host[1:4] > tiny[5:6]", "tiny[0:1] > host[1:4] > logits", "tiny[0:2] > tiny[4:6]"])
def test_hosts_that_keep_their_weights_answer_as_one_process_does(text: str, digits: DataSet) -> None:
    services, path, images = make_small_services(digits), parse_path(text, 6), digits.test.images[:20]
    found = []
    for trainer in (tiny_trainer(services, digits), split_trainer(services, digits)[0]):
        trainer.parties.payload = "float16"
        found.append(Relay(trainer.parties, path, seed=4).logits(images))
    together, apart = found
    assert np.array_equal(together, apart)


def test_a_hop_weighs_half_where_it_carries_float32_activations(tiny_services: dict[str, Service]) -> None:
    service = tiny_services["tiny"]
    for position in range(7):
        whole = hop_bytes(service, position, ExecutionMode())
        assert hop_bytes(service, position, ExecutionMode(), "float16") == (whole if position in (0, 6) else whole / 2)
        assert hop_bytes(service, position, ExecutionMode("bfloat16"), "float16") == hop_bytes(service, position, ExecutionMode("bfloat16"))
    profile = profile_of(PathSpace("tiny", 6, {"host": 6}), tiny_services, APART)
    halved = profile.model_copy(update={"payload": "float16"})
    before, after = (each.cost(CROSS, tiny_services) for each in (profile, halved))
    assert [profile.mode_of(name).dtype for name in ("a", "b")] == ["bfloat16", "float32"]
    saved = before.payload_bytes["b", "a"] / 2
    assert after.payload_bytes == {**before.payload_bytes, ("b", "a"): saved}
    assert before.at("a") - after.at("a") == pytest.approx(saved * profile.pack_seconds_per_byte)


@pytest.fixture
def halved(served_run: Run, tmp_path: Path) -> Iterator[tuple[Plan, dict[str, Provider]]]:
    """The providers of the local service and of its host, in this process, with a plan whose activations cross as float16."""
    paths = tuple(p.model_copy(update={"payload": "float16"}) if p.link_hashes else p for p in served_run.plan.paths)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stores").symlink_to(served_run.root / "stores")
    write_text(folder / "plan.json", served_run.plan.model_copy(update={"paths": paths, "canaries": None}).model_dump_json())
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        run, plan = open_plan(folder)
        yield plan, {name: Provider(name, plan, run, run, read_specs(run, plan), FIXED) for name in PLACEMENT.values()}
    finally:
        ray.shutdown()


def test_servers_send_half_the_bytes_and_answer_as_one_process_does(
    halved: tuple[Plan, dict[str, Provider]], served_run: Run, digits: DataSet
) -> None:
    plan, providers = halved
    images, path = digits.test.images[:BATCH], served_run.paths["cross"]
    planned = next(p for p in plan.paths if p.path == str(path))
    before = served_run.planned("cross")

    async def ask() -> tuple[list[int], Any]:
        value: Any = images
        sizes = []
        for number, leg in enumerate(walk(path, plan.placement)):
            provider = providers[leg.provider]
            assert planned.leg_key(number) != before.leg_key(number)
            value = await provider.run(planned.leg_key(number), value)
            told = (await provider.describe()).legs[planned.leg_key(number)]
            assert told.out_bytes == unpacked(value).nbytes / BATCH
            sizes.append(unpacked(value).dtype.itemsize)
        return sizes, unpacked(value)

    sizes, logits = asyncio.run(ask())
    assert sizes == [2, 2, 4]
    service, links = served_run.services[plan.local], served_run.links["cross"]
    legs, modes = walk(path, plan.placement), lambda _: ExecutionMode()
    expected = PathRunner(legs, served_run.services, links, modes, payload="float16")(service.preprocess(images), BATCH).numpy()
    assert relative_difference(logits, expected) <= 1e-5
    assert relative_difference(logits, served_run.logits("cross", images)) > 1e-5
