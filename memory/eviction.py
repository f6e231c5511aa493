"""Who loses pages first.

    whose     the owner furthest above its guarantee per weight, from the root of the tree of tenants down; one above its limit before all
    which     of that owner:   pages with another clean copy  ->  of suspended contexts  ->  of idle ones  ->  pinned prefixes

A policy puts tables in the order in which they give way; within a table the tail goes first, so that what is left is a prefix, which is
what a context can go on from. Policies decide over what they are given and change nothing.

Invariants
1. What a guarantee covers goes to nobody who has no part in it.
2. A choice costs O(log n) of the owners and looks at each page once in the life of a queue: who may not go is passed for good.
3. A shared page goes with the last of its holders in the queue, so that one cold fork does not take a prefix from all others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Protocol

from memory.ledger import Ledger, lineage
from memory.page import Tier
from memory.table import Page, PageTable


class Rung(IntEnum):
    """How dear it is that a page goes, cheapest first."""

    CLEAN = 0  # there is another copy that holds all of it
    UNPINNED = 1
    PINNED = 2


Place = tuple[Rung, int]  # of a page in the queue of its owner: rung, then the rank of the table
_RUNGS = tuple(Rung)


class EvictionPolicy(Protocol):
    """Chooses among tables."""

    def order(self, tables: Iterable[PageTable]) -> list[PageTable]:
        """Tables in the order in which they give way; they come in order of last use, longest ago first."""


class LruPolicy:
    """What is only a cache first, then suspended contexts, then those longest unused."""

    def order(self, tables: Iterable[PageTable]) -> list[PageTable]:
        """Tables in the order in which they give way."""
        return sorted(tables, key=lambda table: (not table.is_cache, not table.is_suspended))  # a stable sort


class Tail:
    """The pages of one group of a table that may go, from its end backwards. A page that may not is passed for good."""

    __slots__ = ("_is_victim", "_next", "_pages")

    def __init__(self, pages: list[Page], is_victim: Callable[[Page], bool]) -> None:
        self._pages = pages
        self._is_victim = is_victim
        self._next = len(pages) - 1

    def peek(self, first: int = 0) -> Page | None:
        """The next page at or after `first` that may go; it stays the next one until it may not."""
        while self._next >= first:
            page = self._pages[self._next]
            if self._is_victim(page):
                return page
            self._next -= 1
        return None


@dataclass(frozen=True, slots=True)
class Question:
    """What a queue of pages is asked for: pages of one space in one tier, for somebody, and which of them may go."""

    space_id: int
    tier: Tier
    taker: str
    size_bytes: int
    may_go: Callable[[Page], bool]
    spares_wanted: bool = True  # whether tables that an unfinished plan wants are passed over without a look at their pages


class Line:
    """The pages of one space that may go, over tables in order, rung by rung."""

    def __init__(self, ranked: list[tuple[int, PageTable]], question: Question) -> None:
        """`ranked`: tables with a group of the space, each with its rank; low ranks go first."""
        self._ranked = ranked
        self._question = question
        self._last_holders: dict[Page, PageTable] = {}  # of shared pages, as they are met
        self._pinned: dict[Page, bool] = {}  # of shared pages, as they are met
        self._rung = 0
        self._next = 0
        self._tail: Tail | None = None

    def peek(self, before: Place | None = None) -> Page | None:
        """The next page that may go, of a place in the queue before `before`, or None."""
        while self._rung < len(_RUNGS):
            rung = _RUNGS[self._rung]
            while self._next < len(self._ranked):
                rank, table = self._ranked[self._next]
                if before is not None and (rung, rank) >= before:
                    return None
                page = self._peek_table(rung, table)
                if page is not None:
                    return page
                self._next, self._tail = self._next + 1, None
            self._rung, self._next = self._rung + 1, 0
        return None

    def _peek_table(self, rung: Rung, table: PageTable) -> Page | None:
        if self._tail is None:
            group = table.space_ids.index(self._question.space_id)
            if (table.pins and self._question.spares_wanted) or not _may_have(table, group, rung, self._question.tier):
                return None
            may_go = self._question.may_go
            is_victim = {
                Rung.CLEAN: lambda page: may_go(page) and not self._is_pinned(page) and _is_copied(page, self._question.tier),
                Rung.UNPINNED: lambda page: may_go(page) and not self._is_pinned(page),
                Rung.PINNED: may_go,
            }[rung]
            self._tail = Tail(table.pages[group], lambda page: self._goes_with(page, table) and is_victim(page))
        return self._tail.peek()

    def _goes_with(self, page: Page, table: PageTable) -> bool:
        """Whether it is this table's turn to lose a page (invariant 3)."""
        if len(page.holders) == 1:
            return True
        if page not in self._last_holders:
            self._last_holders[page] = max((holder for holder in page.holders if holder in self._ranks), key=self._ranks.__getitem__)
        return self._last_holders[page] is table

    def _is_pinned(self, page: Page) -> bool:
        if len(page.holders) == 1:
            return page.is_pinned
        if page not in self._pinned:
            self._pinned[page] = page.is_pinned
        return self._pinned[page]

    @cached_property
    def _ranks(self) -> dict[PageTable, int]:
        return {table: rank for rank, table in self._ranked}


