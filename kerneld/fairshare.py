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
   A tenant with a request that is held out of the line is not asleep: neither it nor anybody above it is lifted until `release`.
3. A refund lowers a node no further than the least counter of its active siblings, and never raises it. What is left of it is credit that
   the next charges use up, so that nothing is lost (dropping it would let service drift apart without bound); a lift that raises ends it.
4. A node is active if and only if it is open and has an active child; the hidden child is active while requests wait in it.
5. Every active node has one live entry in its parent's heap, whose key is at most its counter: charging a node touches no heap, and a
   key that has fallen behind is mended when it comes to the top.

Source: Sheng et al., "Fairness in serving large language models", OSDI 2024 (algorithm 2 with both lift branches, and weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from kerneld.errors import InvalidArgument, NotFound, WrongState
from kerneld.sharenode import OWN, SCALE, ShareNode

MAX_WEIGHT: Final = 10_000
# Counters that have all passed this are moved back together, so that they fit in 64 bits wherever they are stored.
REBASE_AT: Final = 1 << 60

# Keys of a snapshot: one of these, then the path.
_COUNTER: Final = "counter:"
_REMAINDER: Final = "remainder:"
_CREDIT: Final = "credit:"
_SERVICE: Final = "service:"
_ACTIVE: Final = "active:"  # 1 or 0
_LAST_ACTIVE: Final = "last:"  # counter of the child that was active last


class FairShare:
    """Accounts of service per tenant, and the order in which tenants are next."""

    def __init__(self) -> None:
        self._root = ShareNode("", "", None)
        self._nodes: dict[str, ShareNode] = {"": self._root}
        self._owns: dict[str, ShareNode] = {}  # the hidden children, by the path of their tenant
        self._touched: set[ShareNode] = set()  # nodes whose account may have changed since `changes` was asked
        self._is_resuming = False  # accounts were restored, and nothing was charged since

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
        if node.is_open != is_open:
            self._touch(path)
            node.is_open = is_open
            node.refresh()

    def remove(self, path: str) -> None:
        """Forget a tenant that has no children and nothing waiting. Raises: NotFound, WrongState."""
        node = self._get(path)
        if node.num_active or node.num_held or any(name != OWN for name in node.children):
            raise WrongState(f"Tenant {path!r} still has children or waiting requests.", facts={"tenant": path})
        assert node.parent is not None, "the root is not a tenant"
        del node.parent.children[node.name]
        del self._nodes[path]
        self._nodes.pop(_own_path(path), None)
        self._owns.pop(path, None)

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def service(self, path: str) -> int:
        """Cost charged to a tenant and all below it, refunds taken off. Raises: NotFound."""
        return self._get(path).service

    def own_service(self, path: str) -> int:
        """Cost charged to a tenant itself, without those below it, refunds taken off; 0 where nothing was."""
        own = self._owns.get(path) or self._nodes.get(_own_path(path))
        return own.service if own is not None else 0

    def counters(self, path: str) -> tuple[int, ...]:
        """The counters from the root down to a tenant's own requests: of two running requests, the greater is the more served one."""
        return tuple(node.counter for node in reversed(self._own(path).lineage))

    def lag(self, path: str, other: str) -> int:
        """How far `path` is ahead of `other` in counter units, where their ways from the root part; 0 within one tenant."""
        for mine, theirs in zip(reversed(self._own(path).lineage), reversed(self._own(other).lineage), strict=False):
            if mine is not theirs:
                return mine.counter - theirs.counter
        return 0

    # --------------------------------------------------------------------------------------------------------------- the accounts

    def enqueue(self, path: str) -> None:
        """A request of this tenant begins to wait."""
        node = self._touch(path)
        node.num_active += 1
        node.refresh()

    def dequeue(self, path: str) -> None:
        """A request of this tenant waits no more."""
        node = self._touch(path)
        assert node.num_active > 0, "nothing waits in this tenant"
        node.num_active -= 1
        node.refresh()

    def hold(self, path: str) -> None:
        """A request of this tenant is out of the line for a while, through no doing of its own (invariant 2)."""
        for node in self._touch(path).lineage:
            node.num_held += 1

    def release(self, path: str) -> None:
        """A request that was held is in the line again, or has ended."""
        for node in self._touch(path).lineage:
            assert node.num_held > 0, "nothing is held in this tenant"
            node.num_held -= 1

    def charge(self, path: str, cost: int) -> None:
        """Charge `cost` to a tenant and everybody above it."""
        assert cost >= 0, "give back with refund"
        if self._is_resuming:
            self._end_resuming()
        scaled = cost * SCALE
        for node in self._touch(path).lineage:
            if node.weight == 1 and not node.credit:  # most of them, once per row and step
                node.counter += scaled
                node.service += cost
            else:
                node.charge(cost)

    def refund(self, path: str, cost: int) -> None:
        """Give back what was charged for work that was not done (invariant 3)."""
        assert cost >= 0, "take with charge"
        for node in self._touch(path).lineage:
            node.refund(cost)

    def pick(self) -> str | None:
        """The tenant that is next: from the root, always the active child of least counter. None if nothing waits. Changes nothing."""
        node = self._root
        while node.name != OWN:
            best = node.least_child()
            if best is None:
                return None
            node = best
        assert node.parent is not None, "a hidden child has a parent"
        return node.parent.path

    # -------------------------------------------------------------------------------------------------------- keeping and restoring

    def snapshot(self) -> dict[str, int]:
        """Every account as numbers by key, for `restore`. What waits is not part of it: requests queue again after a restart."""
        return self._values(self._nodes.values())

    def changes(self) -> dict[str, int]:
        """The part of `snapshot` that changed since the last call: the later of two goes over the earlier."""
        if not self._touched:
            return {}
        touched = {node for own in self._touched for node in own.lineage} | {self._root}
        self._touched.clear()
        return self._values(touched)

    def restore(self, values: Mapping[str, int]) -> None:
        """Put accounts back, as `snapshot` gave them or all `changes` one over the other. Weights are not part of them.

        Call it before anything waits. Tenants that are not known any more are left out. Those that were active are not lifted when their
        requests queue again, until the first charge: a restart is no sleep.
        """
        for path, node in list(self._nodes.items()):
            own = _own_path(path)
            if path and _COUNTER + own in values:
                self._own(path)
            if values.get(_LAST_ACTIVE + path):
                node.last_active = ShareNode("", "", None)  # whoever it was; its counter is what the next lift asks for
                node.last_active.counter = values[_LAST_ACTIVE + path]
        for path, node in self._nodes.items():
            node.counter = values.get(_COUNTER + path, node.counter)
            node.remainder = values.get(_REMAINDER + path, node.remainder) % node.weight
            node.credit = values.get(_CREDIT + path, node.credit)
            node.service = values.get(_SERVICE + path, node.service)
            node.keeps_counter = bool(values.get(_ACTIVE + path))
        self._is_resuming = True
        self.rebase()

    def rebase(self) -> bool:
        """Move counters back, siblings together, where all that matter have passed `REBASE_AT`; differences between active siblings stay.

        A sibling that is behind the others by then is raised to them, which is what its next lift would do.
        """
        moved = [node for node in self._nodes.values() if node.children and node.rebase_children(REBASE_AT)]
        self._touched.update(child for node in moved for child in node.children.values())
        return bool(moved)

    # ------------------------------------------------------------------------------------------------------------------- inside

    def _get(self, path: str) -> ShareNode:
        node = self._nodes.get(path)
        if node is None or node is self._root:
            raise NotFound("tenant", path)
        return node

    def _own(self, path: str) -> ShareNode:
        """The hidden child of a tenant, made when first needed."""
        own = self._owns.get(path)
        if own is None:
            own = self._owns[path] = self._nodes.get(_own_path(path)) or self._add_child(self._get(path), OWN)
        return own

    def _get_or_add(self, path: str) -> ShareNode:
        node = self._root
        for name in path.split("/"):
            if not name or name == OWN:
                raise InvalidArgument("path", f"{path!r} is not a tenant path: names are not empty and not {OWN!r}.")
            node = node.children.get(name) or self._add_child(node, name)
        return node

    def _touch(self, path: str) -> ShareNode:
        """The hidden child of a tenant, whose account is about to change, and with it those of everybody above."""
        own = self._own(path)
        self._touched.add(own)
        return own

    @staticmethod
    def _values(nodes: Iterable[ShareNode]) -> dict[str, int]:
        values: dict[str, int] = {}
        for node in nodes:
            path = node.path
            values[_COUNTER + path], values[_REMAINDER + path] = node.counter, node.remainder
            values[_CREDIT + path], values[_SERVICE + path] = node.credit, node.service
            values[_ACTIVE + path] = int(node.is_active or node.num_held > 0)
            values[_LAST_ACTIVE + path] = node.last_active.counter if node.last_active else 0
        return values

    def _end_resuming(self) -> None:
        self._is_resuming = False
        for node in self._nodes.values():
            node.keeps_counter = False

    def _add_child(self, parent: ShareNode, name: str) -> ShareNode:
        path = f"{parent.path}/{name}" if parent.path else name
        node = ShareNode(name, path, parent)
        parent.children[name] = node
        self._nodes[path] = node
        return node

    @staticmethod
    def _set_weight(node: ShareNode, weight: int) -> None:
        if not 1 <= weight <= MAX_WEIGHT:
            raise InvalidArgument("weight", f"{weight} is not between 1 and {MAX_WEIGHT}.")
        if weight != node.weight:
            node.weight, node.remainder = weight, 0


def _own_path(path: str) -> str:
    return f"{path}/{OWN}"
