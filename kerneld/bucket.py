"""A token bucket: so many per minute, with bursts of up to a minute's worth. (Its tokens have nothing to do with those of models.)"""

from __future__ import annotations

from typing import Final

MINUTE_S: Final = 60.0


class RateBucket:
    """Room for `per_minute` units, refilled evenly. Taking more than is there leaves a debt, which later refills pay off."""

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def wait_s(self, amount: int, now: float) -> float:
        """Seconds until `amount` may be taken; 0: now. An amount that is larger than the bucket needs a full one."""
        self._refill(now)
        missing = min(amount, self.per_minute) - self._level
        return max(missing, 0.0) * MINUTE_S / self.per_minute

    def take(self, amount: int, now: float) -> None:
        """Take units, whether they are there or not."""
        self._refill(now)
        self._level -= amount

    def _refill(self, now: float) -> None:
        elapsed = max(now - self._at, 0.0)
        self._level = min(self._level + elapsed * self.per_minute / MINUTE_S, float(self.per_minute))
        self._at = now