class Victims:
    """The pages that may go, of the owner that is furthest above its guarantee per weight first (invariants 1 and 2)."""

    def __init__(self, ledger: Ledger, question: Question, ranked: dict[str, list[tuple[int, PageTable]]], within: str = "") -> None:
        """`ranked`: tables with their ranks, coldest first, by owner; only owners at or beneath `within` are asked (empty: all)."""
        self._ledger = ledger
        self._question = question
        self._within = within
        self._lines = {owner: Line(tables, question) for owner, tables in ranked.items()}
        self._coldest: dict[str, int] = {}
        self._children: dict[str, list[tuple[tuple[int, int, int], str]]] = {}  # heaps of owners by standing, worst first
        self._is_spent: set[str] = set()
        for owner, tables in ranked.items():
            self._add(owner, tables[0][0])

    def peek(self, before: Place | None = None, own: str | None = None) -> Page | None:
        """The next page that may go, or None. Of the owner `own`, only a page whose place in its queue is before `before`."""
        if own is not None:
            self._look_again(own)
        while self._within not in self._is_spent:
            path = self._furthest(self._within)
            if path is None:
                self._is_spent.add(self._within)
                return None
            page = self._lines[path].peek(before if path == own else None)
            if page is not None or path == own:
                return page
            self._is_spent.add(f"{path}/")
        return None

    def _add(self, owner: str, rank: int) -> None:
        """Put an owner, and those above it, into the heaps. What it holds itself stands beside its children, under "owner/"."""
        self._enter(owner, f"{owner}/", rank)
        for name in lineage(owner):
            if name == self._within:
                return
            above = name.rpartition("/")[0]
            is_new = name not in self._coldest
            self._coldest[name] = min(rank, self._coldest.get(name, rank))
            if is_new:
                self._enter(above, name, rank)

    def _enter(self, above: str, name: str, rank: int) -> None:
        self._coldest[name] = min(rank, self._coldest.get(name, rank))
        heapq.heappush(self._children.setdefault(above, []), (self._key(name), name))

    def _look_again(self, owner: str) -> None:
        """An owner holds more than when it was looked at: it stands further up now."""
        for name in lineage(owner):
            if name == self._within:
                return
            if name in self._coldest:
                self._enter(name.rpartition("/")[0], name, self._coldest[name])

    def _furthest(self, path: str) -> str | None:
        """The owner beneath `path` whose own pages go next."""
        while True:
            heap = self._children.get(path, [])
            while heap:
                key, name = heap[0]
                if name in self._is_spent:
                    heapq.heappop(heap)
                    continue
                now = self._key(name)
                if now == key:
                    break
                heapq.heapreplace(heap, (now, name))
            if not heap:
                return None
            name = heap[0][1]
            if name.endswith("/"):
                return name[:-1]
            question = self._question
            is_kept = self._ledger.keeps(name, question.taker, question.tier, question.size_bytes)
            found = None if is_kept else self._furthest(name)
            if found is not None:
                return found
            self._is_spent.add(name)

    def _key(self, name: str) -> tuple[int, int, int]:
        if name.endswith("/"):
            return 0, -self._ledger.kv_bytes(name[:-1], self._question.tier) << 16, self._coldest[name]
        excess, above = self._ledger.standing(name, self._question.tier)
        return -excess, -above, self._coldest[name]


def _is_copied(page: Page, tier: Tier) -> bool:
    """Whether all of a page is elsewhere too, so that nothing is lost when it goes."""
    if tier is Tier.HOST:
        return page.disk_frame is not None or page.device_frame is not None
    is_full = page.is_below and page.num_tokens >= page.holders[0].page_tokens  # most are: no look at how far each holder reaches
    return is_full or page.is_clean


def _may_have(table: PageTable, group: int, rung: Rung, tier: Tier) -> bool:
    """Whether pages of a rung can be in a table at all; counts only, no look at pages."""
    if rung is Rung.CLEAN:
        return (table.num_copied if tier is Tier.DEVICE else table.num_saved)[group] > 0
    return True
