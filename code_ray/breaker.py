"""A circuit breaker for one host: after a failure no request waits for it, until one that is sent as a probe was answered.

Pure: no Ray, no clock of its own (DESIGN 3.5).
"""

from __future__ import annotations

from typing import Literal

OPEN_S, MOST_OPEN_S = 3.0, 60.0
"""How long nothing is sent after a failure; each further one in a row doubles it up to the second."""

State = Literal["closed", "open", "half-open"]


class Breaker:
    """``closed``: requests go through. ``open``: none do. ``half-open``: one does, and its end decides."""

    def __init__(self) -> None:
        self._open_until: float | None = None
        self._open_s = OPEN_S
        self._probing = False

    def state(self, now: float) -> State:
        """At time ``now``, in seconds of any clock that only goes forward."""
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent."""
        state = self.state(now)
        return state == "closed" or (state == "half-open" and not self._probing)

    def begin(self, now: float) -> None:
        """A request was sent."""
        self._probing = self.state(now) != "closed"

    def succeed(self) -> None:
        """A request was answered, or refused: the host is there."""
        self._open_until, self._open_s, self._probing = None, OPEN_S, False

    def fail(self, now: float) -> None:
        """A request failed, or was not answered in time; those that were sent before the first failure count as one with it."""
        if self.state(now) != "open":
            self._open_until = now + self._open_s
            self._open_s = min(MOST_OPEN_S, 2 * self._open_s)
        self._probing = False

    def give_up(self) -> None:
        """A request ended and nobody knows how: its caller went away."""
        self._probing = False
