"""From a plan to what providers host and routers call. Pure: no Ray."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

from code_ray.errors import ConfigError
from code_ray.path import InferencePath, Kind, original_path
from code_ray.plan import Plan, PlannedPath
from code_ray.policy import ORIGINAL, original_of
from code_ray.runner import walk
from code_ray.throughput import Answers, Limits, PathCost, Resource, best_joint_mixture, payload_by_edge
from deployments.network import ONE_PLACE, Network


@dataclass(frozen=True)
class Refusal:
    """A provider's "no", as a value: it travels through the legs that follow and fills no log with tracebacks."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True)
class LegReport:
    """Seconds per image of a leg on its server, the batch size at which it runs, and bytes an image of what it takes (of the first
    leg: of uint8 pixels) and hands on; ``branch_bytes``: of the leg with which a trunk ends, what each branch is handed.
    """

    seconds: float
    batch_size: int
    in_bytes: float = 0.0
    out_bytes: float = 0.0
    branch_bytes: tuple[float, ...] = ()


@dataclass(frozen=True)
class ProviderReport:
    """What a provider tells routers of itself: the execution mode, the legs it hosts by key; by its clock, at ``at``, the seconds
    that it has computed since it is up, and those of them for guests; the id of the plan that it serves, and why it refuses the one
    that has taken that one's place in its run directory; the id of the node that it is on.
    """

    provider: str
    mode: str
    legs: Mapping[str, LegReport]
    at: float = 0.0
    busy_seconds: float = 0.0
    guest_seconds: float = 0.0
    plan: str = ""
    refused: str | None = None
    node: str = ""


@dataclass(frozen=True)
class Hop:
    """One call: leg ``key`` at ``provider``."""

    provider: str
    key: str


@dataclass(frozen=True)
class Branch:
    """The part of a route for several services that is one service's: ``hops`` lead from what all share to its logits (none: the trunk
    ends in them), ``alone`` is its route where it is asked alone, with its accuracy and its gate.
    """

    service: str
    classes: int
    alone: Route
    hops: tuple[Hop, ...]


@dataclass(frozen=True)
class Route:
    """A path as a router sees it. ``links``: the id of its links, which it may share with others. A gated one sends answers of less
    confidence than ``threshold``, a share ``rerun`` of them, over ``rerun_hops`` again. Of services that are asked together: ``hops``
    lead through a trunk (none: each service gets the images), ``branches`` on from there, and logits stand side by side in their order.
    """

    id: str
    kind: Kind | Literal["separate", "trunk"]
    accuracy: float
    hops: tuple[Hop, ...]
    links: str
    agreement: float | None = None
    threshold: float | None = None
    rerun: float = 0.0
    rerun_hops: tuple[Hop, ...] = ()
    branches: tuple[Branch, ...] = ()

    @cached_property
    def ways(self) -> tuple[tuple[Hop, ...], ...]:
        """The hops from the images to each service's logits, without reruns."""
        return tuple((*self.hops, *branch.hops) for branch in self.branches) or (self.hops,)

    @cached_property
    def called(self) -> tuple[Hop, ...]:
        """All hops, each once, without reruns."""
        return (*self.hops, *(hop for branch in self.branches for hop in branch.hops))

    @cached_property
    def rerun_ways(self) -> tuple[tuple[Hop, ...], ...]:
        """The hops of the reruns, of each service's where there are several."""
        return tuple(again for again in (self.rerun_hops, *(branch.alone.rerun_hops for branch in self.branches)) if again)

    @cached_property
    def providers(self) -> frozenset[str]:
        """Everyone who is called, for reruns too."""
        return frozenset(hop.provider for hops in (self.called, *self.rerun_ways) for hop in hops)

    def is_hosted(self, reports: Mapping[str, ProviderReport]) -> bool:
        """Whether every leg is up."""
        hops = (hop for hops in (self.called, *self.rerun_ways) for hop in hops)
        return all(hop.provider in reports and hop.key in reports[hop.provider].legs for hop in hops)

    def largest_message(self, reports: Mapping[str, ProviderReport]) -> float:
        """Bytes an image of what a leg takes or hands on, where that is most; infinite of a route that is not up."""
        if not self.is_hosted(reports):
            return math.inf
        legs = (reports[hop.provider].legs[hop.key] for hop in self.called)
        return max(size for leg in legs for size in (leg.in_bytes, leg.out_bytes))

    def cost(self, reports: Mapping[str, ProviderReport], network: Network = ONE_PLACE) -> PathCost:
        """Measured seconds per image by provider, and bytes by edge of the network."""
        if self.branches:
            return self._joint_cost(reports, network)
        cost = _cost_of_hops(self.hops, reports, network)
        return cost.plus(_cost_of_hops(self.rerun_hops, reports, network), self.rerun) if self.rerun_hops else cost

    def _joint_cost(self, reports: Mapping[str, ProviderReport], network: Network) -> PathCost:
        """Where there is a trunk its legs once; what its last leg makes goes to each branch."""
        if not self.hops:
            return reduce(PathCost.plus, (branch.alone.cost(reports, network) for branch in self.branches))
        ends = network.place_of(self.hops[-1].provider)
        cost = _cost_of_hops(self.hops, reports, network, end=ends)
        handed = reports[self.hops[-1].provider].legs[self.hops[-1].key].branch_bytes
        for branch, size in zip(self.branches, handed, strict=True):
            cost = cost.plus(_cost_of_hops(branch.hops, reports, network, ends, size))
            cost = cost.plus(_cost_of_hops(branch.alone.rerun_hops, reports, network), branch.alone.rerun)
        return cost

    def lost_points(self, original: Route) -> float:
        """What it loses against the original route, in points; the mean over services where there are several."""
        pairs = [(b.alone.accuracy, o.alone.accuracy) for b, o in zip(self.branches, original.branches, strict=True)]
        pairs = pairs or [(self.accuracy, original.accuracy)]
        return 100 * sum(before - now for now, before in pairs) / len(pairs)

    def work(self, images: int, reports: Mapping[str, ProviderReport], network: Network = ONE_PLACE) -> dict[Resource, float]:
        """Seconds of each server and edge that so many images take; of a route that is not up, none."""
        if not self.is_hosted(reports):
            return {}
        cost = self.cost(reports, network)
        servers: dict[Resource, float] = {name: images * seconds for name, seconds in cost.seconds.items()}
        return servers | {edge: images * seconds for edge, seconds in network.seconds(cost).items()}


