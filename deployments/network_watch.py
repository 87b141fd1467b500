"""Measures the network between a router and the providers of its plan, by calls that carry so many bytes (DESIGN 2.3)."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from code_ray.packing import SMALL, packed
from code_ray.throughput import Edge
from deployments.known_providers import KnownProviders
from deployments.network import EdgeSpeed, Network, find_places, speed_of
from deployments.routes import Route

logger = logging.getLogger("ray.serve")

TINY_CALLS = 5
LEAST_BYTES = 128 << 10
"""Smaller messages take another way through Ray than activations do."""
MOST_BYTES = 32 << 20
LONG_S = 0.3
"""Beside this what a call takes whatever it carries is little: more bytes would say no more."""
CALL_DEADLINE_S = 10.0
AGAIN_S = 30.0
"""After a measurement that failed."""
TURN_S = 60.0
"""For which providers keep other routers from measuring; they take a few."""

Send = Callable[[int], Awaitable[Any]]
"""Makes so many bytes cross the edge that is measured."""


class NetworkWatch:
    """Where everything is, and each edge that routes cross, measured once: again only where a server comes up on another node.

    ``node``: the router's, ``local``: the local service's provider.
    """

    def __init__(self, providers: KnownProviders, node: str, local: str) -> None:
        self.now = Network()
        self._providers = providers
        self._node = node
        self._local = local
        self._id = uuid.uuid4().hex
        self._measured: dict[Edge, EdgeSpeed] = {}  # by the ids of nodes
        self._not_before: dict[Edge, float] = {}

    async def look(self, routes: Iterable[Route]) -> None:
        """Find out where providers are by what they last told, and measure the edges of ``routes`` that are not known yet."""
        nodes = {name: report.node for name, report in self._providers.reports.items()}
        home, places = find_places(self._node, nodes, self._local)
        node_at = {place: nodes[provider] for provider, place in places.items()} | {home: self._node}
        network = Network(home, places)
        ways = [hops for route in routes for hops in (*route.ways, *route.rerun_ways)]
        edges = {edge for hops in ways if all(hop.provider in nodes for hop in hops) for edge in network.crossed(h.provider for h in hops)}
        keys = {edge: (node_at[edge[0]], node_at[edge[1]]) for edge in sorted(edges)}
        self._tell(network, keys)
        for edge, key in keys.items():
            if key not in self._measured and time.monotonic() >= self._not_before.get(key, 0.0):
                await self._measure(edge, key, network)
                self._tell(network, keys)

    def _tell(self, network: Network, keys: Mapping[Edge, Edge]) -> None:
        self.now = replace(network, speeds={edge: self._measured[key] for edge, key in keys.items() if key in self._measured})

    async def _measure(self, edge: Edge, key: Edge, network: Network) -> None:
        # At each end the router itself, or a provider that is there.
        some_at = {place: provider for provider, place in network.places.items() if place != network.home}
        sender, receiver = (self._providers.handle(some_at[place], by_reference=True) if place in some_at else None for place in edge)

        async def send(size: int) -> None:
            # As hops do: what a provider made goes to the next one by reference.
            value: Any = packed(np.ones(size, np.uint8), SMALL) if sender is None else sender.transfer.remote(b"", size)
            await (value if receiver is None else receiver.transfer.remote(value, 1))

        asked = [handle for handle in (sender, receiver) if handle is not None]
        try:
            if not await self._take_turns(asked, TURN_S):
                return  # another router measures now: both would see half of it
            speed = await measure(send)
            await self._take_turns(asked, 0.0)
        except (TimeoutError, RayError, RayServeException) as error:
            self._not_before[key] = time.monotonic() + AGAIN_S
            logger.warning("the network from %s to %s could not be measured: %s", *edge, type(error).__name__)
        else:
            self._measured[key] = speed
            logger.info("network from %s to %s: %.1f ms, %.0f Mbit/s", *edge, 1e3 * speed.delay_s, 8e-6 * speed.bytes_per_second)

    async def _take_turns(self, asked: Sequence[DeploymentHandle[Any]], seconds: float) -> bool:
        async with asyncio.timeout(CALL_DEADLINE_S):
            return all([await handle.take_turn.remote(self._id, seconds) for handle in asked])


async def measure(send: Send) -> EdgeSpeed:
    """The speed of an edge over which ``send`` sends: more and more, until it takes long.

    Raises:
        TimeoutError: where a call does not come back.
    """
    await _seconds(send, 1)  # the first one makes connections
    tiny_s = statistics.median([await _seconds(send, 1) for _ in range(TINY_CALLS)])
    size, transfers = LEAST_BYTES, list[tuple[int, float]]()
    while not transfers or (transfers[-1][1] < LONG_S and size <= MOST_BYTES):
        transfers.append((size, min([await _seconds(send, size) for _ in range(2)])))
        size *= 4
    return speed_of(tiny_s, transfers)


async def _seconds(send: Send, size: int) -> float:
    began = time.monotonic()
    await asyncio.wait_for(send(size), CALL_DEADLINE_S)
    return time.monotonic() - began
