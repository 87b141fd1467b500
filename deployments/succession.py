"""One plan after another: a router changes over to the plan of the local service's provider once it has seen it answer rightly."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from code_ray.canaries import TOLERANCE, Canaries
from code_ray.plan import Plan
from deployments.known_providers import KnownProviders
from deployments.plan_in_force import PlanInForce
from deployments.plan_watch import Offer
from deployments.routes import Refusal, Route

logger = logging.getLogger("ray.serve")


class Succession:
    """Of one router. A plan that answers wrongly is refused for good, one that not all providers serve yet is waited for."""

    def __init__(self, providers: KnownProviders, local: str, deadline_s: float) -> None:
        self._providers = providers
        self._local = local
        self._deadline_s = deadline_s
        self._refused: dict[str, str] = {}
        self._offer: Offer | None = None

    def refused(self, plan: Plan) -> str | None:
        """Why ``plan`` is still in force although another one lies in a provider's run directory; None where that is not so."""
        told = [f"provider {name!r}: {report.refused}" for name, report in self._providers.reports.items() if report.refused]
        report = self._providers.reports.get(self._local)
        if report is not None and report.plan != plan.id and report.plan in self._refused:
            told.append(self._refused[report.plan])
        return "; ".join(told) or None

    async def next_after(self, plan: Plan, deadline_s: float) -> Offer | None:
        """The plan that the local service's provider serves, where it is not ``plan`` nor one that was refused."""
        report = self._providers.reports.get(self._local)
        if report is None or report.plan == plan.id or report.plan in self._refused:
            return None
        if self._offer is None or self._offer.plan.id != report.plan:
            self._offer = await self._providers.offer_of(self._local, deadline_s)
        return self._offer

    async def passes(self, offer: Offer, coming: PlanInForce) -> bool:
        """Whether all providers serve ``coming`` and its paths answer the plan's canaries as they should."""
        if not coming.is_served(self._providers.names):
            return False
        canaries = offer.canaries or Canaries(np.zeros(0, np.uint8), {})
        for route in coming.routes[offer.plan.local].values():
            difference = await self._difference(route, canaries, coming) if route.id in canaries.logits else 0.0
            if difference is None:
                return False
            if difference > TOLERANCE:
                reason = f"path {route.id} answers its canaries wrongly (relative difference {difference:.2g}, at most {TOLERANCE:g})"
                logger.error("plan %s is refused, the old one stays: %s", offer.plan.id, reason)
                self._refused[offer.plan.id] = reason
                return False
        logger.info("plan %s is in force", offer.plan.id)
        return True

    async def _difference(self, route: Route, canaries: Canaries, coming: PlanInForce) -> float | None:
        """Between what a route answers and what it should; None where it cannot be asked now."""
        try:
            answer = await asyncio.wait_for(coming.join(route, canaries.images), self._deadline_s)
        except (TimeoutError, RayError, RayServeException):
            return None
        return None if isinstance(answer, Refusal) else canaries.difference(route.id, answer)
