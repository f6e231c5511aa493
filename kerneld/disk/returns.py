"""Returns: requests whose pages come back from the disk tier before they are seated.

    next in line --must_wait--> parked --fetch--> transfers on their way --settled--> in the line again, at the old place
                     |            '-- too many fetch already: waits for one of them
                     '-- nothing far, dearer than computing, tried often enough, no room on the host
                             --> seated; what is not at hand is computed

Where the host tier has no free frame and none whose page is elsewhere too, a request waits for those that are on their way to disk, rather
than push out pages that are nowhere else; only the last round may do that.

A parked request is in nobody's way, holds no row, and may be cancelled or run into its deadline like any other.

Invariants
1. A request that waits here is parked at the scheduler, and its context is BLOCKED; it is unparked once.
2. A request waits at most `MAX_ROUNDS` times between two seats: pages that others push out of the host tier meanwhile are computed.
3. Whoever waits, waits for a transfer that is under way: it ends, whatever the disk does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kerneld.calls import ContextState
from kerneld.disk.mover import DiskMover
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from memory.pager import Pager
from memory.table import PageTable

MAX_FETCHING = 4  # requests that fetch at once: the host tier has to keep the pages of all of them until they are seated
MAX_ROUNDS = 4


class Returns:
    """Who waits for pages from the disk tier."""

    def __init__(self, pager: Pager, scheduler: Scheduler, mover: DiskMover) -> None:
        self._pager = pager
        self._scheduler = scheduler
        self._mover = mover
        self._fetching: dict[str, Request] = {}  # by request id
        self._waiting: deque[Request] = deque()  # for their turn to fetch
        self.on_wait: Callable[[str, PageTable, int], None] = lambda _context, _table, _num_tokens: None

    def must_wait(self, request: Request) -> bool:
        """Whether a request that is next waits for its pages first; then it is out of the line."""
        table = request.context.table
        if table is None or not any(table.num_disk) or request.num_fetches >= MAX_ROUNDS:
            return False
        if self._num_wanted(request, table) <= table.at_hand_tokens():
            return False
        request.num_fetches += 1
        if len(self._fetching) >= MAX_FETCHING:
            self._waiting.append(request)
        elif not self._fetch(request, table):
            return False
        self.on_wait(request.context.id, table, request.context.kv_valid)
        self._scheduler.park(request)
        if request.context.state is ContextState.READY:
            request.context.move(ContextState.BLOCKED)
        return True

    def settled(self) -> bool:
        """Transfers have ended: whose pages have all come, or will not, joins the line again. Returns whether anybody did."""
        num_parked = len(self._fetching) + len(self._waiting)
        for request in list(self._fetching.values()):
            if request.is_finished or not self._is_on_way(request):  # of its own; it may have waited for room alone
                self._fetching.pop(request.id, None)
                self._scheduler.unpark(request)
        while self._waiting and len(self._fetching) < MAX_FETCHING:
            request = self._waiting.popleft()
            table = request.context.table
            if request.is_finished or table is None or not self._fetch(request, table):
                self._scheduler.unpark(request)
        return len(self._fetching) + len(self._waiting) < num_parked

    def forget(self, request: Request) -> None:
        """A request has ended: nothing is kept at hand for it any more."""
        if request.context.table is not None and request.num_fetches:
            self._pager.unfetch(request.context.table)

    def _num_wanted(self, request: Request, table: PageTable) -> int:
        """Leading tokens whose pages are to be had from where they are; the rest is cheaper to compute."""
        num_tokens = min(request.context.kv_valid, table.intact_tokens())
        return self._pager.costs.choose(table, num_tokens, request.context.id).keep_tokens

    def _fetch(self, request: Request, table: PageTable) -> bool:
        """Have the pages of a request fetched. Returns whether any are on their way."""
        num_tokens, is_last = self._num_wanted(request, table), request.num_fetches >= MAX_ROUNDS
        transfers = self._pager.fetch(table, num_tokens, may_lose=is_last)
        if not transfers and not self._is_on_way(request) and (is_last or not self._mover.has_transfers):
            transfers = self._pager.fetch(table, num_tokens)
            if not transfers:
                return False
        self._fetching[request.id] = request
        self._mover.send(transfers)
        return request.id in self._fetching  # else the mover refused, and all is settled already

    def _is_on_way(self, request: Request) -> bool:
        table = request.context.table
        return table is not None and self._pager.num_fetching(table, request.context.kv_valid) > 0
