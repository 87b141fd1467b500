"""Metering of borrowed compute: a token bucket of seconds, refilled at kappa seconds a second (DESIGN 3.5)."""

from __future__ import annotations


class ComputeBucket:
    """How many seconds of a server guests may still use.

    ``share`` (kappa) seconds flow in every second, up to ``burst_s`` are kept. Work is admitted while something is left and
    charged when its time is known, so the balance may go below zero by one batch. Time is passed in: no clock inside.
    """

    def __init__(self, share: float, burst_s: float, now: float) -> None:
        self.share = share
        self.burst_s = burst_s
        self._balance = burst_s
        self._updated = now

    def lend(self, share: float, now: float) -> None:
        """Let ``share`` seconds flow in every second from now on."""
        self.balance(now)
        self.share = share

    def balance(self, now: float) -> float:
        """Seconds left at time ``now``."""
        self._balance = min(self.burst_s, self._balance + (now - self._updated) * self.share)
        self._updated = now
        return self._balance

    def charge(self, seconds: float, now: float) -> None:
        """Take ``seconds`` of finished guest work off the balance."""
        self.balance(now)
        self._balance -= seconds

    def wait_for(self, seconds: float, now: float) -> float:
        """Seconds until the balance, less ``seconds`` of work already promised, is positive again (0: admit now)."""
        return max(0.0, (seconds - self.balance(now)) / self.share)
