"""A plan as a router serves it: its routes, what share each has, what waits to be sent over it, what has drifted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from code_ray.breaker import Breaker
from code_ray.gating import confidence
from code_ray.plan import Plan
from code_ray.policy import ORIGINAL, RatePolicy
from deployments.batching import Batcher
from deployments.config import RouterOptions
from deployments.groups import group_routes
from deployments.metrics import RouterMetrics
from deployments.network import Network
from deployments.routes import ProviderReport, Refusal, Route, make_routes, solve_rates
from deployments.shadow import Shadow
from deployments.worker import Array

UNTIL_MEASURED = 32
"""Images a batch until servers have said at how many they are fastest."""

REMEMBERED = 2000
"""Images over which a gated path's share of reruns is averaged: it follows the traffic, and so do the rates."""

Call = Callable[[str, Route, Array], Awaitable[Array | Refusal]]
"""Service, route, images (n, *image_shape) -> logits (n, classes), as one batch."""


class PlanInForce:
    """Requests under way keep the one that they began with, so that another can take its place at any moment.

    ``call`` sends a batch over a route, ``when_withdrawn`` is told when a path has drifted; ``num_blocks`` and
    ``classes``, how many it tells apart, by service, ``breakers`` by host's provider. Services that are asked together stand among the
    others, by the name of their group.
    """

    def __init__(
        self,
        plan: Plan,
        num_blocks: Mapping[str, int],
        classes: Mapping[str, int],
        options: RouterOptions,
        breakers: Mapping[str, Breaker],
        call: Call,
        metrics: RouterMetrics,
        when_withdrawn: Callable[[], None],
    ) -> None:
        self.plan = plan
        alone = make_routes(plan, num_blocks)
        self.groups = group_routes(plan, alone, classes)
        self.routes = alone | self.groups
        self.policies = {service: RatePolicy(dict.fromkeys(routes, 0.0)) for service, routes in self.routes.items()}
        self.rates: dict[str, dict[str, float]] = {service: {} for service in (*plan.tasked, *self.groups)}
        """Images a second by local service, or group, and route."""
        self.quarantined: dict[str, str] = {}
        """Paths that answer their canaries wrongly, with how."""
        self._breakers = breakers
        self._path_deadline_s = options.path_deadline_s
        # At once: a batch for each leg of a route to work on, for each edge of the network, and one more.
        self._batchers = {
            (service, route.id): Batcher(partial(call, service, route), UNTIL_MEASURED, max(map(len, route.ways)) + 1)
            for service, routes in self.routes.items()
            for route in routes.values()
        }
        self._reports: Mapping[str, ProviderReport] = {}
        self._network = Network()
        self.reruns = {route.id: route.rerun for service in plan.tasked for route in alone[service].values()}
        """The share of images that goes over the original as well, of gated paths as it was lately."""
        self._metrics = metrics
        ask_original = partial(self.ask, plan.local, self.routes[plan.local][ORIGINAL])
        self.shadow = Shadow(plan.local, options.shadow_share, ask_original, options.request_deadline_s, metrics, when_withdrawn)

    def breakers_on(self, route: Route) -> list[Breaker]:
        """Of the hosts that a route borrows from; a host's own service, and the local server, have no other way."""
        return (
            []
            if route.id == ORIGINAL
            else [self._breakers[name] for name in sorted({hop.provider for hop in route.called} & set(self._breakers))]
        )

    def usable(self, service: str, quarantined: bool = False) -> list[Route]:
        """The original, and what may be used and is up, or is ``quarantined``; the most accurate first."""
        names = {ORIGINAL, *self.rates.get(service, ()), *(self.quarantined if quarantined else ())}
        routes = [r for r in self.routes[service].values() if r.id in names and (r.id == ORIGINAL or r.is_hosted(self._reports))]
        return sorted(routes, key=lambda route: -route.accuracy)

    def is_served(self, providers: Collection[str]) -> bool:
        """Whether all of ``providers`` serve this plan: that means that each has checked its part of it."""
        return all(name in self._reports and self._reports[name].plan == self.plan.id for name in providers)

    async def join(self, service: str, route: Route, images: Array) -> Array | Refusal:
        """Answer ``images`` over a route; behind a gate what it is not sure of is answered by the original, where that takes it."""
        answer = await self.ask(service, route, images)
        if isinstance(answer, Refusal):
            return answer
        if not route.branches:
            return await self._sure(service, route, images, answer)
        ends = np.cumsum([branch.classes for branch in route.branches])[:-1]
        parts = zip(route.branches, np.split(answer, ends, axis=1), strict=True)
        sure = [self._sure(branch.service, branch.alone, images, part) for branch, part in parts]
        return np.concatenate(await asyncio.gather(*sure), axis=1)

    async def _sure(self, service: str, route: Route, images: Array, answer: Array) -> Array:
        """One service's ``answer``, in which its original has answered what is below the route's threshold."""
        if route.threshold is None:
            return answer
        unsure = confidence(answer) < route.threshold
        weight = len(images) / (len(images) + REMEMBERED)
        self.reruns[route.id] += weight * (float(unsure.mean()) - self.reruns[route.id])
        if not unsure.any():
            return answer
        again = await self.ask(service, self.routes[service][ORIGINAL], images[unsure])
        if isinstance(again, Refusal):
            return answer
        self._metrics.reran(service, route, len(again))
        answer = np.array(answer)  # what comes from Ray's object store is read-only
        answer[unsure] = again
        return answer

    async def ask(self, service: str, route: Route, images: Array) -> Array | Refusal:
        """Answer ``images`` over the legs of a route, in a batch of what goes the same way."""
        batcher = self._batchers[service, route.id]
        wait = sum(route.work(batcher.waiting_images, self._reports, self._network).values())
        if wait > self._path_deadline_s:
            return Refusal("too many requests wait for a server", wait - self._path_deadline_s)
        return await batcher.run(images)

    def hear(self, reports: Mapping[str, ProviderReport], network: Network) -> None:
        """What the providers tell of themselves, the sizes of batches among it, and what the network carries."""
        self._reports, self._network = reports, network
        for (service, identifier), batcher in self._batchers.items():
            route = self.routes[service][identifier]
            if route.is_hosted(reports):
                longest = max(len(way) + len(network.crossed(hop.provider for hop in way)) for way in route.ways)
                batcher.at_once = longest + 1
                batcher.size = max(reports[hop.provider].legs[hop.key].batch_size for hop in route.called)

    def solve(self, use: Collection[str] | None) -> None:
        """Solve the programme with the times that were heard, over the paths in ``use`` (None: all) that neither have drifted nor answer
        wrongly; of each local service, and of those that are asked together.
        """
        out = {*self.shadow.withdrawn, *self.quarantined}
        for service in self.rates:
            allowed = [self._as_rerun(route) for route in self.routes[service].values() if out.isdisjoint(_names(route))]
            self.rates[service] = solve_rates(allowed, self.plan, self._reports, use, self._network, service)
            self.policies[service].set_rates(self.rates[service])

    def _as_rerun(self, route: Route) -> Route:
        """``route`` with the shares of reruns as they were lately."""
        branches = tuple(replace(branch, alone=self._as_rerun(branch.alone)) for branch in route.branches)
        return replace(route, rerun=self.reruns.get(route.id, 0.0), branches=branches)

    def follow(self, other: PlanInForce) -> None:
        """Take the place of ``other``: a path that has drifted stays withdrawn unless it is another one now."""
        routes, before = self.routes[self.plan.local], other.routes[other.plan.local]
        self.shadow.withdrawn |= {name for name in other.shadow.withdrawn if routes.get(name) == before[name]}


def _names(route: Route) -> set[str]:
    """Its id and, of services that are asked together, those of their paths."""
    return {route.id, *(branch.alone.id for branch in route.branches)}
