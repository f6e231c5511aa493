"""Estimator: in how many seconds a request starts, and how far the last such estimates were off.

    seconds = (work that is served before it + half of what one admission takes) / rate

Work is what the tariffs charge, in microseconds of device time. Served before a request is what its own tenant has ahead of it; when that
is done, the tenant's counter has moved on by work / weight, and siblings that are behind that point are served up to it first. The same
then holds for their parent, with the work of all of them, and so on to the root.

    rate     work done per second of the wall while there was something to do, the last seconds counting most
    error    median of |estimate - actual| / actual over the last first admissions

It knows no clock: who feeds it says how long things took. Asking costs O(siblings) on each level.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

from kerneld.holdings import StartEstimate

JUDGED: Final = 64
# Waits below this are those of the next step: an estimate is judged as if the wait had been as long.
LEAST_WAIT_S: Final = 0.05
# After this time what was measured of the rate counts for 1/e.
MEMORY_S: Final = 10.0
_MEAN_OF: Final = 64  # admissions


class Rival(NamedTuple):
    """A node of the tree of shares with work waiting."""

    counter_us: float  # device time over weight
    weight: float  # as its factor makes it
    backlog_us: int  # what waits below it would be charged


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the tree: the node of the tenant that asks, or one above it, and its siblings with work waiting."""

    own: Rival
    siblings: Sequence[Rival]


class Estimator:
    """Numbers alone: the live parts are `kerneld.starts`' to read."""

    def __init__(self) -> None:
        self._done_us = 0.0  # fading
        self._busy_s = 0.0  # fading alike
        self._mean_us = 0.0  # of what an admission charges
        self._errors: deque[float] = deque(maxlen=JUDGED)
        self._error: float | None = None

    @property
    def rate(self) -> float | None:
        """Work per second, in microseconds; None as long as none was seen."""
        return self._done_us / self._busy_s if self._done_us > 0 and self._busy_s > 0 else None

    @property
    def error(self) -> float | None:
        """The median error, as a part of the wait; None as long as no estimate was judged."""
        return self._error

    @property
    def num_judged(self) -> int:
        """How many estimates the error is of."""
        return len(self._errors)

    def note_rate(self, done_us: int, busy_s: float) -> None:
        """In some seconds with something to do, so much was done."""
        kept = math.exp(-busy_s / MEMORY_S)
        self._done_us = max(self._done_us * kept + done_us, 0.0)
        self._busy_s = self._busy_s * kept + busy_s

    def forget_rate(self) -> None:
        """Work is counted in another measure from now on: nothing is known of the rate. How far estimates are off stays."""
        self._done_us = self._busy_s = self._mean_us = 0.0

    def note_admission(self, charged_us: int) -> None:
        """A request was admitted, and charged."""
        self._mean_us += (charged_us - self._mean_us) / (_MEAN_OF if self._mean_us else 1)

    def note_start(self, expected_s: float, waited_s: float) -> None:
        """A request started for the first time: how long it was expected to wait at its arrival, and how long it waited."""
        waited_s = max(waited_s, LEAST_WAIT_S)
        self._errors.append(abs(max(expected_s, LEAST_WAIT_S) - waited_s) / waited_s)
        self._error = median(self._errors)

    def seconds(self, own_us: int, levels: Iterable[Level]) -> float | None:
        """Seconds to a start, were the device full; None: unknown. `levels` from the tenant itself up to the root."""
        rate = self.rate
        if rate is None:
            return None
        return (work_ahead(own_us, levels) + self._mean_us / 2) / rate

    def estimate(self, seconds: float | None) -> StartEstimate:
        """Seconds with what such estimates are worth."""
        return StartEstimate(seconds, self._error, len(self._errors))


def work_ahead(own_us: int, levels: Iterable[Level]) -> float:
    """Work that fair shares serve before `own_us` of work of a tenant is done, itself included."""
    work = float(own_us)
    for level in levels:
        reach = level.own.counter_us + work / level.own.weight
        work += sum(
            min((reach - counter_us) * weight, backlog_us) for counter_us, weight, backlog_us in level.siblings if counter_us < reach
        )
    return work
