"""Which route a request takes, and what happens where that refuses or fails: the part of the router that knows no HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from code_ray.breaker import Breaker
from code_ray.errors import RequestError
from code_ray.load import LoadLevel
from code_ray.plan import Plan
from code_ray.policy import ORIGINAL, RatePolicy, fitting_paths
from code_ray.wire import InferRequest
from deployments.batching import Batcher
from deployments.config import RouterOptions, RouterSettings
from deployments.metrics import RouterMetrics
from deployments.routes import ProviderReport, Refusal, Route, UnderWay, make_routes, provider_deployment, solve_rates
from deployments.shadow import Shadow
from deployments.worker import Array

logger = logging.getLogger("ray.serve")

FAILURE_COOL_DOWN_S = 3.0
"""Longer than a refresh takes to notice that a provider is gone."""
UNTIL_MEASURED = 32
"""Images a batch until servers have said at how many they are fastest."""
GONE_AFTER = 2
"""Questions in a row that a provider does not answer before requests that need it are refused at once."""


class Dispatcher:
    """Sends requests for the services of a plan over their routes, by the load, the rates and what is known of every host."""

    def __init__(
        self, plan: Plan, num_blocks: Mapping[str, int], handles: dict[str, DeploymentHandle[Any]], options: RouterOptions
    ) -> None:
        self.settings = RouterSettings()
        self.routes = make_routes(plan, num_blocks)
        self.is_stale = asyncio.Event()
        self._plan = plan
        self._local = plan.placement[plan.local]
        self._options = options
        self._handles = handles
        self._policies = {service: RatePolicy(dict.fromkeys(routes, 0.0)) for service, routes in self.routes.items()}
        self._providers = sorted(set(plan.placement.values()))
        self._breakers = {provider: Breaker() for provider in self._providers if provider != self._local}
        self._breakers_on = {route.id: self._find_breakers(route) for routes in self.routes.values() for route in routes.values()}
        self._batchers = {route: self._make_batcher(service, route) for service, routes in self.routes.items() for route in routes.values()}
        self._reports: dict[str, ProviderReport] = {}
        self._missed = dict.fromkeys(self._providers, 0)
        self._rates: dict[str, float] = {}
        share = 1.0 / options.replicas
        self._load = LoadLevel(share)
        self._under_way = UnderWay(share)
        self._metrics = RouterMetrics()
        ask_original = partial(self._join, self.routes[plan.local][ORIGINAL])
        self._shadow = Shadow(plan.local, options.shadow_share, ask_original, options.request_deadline_s, self._metrics, self.is_stale.set)

    def is_ready(self, service: str) -> bool:
        """Whether the original path of a service is up."""
        return self.routes[service][ORIGINAL].is_hosted(self._reports)

    def level(self, service: str) -> float:
        """How far requests of a service follow the plan's rates; a host's own service has none to follow."""
        by_load = service == self._plan.local and self.settings.steering == "load"
        return self._load.level(time.monotonic()) if by_load else 1.0

    def describe(self, service: str) -> dict[str, Any]:
        """What metadata says of a service: its paths, the load level, the state of every host's breaker."""
        shares, now = self._policies[service].shares, time.monotonic()
        paths: list[dict[str, Any]] = []
        for route in self.routes[service].values():
            paths.append({"id": route.id, "kind": route.kind, "share": shares.get(route.id, 0.0)})
            if service == self._plan.local:  # of a host's own service the plan knows neither
                paths[-1] |= {"accuracy": route.accuracy, "images_per_second": self._rates.get(route.id, 0.0)}
        breakers = {provider: breaker.state(now) for provider, breaker in self._breakers.items()}
        withdrawn = sorted(self._shadow.withdrawn) if service == self._plan.local else []
        return {"paths": paths, "load_level": self.level(service), "breakers": breakers, "withdrawn": withdrawn}

    async def infer(self, service: str, request: InferRequest) -> tuple[Array, Route]:
        """Logits and the route that made them: the chosen one, or the original where that refuses or fails.

        Raises:
            RequestError: 422 and 503 where no route fits what the request needs, 503 and 504 where the original failed too.
        """
        now = time.monotonic()
        end = now + min(self._options.request_deadline_s, request.deadline_s or self._options.request_deadline_s)
        original = self.routes[service][ORIGINAL]
        attempts = [self._choose(service, request, now), original]
        failure = RequestError("no attempt was made", status=503)
        for number, route in enumerate(attempts):
            if not all(self._is_there(hop.provider) for hop in route.hops):
                failure = RequestError(f"{service!r} is not up now; send the request again", status=503, retry_after_s=1)
                continue
            left = end - time.monotonic()
            if number > 0:
                self._metrics.fell_back(service)
            else:
                left = min(self._options.path_deadline_s, left)
            result = await self._attempt(service, route, request.images, left)
            if isinstance(result, Refusal):
                failure = RequestError(f"{service!r} is overloaded: {result.reason}", status=503, retry_after_s=result.retry_after_s)
                if route is original:
                    break
            elif isinstance(result, RequestError):
                failure = result
            else:
                if service == self._plan.local and route is not original:
                    self._shadow.consider(route, request.images, result)
                return result, route
        raise failure

    def _is_there(self, provider: str) -> bool:
        """Whether a provider can be called: a server that is busy may miss one question, one that is gone misses all."""
        return provider in self._handles and self._missed[provider] < GONE_AFTER

    def _choose(self, service: str, request: InferRequest, now: float) -> Route:
        routes, policy = self.routes[service], self._policies[service]
        usable = [
            route for route in routes.values() if route.id == ORIGINAL or (route.id in self._rates and route.is_hosted(self._reports))
        ]
        usable.sort(key=lambda route: -route.accuracy)
        among = [route.id for route in usable]
        if request.min_accuracy is not None or request.deadline_s is not None:
            expected = {route.id: self._under_way.expected(route, len(request.images), self._reports) for route in usable}
            among = fitting_paths({route.id: route.accuracy for route in usable}, expected, request.min_accuracy, request.deadline_s)
        among = [identifier for identifier in among if all(breaker.allows(now) for breaker in self._breakers_on[identifier])]
        return routes[policy.choose(len(request.images), now, request.path, self.level(service), among)]

    async def _attempt(self, service: str, route: Route, images: Array, budget_s: float) -> Array | Refusal | RequestError:
        """One route: what it takes of each server is known to the load while it is under way, how it ended to all that ask."""
        began, policy, breakers = time.monotonic(), self._policies[service], self._breakers_on[route.id]
        work = self._begin(service, route, len(images), began)
        try:
            result = await asyncio.wait_for(self._join(route, images), budget_s)
        except TimeoutError:
            failure = RequestError(f"{service!r} did not answer within its deadline; send less at a time", status=504, retry_after_s=1)
        except (RayError, RayServeException) as error:
            failure = RequestError(f"{service!r} has lost a server; send the request again", status=503, retry_after_s=1)
            logger.warning("path %s of %s failed: %s", route.id, service, type(error).__name__)
        else:
            for breaker in breakers:
                breaker.succeed()
            if isinstance(result, Refusal):
                policy.leave_out(route.id, time.monotonic())
                self._metrics.attempted(service, route, "refused")
            else:
                lost = 100 * (self.routes[service][ORIGINAL].accuracy - route.accuracy)
                self._metrics.attempted(service, route, "answered")
                self._metrics.answered(service, route, len(images), time.monotonic() - began, lost)
            return result
        finally:
            self._end(service, work)
            for breaker in breakers:
                breaker.give_up()
        now = time.monotonic()
        for breaker in breakers:
            breaker.fail(now)
        policy.leave_out(route.id, now, FAILURE_COOL_DOWN_S)
        self.is_stale.set()
        self._metrics.attempted(service, route, "failed")
        return failure

    def _find_breakers(self, route: Route) -> list[Breaker]:
        """Of the hosts that a route borrows from; a host's own service, and the local server, have no other way."""
        providers = {hop.provider for hop in route.hops}
        return [self._breakers[provider] for provider in sorted(providers - {self._local})] if route.id != ORIGINAL else []

    def _make_batcher(self, service: str, route: Route) -> Batcher:
        # A batch for each of its legs to work on, and one on the wire.
        return Batcher(partial(self._call, service, route), UNTIL_MEASURED, len(route.hops) + 1)

    def _begin(self, service: str, route: Route, images: int, now: float) -> dict[str, float]:
        work = route.work(images, self._reports)
        if service == self._plan.local:
            original = self.routes[service][ORIGINAL].work(images, self._reports)
            self._load.begin(work.get(self._local, 0.0), original.get(self._local, 0.0), now)
        self._under_way.add(work)
        for breaker in self._breakers_on[route.id]:
            breaker.begin(now)
        return work

    def _end(self, service: str, work: Mapping[str, float]) -> None:
        self._under_way.remove(work)
        if service == self._plan.local:
            self._load.end(work.get(self._local, 0.0))

    async def _join(self, route: Route, images: Array) -> Array | Refusal:
        """Answer ``images`` in a batch of what goes the same way."""
        batcher = self._batchers[route]
        wait = sum(route.work(batcher.waiting_images, self._reports).values())
        if wait > self._options.path_deadline_s:
            return Refusal("too many requests wait for a server", wait - self._options.path_deadline_s)
        return await batcher.run(images)

    async def _call(self, service: str, route: Route, images: Array) -> Array | Refusal:
        self._metrics.batched(service, route, len(images))
        value: Any = images
        for hop in route.hops:
            # The answer of one leg goes to the next by reference, not through this process.
            value = self._handles[hop.provider].run.remote(hop.key, value)
        result: Array | Refusal = await value
        return result

    async def refresh(self, deadline_s: float) -> bool:
        """Ask all providers for their times and solve the plan's rates again; whether all have answered."""
        reports = await asyncio.gather(*(self._ask(provider, deadline_s) for provider in self._providers))
        for provider, report in zip(self._providers, reports, strict=True):
            self._missed[provider] = self._missed[provider] + 1 if report is None else 0
        before, self._reports = self._reports, {report.provider: report for report in reports if report is not None}
        for routes in self.routes.values():
            for route in routes.values():
                if route.is_hosted(self._reports):
                    self._batchers[route].size = max(self._reports[hop.provider].legs[hop.key].batch_size for hop in route.hops)
        self._observe(before)
        for provider, breaker in self._breakers.items():
            self._metrics.guarded(provider, breaker.state(time.monotonic()))
        local = self._plan.local
        allowed = [route for route in self.routes[local].values() if route.id not in self._shadow.withdrawn]
        self._rates = solve_rates(allowed, self._plan, self._reports, self.settings.use)
        self._policies[local].set_rates(self._rates)
        self._metrics.steered(local, self.level(local), self.routes[local], self._policies[local].shares)
        return len(self._reports) == len(self._providers)

    def _observe(self, before: Mapping[str, ProviderReport]) -> None:
        """Tell the load and the metrics how busy servers were since they were last asked."""
        for provider, report in self._reports.items():
            known = before.get(provider)
            # A server that was replaced counts from 0 again.
            if known is None or report.busy_seconds < known.busy_seconds or report.at <= known.at:
                continue
            lasted = report.at - known.at
            utilisation = (report.busy_seconds - known.busy_seconds) / lasted
            if provider == self._local:
                self._load.observe(utilisation)
            self._metrics.hosted(provider, utilisation, (report.guest_seconds - known.guest_seconds) / lasted)

    async def _ask(self, provider: str, deadline_s: float) -> ProviderReport | None:
        try:
            async with asyncio.timeout(deadline_s):
                if provider not in self._handles:
                    application = self.settings.applications.get(provider, provider_deployment(provider))
                    # In a thread, because it asks the controller and blocks meanwhile.
                    self._handles[provider] = await asyncio.to_thread(
                        serve.get_deployment_handle, provider_deployment(provider), application
                    )
                report: ProviderReport = await self._handles[provider].describe.remote()
                return report
        except (TimeoutError, RayError, RayServeException, KeyError) as error:  # KeyError: no such deployment yet
            logger.warning("provider %s does not answer: %s", provider, type(error).__name__)
            return None
