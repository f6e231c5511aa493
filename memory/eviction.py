"""Who loses pages first.

A policy puts tables in the order in which they give way; within a table the tail goes first, so that what is left is a prefix, which is
what a context can go on from. Policies decide over what they are given and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from memory.table import Page, PageTable


class EvictionPolicy(Protocol):
    """Chooses among tables."""

    def order(self, tables: Iterable[PageTable]) -> list[PageTable]:
        """Tables in the order in which they give way; they come in order of last use, longest ago first."""


class LruPolicy:
    """Suspended contexts first, then those longest unused."""

    def order(self, tables: Iterable[PageTable]) -> list[PageTable]:
        """Tables in the order in which they give way."""
        return sorted(tables, key=lambda table: not table.is_suspended)  # a stable sort


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


class Line:
    """The pages of one space that may go, over tables in order."""

    def __init__(self, ranked: list[tuple[int, PageTable]], space_id: int, is_victim: Callable[[Page], bool]) -> None:
        """`ranked`: tables with a group of the space, each with its rank; low ranks go first."""
        self._ranked = ranked
        self._space_id = space_id
        self._is_victim = is_victim
        self._next = 0
        self._tail: Tail | None = None

    def peek(self, before_rank: int | None = None) -> Page | None:
        """The next page that may go, of a table whose rank is below `before_rank`, or None."""
        while self._next < len(self._ranked):
            rank, table = self._ranked[self._next]
            if before_rank is not None and rank >= before_rank:
                return None
            if self._tail is None:
                self._tail = Tail(table.pages[table.space_ids.index(self._space_id)], self._is_victim)
            page = self._tail.peek()
            if page is not None:
                return page
            self._next, self._tail = self._next + 1, None
        return None
