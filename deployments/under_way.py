"""What a router has under way, and when the next request would be answered. Pure: no Ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from code_ray.lateness import Lateness
from code_ray.throughput import Resource
from deployments.network import ONE_PLACE, Network
from deployments.routes import Hop, Route

Work = Mapping[Resource, float]
"""Seconds of each server and edge that a request takes."""

BLAMED = 2.0
"""A path that takes so many times what it was expected to has failed; one that takes less waits."""


class UnderWay:
    """Seconds of each server and edge that requests under way take, for what the next would wait; a router sees a ``share`` of all."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._seconds: dict[Resource, float] = {}
        self._late: defaultdict[tuple[str, tuple[Hop, ...]], Lateness] = defaultdict(Lateness)

    def add(self, work: Work) -> None:
        """A request with so many seconds of work by server and edge began."""
        for name, seconds in work.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def remove(self, work: Work) -> None:
        """It ended."""
        for name, seconds in work.items():
            self._seconds[name] = max(0.0, self._seconds[name] - seconds)

    def expected(self, route: Route, work: Work, network: Network = ONE_PLACE) -> float:
        """Seconds until ``route`` would answer a request of so much ``work``: it waits behind what is there, then runs, and what it
        hands on is on its way for a while.
        """
        return self._wait(work) + alone(route, work, network)

    def due(self, route: Route, work: Work, network: Network, now: float) -> float:
        """As ``expected``, and as much later as answers came lately. Where nothing is under way they were late for another reason, and a
        request that is refused then would have been answered.
        """
        wait, least = self._wait(work), alone(route, work, network)
        return least if wait <= 0 else max(least, least + wait + self.allowance(route, now))

    def learn(self, route: Route, late_s: float, now: float) -> None:
        """An answer of ``route`` came so many seconds later than was ``expected``."""
        self._late[route.id, route.hops].learn(late_s, now)

    def allowance(self, route: Route, now: float) -> float:
        """Seconds that answers of ``route`` came later than ``expected``, lately; below 0 where they came earlier."""
        return self._late[route.id, route.hops].allowance(now)

    def explains(self, route: Route, expected_s: float, began: float, took_s: float) -> bool:
        """Whether the load is why an answer of ``route``, ``expected_s`` after it ``began``, has not come after ``took_s``."""
        return expected_s + self.allowance(route, began) > took_s / BLAMED

    def _wait(self, work: Work) -> float:
        """Seconds of what is under way at the servers and edges of ``work``."""
        return sum(self._seconds.get(name, 0.0) for name in work) / self._share


def alone(route: Route, work: Work, network: Network) -> float:
    """Seconds to an answer of ``route`` to a request of so much ``work`` if nothing else were under way."""
    return sum(work.values()) + max(network.delay(hop.provider for hop in way) for way in route.ways)
