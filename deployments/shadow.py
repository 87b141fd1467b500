"""A share of offloaded requests is answered by the original path as well, behind the client's back: do both still say the same?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from code_ray.drift import DriftWatch
from deployments.metrics import RouterMetrics
from deployments.routes import Refusal, Route
from deployments.worker import Array

logger = logging.getLogger("ray.serve")

Ask = Callable[[Array], Awaitable[Array | Refusal]]


class Shadow:
    """Of one service. One comparison at a time, and none where the original path refuses: clients come first.

    ``withdrawn`` holds the ids of paths that have drifted.
    """

    def __init__(
        self,
        service: str,
        share: float,
        ask_original: Ask,
        deadline_s: float,
        metrics: RouterMetrics,
        when_withdrawn: Callable[[], None],
    ) -> None:
        self.withdrawn: set[str] = set()
        self._service = service
        self._share = share
        self._ask = ask_original
        self._deadline_s = deadline_s
        self._metrics = metrics
        self._when_withdrawn = when_withdrawn
        self._owed = 0.0  # images
        self._watches: dict[str, DriftWatch] = {}
        self._under_way: asyncio.Task[None] | None = None

    def consider(self, route: Route, images: Array, logits: Array) -> None:
        """``route`` answered ``images`` with ``logits``: compare where it is time to."""
        self._owed += self._share * len(images)
        if self._owed < len(images) or (self._under_way is not None and not self._under_way.done()):
            self._owed = min(self._owed, float(len(images)))
            return
        self._owed -= len(images)
        self._under_way = asyncio.create_task(self._compare(route, images, logits))

    async def _compare(self, route: Route, images: Array, logits: Array) -> None:
        try:
            original = await asyncio.wait_for(self._ask(images), self._deadline_s)
        except (TimeoutError, RayError, RayServeException):
            return  # those whose requests fail are told of it elsewhere
        if isinstance(original, Refusal):
            return
        same = int((original.argmax(axis=1) == logits.argmax(axis=1)).sum())
        self._metrics.compared(self._service, route, len(images), len(images) - same)
        watch = self._watches.setdefault(route.id, DriftWatch(route.agreement))
        if watch.add(len(images), same) and route.id not in self.withdrawn:
            logger.error("path %s of %s no longer answers as the original does: it is withdrawn", route.id, self._service)
            self.withdrawn.add(route.id)
            self._when_withdrawn()
