"""Services that are asked together: one request, one frame, an answer of each. Pure: no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from code_ray.joining import check_trunk
from code_ray.plan import Plan, PlannedTrunk
from code_ray.policy import ORIGINAL
from code_ray.runner import fan_out
from code_ray.wire import GROUPED
from deployments.routes import Branch, Hop, Route


def group_routes(plan: Plan, alone: Mapping[str, Mapping[str, Route]], classes: Mapping[str, int]) -> dict[str, dict[str, Route]]:
    """Routes by group of services that can be asked together, and by id: all their originals, and of each trunk its paths behind it
    (``trunk``), one by one, and some of them beside others' originals (``separate``): what one service may lose does not bind another.
    ``alone``: what ``make_routes`` made; ``classes``: how many each service tells apart.
    """
    groups = {tuple(plan.tasked), *(trunk.services for trunk in plan.trunks)} if plan.tasks else set()
    found: dict[str, dict[str, Route]] = {}
    for services in sorted(groups, key=lambda group: -len(group)):

        def together(identifier: str, kind: Literal["original", "separate"], ids: Sequence[str], services: Sequence[str]) -> Route:
            routes = [alone[service][chosen] for service, chosen in zip(services, ids, strict=True)]
            branches = tuple(Branch(s, classes[s], route, route.hops) for s, route in zip(services, routes, strict=True))
            return Route(identifier, kind, min(r.accuracy for r in routes), (), identifier, branches=branches)

        routes = [together(ORIGINAL, "original", [ORIGINAL] * len(services), services)]
        for trunk in plan.trunks:
            if trunk.services == services:
                apart, *others = (together(GROUPED.join(ids), "separate", ids, services) for ids in trunk.choices)
                routes += [_trunk_route(plan, trunk, apart), apart, *others]
        found[GROUPED.join(services)] = {route.id: route for route in routes}
    return found


def _trunk_route(plan: Plan, trunk: PlannedTrunk, apart: Route) -> Route:
    fan = fan_out(check_trunk(plan, trunk), plan.placement)
    last = len(fan.stem) - 1
    first = plan.behind(trunk)[0][0]
    hops = [Hop(leg.provider, trunk.leg_key(i) if i == last else first.leg_key(i)) for i, leg in enumerate(fan.stem)]
    # The first leg of a branch runs in the call with which the trunk ends.
    branches = tuple(replace(branch, hops=branch.hops[last + 1 :]) for branch in apart.branches)
    return replace(apart, id=trunk.id, kind="trunk", hops=tuple(hops), links=trunk.id, branches=branches)
