"""What the service refuses, and with which status. Imports nothing large."""

from __future__ import annotations

import time
from ipaddress import ip_address


class Refused(Exception):
    """A request that gets no report. `reason` quotes nothing of it."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None):
        super().__init__(status, reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


class Rate:
    """At most `per_minute` passes a minute, all at once or one by one (a token bucket)."""

    def __init__(self, per_minute: int):
        self.per_minute, self._left, self._at = per_minute, float(per_minute), time.monotonic()

    def take(self) -> None:
        """Take a pass.

        Raises:
            Refused: there is none; it says when there will be.
        """
        now = time.monotonic()
        self._left = min(float(self.per_minute), self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        if self._left < 1:
            wait = max(1, round((1 - self._left) * 60 / self.per_minute))
            raise Refused(429, f"more than {self.per_minute} requests a minute", wait)
        self._left -= 1


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
