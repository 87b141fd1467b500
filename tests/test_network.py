"""The network between servers: what routes send over it, how it is measured, and what it does to rates and deadlines (DESIGN 2.3)."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from test_routes import PLAN, ROUTES, TINY

from code_ray.throughput import Edge
from deployments.known_providers import KnownProviders
from deployments.network import ROUTER, EdgeSpeed, Network, find_places, speed_of
from deployments.network_watch import NetworkWatch, measure
from deployments.routes import LegReport, ProviderReport, solve_rates
from deployments.under_way import UnderWay

OUT, BACK = ("home", "away"), ("away", "home")
LEGS = {
    "home": {
        "o1:0": LegReport(0.010, 32, 100, 40),
        "c1:0": LegReport(0.002, 32, 100, 1000),
        "c1:2": LegReport(0.001, 32, 500, 40),
        "s1:0": LegReport(0.004, 32, 100, 40),
        "r1:1": LegReport(0.001, 32, 300, 40),
    },
    "away": {
        "c1:1": LegReport(0.005, 32, 1000, 500),
        "r1:0": LegReport(0.010, 32, 100, 300),
        "original-host:0": LegReport(0.02, 32, 100, 40),
    },
}
REPORTS = {name: ProviderReport(name, "float32", legs, node=name) for name, legs in LEGS.items()}
APART = {"home": "home", "away": "away"}


def network(bytes_per_second: float) -> Network:
    """The local service's provider beside the router, the host elsewhere, 4 ms away."""
    return Network("home", APART, dict.fromkeys((OUT, BACK), EdgeSpeed(0.004, bytes_per_second)))


def test_a_route_sends_what_its_legs_hand_on_and_images_as_they_came() -> None:
    cross, raw = TINY[1], TINY[3]
    assert cross.cost(REPORTS, network(1e6)).payload_bytes == {OUT: 1000, BACK: 500}
    assert raw.cost(REPORTS, network(1e6)).payload_bytes == {OUT: 100, BACK: 300}
    assert cross.cost(REPORTS).payload_bytes == TINY[0].cost(REPORTS, network(1e6)).payload_bytes == {}
    # A host's own service is asked over the network too.
    assert ROUTES["host"]["original"].cost(REPORTS, network(1e6)).payload_bytes == {OUT: 100, BACK: 40}


def test_a_router_that_sits_elsewhere_sends_over_edges_of_its_own() -> None:
    apart = Network(ROUTER, APART)
    assert TINY[0].cost(REPORTS, apart).payload_bytes == {(ROUTER, "home"): 100, ("home", ROUTER): 40}
    assert TINY[3].cost(REPORTS, apart).payload_bytes == {(ROUTER, "away"): 100, BACK: 300, ("home", ROUTER): 40}


def test_places_are_nodes_called_by_who_is_there() -> None:
    nodes = {"home": "n1", "away": "n2", "beside": "n1"}
    assert find_places("n1", nodes, "home") == ("home", {"home": "home", "away": "away", "beside": "home"})
    assert find_places("n3", nodes, "home")[0] == ROUTER
    # While the local service is gone the place goes by another that is there.
    assert find_places("n1", {"away": "n2", "beside": "n1"}, "home") == ("beside", {"away": "away", "beside": "beside"})


def test_rates_keep_to_the_bandwidth_that_was_measured() -> None:
    assert solve_rates(TINY, PLAN, REPORTS, ["c1"], network(1e6)) == pytest.approx({"original": 70.0, "c1": 100.0})
    # 1000 bytes an image there: 50 images a second, which leave 0.85 of the home server to the original.
    slow = solve_rates(TINY, PLAN, REPORTS, ["c1"], network(5e4))
    assert slow == pytest.approx({"original": 85.0, "c1": 50.0})
    # A gated path sends no more.
    gated = replace(TINY[1], rerun=0.5, rerun_hops=TINY[0].hops)
    assert solve_rates([TINY[0], gated], PLAN, REPORTS, None, network(5e4))["c1"] == pytest.approx(50.0)


def test_where_bandwidth_binds_another_path_is_used() -> None:
    plan = PLAN.model_copy(update={"loss_points": 2.0})
    rates = [solve_rates([TINY[0], TINY[1], TINY[3]], plan, REPORTS, None, network(speed)) for speed in (1e6, 1.2e4)]
    assert rates[0]["c1"] > 0 == pytest.approx(rates[0]["r1"])
    assert rates[1]["r1"] > rates[1]["c1"]


