"""Sharing: a table takes pages that others hold already, in place of computing their tokens again.

    place          0        1        2        3        4
    the table    intact   lost     junk     (none)   (none)        junk: at or past `num_valid`, written by a plan whose row left
    the index               A        B        C      unknown
    afterwards   intact     A        B        C                    won: the tokens of places 0 to 3

Pages that are taken are shared as those of a fork are: charged in equal parts to every holder, and copied by whoever writes first.

Invariants
1. A place is taken in every KV group or in none, and only behind places that are whole: what a table has won is a prefix.
2. What a table loses by it was lost or not valid; a page that somebody else still holds stays his.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from memory.errors import PagingError
from memory.flights import Flights
from memory.mapping import Mapping, frame_bytes, frame_of
from memory.page import Tier
from memory.retention import is_cached
from memory.table import Page, PageTable
from memory.tables import Tables


class Sharing:
    """Lets tables take known pages."""

    def __init__(self, mapping: Mapping, flights: Flights, tables: Tables) -> None:
        self._mapping = mapping
        self._flights = flights
        self._tables = tables

    def share(self, table: PageTable, num_valid: int, links: Sequence[bytes]) -> int:
        """Take the leading pages that are known of those the table lacks; returns its leading tokens whose pages are there.

        `num_valid` tokens of the table are valid where its pages are not lost, `links[i]` names full page i.
        """
        num_valid = min(num_valid, min(map(len, table.pages)) * table.page_tokens)
        num_kept = num_valid // table.page_tokens
        idx = 0 if any(table.num_lost) else num_kept
        while idx < len(links):
            if idx >= num_kept or any(pages[idx].is_lost for pages in table.pages):
                found = self._find(table, links[idx])
                if found is None:
                    break
                for page in found:
                    self._take(table, page, is_kept=idx < num_kept)
            idx += 1
        if idx <= num_kept:
            return min(num_valid, table.intact_tokens())
        table.reach = max(table.reach, idx * table.page_tokens)
        table.num_filled = max(table.num_filled, idx)
        return idx * table.page_tokens

    @property
    def num_changes(self) -> int:
        """How often pages became known or were forgotten: where it stays the same, `num_known` does."""
        return self._mapping.index.num_changes

    @property
    def knows_any(self) -> bool:
        """Whether any page is known."""
        return len(self._mapping.index) > 0

    def num_known(self, table: PageTable, links: Sequence[bytes]) -> int:
        """How many of the leading links are known, as a quick look tells: a page may be known whose predecessor has been lost."""
        return bisect_left(links, True, key=lambda link: not self._mapping.index.knows(table.space_ids, link))

    def join(self, table: PageTable, other: PageTable, page_idx: int) -> None:
        """Take the pages of the next place, full ones or a partial one, from another table of the same spaces: all groups, as a fork does.

        Raises: PagingError, if the other has nothing below in that place, or the table has something there; nothing is changed.
        """
        known = [pages[page_idx] for pages in other.pages if page_idx < len(pages) and pages[page_idx].is_below]
        own = [pages[page_idx] for pages in table.pages if page_idx < len(pages)]
        is_next = all(page_idx <= len(pages) for pages in table.pages) and all(page.is_lost for page in own)
        if len(known) < len(table.pages) or table.space_ids != other.space_ids or not is_next:
            raise PagingError(f"Place {page_idx} of one table is not to be had for another.")
        for page in known:
            self._take(table, page, is_kept=False)
        table.reach = max(table.reach, page_idx * table.page_tokens + min(page.num_tokens for page in known))

    def retain(self, table: PageTable) -> None:
        """A context has ended: keep the first full pages of its table as a cache of its owner, as many as may be; the rest goes."""
        retention = self._mapping.retention
        num_tokens = min(table.num_filled * table.page_tokens, table.intact_tokens(), retention.most_tokens(table))
        if not num_tokens:
            self._tables.drop(table)
            return
        self._tables.truncate(table, num_tokens)
        table.is_suspended = table.is_buried = table.is_awaited = False
        table.num_pinned = 0
        for gone in retention.keep(table):
            self._tables.drop(gone)

    def forget_cache(self, owner: str) -> None:
        """Drop what is cached of an owner."""
        for table in self._mapping.retention.forget(owner):
            self._tables.drop(table)

    def cached_bytes(self, tier: Tier) -> dict[str, int]:
        """Bytes of a tier in pages that nobody but the cache holds, by owner."""
        held: dict[str, int] = {}
        for table in self._mapping.retention.tables:
            for pages, space in zip(table.pages, table.spaces, strict=True):
                num_pages = sum(frame_of(page, tier) is not None and page.holders[0] is table and is_cached(page) for page in pages)
                if num_pages:
                    held[table.owner] = held.get(table.owner, 0) + num_pages * frame_bytes(space, tier)
        return held

    def _find(self, table: PageTable, link: bytes) -> list[Page] | None:
        pages = [self._mapping.index.find(space_id, link) for space_id in table.space_ids]
        known = [page for page in pages if page is not None]
        return known if len(known) == len(pages) else None  # invariant 1

    def _take(self, table: PageTable, known: Page, *, is_kept: bool) -> None:
        """Put a known page into its place of a table, unless the table has that page, or another one that is whole."""
        self._mapping.retention.touch(known)
        pages = table.pages[known.group]
        if known.idx == len(pages):
            self._mapping.attach(known, table)
            pages.append(known)
            return
        own = pages[known.idx]
        if own is known or (is_kept and not own.is_lost):
            return
        if len(own.holders) == 1:
            self._flights.free_page(own)
        self._mapping.replace(table, own, known)
