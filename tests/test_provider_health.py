"""What Serve hears when it asks a provider for its health: that a real leg runs, or why the replica is to be replaced; and routers."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import ray
from serving import BATCH, FIXED, Run

from code_ray.data import DataSet
from code_ray.errors import DeploymentError
from code_ray.packing import unpacked
from deployments.builder import read_specs
from deployments.provider import FAILURES, Provider
from deployments.stores import open_plan
from deployments.worker import Array


@pytest.fixture
def provider(served_run: Run) -> Iterator[Provider]:
    """The local service's provider, in this process; how fast it packs is measured on a Ray of its own."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        run, plan = open_plan(served_run.root)
        yield Provider("alpha", plan, run, run, read_specs(run, plan), FIXED)
    finally:
        ray.shutdown()


def break_legs(provider: Provider, answer: Array | RuntimeError) -> None:
    def call(value: Array) -> Array:
        if isinstance(answer, RuntimeError):
            raise answer
        return np.broadcast_to(answer, (len(value), 10)).copy()

    for leg in provider._worker.legs.values():
        leg.call = call


def test_a_server_with_nothing_to_do_runs_a_leg_and_one_that_cannot_is_replaced(provider: Provider) -> None:
    before = asyncio.run(provider.describe()).busy_seconds
    asyncio.run(provider.check_health())
    assert asyncio.run(provider.describe()).busy_seconds > before
    break_legs(provider, RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(DeploymentError, match=r"cannot run .* unspecified launch failure"):
        asyncio.run(provider.check_health())


def test_a_server_that_makes_no_numbers_is_replaced(provider: Provider) -> None:
    break_legs(provider, np.full(10, np.nan, np.float32))
    with pytest.raises(DeploymentError, match="makes no finite numbers"):
        asyncio.run(provider.check_health())


def test_a_server_whose_every_chunk_fails_is_replaced_and_one_that_failed_once_is_not(
    provider: Provider, served_run: Run, digits: DataSet
) -> None:
    original = served_run.planned("skip").leg_key(0)
    images = digits.test.images[:BATCH]

    async def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(RuntimeError):
                await provider.run(original, images)

    call = provider._worker.legs[original].call
    break_legs(provider, RuntimeError("out of memory"))
    asyncio.run(fail(FAILURES))
    with pytest.raises(DeploymentError, match=f"has failed at {FAILURES} chunks in a row"):
        asyncio.run(provider.check_health())
    for leg in provider._worker.legs.values():
        leg.call = call
    assert unpacked(asyncio.run(provider.run(original, images))).shape == (BATCH, len(digits.labels))
    assert provider._worker.failed_in_a_row == 0


def test_a_server_tells_what_its_legs_send_and_lets_one_router_at_a_time_measure_the_network(
    provider: Provider, served_run: Run, digits: DataSet
) -> None:
    key, images = served_run.planned("cross").leg_key(0), digits.test.images[:BATCH]

    async def ask() -> None:
        report = await provider.describe()
        sent = await provider.run(key, images)
        assert isinstance(sent, np.ndarray)
        assert (report.legs[key].in_bytes, report.legs[key].out_bytes) == (images.nbytes / BATCH, sent.nbytes / BATCH)
        message = await provider.run(key, images[:1])
        assert isinstance(message, bytes)  # Ray sends what lies beside a small array too
        assert np.array_equal(unpacked(message), unpacked(await provider.run(key, images[:1])))
        assert report.node == ray.get_runtime_context().get_node_id()
        assert len(await provider.transfer(images, 500_000)) == 500_000
        assert await provider.take_turn("first", 60.0)
        assert not await provider.take_turn("second", 60.0)
        assert await provider.take_turn("first", 0.0)
        assert await provider.take_turn("second", 60.0)

    asyncio.run(ask())
