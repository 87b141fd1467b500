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
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from code_ray.access import Gate, Key, read_keys
from code_ray.errors import ConfigError, DeploymentError, RequestError, first_problem
from code_ray.framing import HEADER_LENGTH
from code_ray.pictures import PICTURE_TYPES, decode_picture
from code_ray.plan import Plan
from code_ray.service import ServiceSpec
from code_ray.wire import GROUPED, InferRequest, decode_request, encode_response, output_names
from deployments.config import RouterOptions, RouterSettings
from deployments.dispatcher import Dispatcher
from deployments.messages import VERSION, error_response, json_response, media_type_of, read_body, service_metadata
from deployments.routes import check_use

logger = logging.getLogger("ray.serve")

REFRESH_S = 2.0
"""How often times are asked for and the programme is solved again."""
RETRY_S = 0.5
"""The same while a provider is missing."""
START_S = 45.0
"""How long a new router waits for all providers before it serves with those that are there."""


class Router:
    """Serves every service of a plan: the local one over the plan's paths, hosts' own over their original paths."""

    def __init__(
        self, plan: Plan, specs: dict[str, ServiceSpec], handles: dict[str, DeploymentHandle[Any]], options: RouterOptions
    ) -> None:
        self._plan = plan
        self._specs = specs
        self._options = options
        blocks = {name: len(spec.boundaries) - 1 for name, spec in specs.items()}
        self._dispatcher = Dispatcher(plan, blocks, {name: len(spec.labels) for name, spec in specs.items()}, handles, options)
        self._gate = Gate(None, 1.0, time.monotonic())
        self._keys_changed: float | None = None  # modification time of the file they were read from
        self._look_at_keys()
        self._refresher: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over ``RouterSettings``: at start, and under load without a restart.

        Raises:
            ConfigError: for settings that are malformed or name a path that is not in the plan.
        """
        try:
            settings = RouterSettings.model_validate(user_config)
        except ValidationError as error:
            raise ConfigError(f"user_config is malformed at {first_problem(error)}") from error
        check_use(settings.use, self._plan)
        self._dispatcher.settings = settings
        await self._dispatcher.refresh(START_S if self._refresher is None else REFRESH_S)
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
        if parts[:2] == ["v2", "models"] and parts[3:5] == ["versions", VERSION]:
            del parts[3:5]
        try:
            match parts:
                case ["v2", "models", service, "infer"]:
                    _allow(request, "POST")
                    return await self._answer(service, request)
                case ["v2", *rest]:
                    _allow(request, "GET")
                    if rest[:1] != ["health"]:
                        self._let_in(request, rest[1] if len(rest) > 1 else None)
                    return self._describe(rest)
        except RequestError as error:
            return error_response(error)
        return error_response(RequestError(f"there is nothing at {scope['path'][:80]!r}; see GET /v2", status=404))

    def _describe(self, parts: list[str]) -> Response:
        match parts:
            case []:
                models = {
                    "name": "code_ray",
                    "version": "0.1.0",
                    "extensions": ["binary_tensor_data"],
                    "models": [*self._specs, *self._dispatcher.groups],
                }
                return json_response(models)
            case ["health", "live"]:
                return json_response({"live": True})
            case ["health", "ready"]:
                ready = self._dispatcher.is_ready(self._plan.local)
                return json_response({"ready": ready}, 200 if ready else 503)
            case ["models", service]:
                services = self._services(service)
                name = GROUPED.join(services)
                return json_response(service_metadata(name, [self._specs[s] for s in services], self._dispatcher.describe(name)))
            case ["models", service, "ready"]:
                ready = self._dispatcher.is_ready(GROUPED.join(self._services(service)))
                return json_response({"name": service, "ready": ready}, 200 if ready else 503)
        raise RequestError(f"there is nothing at '/v2/{'/'.join(parts)[:80]}'; see GET /v2", status=404)

    def _services(self, name: str) -> tuple[str, ...]:
        """The services that go by a name: one, or those of a group in its order, whatever the order in ``name``."""
        if name in self._specs:
            return (name,)
        group = next((group for group in self._dispatcher.groups if set(group.split(GROUPED)) == set(name.split(GROUPED))), None)
        if group is None:
            known = ", ".join((*self._specs, *self._dispatcher.groups))
            raise RequestError(f"service {name[:80]!r} is unknown; there are: {known}", status=404)
        return tuple(group.split(GROUPED))

    async def _answer(self, name: str, request: Request) -> Response:
        key = self._let_in(request, name)
        services = self._services(name)
        service, spec = GROUPED.join(services), self._specs[services[0]]
        body = await read_body(request, self._options.max_request_bytes)
        shape, outputs = spec.preprocessing.sample_shape, output_names(services)
        if media_type_of(request) in PICTURE_TYPES:
            # In a thread: a large photograph takes a while, and others wait.
            infer = InferRequest(await asyncio.to_thread(decode_picture, body, shape), outputs=outputs)
        else:
            taken = body, request.headers.get(HEADER_LENGTH), shape, self._options.max_images, spec.vocabulary, outputs
            # Making tokens of many texts takes a while too.
            infer = decode_request(*taken) if spec.vocabulary is None else await asyncio.to_thread(decode_request, *taken)
        self._gate.charge(key, len(infer.images), time.monotonic())
        logits, route = await self._dispatcher.infer(service, infer)
        labels = spec.labels if len(services) == 1 else {name: self._specs[name].labels for name in services}
        content, headers = encode_response(service, infer, logits, labels, route.id, route.kind)
        return Response(content, headers=headers)

    def _let_in(self, request: Request, service: str | None) -> Key | None:
        """Whoever asks several services together must be let in to each."""
        client = request.scope.get("client") or (None,)
        names = [service] if service is None or service in self._specs else service.split(GROUPED)
        keys = [self._gate.check(request.headers, client[0], name) for name in names]
        return keys[0]

    def _look_at_keys(self) -> None:
        """Read the key file where it was changed; one that cannot be read any more leaves the keys as they were.

        Raises:
            ConfigError: where it was never read and cannot be: a router without its keys does not start.
        """
        file = self._options.keys_file
        if file is None:
            return
        try:
            changed = file.stat().st_mtime
            if changed != self._keys_changed:
                self._gate = Gate(read_keys(file), 1.0 / self._options.replicas, time.monotonic())
                self._keys_changed = changed
        except (OSError, ConfigError) as error:
            if self._keys_changed is None:
                raise ConfigError(f"{file} cannot be used ({error})") from error
            logger.warning("the keys stay as they were: %s", error)

    async def _refresh_forever(self) -> None:
        while True:
            self._dispatcher.is_stale.clear()
            self._look_at_keys()
            complete = await self._dispatcher.refresh(REFRESH_S)
            try:
                await asyncio.wait_for(self._dispatcher.is_stale.wait(), REFRESH_S if complete else RETRY_S)
            except TimeoutError:
                continue


def _allow(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise RequestError(f"{request.method} is not allowed at {quote(request.url.path)}; use {method}", status=405)
