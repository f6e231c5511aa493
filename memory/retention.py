"""Retention: full pages of contexts that have ended, kept as a cache as long as nobody needs the room.

    context ends --keep--> cache, its owner's still --found by the index--> shared with a new context
                             '-- a frame is wanted and none is free, the bound, the owner's end --> gone, without a copy

Invariants
1. Cached tables together have pages for at most `max_bytes` of the device, each table counted in full.
2. A cached page gives its frame away before any page of a context does, and before a plan fails; nothing is copied to keep it.
3. A page that a context holds too is the context's: the cache's end changes nothing for it.
"""

from __future__ import annotations

from typing import Protocol

from memory.page import Tier
from memory.table import Page, PageTable


class Taker(Protocol):
    """A plan in the making, which can take frames of pages and give them to others."""

    def take_away(self, page: Page, tier: Tier) -> int: ...
    def take_over(self, space_id: int, tier: Tier, frame: int) -> None: ...


class Retention:
    """The tables that no context has any more, coldest first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sizes: dict[PageTable, int] = {}  # bytes on the device if all of it were there

    @property
    def tables(self) -> list[PageTable]:
        """Every cached table, coldest first."""
        return list(self._sizes)

    def most_tokens(self, table: PageTable) -> int:
        """How many tokens of a table may be kept (invariant 1); 0 where nothing is."""
        return self._max_bytes // sum(space.device_frame_bytes for space in table.spaces) * table.page_tokens

    def keep(self, table: PageTable) -> list[PageTable]:
        """Keep a table; returns those that have to be dropped for it, perhaps itself (invariant 1)."""
        self._sizes[table] = sum(len(pages) * space.device_frame_bytes for pages, space in zip(table.pages, table.spaces, strict=True))
        table.is_cache = True
        gone = [other for other in self._sizes if _is_empty(other)]
        total = sum(self._sizes.values()) - sum(self._sizes[other] for other in gone)
        for other, size_bytes in self._sizes.items():
            if total <= self._max_bytes:
                break
            if other not in gone:
                gone.append(other)
                total -= size_bytes
        for other in gone:
            del self._sizes[other]
        return gone

    def forget(self, owner: str) -> list[PageTable]:
        """Let go of everything of an owner; returns the tables, to be dropped."""
        gone = [table for table in self._sizes if table.owner == owner]
        for table in gone:
            del self._sizes[table]
        return gone

    def touch(self, page: Page) -> None:
        """Somebody takes a page: the cached table that holds it, if one does, is the warmest now."""
        table = page.holders[0]
        if table.is_cache:
            self._sizes[table] = self._sizes.pop(table)

    def give(self, space_id: int, tier: Tier, taker: Taker) -> int | None:
        """Give a plan the frame of a cached page, or None if there is none (invariant 2)."""
        page = self._next(space_id, tier)
        if page is None:
            return None
        frame = taker.take_away(page, tier)
        taker.take_over(space_id, tier, frame)
        return frame

    def _next(self, space_id: int, tier: Tier) -> Page | None:
        """The page that goes next: of the coldest table, from its end, and of nobody else (invariant 3)."""
        if tier is Tier.DISK:
            return None
        for table in self._sizes:
            if space_id not in table.space_ids or table.pins:
                continue
            group = table.space_ids.index(space_id)
            if not (table.num_device if tier is Tier.DEVICE else table.num_host)[group]:
                continue
            for page in reversed(table.pages[group]):
                frame = page.device_frame if tier is Tier.DEVICE else page.host_frame
                if frame is not None and len(page.holders) == 1 and not page.pins and not page.readers:
                    return page
        return None


def is_cached(page: Page) -> bool:
    """Whether nobody but the cache holds a page."""
    return all(table.is_cache for table in page.holders)


def _is_empty(table: PageTable) -> bool:
    return all(lost == len(pages) for lost, pages in zip(table.num_lost, table.pages, strict=True))
