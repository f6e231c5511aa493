"""A token bucket: so many units in a period, with bursts of up to a period's worth. (Its tokens have nothing to do with those of models.)

Everything is an integer, so that what it answers is exact: who waits as long as he was told finds room, and in any stretch of `t`
microseconds no more is taken than `amount * (1 + t / period_us)`, but for what may leave a debt.
"""

from __future__ import annotations

from typing import Final

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US


class RateBucket:
    """Room for `amount` units in `period_us`, refilled evenly. Taking more than is there leaves a debt, which later refills pay off."""

    __slots__ = ("_at_us", "_level", "amount", "period_us")

    def __init__(self, amount: int, period_us: int, now_us: int) -> None:
        """A full bucket."""
        self.amount = amount
        self.period_us = period_us
        self._level = amount * period_us  # in units * microseconds: a microsecond adds `amount`, a unit takes `period_us`
        self._at_us = now_us

    def wait_us(self, num_units: int, now_us: int) -> int:
        """Microseconds until units may be taken; 0: now. More than the bucket holds needs a full one."""
        self._refill(now_us)
        missing = min(num_units, self.amount) * self.period_us - self._level
        return max(-(-missing // self.amount), 0)

    def take(self, num_units: int, now_us: int) -> None:
        """Take units, whether they are there or not."""
        self._refill(now_us)
        self._level -= num_units * self.period_us

    def give_back(self, num_units: int, now_us: int) -> None:
        """Units that were taken were not used."""
        self._refill(now_us)
        self._level = min(self._level + num_units * self.period_us, self.amount * self.period_us)

    def full_in_us(self, now_us: int) -> int:
        """Microseconds until it is full again, if nothing is taken: all that there is to know of it."""
        self._refill(now_us)
        return -(-(self.amount * self.period_us - self._level) // self.amount)

    def full_in_with_us(self, amount: int, now_us: int) -> int:
        """The same if it held `amount` from now on: what was used stays used, and alone leaves no debt where there was none."""
        full_in_us = self.full_in_us(now_us)
        scaled_us = -(-full_in_us * self.amount // amount)
        return scaled_us if amount >= self.amount else max(full_in_us, min(scaled_us, self.period_us))

    def set_full_in(self, full_in_us: int, now_us: int) -> None:
        """Make it one that is full in so many microseconds."""
        self._level = (self.period_us - max(full_in_us, 0)) * self.amount
        self._at_us = now_us

    def _refill(self, now_us: int) -> None:
        """Bring it to this time; a clock that goes back gives nothing, and takes nothing."""
        elapsed_us = max(now_us - self._at_us, 0)
        self._level = min(self._level + elapsed_us * self.amount, self.amount * self.period_us)
        self._at_us = now_us
