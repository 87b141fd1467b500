"""One plan after another: a router changes over to the plan of the local service's provider once it has seen it answer rightly."""

from __future__ import annotations

import logging
import time

from code_ray.canaries import Canaries
from code_ray.plan import Plan
from deployments.canary_watch import wrong_answer
from deployments.known_providers import KnownProviders
from deployments.plan_in_force import PlanInForce
from deployments.plan_watch import Offer
from deployments.trial import Trial, changed_routes
from deployments.worker import Array

logger = logging.getLogger("ray.serve")


class Succession:
    """Of one router. A plan that answers wrongly is refused for good, one that not all providers serve yet is waited for. One with another
    version of a host's service is tried beside the traffic for ``trial_s`` at most.
    """

    def __init__(self, providers: KnownProviders, local: str, deadline_s: float, trial_s: float) -> None:
        self._providers = providers
        self._local = local
        self._deadline_s = deadline_s
        self._trial_s = trial_s
        self._trial: Trial | None = None
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
        offer = await self._ask(deadline_s)
        if offer is None or offer.plan.id == plan.id or offer.plan.id in self._refused:
            self._trial = None  # of a plan that was taken back
            return None
        return offer

    def canaries(self, plan: Plan) -> Canaries | None:
        """Those of ``plan``, where the local service's provider serves it and it has any."""
        return self._offer.canaries if self._offer is not None and self._offer.plan.id == plan.id else None

    async def _ask(self, deadline_s: float) -> Offer | None:
        report = self._providers.reports.get(self._local)
        if report is not None and (self._offer is None or self._offer.plan.id != report.plan):
            self._offer = await self._providers.offer_of(self._local, deadline_s)
        return None if report is None else self._offer

    def consider(self, service: str, images: Array) -> None:
        """A request that was answered: a plan on trial answers it too."""
        if self._trial is not None:
            self._trial.consider(service, images)

    async def passes(self, offer: Offer, now: PlanInForce, coming: PlanInForce) -> bool:
        """Whether all providers serve ``coming``, and its paths answer the plan's canaries as they should, and what clients ask as the
        original does where a host has another version.
        """
        if not coming.is_served(self._providers.names):
            return False
        if self._trial is None or self._trial.plan_id != offer.plan.id:
            self._trial = None
            if not await self._answers_canaries(offer, coming):
                return False
            if routes := changed_routes(now, coming):
                logger.info("plan %s is on trial", offer.plan.id)
                self._trial = Trial(coming, routes, time.monotonic() + self._trial_s, self._deadline_s)
        if self._trial is not None:
            if not self._trial.has_ended(time.monotonic()):
                return False
            trial, self._trial = self._trial, None
            if trial.disagrees is not None:
                self._refuse(offer, trial.disagrees)
                return False
        logger.info("plan %s is in force", offer.plan.id)
        return True

    async def _answers_canaries(self, offer: Offer, coming: PlanInForce) -> bool:
        canaries = offer.canaries
        routes = [(service, route) for service in offer.plan.tasked for route in coming.routes[service].values()]
        for service, route in routes:
            reason = await wrong_answer(coming, service, route, canaries, self._deadline_s) if canaries is not None else ""
            if reason is None:
                return False
            if reason:
                self._refuse(offer, reason)
                return False
        return True

    def _refuse(self, offer: Offer, reason: str) -> None:
        logger.error("plan %s is refused, the old one stays: %s", offer.plan.id, reason)
        self._refused[offer.plan.id] = reason
