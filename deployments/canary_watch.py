"""Do the blocks of a plan answer as they should? Its canaries are sent over every path, at start and again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from code_ray.canaries import TOLERANCE, Canaries
from code_ray.policy import ORIGINAL, original_of
from deployments.metrics import RouterMetrics
from deployments.plan_in_force import PlanInForce
from deployments.routes import Refusal, Route

logger = logging.getLogger("ray.serve")

EVERY_S = 30.0


async def wrong_answer(plan: PlanInForce, service: str, route: Route, canaries: Canaries, deadline_s: float) -> str | None:
    """What is wrong with how ``route`` of a local service answers its canaries, "" where nothing is; None where nobody can tell now."""
    links = route.links if service == plan.plan.local or route.id != ORIGINAL else original_of(service)
    if links not in canaries.logits:
        return ""
    try:
        answer = await asyncio.wait_for(plan.ask(service, route, canaries.images), deadline_s)
    except (TimeoutError, RayError, RayServeException):
        return None
    if isinstance(answer, Refusal):
        return None
    difference = canaries.difference(links, answer)
    if difference <= TOLERANCE:
        return ""
    return f"path {route.id} answers its canaries wrongly (relative difference {difference:.2g}, at most {TOLERANCE:g})"


class CanaryWatch:
    """Of one router. A path that answers wrongly is quarantined until it answers rightly; the original alone never is: it is the way
    out. ``when_changed`` is called where a path went into quarantine, or came out.
    """

    def __init__(self, deadline_s: float, metrics: RouterMetrics, when_changed: Callable[[], None]) -> None:
        self._deadline_s = deadline_s
        self._metrics = metrics
        self._when_changed = when_changed
        self._again_at: dict[str, float] = {}  # by plan
        self._under_way: asyncio.Task[None] | None = None

    def consider(self, plan: PlanInForce, canaries: Canaries, now: float) -> None:
        """Send them where it is time to, behind the back of whoever calls this."""
        if now >= self._again_at.get(plan.plan.id, now) and (self._under_way is None or self._under_way.done()):
            self._again_at = {plan.plan.id: now + EVERY_S}
            self._under_way = asyncio.create_task(self.look(plan, canaries))

    async def look(self, plan: PlanInForce, canaries: Canaries) -> None:
        """Send them over every path that is up, one after the other."""
        routes = [(service, route) for service in plan.plan.tasked for route in plan.usable(service, quarantined=True)]
        for service, route in routes:
            reason = await wrong_answer(plan, service, route, canaries, self._deadline_s)
            if reason is None:
                continue
            self._metrics.checked(service, route, is_wrong=bool(reason))
            if reason:
                logger.error("%s", reason)
            if route.id != ORIGINAL and reason != plan.quarantined.get(route.id, ""):
                plan.quarantined.pop(route.id, None)
                if reason:
                    plan.quarantined[route.id] = reason
                else:
                    logger.info("path %s answers its canaries rightly again", route.id)
                self._when_changed()
