"""The host tier as the front sees it: copies that a checkpoint reads, and frames that a restore or a restarted front fills.

Invariants
1. While a table is held, the host frames that its pages had keep their bytes, whatever happens to page or table: a copy that has to leave
   its page is parked until the last reader is done.
2. A frame that is given for the front to write is named by no plan on its way.
"""

from __future__ import annotations

from collections.abc import Callable

from memory.costs import Costs
from memory.draft import Draft
from memory.errors import OutOfFrames, OverLimit, PagingError
from memory.flights import Flights
from memory.mapping import Mapping, frame_bytes
from memory.page import Tier
from memory.reclaim import Sweep
from memory.table import HostPage, Page, PageTable


class HostCopies:
    """Holds, reads and fills host frames of tables."""

    def __init__(self, mapping: Mapping, flights: Flights, order: Callable[[], list[PageTable]]) -> None:
        self._mapping = mapping
        self._flights = flights
        self.order = order  # all tables, coldest first

    def pages(self, table: PageTable) -> list[HostPage]:
        """Pages of a table whose host copy is there now; copies on their way are not."""
        on_way = {frame for draft in self._flights.drafts for tier, frame in draft.written if tier is Tier.HOST}
        return [
            HostPage(page.group, page.idx, page.host_frame, page.key, page.num_tokens)
            for pages in table.pages
            for page in pages
            if page.host_frame is not None and page.host_frame not in on_way
        ]

    def hold(self, table: PageTable) -> None:
        """Keep the host copies of a table's pages as they are (invariant 1)."""
        held = {page: None for pages in table.pages for page in pages}
        for page in held:
            page.readers += 1
        table.holds.append(held)

    def extend_hold(self, table: PageTable, page: Page) -> None:
        """Let the latest hold, if there is one, cover a page too."""
        if table.holds and page not in table.holds[-1]:
            page.readers += 1
            table.holds[-1][page] = None

    def release(self, table: PageTable) -> None:
        """End the latest hold. Raises: PagingError, if the table is not held."""
        if not table.holds:
            raise PagingError("The table is not held.")
        for page in table.holds.pop():
            self.let_go(page)

    def let_go(self, page: Page) -> None:
        """One reader of a page's host copy is done."""
        page.readers -= 1
        if not page.readers:
            for parked in self._mapping.parked.of(page):
                self._flights.free(parked, Tier.HOST)

    def reserve(self, table: PageTable, page: Page, *, may_lose: bool = True) -> int:
        """A host frame for a lost page, at the cost of colder ones if it must. Raises: OverLimit, OutOfFrames; nothing is changed."""
        space = self._mapping.space(page.space_id)
        size, ledger = frame_bytes(space, Tier.HOST), self._mapping.ledger
        capped = ledger.exceeded(table.owner, Tier.HOST, size)
        if capped is not None:
            limit = ledger.limit(capped, Tier.HOST).limit_bytes
            raise OverLimit(capped, "host", size, limit, ledger.used(capped, Tier.HOST))
        # A draft of its own, never issued: the frames that it finds are named by no plan on its way (invariant 2).
        draft = Draft(self._flights.newest + 1, self._mapping)
        frame = Sweep(self._mapping, draft, self.order, Costs()).host_frame(page, may_lose=may_lose)
        if frame is None:
            draft.undo()
            raise OutOfFrames("host", size, self._mapping.free_bytes(Tier.HOST), ledger.holders(Tier.HOST))
        draft.finish()
        return frame

    def adopt(self, table: PageTable, page: Page, frame: int, key: bytes, num_tokens: int) -> None:
        """Let a used frame that is nobody's be the host copy of a lost page."""
        pool = self._mapping.pool(page.space_id, Tier.HOST)
        pool.set_residue(frame, pool.residue(frame) | {table.owner}, is_inherited=pool.is_inherited(frame))
        self._mapping.map(page, Tier.HOST, frame)
        page.key, page.num_tokens = key, num_tokens
        table.reach = max(table.reach, page.idx * table.page_tokens + num_tokens)

    def lost_page(self, table: PageTable, group: int, page_idx: int) -> Page:
        """The page at a place of a table, made if it is the next one. Raises: PagingError, if it is somewhere, or too far."""
        pages = table.pages[group]
        if page_idx > len(pages):
            raise PagingError(f"Page {page_idx} of a table with {len(pages)} pages comes too early.")
        if page_idx == len(pages):
            page = Page(table.spaces[group].space_id, group, page_idx)
            pages.append(page)
            self._mapping.attach(page, table)
        if not pages[page_idx].is_lost:
            raise PagingError(f"Page {page_idx} is not lost.")
        return self._renewed(pages[page_idx]) if self._flights.drafts else pages[page_idx]

    def _renewed(self, lost: Page) -> Page:
        """A new page in the place of a lost one: an abort that would bring the old content back finds nobody who wants it."""
        page = Page(lost.space_id, lost.group, lost.idx)
        for table in list(lost.holders):
            self._mapping.replace(table, lost, page)
        return page
