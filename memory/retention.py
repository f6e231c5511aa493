"""Retention: full pages of contexts that have ended, kept as a cache as long as nobody needs the room.

    context ends --keep--> cache, its owner's still --found by the index--> shared with a new context
                             '-- a frame is wanted and none is free, the bound, the owner's end --> gone, without a copy

Invariants
1. Cached tables together have pages for at most `max_bytes` of the device, each table counted in full.
2. A cached page gives its frame away before any page of a context does, and before a plan fails; nothing is copied to keep it.
3. A page that a context holds too is the context's: the cache's end changes nothing for it.
4. A page that may not be given is passed once: it is looked at again only when what its table holds has changed.
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
        # By tier and group: where to go on from the end, as long as so many pages are there, and so many shared (invariant 4).
        self._passed: dict[PageTable, dict[tuple[Tier, int], tuple[int, tuple[int, int]]]] = {}

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
        self._leave(gone)
        return gone

    def forget(self, owner: str) -> list[PageTable]:
        """Let go of everything of an owner; returns the tables, to be dropped."""
        gone = [table for table in self._sizes if table.owner == owner]
        self._leave(gone)
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

    def _leave(self, tables: list[PageTable]) -> None:
        for table in tables:
            del self._sizes[table]
            self._passed.pop(table, None)

    def _next(self, space_id: int, tier: Tier) -> Page | None:
        """The page that goes next: of the coldest table, from its end, and of nobody else (invariant 3)."""
        if tier is Tier.DISK:
            return None
        for table in self._sizes:
            if space_id in table.space_ids and not table.pins:
                page = self._last(table, tier, table.space_ids.index(space_id))
                if page is not None:
                    return page
        return None

    def _last(self, table: PageTable, tier: Tier, group: int) -> Page | None:
        """The last page of a group that may be given, and is about to be (invariant 4)."""
        num_here = (table.num_device if tier is Tier.DEVICE else table.num_host)[group]
        held = num_here, table.num_shared[group]
        place, pages = (tier, group), table.pages[group]
        passed = self._passed.setdefault(table, {})
        end, seen = passed.pop(place, (len(pages), held))
        is_blocked = False
        for idx in range((end if seen == held else len(pages)) - 1 if num_here else -1, -1, -1):
            page = pages[idx]
            if (page.device_frame if tier is Tier.DEVICE else page.host_frame) is None or len(page.holders) > 1:
                continue
            if page.pins or page.readers:
                is_blocked = True
                continue
            if not is_blocked:
                passed[place] = idx, (num_here - 1, table.num_shared[group])  # as it is once the page is gone
            return page
        if not is_blocked:
            passed[place] = 0, held
        return None


def is_cached(page: Page) -> bool:
    """Whether nobody but the cache holds a page."""
    return all(table.is_cache for table in page.holders)


def _is_empty(table: PageTable) -> bool:
    return all(lost == len(pages) for lost, pages in zip(table.num_lost, table.pages, strict=True))
