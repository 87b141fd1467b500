"""Which path the next request takes (DESIGN 3.5). Pure: no Ray, no clock of its own.

Requests follow the plan's rates, counted in images, as far as the load asks for it (see ``load``); a path whose host refused or
failed a moment ago is left out. A request may name the accuracy it needs and the time it has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from code_ray.errors import RequestError

ORIGINAL = "original"
"""Id of the original path of a plan's first local service."""

COOL_DOWN_S = 0.5
"""How long a path is left out after a refusal: a few batches, so that capacity that came back is found."""


def original_of(service: str) -> str:
    """Id of the original path of any other service."""
    return f"{ORIGINAL}-{service}"


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
        self._credit = {path: self._credit.get(path, 0.0) for path in (ORIGINAL, *self.shares)}

    def choose(self, images: int, now: float, pinned: str | None = None, level: float = 1.0, among: Collection[str] | None = None) -> str:
        """The path id for a request of ``images`` images at time ``now`` (seconds of any clock that only goes forward).

        ``level`` 1 follows the rates, 0 takes the original alone, and in between the shares are in between. ``among``: the paths
        that serve this request, the best first (None: all).

        Raises:
            RequestError: 400 where ``pinned`` names no path that may be used.
        """
        if pinned is not None:
            if pinned not in self._known:
                raise RequestError(f"path {pinned!r} is not one that may be used; there are: {', '.join(sorted(self._known))}")
            return pinned
        shares = {path: level * share for path, share in self.shares.items()}
        shares[ORIGINAL] = shares.get(ORIGINAL, 0.0) + 1.0 - level
        fitting = [path for path in (shares if among is None else among) if self._out_until.get(path, 0.0) <= now]
        healthy = [path for path in fitting if shares.get(path, 0.0) > 0]
        if not healthy:
            return next(iter(fitting), ORIGINAL)
        weight = sum(shares[path] for path in healthy)
        for path in healthy:
            self._credit[path] += images * shares[path] / weight
        chosen = max(healthy, key=lambda path: self._credit[path])
        self._credit[chosen] -= images
        return chosen

    def choose_in_time(
        self,
        images: int,
        now: float,
        level: float,
        fitting: Sequence[str],
        expected_s: Mapping[str, float],
        limits_s: Mapping[str, float],
        local_s: Mapping[str, float],
    ) -> str:
        """As ``choose``, among ``fitting`` paths, the most accurate first, one that is expected to answer in time behind all that is under way.

        By path id: ``expected_s`` and ``limits_s``, seconds to an answer and what they may be, ``local_s`` of the local server. At full
        ``level`` another path takes what the one whose turn it is cannot only where it is as accurate and costs that server less: else the
        more requests came the fewer would be answered, or the less accurately.

        Raises:
            RequestError: 503 where there is none, with the time to wait.
        """
        advice = "send the request again later, or with more time"
        if level < 1:
            return self.choose(images, now, None, level, _in_time(fitting, expected_s, limits_s, advice))
        chosen = self.choose(images, now, None, level, fitting)
        better = fitting[: fitting.index(chosen)] if chosen in fitting else []
        return _in_time([chosen, *(path for path in better if local_s[path] < local_s[chosen])], expected_s, limits_s, advice)[0]

    def leave_out(self, path: str, now: float, seconds: float = COOL_DOWN_S) -> None:
        """Keep requests off ``path`` for a while, because its host refused or failed; what it had earned is dropped."""
        if path != ORIGINAL:
            self._out_until[path] = now + seconds
            self._credit[path] = 0.0


def fitting_paths(
    accuracies: Mapping[str, float], alone_s: Mapping[str, float], min_accuracy: float | None, limits_s: Mapping[str, float]
) -> list[str]:
    """Ids of the paths that are accurate enough and would answer in time if nothing else were under way, the most accurate first.

    By path id: ``accuracies`` (fractions), ``alone_s`` (seconds to an answer), ``limits_s`` (seconds that it may take).

    Raises:
        RequestError: 422 where no path is so accurate, 503 where none can be in time.
    """
    best = max(accuracies.values())
    accurate = [path for path, accuracy in accuracies.items() if min_accuracy is None or accuracy >= min_accuracy]
    if not accurate:
        raise RequestError(f"no path has min_accuracy {min_accuracy:g}; the most accurate has {best:.4f}", status=422)
    accurate.sort(key=lambda path: -accuracies[path])
    return _in_time(accurate, alone_s, limits_s, "send fewer images, or with more time")


def _in_time(paths: Sequence[str], seconds: Mapping[str, float], limits_s: Mapping[str, float], advice: str) -> list[str]:
    if found := [path for path in paths if seconds[path] <= limits_s[path]]:
        return found
    soonest = min(paths, key=lambda path: seconds[path] - limits_s[path])
    raise RequestError(
        f"an answer would take {1e3 * seconds[soonest]:.0f} ms, which exceeds {1e3 * limits_s[soonest]:.0f} (deadline_ms, or this router's limit); "
        f"{advice}",
        status=503,
        retry_after_s=math.ceil(seconds[soonest] - limits_s[soonest]),
    )
