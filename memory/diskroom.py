"""Room in the disk tier: whose copies there are given up, and which.

    an owner would pass its limit     its own coldest pages, as far as they are colder than what is to come
    a limit was lowered below use     the owner's coldest pages
    the tier is full                  second copies, of pages that are on device or host too, of the warmest tables first

A page that is given up on disk alone is lost, and is computed again when somebody wants it. Pages on their way stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memory.flights import Flights
from memory.ledger import lineage
from memory.mapping import Mapping
from memory.page import Tier
from memory.table import Page, PageTable

Walk = Callable[[PageTable], Iterator[Page]]


class DiskRoom:
    """Gives up copies in the disk tier."""

    def __init__(self, mapping: Mapping, flights: Flights, is_on_way: Callable[[Page], bool]) -> None:
        self._mapping = mapping
        self._ledger = mapping.ledger
        self._flights = flights
        self._is_on_way = is_on_way

    def make_within_limit(self, page: Page, size_bytes: int, tables: list[PageTable]) -> bool:
        """Let the owner of a page hold so much more, at the cost of pages that are colder. Returns whether it may."""
        while (capped := self._ledger.exceeded(page.holders[0].owner, Tier.DISK, size_bytes)) is not None:
            colder = tables[: next(rank for rank, table in enumerate(tables) if table in page.holders)]
            victim = next(self._pages_of(capped, colder), None)
            if victim is None:
                return False
            self._flights.free(victim, Tier.DISK)
        return True

    def shrink(self, tables: list[PageTable]) -> None:
        """Take away what owners hold beyond their limits."""
        for owner in self._ledger.in_excess(Tier.DISK):
            limit = self._ledger.limit(owner, Tier.DISK).limit_bytes
            for page in self._pages_of(owner, tables):
                if self._ledger.used(owner, Tier.DISK) <= limit:
                    break
                self._flights.free(page, Tier.DISK)

    def thin_out(self, page: Page, num_bytes: int, tables: list[PageTable]) -> None:
        """Give up so many bytes of second copies, of tables that are warmer than those which hold `page`.

        Their frames have to be punched first: later pages get them.
        """
        for table in reversed(tables):
            if table in page.holders or num_bytes <= 0:
                return
            for other in self._second_copies(table):
                if num_bytes > 0:
                    self._flights.free(other, Tier.DISK)
                    num_bytes -= other.space.host_frame_bytes

    def _pages_of(self, owner: str, tables: list[PageTable]) -> Iterator[Page]:
        """Pages on disk of an owner and those below it, in the order in which they go."""
        for table in tables:
            may_have = any(table.num_disk) or any(table.num_saved) or any(table.num_copied)
            if owner in lineage(table.owner) and may_have and not table.is_awaited:
                yield from (page for page in tail_first(table) if page.disk_frame is not None and not self._is_on_way(page))

    def _second_copies(self, table: PageTable) -> Iterator[Page]:
        if any(table.num_saved) or any(table.num_copied):
            for page in tail_first(table):
                if page.disk_frame is not None and not page.is_far and not page.pins and not self._is_on_way(page):
                    yield page


def tail_first(table: PageTable) -> Iterator[Page]:
    """Every page of a table, all groups, last ones first."""
    for idx in range(max(map(len, table.pages), default=0) - 1, -1, -1):
        yield from (pages[idx] for pages in table.pages if idx < len(pages))


def head_first(table: PageTable) -> Iterator[Page]:
    """Every page of a table, all groups, first ones first."""
    return leading(table, max(map(len, table.pages), default=0) * table.page_tokens)


def leading(table: PageTable, num_tokens: int) -> Iterator[Page]:
    """The pages of the first tokens of a table, all groups, first ones first."""
    for idx in range(-(-num_tokens // table.page_tokens)):
        yield from (pages[idx] for pages in table.pages if idx < len(pages))
