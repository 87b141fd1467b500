"""Requests that are not what they should be, some hundred of every kind (ten thousand: benchmarks/serving/malformed.py)."""

import asyncio
from collections.abc import Iterator

import pytest
from ray import serve
from serving import FIXED, LOCAL, Run, process_ids, running_serve

from benchmarks.serving.malformed import Maker, run, slow_clients
from code_ray.data import DataSet
from deployments import build_app
from deployments.config import AppOptions


@pytest.fixture(scope="module")
def url(served_run: Run) -> Iterator[str]:
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": FIXED})))
        yield base


def test_a_clients_fault_is_a_clients_error_and_harms_nobody_else(url: str, digits: DataSet) -> None:
    processes = process_ids("ray::ServeReplica") | process_ids("ray::ProxyActor")
    outcome = asyncio.run(run(url, LOCAL, digits.test.images[:2], 600, seed=1))
    assert outcome.wrong == []
    assert sum(outcome.statuses.values()) == 600
    assert processes <= process_ids("ray::")
    refused = sum(count for (_, status), count in outcome.statuses.items() if 400 <= status < 500)
    assert refused > 400


def test_clients_that_send_a_byte_a_second_hold_nobody_up(url: str, digits: DataSet) -> None:
    assert asyncio.run(slow_clients(url, LOCAL, digits.test.images[:2], 30, 3.0)) < 10


def test_every_kind_of_malformed_request_is_made_and_the_same_ones_for_the_same_seed(digits: DataSet) -> None:
    makers = [Maker(LOCAL, digits.test.images[:2], seed) for seed in (0, 0, 1)]
    one, again, other = ([maker.make(number) for number in range(48)] for maker in makers)
    assert one == again != other
    assert len({malformed.kind for malformed in one}) == 12
