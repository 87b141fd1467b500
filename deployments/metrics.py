"""What a router tells Prometheus, through Ray's exporter on every node (see docs/serving.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ray.serve.metrics import Counter, Gauge, Histogram

from code_ray.breaker import State
from deployments.network import Network
from deployments.routes import Route

LATENCIES_MS = [5.0, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000]
REQUEST_IMAGES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
BREAKER_STATES: dict[State, int] = {"closed": 0, "half-open": 1, "open": 2}


class RouterMetrics:
    """Counters, gauges and histograms by service, path and provider; a router replica has one."""

    def __init__(self) -> None:
        by_path: Any = ("service", "path", "kind")  # Ray's annotation says that there is but one tag
        self._requests = Counter("code_ray_requests", "Requests by how an attempt on a path ended", cast(Any, (*by_path, "outcome")))
        self._images = Counter("code_ray_images", "Images answered", by_path)
        self._lost = Counter("code_ray_lost_points", "Points of accuracy lost beside the original, summed over images", ("service",))
        self._fallbacks = Counter("code_ray_fallbacks", "Requests that the original path took over", ("service",))
        self._latency = Histogram("code_ray_latency_ms", "Milliseconds of an attempt that was answered", LATENCIES_MS, by_path)
        self._size = Histogram("code_ray_request_images", "Images a request", REQUEST_IMAGES, ("service",))
        self._batch = Histogram("code_ray_batch_images", "Images a batch that a router made of requests", REQUEST_IMAGES, by_path)
        self._compared = Counter("code_ray_shadowed_images", "Images that the original answered as well, to compare", by_path)
        self._disagreed = Counter("code_ray_disagreements", "Of these, images that it gave another class", by_path)
        self._reruns = Counter("code_ray_reruns", "Images that a gated path was not sure of and the original answered", by_path)
        self._wrong = Gauge("code_ray_wrong_canaries", "1: a path answers its canaries wrongly and is quarantined", by_path)
        self._level = Gauge("code_ray_load_level", "0: all on the original path, 1: the plan's rates", ("service",))
        self._share = Gauge("code_ray_path_share", "Share of the images that the plan's rates give a path", by_path)
        self._plans = Counter("code_ray_plan_changes", "Plans that took another's place in this router", ("service",))
        self._breaker = Gauge("code_ray_breaker", "A host's circuit breaker: 0 closed, 1 half-open, 2 open", ("provider",))
        self._utilisation = Gauge("code_ray_utilisation", "Share of its time that a provider's server computed", ("provider",))
        self._guests = Gauge("code_ray_kappa_used", "Share of its time that a provider's server computed for guests", ("provider",))
        edge: Any = ("sender", "receiver")
        self._bandwidth = Gauge("code_ray_bandwidth_mbit_per_s", "What the network carries from one place to another", edge)
        self._delay = Gauge("code_ray_delay_ms", "Milliseconds that something small takes there", edge)

    def connected(self, network: Network) -> None:
        """What each edge of the network carries, as it was measured."""
        for (sender, receiver), speed in network.speeds.items():
            tags = {"sender": sender, "receiver": receiver}
            self._bandwidth.set(8e-6 * speed.bytes_per_second, tags)
            self._delay.set(1e3 * speed.delay_s, tags)

    def attempted(self, service: str, route: Route, outcome: str) -> None:
        """An attempt ended: ``answered``, ``refused``, ``late`` (it waited too long behind others) or ``failed``."""
        self._requests.inc(1, {**_tags(service, route), "outcome": outcome})

    def answered(self, service: str, route: Route, images: int, seconds: float, lost_points: float) -> None:
        """``images`` were answered on a route that loses so many points on average."""
        tags = _tags(service, route)
        self._images.inc(images, tags)
        self._latency.observe(1e3 * seconds, tags)
        self._size.observe(images, {"service": service})
        if lost_points > 0:
            self._lost.inc(images * lost_points, {"service": service})

    def batched(self, service: str, route: Route, images: int) -> None:
        """A router sent a batch off."""
        self._batch.observe(images, _tags(service, route))

    def compared(self, service: str, route: Route, images: int, disagreed: int) -> None:
        """The original answered images of a route as well, and gave some of them another class."""
        self._compared.inc(images, _tags(service, route))
        if disagreed:
            self._disagreed.inc(disagreed, _tags(service, route))

    def reran(self, service: str, route: Route, images: int) -> None:
        """The original answered images of a gated route that it was not sure of."""
        self._reruns.inc(images, _tags(service, route))

    def checked(self, service: str, route: Route, is_wrong: bool) -> None:
        """A route has answered its canaries."""
        self._wrong.set(float(is_wrong), _tags(service, route))

    def fell_back(self, service: str) -> None:
        """The original path takes a request over."""
        self._fallbacks.inc(1, {"service": service})

    def steered(self, service: str, level: float, routes: Mapping[str, Route], shares: Mapping[str, float]) -> None:
        """Where the load level stands, and the plan's rates."""
        self._level.set(level, {"service": service})
        for identifier, route in routes.items():
            self._share.set(shares.get(identifier, 0.0), _tags(service, route))

    def changed_plan(self, service: str, routes: Mapping[str, Route]) -> None:
        """Another plan takes the place of the one with ``routes``, which have no share any more unless it has them too."""
        self._plans.inc(1, {"service": service})
        for route in routes.values():
            self._share.set(0.0, _tags(service, route))

    def guarded(self, provider: str, breaker: State) -> None:
        """The state of a host's breaker; it matters most while the host itself says nothing."""
        self._breaker.set(BREAKER_STATES[breaker], {"provider": provider})

    def hosted(self, provider: str, utilisation: float, for_guests: float) -> None:
        """How busy a provider's server was, by its own account."""
        self._utilisation.set(utilisation, {"provider": provider})
        self._guests.set(for_guests, {"provider": provider})


def _tags(service: str, route: Route) -> dict[str, str]:
    return {"service": service, "path": route.id, "kind": route.kind}
