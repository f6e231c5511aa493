"""Prefixes: what a request need not compute, because somebody of its sharing domain has computed it or is just computing it.

    next in line --must_wait--> takes the pages that are known --> seated: it makes those of its input that nobody makes yet
                     |                                               |
                     '--> its next page is just being made           | filled, or the maker left its row
                          parked until the last page of that run <---'

Requests that arrive at once with the same beginning are so computed once: the one whose turn it is makes the pages, the others take them.

Invariants
1. A page is made by a seated row, and by one alone; a row that leaves makes nothing any more, and who waited for it is in the line again.
2. A request waits only for a seated row, which makes progress or leaves: nobody waits for somebody who waits.
3. Whoever waits is parked at the scheduler, at its place, and its context is BLOCKED.
"""

from __future__ import annotations

from collections.abc import Sequence

from kerneld.calls import ContextState
from kerneld.context import Context
from kerneld.request import Request
from kerneld.rows import Row
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating, name_pages
from memory.pager import Pager
from memory.table import PageTable

CHANGES_UNTIL_NEXT_LOOK = 256  # of the index: what is known of waiting requests may be so old
_Link = tuple[str, bytes]  # model, link of the hash chain: two models may have the same fingerprint, and pages of their own


class Prefixes:
    """Known pages, and pages in the making."""

    def __init__(self, pager: Pager, scheduler: Scheduler, seating: Seating) -> None:
        self._pager = pager
        self._scheduler = scheduler
        self._seating = seating
        self._makers: dict[_Link, Request] = {}
        self._made_by: dict[str, list[_Link]] = {}  # by request id
        self._waiting: dict[_Link, list[Request]] = {}
        self.is_on = True
        seating.on_filled = self.filled
        scheduler.locality.stamp, scheduler.locality.num_at_hand = self.stamp, self.at_hand

    def must_wait(self, request: Request) -> bool:
        """Let a request that is next take what is known; whether it waits for pages in the making, and so is out of the line."""
        if not self.is_on:
            return False
        links = self._take(request)
        made = self._last_in_the_making(request, links)
        if made is None:
            return False
        self._waiting.setdefault(made, []).append(request)
        self._scheduler.park(request)
        if request.context.state is ContextState.READY:
            request.context.move(ContextState.BLOCKED)
        return True

    def stamp(self) -> int:
        """Changes now and then, while pages become known or are forgotten; 0 if none is known."""
        return 1 + self._pager.sharing.num_changes // CHANGES_UNTIL_NEXT_LOOK if self._pager.sharing.knows_any else 0

    def at_hand(self, request: Request) -> int:
        """Leading tokens of a waiting request that need no computing, as far as a quick look tells: its own, and those that are known."""
        context, stamp = request.context, self.stamp()
        if request.looked_at != stamp:
            table, page_tokens = self._seating.table_of(context), self._pager.page_tokens
            assert context.chain is not None, "made with the table"
            own = min(context.kv_valid, table.at_hand_tokens())
            name_pages(context, context.num_tokens)
            known = self._pager.sharing.num_known(table, context.chain.keys) * page_tokens if self.is_on else 0
            request.looked_at, request.num_at_hand = stamp, min(max(own, known), request.needs_logits_from)
        return request.num_at_hand

    def maker_of(self, request: Request) -> Request | None:
        """The request whose pages it waits for."""
        return next((self._makers[link] for link, waiting in self._waiting.items() if request in waiting), None)

    def seated(self, row: Row) -> None:
        """A row begins: it makes the full pages of its input that nobody makes yet."""
        context, page_tokens = row.request.context, self._pager.page_tokens
        if not self.is_on or context.chain is None:
            return
        name_pages(context, row.total)
        mine = []
        for link in context.chain.keys[row.position // page_tokens : row.total // page_tokens]:
            if self._makers.setdefault((context.model, link), row.request) is row.request:
                mine.append((context.model, link))
        self._made_by[row.request.id] = mine

    def left(self, request: Request) -> None:
        """A row has left: what it did not finish is made by nobody (invariant 1)."""
        for link in self._made_by.pop(request.id, ()):
            if self._makers.get(link) is request:
                self._done(link)

    def filled(self, context: Context, links: Sequence[bytes]) -> None:
        """Pages of a context are full."""
        for link in links:
            self._done((context.model, link))

    # ------------------------------------------------------------------------------------------------------------------ inside

    def _take(self, request: Request) -> list[bytes]:
        """Share what is known; returns the links of the pages that are of use to the request."""
        context, pager = request.context, self._pager
        table, chain = self._seating.table_of(context), context.chain
        assert chain is not None, "made with the table"
        name_pages(context, context.num_tokens)
        there = min(context.kv_valid, table.intact_tokens())
        if _names_less(table, there):
            pager.fill(table, there, chain.keys)
        links = chain.keys[: -(-request.needs_logits_from // pager.page_tokens)]
        if request.looked_from is None:
            request.looked_from = there
        context.kv_valid = max(context.kv_valid, pager.sharing.share(table, there, links))
        return links

    def _last_in_the_making(self, request: Request, links: list[bytes]) -> _Link | None:
        """The last of the pages in one run, from the first that the request lacks, that others are making."""
        context = request.context
        assert context.table is not None, "made before"
        first = min(context.kv_valid, context.table.intact_tokens()) // self._pager.page_tokens
        last = None
        for link in links[first:]:
            maker = self._makers.get((context.model, link))
            if maker is None or maker is request:
                break
            last = context.model, link
        return last

    def _done(self, link: _Link) -> None:
        self._makers.pop(link, None)
        for request in self._waiting.pop(link, ()):
            self._scheduler.unpark(request)


def _names_less(table: PageTable, num_tokens: int) -> bool:
    """Whether full pages of a table are there that have no name yet: it was restored or adopted."""
    return table.num_filled < num_tokens // table.page_tokens
