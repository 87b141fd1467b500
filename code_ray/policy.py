"""Which path the next request takes (DESIGN 3.5). Pure: no Ray, no clock of its own.

Requests follow the plan's rates, counted in images; a path whose host refused or failed a moment ago is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from code_ray.errors import RequestError

ORIGINAL = "original"
COOL_DOWN_S = 0.5
"""How long a path is left out after a refusal: a few batches, so that capacity that came back is found."""


class RatePolicy:
    """Spreads images over the paths of one service in proportion to ``rates`` (path id -> images a second).

    Smooth weighted round robin: each path earns its share of every request's images, the richest one takes the request
    and pays them. Requests are never split, so the shares hold over a few requests, not within one.
    """

    def __init__(self, rates: Mapping[str, float]) -> None:
        self._known: frozenset[str] = frozenset()
        self._credit: dict[str, float] = {}
        self._out_until: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.set_rates(rates)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Follow other rates from now on; what paths have earned, and which are left out, stays."""
        total = sum(rates.values())
        self.shares = {path: rate / total for path, rate in rates.items() if rate > 0} if total > 0 else {ORIGINAL: 1.0}
        self._known = frozenset({*rates, ORIGINAL})
        self._credit = {path: self._credit.get(path, 0.0) for path in self.shares}

    def choose(self, images: int, now: float, pinned: str | None = None) -> str:
        """The path id for a request of ``images`` images at time ``now`` (seconds of any clock that only goes forward).

        Raises:
            RequestError: 400 where ``pinned`` names no path that may be used.
        """
        if pinned is not None:
            if pinned not in self._known:
                raise RequestError(f"path {pinned!r} is not one that may be used; there are: {', '.join(sorted(self._known))}")
            return pinned
        healthy = [path for path in self.shares if self._out_until.get(path, 0.0) <= now]
        if not healthy:
            return ORIGINAL
        weight = sum(self.shares[path] for path in healthy)
        for path in healthy:
            self._credit[path] += images * self.shares[path] / weight
        chosen = max(healthy, key=lambda path: self._credit[path])
        self._credit[chosen] -= images
        return chosen

    def leave_out(self, path: str, now: float, seconds: float = COOL_DOWN_S) -> None:
        """Keep requests off ``path`` for a while, because its host refused or failed; what it had earned is dropped."""
        if path != ORIGINAL:
            self._out_until[path] = now + seconds
            self._credit[path] = 0.0
