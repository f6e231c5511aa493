"""A heap of siblings in the tree of shares, by numbers that mostly grow.

    entry = (key, name, serial, node)        equal keys go by name, so that the order does not depend on history
    key   = 2 * number + 1, and 2 * number for a node that is new

Invariants
1. Every active sibling has one live entry, whose key is at most its number: charging a node touches no heap, and a key that has fallen
   behind is mended when it comes to the top. A number that falls pushes a new entry, and the old one is dead.
2. A sibling that is active no more keeps its entry until that comes to the top, so that one that comes and goes pushes nothing new.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from typing import Generic, Protocol, TypeAlias, TypeVar


class Sibling(Protocol):
    """What a heap needs to know of a node."""

    name: str
    counter: int
    lead: int  # what its class adds to the counter where it is compared with its siblings
    is_active: bool
    is_new: bool


SiblingT = TypeVar("SiblingT", bound=Sibling)
_Entry: TypeAlias = tuple[int, str, int, SiblingT]

_serials = itertools.count()  # tell entries of one node apart, so that a heap never compares nodes


class ShareHeap(Generic[SiblingT]):
    """Active siblings by deadline, which is counter and class together, or by counter alone."""

    __slots__ = ("_counts_class", "_entries", "_live")

    def __init__(self, *, counts_class: bool) -> None:
        self._counts_class = counts_class
        self._entries: list[_Entry[SiblingT]] = []
        self._live: dict[SiblingT, _Entry[SiblingT]] = {}

    def enter(self, node: SiblingT) -> None:
        """See to it that a node, which is active or about to be, has an entry that is low enough (invariant 1)."""
        live = self._live.get(node)
        if live is None or live[0] > self._key(node):
            heapq.heappush(self._entries, self._new_entry(node))

    def least(self) -> SiblingT | None:
        """The active node of least number; clears away what is dead, and mends keys that have fallen behind."""
        entries = self._entries
        while entries:
            entry = entries[0]
            node = entry[3]
            if self._live.get(node) is not entry:
                heapq.heappop(entries)
            elif not node.is_active:
                heapq.heappop(entries)
                del self._live[node]
            elif entry[0] != self._key(node):
                heapq.heapreplace(entries, self._new_entry(node))
            else:
                return node
        return None

    def first(self, most: int, window: int) -> list[SiblingT]:
        """The active nodes whose numbers are at most `window` above the least, in order, `most` of them: O(most * log siblings)."""
        if len(self._entries) == 1:  # most of the levels of a tree
            node = self.least() if most else None
            return [] if node is None else [node]
        found: list[SiblingT] = []
        taken: list[_Entry[SiblingT]] = []
        while len(found) < most and (node := self.least()) is not None:
            if found and self.number(node) > self.number(found[0]) + window:
                break
            found.append(node)
            taken.append(heapq.heappop(self._entries))
        for entry in taken:
            heapq.heappush(self._entries, entry)
        return found

    def drop(self, node: SiblingT) -> None:
        """A node is gone."""
        self._live.pop(node, None)

    def rebuild(self, nodes: Iterable[SiblingT]) -> None:
        """Hold exactly these nodes, whose numbers may all have changed."""
        self._entries.clear()
        self._live.clear()
        for node in nodes:
            self.enter(node)

    def number(self, node: SiblingT) -> int:
        """What a node is ordered by."""
        return node.counter + node.lead if self._counts_class else node.counter

    def _key(self, node: SiblingT) -> int:
        return 2 * (node.counter + node.lead if self._counts_class else node.counter) + (not node.is_new)

    def check(self) -> None:
        """Assert invariant 1 of the whole heap. Walks it."""
        for idx, entry in enumerate(self._entries):
            assert idx == 0 or self._entries[(idx - 1) // 2][:3] <= entry[:3], "the heap is out of order"
        for node, entry in self._live.items():
            assert entry in self._entries, "a live entry is not in the heap"
            assert not node.is_active or entry[0] <= self._key(node), "a key is above its number"

    def __contains__(self, node: SiblingT) -> bool:
        return node in self._live

    def _new_entry(self, node: SiblingT) -> _Entry[SiblingT]:
        entry = self._live[node] = (self._key(node), node.name, next(_serials), node)
        return entry
