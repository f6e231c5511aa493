"""An event loop in virtual time: its clock stands still while callbacks run, and then jumps to the next one.

What waits for time (a step's deadline, a request's) runs on it as on any other loop; nothing waits for the world outside. The same calls
in the same order give the same run, to the last bit: callbacks of one instant run in the order in which they were asked for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")
_Entry = tuple[float, int, asyncio.TimerHandle, Callable[..., object], tuple[Any, ...]]


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop of one simulation. It is `run` in parts, and nothing of it runs in between."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._serials = itertools.count()
        self._heap: list[_Entry] = []

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now

    def call_at(self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> asyncio.TimerHandle:
        """Call back at a virtual time; one that has passed means now."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._heap, (when, next(self._serials), handle, callback, args))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back after so many virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> asyncio.TimerHandle:
        """Call back at this instant, after what was asked for it before."""
        return self.call_at(self._now, callback, *args, context=context)

    def run(self, until: float) -> None:
        """Run everything that is due before virtual time `until`, and stop the clock there. What a callback raises is raised."""
        heap = self._heap
        with self._running():
            while heap and heap[0][0] < until:
                when, _serial, handle, callback, args = heapq.heappop(heap)
                if not handle.cancelled():
                    self._now = max(self._now, when)
                    callback(*args)
        self._now = until

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Let `asyncio.get_running_loop` find this loop."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)
