"""A token bucket: so many at once, so many a second. Pure; the caller says what time it is."""

from __future__ import annotations


class Bucket:
    __slots__ = ("_at_s", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: int, now: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens, self._at_s = float(burst), now

    def take(self, now: float) -> bool:
        """One token, if there is one."""
        if now > self._at_s:
            self._tokens = min(self._burst, self._tokens + (now - self._at_s) * self._per_s)
            self._at_s = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
