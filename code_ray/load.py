"""How far a router should move from the original path to the plan's mixture, by what waits at the local server (DESIGN 3.5).

Pure: no Ray, no clock of its own. Accuracy is given up only where it buys something: while the local server has time left, all
requests can take the original path. Only where it was busy without a break does the level rise, with the queue, so that the queue
settles where the level just carries the load.
"""

from __future__ import annotations

PATIENCE_S, PATIENCE_REQUESTS = 1.0, 16.0
"""The level leaves 0 when requests were under way all the time for so long: in seconds and in requests, whichever is longer."""

BUSY, RELEASED = 0.9, 0.8
"""Utilisation of the local server from which on the level may leave 0, and below which it returns there: what is under way then
is on the wire, and not in the queue."""

EMPTY, FULL = 1.0, 3.0
"""Requests under way at the local server at which the level is 0, and 1. One is being run; the others wait."""

SMOOTHING = 0.1
"""Weight of the newest request in the mean work of a request."""


class LoadLevel:
    """From 0, everything on the original path, to 1, the plan's mixture.

    Told of every request when it begins and ends, with the seconds of local server that it takes (on its own path, and on the
    original), of those that are refused, and now and then of the server's utilisation. With several routers before one server each
    sees its ``share`` of the requests (1 / their number).
    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._outstanding = 0.0
        self._refused, self._refused_at = 0.0, 0.0
        self._count = 0
        self._request_seconds = 0.0  # mean, on the original path
        self._busy_since: float | None = None
        self._utilisation = 0.0
        self._engaged = False

    def begin(self, seconds: float, original_seconds: float, now: float) -> None:
        """A request of ``seconds`` of local work (``original_seconds`` on the original path) was sent off at time ``now``."""
        if self._count == 0:
            self._busy_since = now
        self._count += 1
        self._outstanding += seconds
        weight = SMOOTHING if self._request_seconds else 1.0
        self._request_seconds += weight * (original_seconds - self._request_seconds)

    def end(self, seconds: float) -> None:
        """It was answered, or given up."""
        self._count -= 1
        self._outstanding = self._outstanding - seconds if self._count else 0.0
        if self._count == 0:
            self._busy_since = None

    def refuse(self, original_seconds: float, now: float) -> None:
        """A request was refused at time ``now`` since every path has too much to do: else it would be waiting."""
        most = FULL * self._share * self._request_seconds
        self._refused, self._refused_at = min(most, self._still_refused(now) + original_seconds), now

    def observe(self, utilisation: float) -> None:
        """Share of its time that the local server computed, over the last seconds."""
        self._utilisation = utilisation

    def level(self, now: float) -> float:
        """Between 0 and 1."""
        refused = self._still_refused(now)
        patience = max(PATIENCE_S, PATIENCE_REQUESTS * self._request_seconds)
        if self._utilisation < RELEASED:
            self._engaged = False
        elif self._utilisation >= BUSY and self._busy_since is not None and now - self._busy_since >= patience:
            self._engaged = True
        # Where requests are refused there is nothing left to be patient for.
        if not (self._engaged or refused) or self._request_seconds <= 0:
            return 0.0
        waiting = (self._outstanding + refused) / self._share / self._request_seconds
        return min(1.0, max(0.0, (waiting - EMPTY) / (FULL - EMPTY)))

    def _still_refused(self, now: float) -> float:
        """Seconds of what was refused that would not be done yet."""
        return max(0.0, self._refused - self._share * (now - self._refused_at))
