"""The ingress: Open Inference Protocol v2 in, one path per request, the original path as the way out.

Its own deployment, never one of the providers: a replica that calls itself with large arrays aborts (Ray 2.60).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from code_ray.errors import ConfigError, DeploymentError, RequestError
from code_ray.load import LoadLevel
from code_ray.plan import Plan
from code_ray.policy import ORIGINAL, RatePolicy, fitting_paths
from code_ray.service import ServiceSpec
from code_ray.wire import HEADER_LENGTH, InferRequest, decode_request, encode_response
from deployments.config import RouterOptions, RouterSettings
from deployments.messages import error_response, json_response, read_body, service_metadata
from deployments.routes import ProviderReport, Refusal, Route, UnderWay, check_use, make_routes, solve_rates
from deployments.worker import Array

logger = logging.getLogger("ray.serve")

REFRESH_S = 2.0
"""How often times are asked for and the programme is solved again."""
RETRY_S = 0.5
"""The same while a provider is missing."""
START_S = 45.0
"""How long a new router waits for all providers before it serves with those that are there."""
FAILURE_COOL_DOWN_S = 3.0
"""Longer than a refresh takes to notice that a provider is gone."""


def provider_deployment(provider: str) -> str:
    """Name of a provider's deployment, and of its application where it has one of its own."""
    return f"provider-{provider}"


