"""What changed of the accounts of a tree of shares since it was told last: nodes that were touched, and accounts that are gone."""

from __future__ import annotations

from collections.abc import Iterable

from kerneld.accounts import ShareAccount
from kerneld.sharenode import ShareNode
from kerneld.sharetree import ShareTree


class ShareChanges:
    """Gathers changes. Who touches a node touches those above it: they need not be named."""

    def __init__(self) -> None:
        self.touched: dict[ShareNode, None] = {}
        self._removed: dict[str, None] = {}  # paths

    def remove(self, node: ShareNode) -> None:
        """A node has left the tree: what was kept of its account tells nothing of a later one of its name."""
        self.touched.pop(node, None)
        self._removed[node.path] = None

    def nodes(self) -> dict[ShareNode, None]:
        """The nodes that changed, but for the root."""
        return {node: None for low in self.touched for node in low.lineage}

    def take(self, root: ShareNode, nodes: Iterable[ShareNode]) -> tuple[ShareAccount, ...]:
        """The accounts of `nodes`, which are all that changed, after those that are gone: one of the same name may have come since."""
        if not (self.touched or self._removed):
            return ()
        gone = [ShareAccount(path, 0, 0, 0, False, 0, is_removed=True) for path in self._removed]
        told = (*gone, root.account(), *(node.account() for node in nodes))
        self.touched.clear()
        self._removed.clear()
        return told

    def put_back(self, tree: ShareTree, accounts: Iterable[ShareAccount]) -> None:
        """Accounts that were taken could not be written: they count as changed again."""
        for account in accounts:
            if account.is_removed:
                self._removed[account.path] = None
            elif account.path and (node := tree.kept(account.path)) is not None:
                self.touched[node] = None
