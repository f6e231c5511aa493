"""A node of the tree of shares: one tenant's counter, and a heap of its active children. The rules are those of `kerneld.fairshare`."""

from __future__ import annotations

import heapq
import itertools
from typing import Final, NamedTuple

# Counter units per unit of cost at weight 1. Large, so that a single token still counts at the greatest weight.
SCALE: Final = 1 << 20
# Name of the hidden child that holds a tenant's own requests.
OWN: Final = "."

_serials = itertools.count()  # tell entries of one child apart, so that a heap never compares nodes


class _Entry(NamedTuple):
    """A child in the heap of its parent; equal keys go by name, so that the order does not depend on history."""

    key: int
    name: str
    serial: int
    node: ShareNode


class ShareNode:
    """A tenant in the tree, or the hidden child that holds its own requests."""

    __slots__ = (
        "_entry",
        "_heap",
        "children",
        "counter",
        "credit",
        "is_active",
        "is_open",
        "keeps_counter",
        "last_active",
        "lineage",
        "name",
        "num_active",
        "num_held",
        "parent",
        "path",
        "remainder",
        "service",
        "weight",
    )

    def __init__(self, name: str, path: str, parent: ShareNode | None) -> None:
        self.name = name
        self.path = path
        self.parent = parent
        # The node and everybody above it, but for the root, which competes with nobody.
        self.lineage: tuple[ShareNode, ...] = () if parent is None else (self, *parent.lineage)
        self.children: dict[str, ShareNode] = {}
        self.weight = 1
        self.counter = 0
        self.remainder = 0  # of the division by weight, in [0, weight)
        self.credit = 0  # cost in counter units, weight apart, that the next charges need not add
        self.service = 0  # cost charged, refunds taken off, weights apart
        self.is_open = True
        self.is_active = False
        self.keeps_counter = False  # it was active when the accounts were kept: the next lift is left out
        self.num_active = 0  # active children; in a hidden child: requests that wait
        self.num_held = 0  # requests at it and below that are out of the line for a while: it is not lifted meanwhile
        self.last_active: ShareNode | None = None  # the child that was active last
        self._heap: list[_Entry] = []
        self._entry: _Entry | None = None  # the live one in the parent's heap

    def charge(self, cost: int) -> None:
        """Add `cost / weight` to the counter (invariant 1)."""
        owed = cost * SCALE
        if self.credit:
            spent = min(self.credit, owed)
            self.credit -= spent
            owed -= spent
        quotient, self.remainder = divmod(owed + self.remainder, self.weight)
        self.counter += quotient
        self.service += cost

    def refund(self, cost: int) -> None:
        """Take `cost / weight` off the counter, as far as invariant 3 allows; the rest is credit for charges to come."""
        quotient, remainder = divmod(self.remainder - cost * SCALE, self.weight)
        lowered = self.counter + quotient
        floor = self._least_sibling()
        if floor is not None and lowered < floor.counter:
            kept = min(self.counter, floor.counter)
            self.credit += (kept - lowered) * self.weight - remainder
            lowered, remainder = kept, 0
        self.counter, self.remainder = lowered, remainder
        self.service -= cost
        if self.is_active:
            self._enter()

    def refresh(self) -> None:
        """Make invariant 4 true again from here upward."""
        node = self
        while node.parent is not None:
            is_active = node.is_open and node.num_active > 0
            if is_active == node.is_active:
                return
            if is_active:
                node.lift()
                node.is_active = True
                node._enter()
                node.parent.num_active += 1
            else:
                node.is_active = False
                node.parent.last_active = node
                node.parent.num_active -= 1
            node = node.parent

    def lift(self) -> None:
        """Invariant 2, for a node that is about to be active."""
        assert self.parent is not None, "the root is not lifted"
        if self.keeps_counter or self.num_held:
            return
        reference = self.parent.least_child() or self.parent.last_active
        if reference is not None and reference.counter > self.counter:
            self.counter, self.remainder, self.credit = reference.counter, 0, 0

    def least_child(self) -> ShareNode | None:
        """The active child of least counter; clears away entries that are dead and mends keys that have fallen behind (invariant 5)."""
        heap = self._heap
        while heap:
            entry = heap[0]
            child = entry.node
            if entry is not child._entry:
                heapq.heappop(heap)  # a refund made a lower one
            elif not child.is_active:
                heapq.heappop(heap)
                child._entry = None
            elif entry.key != child.counter:
                child._entry = child._new_entry()
                heapq.heapreplace(heap, child._entry)
            else:
                return child
        return None

    def rebase_children(self, at: int) -> bool:
        """Move the children's counters back together if all that matter have passed `at`; whether they were moved."""
        active = [child.counter for child in self.children.values() if child.is_active or child.keeps_counter or child.num_held]
        last = self.last_active
        base = min(active) if active else (last.counter if last else 0)
        if base < at:
            return False
        moved = set(self.children.values())
        if last is not None:
            moved.add(last)  # it may have been removed from the tree
        self._heap.clear()
        for child in moved:
            child.counter = max(child.counter - base, 0)
            child._entry = None
            if child.is_active:
                child._enter()
        return True

    def _least_sibling(self) -> ShareNode | None:
        """The active sibling of least counter."""
        if self.parent is None:
            return None
        was_active, self.is_active = self.is_active, False
        least = self.parent.least_child()
        self.is_active = was_active
        return least

    def _enter(self) -> None:
        """Have a live entry in the parent's heap, whose key is at most the counter (invariant 5)."""
        assert self.parent is not None, "the root is in no heap"
        if self._entry is None or self._entry.key > self.counter:
            self._entry = self._new_entry()
            heapq.heappush(self.parent._heap, self._entry)

    def _new_entry(self) -> _Entry:
        return _Entry(self.counter, self.name, next(_serials), self)