class Router:
    """Serves every service of a plan: the local one over the plan's paths, hosts' own over their original paths."""

    def __init__(
        self, plan: Plan, specs: dict[str, ServiceSpec], handles: dict[str, DeploymentHandle[Any]], options: RouterOptions
    ) -> None:
        self._plan = plan
        self._specs = specs
        self._options = options
        self._handles = handles
        self._settings = RouterSettings()
        self._routes = make_routes(plan, {name: len(spec.boundaries) - 1 for name, spec in specs.items()})
        self._policies = {service: RatePolicy(dict.fromkeys(routes, 0.0)) for service, routes in self._routes.items()}
        self._providers = sorted(set(plan.placement.values()))
        self._reports: dict[str, ProviderReport] = {}
        self._rates: dict[str, float] = {}
        share = 1.0 / options.replicas
        self._load = LoadLevel(share)
        self._observed: tuple[float, float] | None = None  # when, and what the local server had computed by then
        self._under_way = UnderWay(share)
        self._stale = asyncio.Event()
        self._refresher: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over ``RouterSettings``: at start, and under load without a restart.

        Raises:
            ConfigError: for settings that are malformed or name a path that is not in the plan.
        """
        try:
            settings = RouterSettings.model_validate(user_config)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"user_config is malformed at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        check_use(settings.use, self._plan)
        self._settings = settings
        await self._refresh(START_S if self._refresher is None else REFRESH_S)
        if self._refresher is None:
            self._refresher = asyncio.create_task(self._refresh_forever())

    def check_health(self) -> None:
        """Called by Serve, which replaces this replica where it raises.

        Raises:
            DeploymentError: where times are no longer refreshed.
        """
        if self._refresher is not None and self._refresher.done():
            raise DeploymentError("the router no longer asks its providers; it is replaced")

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        scope = request.scope
        parts = scope["path"].removeprefix(scope.get("root_path", "")).strip("/").split("/")
        try:
            match parts:
                case ["v2", "models", service, "infer"]:
                    _allow(request, "POST")
                    return await self._answer(service, request)
                case ["v2", *rest]:
                    _allow(request, "GET")
                    return self._describe(rest)
        except RequestError as error:
            return error_response(error)
        return error_response(RequestError(f"there is nothing at {scope['path'][:80]!r}; see GET /v2", status=404))

    def _describe(self, parts: list[str]) -> Response:
        match parts:
            case []:
                models = {"name": "code_ray", "version": "0.1.0", "extensions": ["binary_tensor_data"], "models": list(self._specs)}
                return json_response(models)
            case ["health", "live"]:
                return json_response({"live": True})
            case ["health", "ready"]:
                ready = self._is_ready(self._plan.local)
                return json_response({"ready": ready}, 200 if ready else 503)
            case ["models", service]:
                spec = self._spec(service)
                return json_response(service_metadata(spec, self._describe_paths(service), self._level(service)))
            case ["models", service, "ready"]:
                ready = self._is_ready(self._spec(service).name)
                return json_response({"name": service, "ready": ready}, 200 if ready else 503)
        raise RequestError(f"there is nothing at '/v2/{'/'.join(parts)[:80]}'; see GET /v2", status=404)

    def _describe_paths(self, service: str) -> list[dict[str, Any]]:
        shares = self._policies[service].shares
        paths: list[dict[str, Any]] = []
        for route in self._routes[service].values():
            paths.append({"id": route.id, "kind": route.kind, "share": shares.get(route.id, 0.0)})
            if service == self._plan.local:  # of a host's own service the plan knows neither
                paths[-1] |= {"accuracy": route.accuracy, "images_per_second": self._rates.get(route.id, 0.0)}
        return paths

    def _is_ready(self, service: str) -> bool:
        return self._routes[service][ORIGINAL].is_hosted(self._reports)

    def _spec(self, service: str) -> ServiceSpec:
        if service not in self._specs:
            raise RequestError(f"service {service[:80]!r} is unknown; there are: {', '.join(self._specs)}", status=404)
        return self._specs[service]

    async def _answer(self, service: str, request: Request) -> Response:
        spec = self._spec(service)
        body = await read_body(request, self._options.max_request_bytes)
        length = request.headers.get(HEADER_LENGTH)
        infer = decode_request(body, length, spec.preprocessing.image_shape, self._options.max_images)
        logits, route = await self._infer(service, infer)
        content, headers = encode_response(service, infer, logits, spec.labels, route.id, route.kind)
        return Response(content, headers=headers)

    def _level(self, service: str) -> float:
        """How far requests of a service follow the plan's rates; a host's own service has none to follow."""
        by_load = service == self._plan.local and self._settings.steering == "load"
        return self._load.level(time.monotonic()) if by_load else 1.0

    def _choose(self, service: str, request: InferRequest, now: float) -> Route:
        routes, policy = self._routes[service], self._policies[service]
        among = None
        if request.min_accuracy is not None or request.deadline_s is not None:
            usable = [
                route for route in routes.values() if route.id == ORIGINAL or (route.id in self._rates and route.is_hosted(self._reports))
            ]
            expected = {route.id: self._under_way.expected(route, len(request.images), self._reports) for route in usable}
            among = fitting_paths({route.id: route.accuracy for route in usable}, expected, request.min_accuracy, request.deadline_s)
        return routes[policy.choose(len(request.images), now, request.path, self._level(service), among)]

    async def _infer(self, service: str, request: InferRequest) -> tuple[Array, Route]:
        """Logits and the route that made them: the chosen one, or the original where that refuses or fails."""
        now = time.monotonic()
        end = now + min(self._options.request_deadline_s, request.deadline_s or self._options.request_deadline_s)
        policy = self._policies[service]
        attempts = [self._choose(service, request, now), self._routes[service][ORIGINAL]]
        failure = RequestError("no attempt was made", status=503)
        for attempt, route in enumerate(attempts):
            last = attempt == len(attempts) - 1
            budget = end - time.monotonic() if last else min(self._options.path_deadline_s, end - time.monotonic())
            if not all(hop.provider in self._handles for hop in route.hops):
                failure = RequestError(f"{service!r} is not up yet; send the request again", status=503, retry_after_s=1)
                continue
            try:
                result = await self._attempt(service, route, request.images, budget)
            except TimeoutError:
                failure = RequestError(f"{service!r} did not answer within its deadline; send less at a time", status=504, retry_after_s=1)
                result = None
            except (RayError, RayServeException) as error:
                failure = RequestError(f"{service!r} has lost a server; send the request again", status=503, retry_after_s=1)
                logger.warning("path %s of %s failed: %s", route.id, service, type(error).__name__)
                result = None
            if isinstance(result, Refusal):
                failure = RequestError(f"{service!r} is overloaded: {result.reason}", status=503, retry_after_s=result.retry_after_s)
                policy.leave_out(route.id, time.monotonic())
                if route.id == ORIGINAL:
                    break
            elif result is None:
                policy.leave_out(route.id, time.monotonic(), FAILURE_COOL_DOWN_S)
                self._stale.set()
            else:
                return result, route
        raise failure

    async def _attempt(self, service: str, route: Route, images: Array, budget_s: float) -> Array | Refusal:
        """One route; what it takes of each server is known to the load while it is under way."""
        work = route.work(len(images), self._reports)
        local, original = self._plan.placement[self._plan.local], self._routes[self._plan.local][ORIGINAL]
        counts = service == self._plan.local
        if counts:
            self._load.begin(work.get(local, 0.0), original.work(len(images), self._reports).get(local, 0.0), time.monotonic())
        self._under_way.add(work)
        try:
            return await asyncio.wait_for(self._call(route, images), budget_s)
        finally:
            self._under_way.remove(work)
            if counts:
                self._load.end(work.get(local, 0.0))

    async def _call(self, route: Route, images: Array) -> Array | Refusal:
        value: Any = images
        for hop in route.hops:
            # The answer of one leg goes to the next by reference, not through this process.
            value = self._handles[hop.provider].run.remote(hop.key, value)
        result: Array | Refusal = await value
        return result

    async def _refresh_forever(self) -> None:
        while True:
            self._stale.clear()
            complete = await self._refresh(REFRESH_S)
            try:
                await asyncio.wait_for(self._stale.wait(), REFRESH_S if complete else RETRY_S)
            except TimeoutError:
                continue

    async def _refresh(self, deadline_s: float) -> bool:
        """Ask all providers for their times and solve the plan's rates again; whether all have answered."""
        reports = await asyncio.gather(*(self._ask(provider, deadline_s) for provider in self._providers))
        self._reports = {report.provider: report for report in reports if report is not None}
        self._observe(time.monotonic())
        routes = list(self._routes[self._plan.local].values())
        self._rates = solve_rates(routes, self._plan, self._reports, self._settings.use)
        self._policies[self._plan.local].set_rates(self._rates)
        return len(self._reports) == len(self._providers)

    def _observe(self, now: float) -> None:
        """Tell the load how busy the local server was since it was last asked."""
        report = self._reports.get(self._plan.placement[self._plan.local])
        if report is None:
            return
        # A server that was replaced counts from 0 again.
        if self._observed is not None and report.busy_seconds >= self._observed[1] and now > self._observed[0]:
            self._load.observe((report.busy_seconds - self._observed[1]) / (now - self._observed[0]))
        self._observed = now, report.busy_seconds

    async def _ask(self, provider: str, deadline_s: float) -> ProviderReport | None:
        try:
            async with asyncio.timeout(deadline_s):
                if provider not in self._handles:
                    application = self._settings.applications.get(provider, provider_deployment(provider))
                    # In a thread, because it asks the controller and blocks meanwhile.
                    self._handles[provider] = await asyncio.to_thread(
                        serve.get_deployment_handle, provider_deployment(provider), application
                    )
                report: ProviderReport = await self._handles[provider].describe.remote()
                return report
        except (TimeoutError, RayError, RayServeException, KeyError) as error:  # KeyError: no such deployment yet
            logger.warning("provider %s does not answer: %s", provider, type(error).__name__)
            return None


def _allow(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise RequestError(f"{request.method} is not allowed at {quote(request.url.path)}; use {method}", status=405)
