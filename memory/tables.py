"""The page tables of all contexts: made, forked, cut and dropped, and kept in the order in which they were last used.

Invariants
1. A table is here from its making until it is dropped; a dropped one has no pages.
2. Iteration gives the table that was wanted longest ago first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memory.errors import PagingError
from memory.flights import Flights
from memory.mapping import Mapping
from memory.table import Page, PageTable


class Tables:
    """Every page table there is."""

    def __init__(self, mapping: Mapping, flights: Flights) -> None:
        self._mapping = mapping
        self._flights = flights
        self._tables: dict[PageTable, None] = {}

    def __iter__(self) -> Iterator[PageTable]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __contains__(self, table: object) -> bool:
        return table in self._tables

    def add(self, owner: str, space_ids: tuple[int, ...]) -> PageTable:
        """An empty table. Raises: UnknownSpace."""
        table = PageTable(owner, tuple(self._mapping.space(space_id) for space_id in space_ids))
        self._tables[table] = None
        return table

    def fork(self, table: PageTable, num_tokens: int, owner: str) -> PageTable:
        """A table that shares the pages of the first `num_tokens` tokens. Raises: PagingError, if the table is not that long."""
        page_tokens = table.page_tokens
        num_pages = -(-num_tokens // page_tokens)
        self.expect(table, num_pages)
        child = PageTable(owner, table.spaces)
        for group, pages in enumerate(table.pages):
            child.pages[group] = pages[:num_pages]
            for page in child.pages[group]:
                self._mapping.attach(page, child)
            child.resident[group] = min(table.resident[group], num_pages)
        child.reach = min(table.reach, num_tokens)
        child.num_filled = min(table.num_filled, num_tokens // page_tokens)
        self._tables[child] = None
        return child

    def truncate(self, table: PageTable, num_tokens: int) -> None:
        """Forget what comes after the first `num_tokens` tokens."""
        num_pages = -(-num_tokens // table.page_tokens)
        for group, pages in enumerate(table.pages):
            while len(pages) > num_pages:
                self._leave(pages.pop(), table)
            table.resident[group] = min(table.resident[group], num_pages)
        table.reach = min(table.reach, num_tokens)
        table.num_filled = min(table.num_filled, num_tokens // table.page_tokens)
        table.num_pinned = min(table.num_pinned, num_pages)
        for pages in table.pages:
            for page in pages[num_tokens // table.page_tokens :]:
                self._mapping.index.note(page)  # a part of it is forgotten

    def drop(self, table: PageTable) -> None:
        """Forget a table; one that is dropped already stays so."""
        self.truncate(table, 0)
        table.is_dropped = True
        self._tables.pop(table, None)

    def fill(self, table: PageTable, num_tokens: int, keys: Sequence[bytes]) -> list[Page]:
        """Note that leading tokens are valid, and name the pages that became full; returns those that are on the device alone."""
        table.reach = max(table.reach, num_tokens)
        num_full = min(num_tokens // table.page_tokens, len(keys), table.num_pages)
        full = [(pages[idx], keys[idx]) for idx in range(table.num_filled, num_full) for pages in table.pages]
        for page, key in full:
            if page.is_below and page.num_tokens < table.page_tokens and page.key != key:
                self._flights.free_below(page)  # the copies hold less than the page now does
            if not page.is_below:
                page.key = key
            if not page.is_lost:
                self._mapping.index.add(page, key)
        table.num_filled = max(table.num_filled, num_full)
        return [page for page, _key in full if not page.is_below and page.device_frame is not None]

    def touch(self, table: PageTable) -> None:
        """A table is used now (invariant 2). Raises: PagingError, if it was dropped."""
        self.expect(table)
        del self._tables[table]
        self._tables[table] = None

    def expect(self, table: PageTable, num_pages: int = 0) -> None:
        """Raise PagingError unless the table is here and has so many pages."""
        if table not in self._tables:
            raise PagingError("The table was dropped.")
        if table.num_pages < num_pages:
            raise PagingError(f"The table has {table.num_pages} pages, not {num_pages}.")

    def _leave(self, page: Page, table: PageTable) -> None:
        """A table lets a page go; the last holder takes it out of its frames."""
        if len(page.holders) == 1:
            self._flights.free_page(page)
        self._mapping.detach(page, table)
