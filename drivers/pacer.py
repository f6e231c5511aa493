"""How fast weights may be copied: as fast as memory can while the device idles, a share of the time while it runs steps.

    steps     ......|=====|==|=====|...............
    a copy    ######|# # # # # # # |# ##############      `quiet_s` after the last step it goes at full rate again

The main thread says when a step begins and ends; whoever copies asks after each piece how long to rest. There is no lock: each value has
one writer, and a copier that reads a stale one rests once too often or too seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BUSY_SHARE = 0.25  # of the time, in which one thread copies beside steps
QUIET_S = 0.05  # the next step of a quantum, or the next plan, comes sooner


class Pacer:
    """Knows whether steps run, and what a copier owes them."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep, share: float = BUSY_SHARE
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._share = share
        self._is_in_step = False
        self._last_step = -QUIET_S

    @contextmanager
    def step(self) -> Iterator[None]:
        """The device is at work."""
        self._is_in_step = True
        try:
            yield
        finally:
            self._last_step = self._clock()
            self._is_in_step = False

    @property
    def is_busy(self) -> bool:
        """Whether a step runs, or ran just now."""
        return self._is_in_step or self._clock() - self._last_step < QUIET_S

    def rest(self, worked_s: float) -> None:
        """A piece took so long: wait in proportion, if steps run."""
        if self.is_busy:
            self._sleep(worked_s * (1.0 - self._share) / self._share)
