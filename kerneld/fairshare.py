"""Virtual counters of service over the tree of tenants: who was served least, for its weight.

Every node of the tree (lab / group / person) has a weight and a counter. Work charges `cost / weight` to the node that asked for it and to
all above it; the scheduler walks from the root along the active child of least counter. Requests that wait at a node which has children
too queue in a hidden child of their own, named ".", so that only leaves have requests.

    root
     +- lab   weight 1                     active   a request waits below it, and it and all between are open
     |   +- group                          closed   at a limit of running requests: not a candidate, whatever waits
     |   |   +- ann    counter 40
     |   |   '- bob    counter 12   <- picked
     |   '- .          counter 33          requests of the tenant "lab" itself
     '- other

Invariants
1. Counters are integers, and exact: what a division leaves over is carried to the next charge.
2. Lift: a node that becomes active is raised to the least counter among its active siblings; if none is active, to the counter of the
   sibling that was active last. A lift never lowers. (Without it, a tenant that slept would be owed the service it never asked for.)
3. A refund lowers a node no further than the least counter of its active siblings, and never raises it.
4. A node is active if and only if it is open and has an active child; the hidden child is active while requests wait in it.
5. Every active node has one live entry in its parent's heap, whose key is at most its counter: charging a node touches no heap, and a
   key that has fallen behind is mended when it comes to the top.

Source: Sheng et al., "Fairness in serving large language models", OSDI 2024 (algorithm 2 with both lift branches, and weights).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from kerneld.errors import InvalidArgument, NotFound, WrongState

# Counter units per unit of cost at weight 1. Large, so that a single token still counts at the greatest weight.
SCALE: Final = 1 << 20
MAX_WEIGHT: Final = 10_000
# Counters that have all passed this are moved back together, so that they fit in 64 bits wherever they are stored.
REBASE_AT: Final = 1 << 60

_OWN: Final = "."
_serials = itertools.count()  # tell entries of one child apart, so that the heap never compares children


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """One node of the tree, as the journal keeps it."""

    path: str
    weight: int
    counter: int
    remainder: int
    service: int
    last_active: str = ""  # name of the child that was active last
    last_active_counter: int = 0


class _Entry(NamedTuple):
    """A child in the heap of its parent; equal keys go by name, so that the order does not depend on history."""

    key: int
    name: str
    serial: int
    node: _Node


class _Node:
    """A tenant in the tree, or the hidden child that holds its own requests."""

    __slots__ = (
        "children",
        "counter",
        "entry",
        "heap",
        "is_active",
        "is_open",
        "last_active",
        "name",
        "num_active",
        "parent",
        "path",
        "remainder",
        "service",
        "weight",
    )

    def __init__(self, name: str, path: str, parent: _Node | None) -> None:
        self.name = name
        self.path = path
        self.parent = parent
        self.weight = 1
        self.counter = 0
        self.remainder = 0  # of the division by weight, in [0, weight)
        self.service = 0  # cost charged, refunds taken off, weights apart
        self.is_open = True
        self.is_active = False
        self.num_active = 0  # active children; in a hidden child: requests that wait
        self.children: dict[str, _Node] = {}
        self.heap: list[_Entry] = []
        self.entry: _Entry | None = None  # the live one in the parent's heap
        self.last_active: _Node | None = None


class FairShare:
    """Accounts of service per tenant, and the order in which tenants are next."""

    def __init__(self) -> None:
        self._root = _Node("", "", None)
        self._nodes: dict[str, _Node] = {"": self._root}

    # ------------------------------------------------------------------------------------------------------------------ the tree

    def add(self, path: str, weight: int = 1) -> None:
        """Make a tenant known, and those above it if they are not; a known one gets the weight. Raises: InvalidArgument."""
        node = self._get_or_add(path)
        self._set_weight(node, weight)

    def set_weight(self, path: str, weight: int) -> None:
        """Change a weight; it holds for charges to come. Raises: InvalidArgument, NotFound."""
        self._set_weight(self._get(path), weight)

    def set_open(self, path: str, is_open: bool) -> None:
        """Close a tenant that is at a limit, so that nothing below it is picked; or open it again. Raises: NotFound."""
        node = self._get(path)
        node.is_open = is_open
        self._refresh(node)

    def remove(self, path: str) -> None:
        """Forget a tenant that has no children and nothing waiting. Raises: NotFound, WrongState."""
        node = self._get(path)
        if node.num_active or any(name != _OWN for name in node.children):
            raise WrongState(f"Tenant {path!r} still has children or waiting requests.", facts={"tenant": path})
        assert node.parent is not None, "the root is not a tenant"
        del node.parent.children[node.name]
        del self._nodes[path]
        self._nodes.pop(_own_path(path), None)

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def service(self, path: str) -> int:
        """Cost charged to a tenant and all below it, refunds taken off. Raises: NotFound."""
        return self._get(path).service

    def counters(self, path: str) -> tuple[int, ...]:
        """The counters from the root down to a tenant's own requests: of two running requests, the greater is the more served one."""
        return tuple(reversed([node.counter for node in _up(self._own(path))]))

    def lag(self, path: str, other: str) -> int:
        """How far `path` is ahead of `other` in counter units, where their ways from the root part; 0 within one tenant."""
        for mine, theirs in zip(reversed(list(_up(self._own(path)))), reversed(list(_up(self._own(other)))), strict=False):
            if mine is not theirs:
                return mine.counter - theirs.counter
        return 0

    # --------------------------------------------------------------------------------------------------------------- the accounts

    def enqueue(self, path: str) -> None:
        """A request of this tenant begins to wait."""
        node = self._own(path)
        node.num_active += 1
        self._refresh(node)

    def dequeue(self, path: str) -> None:
        """A request of this tenant waits no more."""
        node = self._own(path)
        assert node.num_active > 0, "nothing waits in this tenant"
        node.num_active -= 1
        self._refresh(node)

    def charge(self, path: str, cost: int) -> None:
        """Charge `cost` to a tenant and everybody above it."""
        assert cost >= 0, "give back with refund"
        scaled = cost * SCALE
        for node in _up(self._own(path)):
            quotient, node.remainder = divmod(scaled + node.remainder, node.weight)
            node.counter += quotient
            node.service += cost

    def refund(self, path: str, cost: int) -> None:
        """Give back what was charged for work that was not done (invariant 3)."""
        assert cost >= 0, "take with charge"
        for node in _up(self._own(path)):
            quotient, remainder = divmod(node.remainder - cost * SCALE, node.weight)
            lowered = node.counter + quotient
            floor = self._least_active_sibling(node)
            if floor is not None and lowered < floor:
                lowered, remainder = min(node.counter, floor), 0
            node.counter, node.remainder = lowered, remainder
            node.service -= cost
            if node.is_active:
                _push(node)

    def pick(self) -> str | None:
        """The tenant that is next: from the root, always the active child of least counter. None if nothing waits. Changes nothing."""
        node = self._root
        while node.name != _OWN:
            best = _peek(node)
            if best is None:
                return None
            node = best
        assert node.parent is not None, "a hidden child has a parent"
        return node.parent.path

    # -------------------------------------------------------------------------------------------------------- keeping and restoring

    def snapshot(self) -> tuple[ShareRecord, ...]:
        """Every account, parents before children. What waits is not part of it: requests queue again after a restart."""
        return tuple(
            ShareRecord(
                path=node.path,
                weight=node.weight,
                counter=node.counter,
                remainder=node.remainder,
                service=node.service,
                last_active=node.last_active.name if node.last_active else "",
                last_active_counter=node.last_active.counter if node.last_active else 0,
            )
            for node in self._nodes.values()
        )

    def restore(self, records: Iterable[ShareRecord]) -> None:
        """Put accounts back as `snapshot` gave them; tenants that are known and not named keep theirs. Call it before anything waits."""
        kept = list(records)
        for record in kept:
            node = self._restored(record.path)
            node.weight, node.counter, node.remainder, node.service = record.weight, record.counter, record.remainder, record.service
        for record in kept:
            if record.last_active:
                self._nodes[record.path].last_active = self._last_active(record)

    def rebase(self) -> bool:
        """Move counters back, siblings together, where all that matter have passed `REBASE_AT`; differences between active siblings stay.

        A sibling that is behind the others by then is raised to them, which is what its next lift would do.
        """
        moved = [self._rebase_children(node) for node in list(self._nodes.values()) if node.children]
        return any(moved)

    # ------------------------------------------------------------------------------------------------------------------- inside

    def _get(self, path: str) -> _Node:
        node = self._nodes.get(path)
        if node is None or node is self._root:
            raise NotFound("tenant", path)
        return node

    def _own(self, path: str) -> _Node:
        own = self._nodes.get(_own_path(path))
        return own if own is not None else self._add_child(self._get(path), _OWN)

    def _get_or_add(self, path: str) -> _Node:
        node = self._root
        for name in path.split("/"):
            if not name or name == _OWN:
                raise InvalidArgument("path", f"{path!r} is not a tenant path: names are not empty and not {_OWN!r}.")
            node = node.children.get(name) or self._add_child(node, name)
        return node

    def _add_child(self, parent: _Node, name: str) -> _Node:
        path = f"{parent.path}/{name}" if parent.path else name
        node = _Node(name, path, parent)
        parent.children[name] = node
        self._nodes[path] = node
        return node

    def _restored(self, path: str) -> _Node:
        if not path:
            return self._root
        parent, _, name = path.rpartition("/")
        return self._nodes.get(path) or self._add_child(self._restored(parent), name)

    def _last_active(self, record: ShareRecord) -> _Node:
        node = self._nodes[record.path]
        child = node.children.get(record.last_active)
        if child is not None:
            return child
        gone = _Node(record.last_active, "", None)  # it was removed; its counter still counts for the lift
        gone.counter = record.last_active_counter
        return gone

    @staticmethod
    def _set_weight(node: _Node, weight: int) -> None:
        if not 1 <= weight <= MAX_WEIGHT:
            raise InvalidArgument("weight", f"{weight} is not between 1 and {MAX_WEIGHT}.")
        if weight != node.weight:
            node.weight, node.remainder = weight, 0

    def _refresh(self, node: _Node) -> None:
        """Make invariant 4 true again from `node` upward."""
        while node.parent is not None:
            is_active = node.is_open and node.num_active > 0
            if is_active == node.is_active:
                return
            parent = node.parent
            if is_active:
                self._lift(node)
                node.is_active = True
                _push(node)
                parent.num_active += 1
            else:
                node.is_active = False
                parent.last_active = node
                parent.num_active -= 1
            node = parent

    def _lift(self, node: _Node) -> None:
        """Invariant 2, for a node that is about to be active."""
        assert node.parent is not None, "the root is not lifted"
        least = _peek(node.parent)
        reference = least if least is not None else node.parent.last_active
        if reference is not None and reference.counter > node.counter:
            node.counter, node.remainder = reference.counter, 0

    @staticmethod
    def _least_active_sibling(node: _Node) -> int | None:
        if node.parent is None:
            return None
        was_active, node.is_active = node.is_active, False
        least = _peek(node.parent)
        node.is_active = was_active
        return None if least is None else least.counter

    @staticmethod
    def _rebase_children(parent: _Node) -> bool:
        children = list(parent.children.values())
        active = [child.counter for child in children if child.is_active]
        idle_base = parent.last_active.counter if parent.last_active else 0
        base = min(active) if active else idle_base
        if base < REBASE_AT:
            return False
        for child in children:
            child.counter = max(child.counter - base, 0)
        gone = parent.last_active
        if gone is not None and gone not in children:
            gone.counter = max(gone.counter - base, 0)
        parent.heap.clear()
        for child in children:
            child.entry = None
            if child.is_active:
                _push(child)
        return True


def _own_path(path: str) -> str:
    return f"{path}/{_OWN}"


def _up(node: _Node) -> Iterator[_Node]:
    """The node and everybody above it, but for the root, which competes with nobody."""
    current = node
    while current.parent is not None:
        yield current
        current = current.parent


def _push(node: _Node) -> None:
    """Give an active node a live entry whose key is at most its counter (invariant 5)."""
    assert node.parent is not None, "the root is in no heap"
    if node.entry is None or node.entry.key > node.counter:
        node.entry = _entry(node)
        heapq.heappush(node.parent.heap, node.entry)


def _peek(parent: _Node) -> _Node | None:
    """The active child of least counter; clears away entries that are dead and mends keys that have fallen behind."""
    heap = parent.heap
    while heap:
        entry = heap[0]
        node = entry.node
        if entry is not node.entry:
            heapq.heappop(heap)  # a refund made a lower one
        elif not node.is_active:
            heapq.heappop(heap)
            node.entry = None
        elif entry.key != node.counter:
            node.entry = _entry(node)
            heapq.heapreplace(heap, node.entry)
        else:
            return node
    return None


def _entry(node: _Node) -> _Entry:
    return _Entry(node.counter, node.name, next(_serials), node)
