"""Where a plan's servers sit, and what the network between them carries (DESIGN 2.3). Pure: no Ray.

A *place* is what shares a node; edges lead from place to place, and within a place there is none. A place is called by the local
service's provider where that is there, else by another one that is, else it is the router's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from code_ray.throughput import Edge, PathCost

ROUTER = "router"


@dataclass(frozen=True)
class EdgeSpeed:
    """An edge in one direction: seconds until something small is across, and bytes a second."""

    delay_s: float
    bytes_per_second: float


@dataclass(frozen=True)
class Network:
    """``home``: the router's place. ``places`` by provider; one that is not named is at home. ``speeds``: of edges that were measured,
    others are unlimited.
    """

    home: str = ROUTER
    places: Mapping[str, str] = field(default_factory=dict)
    speeds: Mapping[Edge, EdgeSpeed] = field(default_factory=dict)

    @property
    def bandwidth(self) -> dict[Edge, float]:
        """Bytes a second of the edges that were measured."""
        return {edge: speed.bytes_per_second for edge, speed in self.speeds.items()}

    def describe(self) -> list[dict[str, object]]:
        """What metadata says of each measured edge."""
        return [
            {"from": begin, "to": end, "delay_ms": 1e3 * speed.delay_s, "mbit_per_s": 8e-6 * speed.bytes_per_second}
            for (begin, end), speed in self.speeds.items()
        ]

    def place_of(self, provider: str) -> str:
        """Where a provider sits."""
        return self.places.get(provider, self.home)

    def crossed(self, providers: Iterable[str]) -> list[Edge]:
        """The edges, in order, on the way from the router over ``providers`` and back."""
        stops = [self.home, *map(self.place_of, providers), self.home]
        return [edge for edge in pairwise(stops) if edge[0] != edge[1]]

    def delay(self, providers: Iterable[str]) -> float:
        """Seconds that this way takes whatever is sent over it."""
        return sum(self.speeds[edge].delay_s for edge in self.crossed(providers) if edge in self.speeds)

    def seconds(self, cost: PathCost) -> dict[Edge, float]:
        """Seconds a sample takes of each measured edge."""
        return {edge: size / self.speeds[edge].bytes_per_second for edge, size in cost.payload_bytes.items() if edge in self.speeds}


ONE_PLACE = Network()
"""Everything on one node: no edges."""


def find_places(router_node: str, nodes: Mapping[str, str], local: str) -> tuple[str, dict[str, str]]:
    """The router's place, and each provider's, by the ``nodes`` that they are on; ``local``: the local service's provider."""
    names: dict[str, str] = {}
    for provider in sorted(nodes, key=lambda name: (name != local, name)):
        names.setdefault(nodes[provider], provider)
    return names.get(router_node, ROUTER), {provider: names[node] for provider, node in nodes.items()}


def speed_of(tiny_s: float, transfers: Sequence[tuple[int, float]]) -> EdgeSpeed:
    """From what a call with next to nothing takes, there and back, and calls with so many (bytes, seconds), the larger ones last.

    Bandwidth is that of the last bytes: what a call takes beside them is in both.
    """
    (size, seconds), (less, sooner) = transfers[-1], transfers[-2] if len(transfers) > 1 else (0, tiny_s)
    # Where a machine was busy the smaller call may have taken as long.
    bytes_per_second = (size - less) / (seconds - sooner) if seconds > sooner else size / seconds
    return EdgeSpeed(tiny_s / 2, bytes_per_second)
