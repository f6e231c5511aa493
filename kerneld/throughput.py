"""Throughput: tokens per second of the last seconds, for `top`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_S = 5.0


class Throughput:
    """Counts prefill and output tokens in a sliding window."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steps: deque[tuple[float, int, int, float]] = deque()

    def add(self, num_prefill: int, num_output: int, busy_s: float) -> None:
        """A step is done."""
        self._steps.append((self._clock(), num_prefill, num_output, busy_s))
        self._forget()

    def rates(self) -> tuple[float, float, float]:
        """Prefill tokens per second, output tokens per second, and the share of time that the device was busy."""
        self._forget()
        prefill = sum(step[1] for step in self._steps)
        output = sum(step[2] for step in self._steps)
        busy_s = sum(step[3] for step in self._steps)
        return prefill / WINDOW_S, output / WINDOW_S, min(1.0, busy_s / WINDOW_S)

    def _forget(self) -> None:
        horizon = self._clock() - WINDOW_S
        while self._steps and self._steps[0][0] < horizon:
            self._steps.popleft()
