"""A queue of requests that may leave from anywhere: a heap in which the dead are cleared away as they come to the top."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from kerneld.request import Request

# A heap is cleared of dead entries when these are more than the living ones and this many besides.
_SLACK: Final = 16

Key = tuple[float, ...]
_Entry = tuple[Key, int, Request]  # tickets differ, so that requests are never compared


class TicketQueue:
    """Requests by a key, the least first, and equal ones in the order in which they came.

    An entry is alive as long as its ticket is the request's own: a request leaves by changing its ticket and telling `discard`, and the
    dead entry goes when it comes to the top, or when the dead are too many.
    """

    __slots__ = ("_heap", "_num_live", "num_changes")

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._num_live = 0
        self.num_changes = 0

    def __len__(self) -> int:
        return self._num_live

    def push(self, key: Key, request: Request) -> None:
        """Let a request with a fresh ticket wait."""
        heapq.heappush(self._heap, (key, request.ticket, request))
        self.num_changes += 1
        self._num_live += 1

    def discard(self) -> None:
        """One of the entries has died."""
        self._num_live -= 1
        self.num_changes += 1
        if len(self._heap) > 2 * self._num_live + _SLACK:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].ticket]
            heapq.heapify(self._heap)

    def first(self) -> Request:
        """The request of least key; there is one."""
        return self._top()[2]

    def first_key(self) -> Key:
        """The least key; there is one."""
        return self._top()[0]

    def ahead(self) -> Iterator[tuple[Key, Request]]:
        """Requests and their keys in order, taken from the heap one by one as they are asked for; nothing may change meanwhile."""
        heap = self._heap
        open_ends = [(heap[0], 0)] if heap else []
        while open_ends:
            (key, ticket, request), idx = heapq.heappop(open_ends)
            if ticket == request.ticket:
                yield key, request
            for child in range(2 * idx + 1, min(2 * idx + 3, len(heap))):
                heapq.heappush(open_ends, (heap[child], child))

    def live(self) -> list[Request]:
        """All of them in order; walks the queue."""
        return [entry[2] for entry in sorted(self._heap) if entry[1] == entry[2].ticket]

    def _top(self) -> _Entry:
        heap = self._heap
        while heap[0][1] != heap[0][2].ticket:
            heapq.heappop(heap)
        return heap[0]