def _cost_of_hops(
    hops: Sequence[Hop],
    reports: Mapping[str, ProviderReport],
    network: Network,
    begin: str | None = None,
    in_bytes: float | None = None,
    end: str | None = None,
) -> PathCost:
    """Of a way from ``begin``, where ``in_bytes`` an image are, to ``end``: by default from the router with images, and back."""
    legs = [(hop.provider, reports[hop.provider].legs[hop.key]) for hop in hops]
    if in_bytes is None:
        in_bytes = legs[0][1].in_bytes if legs else 0.0
    seconds: dict[str, float] = {}
    for provider, leg in legs:
        seconds[provider] = seconds.get(provider, 0.0) + leg.seconds
    stops = ((network.place_of(provider), leg.out_bytes) for provider, leg in legs)
    return PathCost(seconds, payload_by_edge(begin or network.home, in_bytes, stops, end or network.home))


def provider_deployment(provider: str) -> str:
    """Name of a provider's deployment, and of its application where it has one of its own."""
    return f"provider-{provider}"


def hosted_paths(plan: Plan, num_blocks: Mapping[str, int]) -> list[tuple[PlannedPath, InferencePath]]:
    """Every path that is deployed: the plan's, then each host's own service as it is (``num_blocks`` by service)."""
    paths = [(planned, plan.inference_path(planned)) for planned in plan.all_paths]
    for service in plan.services:
        if service not in plan.tasked:
            path = original_path(service, num_blocks[service])
            paths.append((PlannedPath(path=str(path), id=original_of(service), accuracy=1.0, link_hashes={}), path))
    return paths


def make_routes(plan: Plan, num_blocks: Mapping[str, int]) -> dict[str, dict[str, Route]]:
    """Routes by service and path id; the first of each service is its original path, called ``original``."""
    routes: dict[str, dict[str, Route]] = {}
    for planned, path in hosted_paths(plan, num_blocks):
        identifier = ORIGINAL if path.kind == ORIGINAL else planned.id
        hops = tuple(Hop(leg.provider, planned.leg_key(i)) for i, leg in enumerate(walk(path, plan.placement)))
        again = routes[path.local][ORIGINAL].hops if path.rerun else ()
        links = ORIGINAL if identifier == ORIGINAL else planned.links_id
        route = Route(identifier, path.kind, planned.accuracy, hops, links, planned.agreement, planned.threshold, path.rerun, again)
        routes.setdefault(path.local, {})[identifier] = route
    return routes


def check_use(use: Collection[str] | None, plan: Plan) -> None:
    """Check the operator's choice of paths.

    Raises:
        ConfigError: where it names a path that is not in the plan.
    """
    together = (name for trunk in plan.trunks for name in (trunk.id, *trunk.separate))
    known = {ORIGINAL, *(planned.id for planned in plan.all_paths), *together}
    if unknown := set(use or ()) - known:
        raise ConfigError(f"'use' names {sorted(unknown)}, which the plan does not hold; there are: {', '.join(sorted(known))}")


def solve_rates(
    routes: Sequence[Route],
    plan: Plan,
    reports: Mapping[str, ProviderReport],
    use: Collection[str] | None,
    network: Network = ONE_PLACE,
    service: str | None = None,
) -> dict[str, float]:
    """Images a second on each route of a local service, or of several asked together, by the programme of DESIGN 2.3 with the times of
    ``reports`` and the bandwidths of ``network``, as if there were no other requests; ``service``: the local one, by default the plan's first.

    Routes that are not in ``use`` are left out, routes that are not up get 0; where the original itself is not up, all do.

    Raises:
        PlanError: where the programme has no solution.
    """
    allowed = [route for route in routes if use is None or route.id in use or route.id == ORIGINAL]
    rates = dict.fromkeys((route.id for route in allowed), 0.0)
    usable = [route for route in allowed if route.is_hosted(reports)]
    if not usable or usable[0].id != ORIGINAL:
        return rates
    costs = [route.cost(reports, network) for route in usable]
    limits = Limits(plan.budgets, plan.loss_points, network.bandwidth)
    mixture = best_joint_mixture(costs, _answers(usable, plan, service or plan.local), limits)
    return rates | {route.id: rate for route, rate in zip(usable, mixture.rates, strict=True)}


def _answers(routes: Sequence[Route], plan: Plan, service: str) -> list[Answers]:
    """The loss row of a service, or of each of those that are asked together; the first route is the original's."""
    allowed = {name: task.loss_points for name, task in plan.tasked.items()}
    if not routes[0].branches:
        return [Answers([route.accuracy for route in routes], routes[0].accuracy, allowed[service])]
    return [
        Answers([route.branches[number].alone.accuracy for route in routes], branch.alone.accuracy, allowed[branch.service])
        for number, branch in enumerate(routes[0].branches)
    ]
