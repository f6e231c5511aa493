"""The tree of shares: its nodes by path. A path is the place in the tree, so nothing can be put below itself or moved elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kerneld.errors import InvalidArgument, NotFound
from kerneld.sharenode import OWN, ShareNode, ShareRules

_OWN_SUFFIX: Final = f"/{OWN}"


class ShareTree:
    """Tenants, and the hidden children that hold what waits in them."""

    def __init__(self, rules: ShareRules, node_type: type[ShareNode] = ShareNode) -> None:
        self.rules = rules
        self.root = node_type("", "", None, rules)
        self._node_type = node_type
        self._nodes: dict[str, ShareNode] = {"": self.root}
        self._owns: dict[str, ShareNode] = {}  # the hidden children, by the path of their tenant

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def __iter__(self) -> Iterator[ShareNode]:
        """All nodes, those above before those below."""
        return iter(self._nodes.values())

    def get(self, path: str) -> ShareNode:
        """The node of a tenant. Raises: NotFound."""
        node = self._nodes.get(path)
        if node is None or node.name in ("", OWN):
            raise NotFound("tenant", path)
        return node

    def get_or_add(self, path: str) -> ShareNode:
        """The node of a tenant, made with those above it if there is none. Raises: InvalidArgument."""
        names = path.split("/")
        if not all(names) or OWN in names:
            raise InvalidArgument("path", f"{path!r} is not a tenant path: names are not empty and not {OWN!r}.")
        node = self.root
        for name in names:
            node = node.children.get(name) or self._add_child(node, name)
        return node

    def own(self, path: str) -> ShareNode:
        """The hidden child of a tenant, made when first needed. Raises: NotFound."""
        own = self._owns.get(path)
        return own if own is not None else self._add_child(self.get(path), OWN)

    def kept(self, path: str) -> ShareNode | None:
        """The node whose account was kept under a path, hidden ones and the root included; None if its tenant is not known."""
        tenant = path.removesuffix(_OWN_SUFFIX)
        if tenant not in self._nodes:
            return None
        return self._nodes[path] if tenant == path else self.own(tenant)

    def existing_own(self, path: str) -> ShareNode | None:
        """The hidden child of a tenant, if there is one."""
        return self._owns.get(path)

    def remove(self, node: ShareNode) -> None:
        """Forget a tenant without children, and its hidden child."""
        node.leave()
        for gone in (node, self._owns.pop(node.path, None)):
            if gone is not None:
                del self._nodes[gone.path]

    def fork(self) -> ShareTree:
        """An independent copy of the nodes that are active. Nobody is lifted there: it does not know who was active before."""
        twin = ShareTree(self.rules, self._node_type)
        pairs = [(self.root, twin.root)]
        for node, copy in pairs:
            for child in node.children.values():
                if child.is_active:
                    made = twin._add_child(copy, child.name)
                    _copy_state(child, made)
                    pairs.append((child, made))
        return twin

    def _add_child(self, parent: ShareNode, name: str) -> ShareNode:
        path = f"{parent.path}/{name}" if parent.path else name
        node = self._node_type(name, path, parent, self.rules)
        parent.children[name] = self._nodes[path] = node
        if name == OWN:
            self._owns[parent.path] = node
        return node


def _copy_state(node: ShareNode, copy: ShareNode) -> None:
    copy.weight, copy.factor_milli, copy.price, copy.divisor = node.weight, node.factor_milli, node.price, node.divisor
    copy.counter, copy.remainder, copy.service = node.counter, node.remainder, node.service
    copy.num_by_rank, copy.rank, copy.lead = list(node.num_by_rank), node.rank, node.lead
    copy.is_active, copy.is_new = True, node.is_new
    copy.enter()


def rebase_children(parent: ShareNode, at: int) -> bool:
    """Move the counters of a node's children back together if all that matter have passed `at`; whether they were moved."""
    least, children = parent.least_served.least(), parent.children.values()
    if least is not None and least.counter < at:  # asked with every step while one is there and others are not
        return False
    active = [child.counter for child in children if child.is_active or child.keeps_counter or child.is_held]
    last = parent.last_active
    base = min(active) if active else (last.counter if last else 0)
    if base < at:
        return False
    moved = dict.fromkeys(children)
    if last is not None:
        moved[last] = None  # it may have been removed from the tree
    for child in moved:
        child.counter = max(child.counter - base, 0)
    for heap in (parent.line, parent.least_served):
        heap.rebuild(child for child in children if child.is_active)
    return True
