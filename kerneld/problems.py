"""Problems: why the worker of a device is not there, how long to wait before another one is tried, and whether that is worth waiting for.

Rules
1. Restarts back off 0, 0.5, 1, 2 ... 30 s, and forget after `HEALTHY_S` of running.
2. Hope is lost where the driver says that it cannot run, and where workers ended `MANY_FAILURES` times in a row before they served. The
   supervisor tries on all the same: a device may come back. Whoever waits is told at once, in place of waiting.
3. A worker that serves is a new beginning: nothing of the ones before is told any more.
"""

from __future__ import annotations

from collections.abc import Callable

HEALTHY_S = 30.0
MANY_FAILURES = 3  # in a row, after which nobody counts on a worker that is not there
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Problems:
    """What went wrong with the workers of one device."""

    def __init__(self) -> None:
        self.last = ""  # a sentence; empty while nothing is wrong
        self.is_final = False  # rule 2
        self.on_change: Callable[[], None] = lambda: None
        self._num_failures = 0  # in a row
        self._num_early = 0  # of these, the last ones that had not served

    @property
    def is_many(self) -> bool:
        """Whether workers ended again and again."""
        return self._num_failures >= MANY_FAILURES

    def failed(self, problem: str, *, is_final: bool = False) -> float:
        """A worker ended before it served; answers after how many seconds another one is to be tried. `is_final`: it would end as well."""
        self._num_early += 1
        self.is_final = is_final or self._num_early >= MANY_FAILURES
        return self._ended(problem)

    def lost(self, problem: str, ran_s: float) -> float:
        """A worker that served for so long has ended; answers after how many seconds another one is to be tried."""
        self._num_failures = 0 if ran_s >= HEALTHY_S else self._num_failures  # rule 1
        self._num_early, self.is_final = 0, False
        return self._ended(problem)

    def over(self) -> None:
        """A worker serves."""
        self.last, self.is_final, self._num_early = "", False, 0  # rule 3
        self.on_change()

    def _ended(self, problem: str) -> float:
        delay_s = BACKOFF_S[min(self._num_failures, len(BACKOFF_S) - 1)]
        self._num_failures += 1
        self.last = problem
        self.on_change()
        return delay_s
