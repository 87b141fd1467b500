"""Another version of a host's service beside live traffic, before it is followed: what it would answer is compared with the original."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from code_ray.drift import LEAST, DriftWatch
from code_ray.policy import ORIGINAL
from deployments.plan_in_force import PlanInForce
from deployments.routes import Refusal, Route
from deployments.worker import Array

logger = logging.getLogger("ray.serve")


def changed_routes(now: PlanInForce, coming: PlanInForce) -> dict[str, list[Route]]:
    """By local service, the routes of ``coming`` to try: none where no service has another version, nor a route whose agreement with the
    original nobody has measured.
    """
    if all(coming.plan.services[name] == content for name, content in now.plan.services.items() if name in coming.plan.services):
        return {}
    found = {}
    for service in coming.plan.tasked:
        before = now.routes.get(service, {})
        routes = [route for route in coming.routes[service].values() if route.id != ORIGINAL and route.agreement is not None]
        if tried := [route for route in routes if before.get(route.id) != route]:
            found[service] = tried
    return found


class Trial:
    """Of one router and one ``coming`` plan. One comparison at a time, and none where a server refuses: clients come first.

    It ends when each of ``routes`` has answered ``LEAST`` images of clients, when one of them disagrees with the original more than it used
    to, or at ``end``, where traffic is too thin to tell.
    """

    def __init__(self, coming: PlanInForce, routes: Mapping[str, Sequence[Route]], end: float, deadline_s: float) -> None:
        self.plan_id = coming.plan.id
        self.disagrees: str | None = None
        self._coming = coming
        self._waiting = {service: list(some) for service, some in routes.items()}
        self._watches = {route.id: DriftWatch(route.agreement) for some in routes.values() for route in some}
        self._end = end
        self._deadline_s = deadline_s
        self._under_way: asyncio.Task[None] | None = None

    def has_ended(self, now: float) -> bool:
        """Whether there is nothing left to wait for."""
        return self.disagrees is not None or now >= self._end or not any(self._waiting.values())

    def consider(self, service: str, images: Array) -> None:
        """``images`` of a request that was answered: the route that waits longest answers some of them too."""
        waiting = self._waiting.get(service)
        if waiting and self.disagrees is None and (self._under_way is None or self._under_way.done()):
            self._under_way = asyncio.create_task(self._compare(service, waiting[0], images[:LEAST]))

    async def _compare(self, service: str, route: Route, images: Array) -> None:
        original = self._coming.routes[service][ORIGINAL]
        try:
            async with asyncio.timeout(self._deadline_s):
                expected, answer = [await self._coming.join(service, each, images) for each in (original, route)]
        except (TimeoutError, RayError, RayServeException):
            return  # whether its servers are there is looked at elsewhere
        if isinstance(expected, Refusal) or isinstance(answer, Refusal):
            return
        same = int((expected.argmax(axis=1) == answer.argmax(axis=1)).sum())
        waiting, watch = self._waiting[service], self._watches[route.id]
        waiting.remove(route)
        if watch.add(len(images), same):
            seen = f"on {watch.images} images of clients"
            self.disagrees = f"path {route.id} of {service} does not answer as the original does as often as before, {seen}"
        elif watch.images < LEAST:
            waiting.append(route)
        else:
            logger.info("plan %s: path %s agrees with the original on requests of clients", self.plan_id, route.id)