def test_an_answer_over_a_network_comes_later_by_its_delay_and_by_what_it_carries() -> None:
    cross, under_way, slow = TINY[1], UnderWay(share=1.0), network(1e6)
    # 10 images: 80 ms of work, 4 ms on the way each way, and 1000 and 500 bytes an image at 1 MB/s.
    assert under_way.expected(cross, cross.work(10, REPORTS, slow), slow) == pytest.approx(0.08 + 2 * 0.004 + 0.010 + 0.005)
    work = cross.work(100, REPORTS, slow)
    under_way.add(work)
    # Behind 100 others it waits for both directions too; the original waits for the server at home alone.
    assert under_way.expected(cross, cross.work(10, REPORTS, slow), slow) == pytest.approx(0.88 + 2 * 0.004 + 0.110 + 0.055)
    assert under_way.expected(TINY[0], TINY[0].work(10, REPORTS, slow), slow) == pytest.approx(0.1 + 0.3)
    under_way.remove(work)
    assert under_way.expected(TINY[0], TINY[0].work(10, REPORTS, slow), slow) == pytest.approx(0.1)


def test_bandwidth_is_that_of_the_last_bytes_and_delay_half_of_a_call_with_none() -> None:
    # 20 ms whatever is carried, 10 MB/s.
    found = speed_of(0.02, [(100_000, 0.03), (400_000, 0.06)])
    assert (found.delay_s, found.bytes_per_second) == pytest.approx((0.01, 1e7))
    assert speed_of(0.02, [(100_000, 1.02)]).bytes_per_second == pytest.approx(1e5)
    # Noise: then at least so much.
    assert speed_of(0.02, [(100_000, 0.03), (400_000, 0.02)]).bytes_per_second == pytest.approx(2e7)


def test_a_slow_edge_is_measured_as_slow_as_it_is() -> None:
    sent = []

    async def send(size: int) -> None:
        sent.append(size)
        await asyncio.sleep(0.02 + size / 4e6)

    speed = asyncio.run(measure(send))
    assert speed.delay_s == pytest.approx(0.01, rel=0.3)
    assert speed.bytes_per_second == pytest.approx(4e6, rel=0.2)
    assert max(sent) < 4_000_000  # no more than it takes


class Wires:
    """What stands in for a provider behind a network: calls take as long as their bytes."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self.calls = 0
        self.holder: str | None = None
        self.transfer = SimpleNamespace(remote=self._transfer)
        self.take_turn = SimpleNamespace(remote=self._take_turn)

    def options(self, *, _by_reference: bool) -> "Wires":
        assert _by_reference  # as activations go: by value large ones are refused
        return self

    async def _transfer(self, payload: Any, answer_bytes: int) -> Any:
        self.calls += 1
        payload = payload if isinstance(payload, np.ndarray | bytes) else await payload
        await asyncio.sleep((len(payload) + answer_bytes) / self.bytes_per_second)
        return np.ones(answer_bytes, np.uint8)

    async def _take_turn(self, router: str, seconds: float) -> bool:
        return self.holder is None


def watched(handles: dict[str, Wires], nodes: dict[str, str]) -> tuple[NetworkWatch, KnownProviders]:
    providers = KnownProviders(handles, cast(Any, handles))
    providers.reports = {name: replace(REPORTS[name], node=node) for name, node in nodes.items()}
    return NetworkWatch(providers, "n1", "home"), providers


def speeds(watch: NetworkWatch) -> dict[Edge, EdgeSpeed]:
    began = time.monotonic()
    asyncio.run(watch.look(TINY))
    assert time.monotonic() - began < 10
    return dict(watch.now.speeds)


def test_on_one_node_nothing_is_measured() -> None:
    handles = {"home": Wires(1e6), "away": Wires(1e6)}
    watch, _ = watched(handles, {"home": "n1", "away": "n1"})
    assert speeds(watch) == {}
    assert handles["away"].calls == 0


def test_both_directions_are_measured_once_and_again_where_a_server_moves() -> None:
    handles = {"home": Wires(1e9), "away": Wires(25e6)}
    watch, providers = watched(handles, {"home": "n1", "away": "n2"})
    first = speeds(watch)
    assert set(first) == {OUT, BACK}
    assert first[OUT].bytes_per_second == pytest.approx(25e6, rel=0.2)
    before = handles["away"].calls
    assert speeds(watch) == first
    assert handles["away"].calls == before
    assert handles["home"].calls == 0  # the router is beside it
    handles["away"].bytes_per_second = 6e6
    providers.reports = {**providers.reports, "away": replace(REPORTS["away"], node="n3")}
    assert speeds(watch)[BACK].bytes_per_second == pytest.approx(6e6, rel=0.2)


def test_two_routers_do_not_measure_at_the_same_time() -> None:
    handles = {"home": Wires(1e9), "away": Wires(25e6)}
    watch, _ = watched(handles, {"home": "n1", "away": "n2"})
    handles["away"].holder = "another router"
    assert speeds(watch) == {}
    handles["away"].holder = None
    assert set(speeds(watch)) == {OUT, BACK}
