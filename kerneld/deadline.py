"""StepDeadline: how long a step may take before the worker counts as hung.

The limit is max(floor, factor x predicted). The prediction is the driver's own measured pace: seconds per step and per token, both as
slowly forgetting maxima, because a deadline that is too short kills a healthy worker and one that is too long only delays a rescue.
Where models are streamed, a step reads their weights, which is known before the first one is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FORGET = 0.98  # what a maximum keeps per step: halves in about 35 steps


class StepDeadline:
    """A timer over the step that is running."""

    def __init__(self, floor_s: float, factor: float) -> None:
        self._floor_s = floor_s
        self._factor = factor
        self._step_s = 0.0
        self._token_s = 0.0
        self.stream_s = 0.0  # that a step of every resident model would take to read what is streamed
        self._timer: asyncio.TimerHandle | None = None
        self._num_tokens = 0
        self.on_hung: Callable[[str], None] = lambda _reason: None

    def limit_s(self, num_tokens: int) -> float:
        """The longest that a step of so many tokens may take."""
        return max(self._floor_s, self._factor * (self.stream_s + self._step_s + self._token_s * num_tokens))

    def start(self, num_tokens: int) -> None:
        """A plan of so many tokens begins to run."""
        self._num_tokens = num_tokens
        self._arm()

    def step_done(self, num_tokens: int, compute_s: float) -> None:
        """A step has ended; the next one gets its own time."""
        if num_tokens:
            self._step_s = max(compute_s, FORGET * self._step_s)
            self._token_s = max(compute_s / num_tokens, FORGET * self._token_s)
        self._arm()

    def stop(self) -> None:
        """Nothing runs."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self.stop()
        limit_s = self.limit_s(self._num_tokens)
        self._timer = asyncio.get_running_loop().call_later(limit_s, self._expire, limit_s)

    def _expire(self, limit_s: float) -> None:
        self._timer = None
        self.on_hung(f"A step took longer than {limit_s:.1f} s.")
