"""Expiry: which requests have run out of time: their deadline passed, or they waited longer than they may.

Times are Unix seconds, as callers and the journal have them. Between two looks the Unix clock may jump (somebody sets it); a second clock
that cannot jump tells how much time has really passed, and everything that was known before the jump moves with it.

Invariants
1. A request is told of once, and not after it has ended.
2. A limit of waiting ends with the first admission: who has ever had a row is not told of for having waited.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Final, NamedTuple

from kerneld.request import Request

# Clocks that differ by less are slewed, or were read a moment apart.
_JUMP_S: Final = 2.0
# Entries of requests that have ended are cleared away when they are more than half, and this many besides.
_SLACK: Final = 16


class Expired(NamedTuple):
    """A request whose time is over, and why."""

    request: Request
    detail: str


class _Entry(NamedTuple):
    """A moment at which to look at a request."""

    at: float
    serial: int
    request: Request
    is_queue_limit: bool


class Expiry:
    """Moments at which requests run out of time."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._serials = itertools.count()
        self._num_over = 0  # entries of requests that have ended, at least
        self._last: tuple[float, float] | None = None  # both clocks, at the last look
        self._last_serial = -1  # of what was known then

    def add(self, request: Request) -> None:
        """Watch a request's deadline and its limit of waiting, if it has them."""
        if request.deadline is not None:
            self._push(request.deadline, request, is_queue_limit=False)
        if request.queue_until is not None:
            self._push(request.queue_until, request, is_queue_limit=True)

    def ended(self, request: Request) -> None:
        """A request has ended: it is forgotten, though not at once."""
        self._num_over += (request.deadline is not None) + (request.queue_until is not None)
        if self._num_over > len(self._heap) // 2 + _SLACK:
            self._heap = sorted(entry for entry in self._heap if not entry.request.is_finished)
            self._num_over = 0

    def due(self, now: float, steady: float | None = None) -> tuple[Expired, ...]:
        """The requests whose time was over by `now`; `steady` is a clock that cannot jump, where there is one."""
        if steady is not None:
            self._follow(now, steady)
        late = []
        while self._heap and self._heap[0].at <= now:
            entry = heapq.heappop(self._heap)
            if not entry.request.is_finished and not (entry.is_queue_limit and entry.request.admitted_at):
                late.append(entry)
        told = {entry.request.id: entry for entry in reversed(late)}  # by its first reason, if it has two
        return tuple(Expired(entry.request, _detail(entry)) for entry in late if told[entry.request.id] is entry)

    def _follow(self, now: float, steady: float) -> None:
        """Move what was known before a jump of the Unix clock as far as it jumped."""
        last, self._last = self._last, (now, steady)
        known, self._last_serial = self._last_serial, next(self._serials)
        jump = 0.0 if last is None else now - (last[0] + steady - last[1])
        if abs(jump) < _JUMP_S:
            return
        # Of those that came since the last look, the ones that came after the jump have the new time already: they arrived near it.
        is_old = [entry.serial < known or abs(entry.request.arrival - now) > abs(jump) / 2 for entry in self._heap]
        moved = zip(self._heap, is_old, strict=True)
        self._heap = sorted(entry._replace(at=entry.at + jump) if was_known else entry for entry, was_known in moved)

    def _push(self, at: float, request: Request, *, is_queue_limit: bool) -> None:
        heapq.heappush(self._heap, _Entry(at, next(self._serials), request, is_queue_limit))


def _detail(entry: _Entry) -> str:
    request = entry.request
    if not entry.is_queue_limit:
        return "The deadline passed."
    return f"It waited longer than {request.args.max_queue_s:g} s, as long as it may, and was never seated."
