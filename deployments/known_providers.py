"""What a router knows of the providers of its plan: their handles, what they last told of themselves, who is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.plan_watch import Offer
from deployments.routes import ProviderReport, provider_deployment

logger = logging.getLogger("ray.serve")

GONE_AFTER = 2
"""Questions in a row that a provider does not answer before requests that need it are refused at once."""


class KnownProviders:
    """Asks providers ``names`` again and again; ``handles`` are those of the router's own application."""

    def __init__(self, names: Iterable[str], handles: dict[str, DeploymentHandle[Any]]) -> None:
        self.names = sorted(names)
        self.reports: Mapping[str, ProviderReport] = {}
        self._before: Mapping[str, ProviderReport] = {}
        self._handles = handles
        self._referring: dict[str, DeploymentHandle[Any]] = {}
        self._missed = dict.fromkeys(self.names, 0)
        self._waits: dict[str, set[asyncio.Timeout]] = {name: set() for name in self.names}

    def handle(self, name: str, by_reference: bool = False) -> DeploymentHandle[Any]:
        """Of a provider that was found at least once. ``by_reference``: whatever Serve does by default (in the throughput profile it
        sends values, of 4 MB at most, and what one leg makes for the next comes through the router), messages stay in the object store.
        """
        if not by_reference:
            return self._handles[name]
        if name not in self._referring:
            self._referring[name] = self._handles[name].options(_by_reference=True)
        return self._referring[name]

    def is_there(self, name: str) -> bool:
        """Whether a provider can be called: a server that is busy may miss one question, one that is gone misses all."""
        return name in self._handles and self._missed[name] < GONE_AFTER

    @asynccontextmanager
    async def wait_for(self, names: Collection[str], budget_s: float) -> AsyncIterator[None]:
        """Cancel what is done inside when ``budget_s`` are over, or as soon as one of the providers is gone: Ray may take long to tell.

        Raises:
            TimeoutError: in both cases.
        """
        async with asyncio.timeout(budget_s) as limit:
            for name in names:
                self._waits[name].add(limit)
            try:
                yield
            finally:
                for name in names:
                    self._waits[name].discard(limit)

    async def ask(self, deadline_s: float, applications: Mapping[str, str], plan_id: str) -> bool:
        """Ask all of them how they are; whether all have answered. ``applications``: where a provider's application has another name.
        ``plan_id``: the plan that this router follows.
        """
        reports = await asyncio.gather(*(self._ask(name, deadline_s, applications, plan_id) for name in self.names))
        for name, report in zip(self.names, reports, strict=True):
            self._missed[name] = self._missed[name] + 1 if report is None else 0
            if self._missed[name] == GONE_AFTER:
                for limit in self._waits[name]:
                    if not limit.expired():
                        limit.reschedule(0)
        self._before, self.reports = self.reports, {report.provider: report for report in reports if report is not None}
        return len(self.reports) == len(self.names)

    def utilisations(self) -> Iterator[tuple[str, float, float]]:
        """Provider, and the shares of its time that its server computed, and computed for guests, between the last two answers."""
        for name, report in self.reports.items():
            known = self._before.get(name)
            # A server that was replaced counts from 0 again.
            if known is None or report.busy_seconds < known.busy_seconds or report.at <= known.at:
                continue
            lasted = report.at - known.at
            yield name, (report.busy_seconds - known.busy_seconds) / lasted, (report.guest_seconds - known.guest_seconds) / lasted

    async def offer_of(self, name: str, deadline_s: float) -> Offer | None:
        """The plan that a provider serves; None where it does not answer."""
        try:
            offer: Offer = await asyncio.wait_for(_answer(self._handles[name].offer.remote()), deadline_s)
        except (TimeoutError, RayError, RayServeException):
            return None
        return offer

    async def _ask(self, name: str, deadline_s: float, applications: Mapping[str, str], plan_id: str) -> ProviderReport | None:
        try:
            async with asyncio.timeout(deadline_s):
                if name not in self._handles:
                    application = applications.get(name, provider_deployment(name))
                    # In a thread, because it asks the controller and blocks meanwhile.
                    self._handles[name] = await asyncio.to_thread(serve.get_deployment_handle, provider_deployment(name), application)
                report: ProviderReport = await self._handles[name].describe.remote(plan_id)
                return report
        except (TimeoutError, RayError, RayServeException, KeyError) as error:  # KeyError: no such deployment yet
            logger.warning("provider %s does not answer: %s", name, type(error).__name__)
            return None


async def _answer(response: Any) -> Any:
    return await response
