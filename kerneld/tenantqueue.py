"""The queue of one tenant: its waiting requests, by class, then niceness, then arrival."""

from __future__ import annotations

import heapq
from typing import Final

from kerneld.calls import Priority
from kerneld.request import Request

_RANKS: Final = {Priority.INTERACTIVE: 0, Priority.BATCH: 1, Priority.IDLE: 2}
# A heap is cleared of dead entries when these are more than the living ones and this many besides.
_SLACK: Final = 16


def class_rank(request: Request) -> int:
    """The place of a request's latency class: a lower one goes first, a higher one gives way first."""
    return _RANKS[request.priority]


class TenantQueue:
    """What waits in one tenant, best first.

    An entry is alive as long as its ticket is the request's own: a request leaves by changing its ticket and telling `discard`, and the
    dead entry goes when it comes to the top, or when the dead are too many.
    """

    __slots__ = ("_heap", "_num_live")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, float, int, Request]] = []
        self._num_live = 0

    def __len__(self) -> int:
        return self._num_live

    def push(self, request: Request) -> None:
        """Let a request with a fresh ticket wait, at the place that its class, niceness and arrival give it now."""
        heapq.heappush(self._heap, (class_rank(request), request.context.nice, request.arrival, request.ticket, request))
        self._num_live += 1

    def discard(self) -> None:
        """One of the entries has died."""
        self._num_live -= 1
        if len(self._heap) > 2 * self._num_live + _SLACK:
            self._heap = [entry for entry in self._heap if entry[3] == entry[4].ticket]
            heapq.heapify(self._heap)

    def first(self) -> Request:
        """The best request; there is one."""
        heap = self._heap
        while heap[0][3] != heap[0][4].ticket:
            heapq.heappop(heap)
        return heap[0][4]

    def live(self) -> list[Request]:
        """All that wait, best first; walks the queue."""
        return [entry[4] for entry in sorted(self._heap) if entry[3] == entry[4].ticket]
