"""Which route a request takes, and what happens where that refuses or fails: the part of the router that knows no HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from code_ray.breaker import Breaker
from code_ray.errors import RequestError
from code_ray.load import LoadLevel
from code_ray.packing import SMALL, packed, unpacked
from code_ray.plan import Plan
from code_ray.policy import ORIGINAL, fitting_paths
from code_ray.wire import InferRequest
from deployments.canary_watch import CanaryWatch
from deployments.config import RouterOptions, RouterSettings
from deployments.known_providers import KnownProviders
from deployments.metrics import RouterMetrics
from deployments.network_watch import NetworkWatch
from deployments.plan_in_force import PlanInForce
from deployments.routes import Hop, Refusal, Route
from deployments.succession import Succession
from deployments.under_way import UnderWay, Work, alone
from deployments.worker import Array

logger = logging.getLogger("ray.serve")

FAILURE_COOL_DOWN_S = 3.0
"""Longer than a refresh takes to notice that a provider is gone."""


class Dispatcher:
    """Sends requests for the services of a plan over their routes, by the load, the rates and what is known of every host.

    The plan is the one that the local service's provider serves, from the moment it has passed its check.
    """

    def __init__(
        self,
        plan: Plan,
        num_blocks: Mapping[str, int],
        classes: Mapping[str, int],
        handles: dict[str, DeploymentHandle[Any]],
        options: RouterOptions,
    ) -> None:
        self.settings = RouterSettings()
        self.is_stale = asyncio.Event()
        self._local = plan.placement[plan.local]
        self._num_blocks = num_blocks
        self._classes = classes
        self._options = options
        self._providers = KnownProviders(set(plan.placement.values()), handles)
        self._breakers = {name: Breaker() for name in self._providers.names if name != self._local}
        share = 1.0 / options.replicas
        self._load = LoadLevel(share)
        self._under_way = UnderWay(share)
        self._metrics = RouterMetrics()
        self._network = NetworkWatch(self._providers, ray.get_runtime_context().get_node_id(), self._local)
        self._looking: asyncio.Task[None] | None = None
        self._now = self._put_in_force(plan)
        self._canary_watch = CanaryWatch(options.path_deadline_s, self._metrics, self.is_stale.set)
        self._succession = Succession(self._providers, self._local, options.path_deadline_s, options.trial_s)

    def is_ready(self, service: str) -> bool:
        """Whether the original path of a service is up."""
        return self._now.routes[service][ORIGINAL].is_hosted(self._providers.reports)

    @property
    def groups(self) -> Collection[str]:
        """Names under which several services can be asked together."""
        return self._now.groups

    def level(self, service: str) -> float:
        """How far requests of a service follow the plan's rates; a host's own service has none to follow."""
        by_load = self._is_loading(service) and self.settings.steering == "load"
        return self._load.level(time.monotonic()) if by_load else 1.0

    def _is_loading(self, service: str) -> bool:
        """Whether the original path of a service, or of a group, runs on the server whose load is watched."""
        return service in self._now.rates and self._local in self._now.routes[service][ORIGINAL].providers

    def describe(self, service: str) -> dict[str, Any]:
        """What metadata says of a service: its paths, the load level, the state of every host's breaker, the plan."""
        plan, is_local, now = self._now, service in self._now.rates, time.monotonic()
        paths: list[dict[str, Any]] = []
        for route in plan.routes[service].values():
            paths.append({"id": route.id, "kind": route.kind, "share": plan.policies[service].shares.get(route.id, 0.0)})
            if is_local:  # of a host's own service the plan knows neither
                paths[-1] |= {"accuracy": route.accuracy, "images_per_second": plan.rates[service].get(route.id, 0.0)}
                if route.threshold is not None:
                    paths[-1]["rerun"] = plan.reruns[route.id]
        breakers = {provider: breaker.state(now) for provider, breaker in self._breakers.items()}
        out: dict[str, Any] = {
            "withdrawn": sorted(plan.shadow.withdrawn) if is_local else [],
            "quarantined": plan.quarantined if is_local else {},
        }
        if is_local:
            out["network"] = self._network.now.describe()
        told = {"plan": plan.plan.id, "plan_refused": self._succession.refused(plan.plan)}
        return {"paths": paths, "load_level": self.level(service), "breakers": breakers, **out, **told}

    async def infer(self, service: str, request: InferRequest) -> tuple[Array, Route]:
        """Logits and the route that made them: the chosen one, or the original where that refuses or fails.

        Raises:
            RequestError: 422 and 503 where no route fits what the request needs, 503 and 504 where the original failed too.
        """
        now, plan = time.monotonic(), self._now
        end = now + min(self._options.request_deadline_s, request.deadline_s or self._options.request_deadline_s)
        original = plan.routes[service][ORIGINAL]
        attempts = [self._choose(plan, service, request, now, end - now), original]
        failure = RequestError("no attempt was made", status=503)
        for number, route in enumerate(attempts):
            if not all(self._providers.is_there(hop.provider) for hop in route.called):
                failure = RequestError(f"{service!r} is not up now; send the request again", status=503, retry_after_s=1)
                continue
            if (left := end - time.monotonic()) <= 0:
                break
            if number > 0:
                self._metrics.fell_back(service)
            else:
                left = min(self._options.path_deadline_s, left)
            result = await self._attempt(plan, service, route, request.images, left)
            if isinstance(result, Refusal):
                failure = RequestError(f"{service!r} is overloaded: {result.reason}", status=503, retry_after_s=result.retry_after_s)
                if route is original:
                    break
            elif isinstance(result, RequestError):
                failure = result
            else:
                if service == plan.plan.local and route is not original:
                    plan.shadow.consider(route, request.images, result)
                self._succession.consider(service, request.images)
                return result, route
        raise failure

    def _choose(self, plan: PlanInForce, service: str, request: InferRequest, now: float, limit_s: float) -> Route:
        routes, policy, level, images = plan.routes[service], plan.policies[service], self.level(service), len(request.images)
        if request.path is not None:
            return routes[policy.choose(images, now, request.path)]
        usable, network = plan.usable(service), self._network.now
        work = {r.id: r.work(images, self._providers.reports, network) for r in usable}
        limits = {r.id: limit_s if r.id == ORIGINAL else min(limit_s, self._options.path_deadline_s) for r in usable}
        least = {r.id: alone(r, work[r.id], network) for r in usable}
        fitting = fitting_paths({r.id: r.accuracy for r in usable}, least, request.min_accuracy, limits)
        fitting = [name for name in fitting if all(breaker.allows(now) for breaker in plan.breakers_on(routes[name]))] or [ORIGINAL]
        expected = {r.id: self._under_way.due(r, work[r.id], network, now) for r in usable}
        local = {name: seconds.get(self._local, 0.0) for name, seconds in work.items()}
        try:
            return routes[policy.choose_in_time(images, now, level, fitting, expected, limits, local)]
        except RequestError:
            if self._is_loading(service):
                self._load.refuse(local[ORIGINAL], now)
            raise

    async def _attempt(
        self, plan: PlanInForce, service: str, route: Route, images: Array, budget_s: float
    ) -> Array | Refusal | RequestError:
        """One route: what it takes of each server is known to the load while it is under way, how it ended to all that ask."""
        began, policy, breakers = time.monotonic(), plan.policies[service], plan.breakers_on(route)
        work = route.work(len(images), self._providers.reports, self._network.now)
        expected = self._under_way.expected(route, work, self._network.now)
        self._begin(plan, service, route, len(images), work, began)
        try:
            async with self._providers.wait_for(route.providers, budget_s):
                result = await plan.join(service, route, images)
        except TimeoutError:
            gone = sorted(name for name in route.providers if not self._providers.is_there(name))
            is_late, cause = not gone, f"{gone[0]} is gone" if gone else f"no answer within {budget_s:.1f} s"
            if is_late and self._under_way.explains(route, expected, began, budget_s):
                # To leave out a host for the load would leave its work to the others.
                self._under_way.learn(route, budget_s - expected, time.monotonic())
                self._metrics.attempted(service, route, "late")
                return _too_late(service)
        except (RayError, RayServeException) as error:
            is_late, cause = False, type(error).__name__
        else:
            for breaker in breakers:
                breaker.succeed()
            if isinstance(result, Refusal):
                policy.leave_out(route.id, time.monotonic())
                self._metrics.attempted(service, route, "refused")
            else:
                self._under_way.learn(route, time.monotonic() - began - expected, time.monotonic())
                lost = route.lost_points(plan.routes[service][ORIGINAL])
                self._metrics.attempted(service, route, "answered")
                self._metrics.answered(service, route, len(images), time.monotonic() - began, lost)
            return result
        finally:
            self._end(service, work)
            for breaker in breakers:
                breaker.give_up()
        # Serve writes the request's id, X-Request-ID where the client gave one, into the line.
        logger.warning("path %s of %s failed: %s", route.id, service, cause)
        now = time.monotonic()
        for breaker in breakers:
            breaker.fail(now)
        policy.leave_out(route.id, now, FAILURE_COOL_DOWN_S)
        self.is_stale.set()
        self._metrics.attempted(service, route, "failed")
        if is_late:
            return _too_late(service)
        return RequestError(f"{service!r} has lost a server; send the request again", status=503, retry_after_s=1)

    def _begin(self, plan: PlanInForce, service: str, route: Route, images: int, work: Work, now: float) -> None:
        if self._is_loading(service):
            original = plan.routes[service][ORIGINAL].work(images, self._providers.reports)
            self._load.begin(work.get(self._local, 0.0), original.get(self._local, 0.0), now)
        self._under_way.add(work)
        for breaker in plan.breakers_on(route):
            breaker.begin(now)

    def _end(self, service: str, work: Work) -> None:
        self._under_way.remove(work)
        if self._is_loading(service):
            self._load.end(work.get(self._local, 0.0))

    async def _call(self, service: str, route: Route, images: Array) -> Array | Refusal:
        self._metrics.batched(service, route, len(images))
        if not route.branches:
            largest = max(images.nbytes, len(images) * route.largest_message(self._providers.reports))
            result: Array | Refusal = await self._over(route.hops, images, by_reference=largest > SMALL)
            return result
        # Of a trunk's end references alone come here: each service's provider fetches its own.
        made = await self._over(route.hops, images) if route.hops else [ray.put(packed(images, SMALL))] * len(route.branches)
        if isinstance(made, Refusal):
            return made
        pairs = zip(route.branches, made, strict=True)
        answers = await asyncio.gather(*(self._over(branch.hops, part) for branch, part in pairs))
        refused = next((answer for answer in answers if isinstance(answer, Refusal)), None)
        return np.concatenate(answers, axis=1) if refused is None else refused

    async def _over(self, hops: Sequence[Hop], value: Any, by_reference: bool = True) -> Any:
        """What comes of ``value`` behind some hops: logits, references where a trunk ends, or a refusal."""
        value = packed(value, SMALL)
        for hop in hops:
            # The answer of one leg goes to the next by reference, not through this process, unless it is small.
            value = self._providers.handle(hop.provider, by_reference).run.remote(hop.key, value)
        return unpacked(await value)

    def _put_in_force(self, plan: Plan) -> PlanInForce:
        return PlanInForce(
            plan, self._num_blocks, self._classes, self._options, self._breakers, self._call, self._metrics, self.is_stale.set
        )

    async def refresh(self, deadline_s: float) -> bool:
        """Ask all providers for their times, change over to another plan where there is one, and solve the rates again; whether all
        have answered, and follow one plan.
        """
        complete = await self._providers.ask(deadline_s, self.settings.applications, self._now.plan.id)
        await self._look_at_network(deadline_s)
        reports, network, local = self._providers.reports, self._network.now, self._now.plan.local
        self._metrics.connected(network)
        for name, utilisation, for_guests in self._providers.utilisations():
            if name == self._local:
                self._load.observe(utilisation)
            self._metrics.hosted(name, utilisation, for_guests)
        for name, breaker in self._breakers.items():
            self._metrics.guarded(name, breaker.state(time.monotonic()))
        offer = await self._succession.next_after(self._now.plan, deadline_s)
        if offer is not None:
            coming = self._put_in_force(offer.plan)
            coming.hear(reports, network)
            if await self._succession.passes(offer, self._now, coming):
                coming.follow(self._now)
                self._metrics.changed_plan(local, self._now.routes[local])
                self._now = coming
            else:
                complete = False
        self._now.hear(reports, network)
        self._now.solve(self.settings.use)
        if (canaries := self._succession.canaries(self._now.plan)) is not None:
            self._canary_watch.consider(self._now, canaries, time.monotonic())
        for service in self._now.rates:
            self._metrics.steered(service, self.level(service), self._now.routes[service], self._now.policies[service].shares)
        return complete

    async def _look_at_network(self, deadline_s: float) -> None:
        """An edge that is measured for longer is known at a later refresh: a host that goes away meanwhile has to be noticed."""
        looking = self._looking
        if looking is None or looking.done():
            routes = [route for routes in self._now.routes.values() for route in routes.values()]
            looking = self._looking = asyncio.create_task(self._network.look(routes))
        await asyncio.wait({looking}, timeout=deadline_s)
        if looking.done():
            looking.result()


def _too_late(service: str) -> RequestError:
    return RequestError(f"{service!r} did not answer within its deadline; send less at a time", status=504, retry_after_s=1)
