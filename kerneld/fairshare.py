"""Virtual counters of service over the tree of tenants: who was served least, for its weight.

Every node of the tree (lab / group / person) has a weight and a counter. Work charges `cost / weight` to the node that asked for it and to
all above it; the scheduler walks from the root along the active child that is next. Requests that wait at a node which has children too
queue in a hidden child of their own, named ".", so that only leaves have requests.

    root
     +- lab   weight 1                     active   a request waits below it, and it and all between are open
     |   +- group                          closed   at a limit of running requests: not a candidate, whatever waits
     |   |   +- ann    counter 40
     |   |   '- bob    counter 12   <- picked
     |   '- .          counter 33          requests of the tenant "lab" itself
     '- other

Among siblings that is next whose virtual deadline is least: counter + slice / weight, where the slice is that of the best class (rank) that
waits below. So a stricter class goes first until it is a slice ahead; the share stays the same. What follows from the rules, and why,
stands in ARCHITECTURE.md, section "Fair shares".

Invariants
1. Counters are integers, and exact: what a division leaves over is carried to the next charge. A change of weight or factor loses less than
   one counter unit.
2. Lift: a node that becomes active is raised to the least counter among its active siblings; if none is active, to the counter of the
   sibling that was active last. A lift never lowers. (Without it, a tenant that slept would be owed the service it never asked for.)
   Of equals, who has become active and was not charged since is next.
   Cap: nor is it further ahead than `cap / weight` of the least of them; what lies beyond is forgiven, not given back.
   A tenant with a request that is held out of the line is not asleep: it and those above it are lifted when that begins to wait, and until
   `release` they may stay behind from there on, by `held cap / weight` when they are active again.
3. A refund undoes its charge, to the unit.
4. A node is active if and only if it is open and has an active child; the hidden child is active while requests wait in it.
5. Every active node has entries in its parent's heaps that are low enough (`kerneld.shareheap`).

Source: Sheng et al., "Fairness in serving large language models", OSDI 2024 (algorithm 2 with both lift branches, and weights); Stoica and
Abdel-Wahab, "Earliest eligible virtual deadline first", 1995 (the deadline).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kerneld.accounts import ShareAccount
from kerneld.errors import InvalidArgument, NotFound, WrongState
from kerneld.sharechanges import ShareChanges
from kerneld.sharenode import FULL_FACTOR, OWN, SCALE, ShareNode, ShareRules
from kerneld.sharetree import ShareTree, rebase_children
from kerneld.standings import Standing, standing_of

MAX_WEIGHT: Final = 10_000
MIN_FACTOR: Final = 250
MAX_FACTOR: Final = 4000
# Counters that have all passed this are moved back together, so that they fit in 64 bits wherever they are stored.
REBASE_AT: Final = 1 << 60


class FairShare:
    """Accounts of service per tenant, and the order in which tenants are next."""

    def __init__(self, slices_us: tuple[int, int, int] = (0, 0, 0), cap_us: int = 0, held_cap_us: int = 0) -> None:
        """Slices are by rank, from the strictest class to the laxest; for the caps see invariant 2, at weight 1; 0: any distance."""
        self._tree = ShareTree(ShareRules(slices_us, cap_us, held_cap_us))
        self.least_weight_milli = FULL_FACTOR  # that a node has had: a counter grows by no more than cost * 1000 / this
        self.num_reweighs = 0
        self._changes = ShareChanges()
        self._touched = self._changes.touched

    # ------------------------------------------------------------------------------------------------------------------ the tree

    def add(self, path: str, weight: int = 1) -> None:
        """Make a tenant known, and those above it if they are not; a known one gets the weight. Raises: InvalidArgument."""
        _check_weight(weight)
        is_new = path not in self._tree
        node = self._tree.get_or_add(path)
        if is_new:
            self._touched[node] = None
        self._weigh(node, weight, node.factor_milli)

    def set_weight(self, path: str, weight: int) -> None:
        """Change a weight; it holds for charges to come. Raises: InvalidArgument, NotFound."""
        _check_weight(weight)
        node = self._tree.get(path)
        self._weigh(node, weight, node.factor_milli)

    def set_factor(self, path: str, milli: int) -> None:
        """Multiply a weight by `milli` / 1000, for charges to come. Hidden children have factors too. Raises: InvalidArgument, NotFound."""
        if not MIN_FACTOR <= milli <= MAX_FACTOR:
            raise InvalidArgument("factor", f"{milli} thousandths is not between {MIN_FACTOR} and {MAX_FACTOR}.")
        node = self._tree.kept(path) if path else None
        if node is None:
            raise NotFound("tenant", path)
        self._weigh(node, node.weight, milli)

    def factor(self, path: str) -> int:
        """What the weight of a node is multiplied by, in thousandths; 1000 where there is none. Hidden children have factors too."""
        node = self._tree.kept(path) if path in self._tree else None
        return node.factor_milli if node is not None else FULL_FACTOR

    def set_open(self, path: str, is_open: bool) -> None:
        """Close a tenant that is at a limit, so that nothing below it is picked; or open it again. Raises: NotFound."""
        node = self._tree.get(path)
        if node.is_open != is_open:
            self._touch(path)
            node.is_open = is_open
            if is_open and node.num_held:
                node.wake()
            node.refresh()

    def remove(self, path: str) -> None:
        """Forget a tenant that has no children and nothing waiting or held. Raises: NotFound, WrongState."""
        node = self._tree.get(path)
        if any(node.num_by_rank) or node.num_held or any(name != OWN for name in node.children):
            raise WrongState(f"Tenant {path!r} still has children or waiting requests.", facts={"tenant": path})
        self._tree.remove(node)
        for gone in (node, *node.children.values()):
            self._changes.remove(gone)

    def __contains__(self, path: str) -> bool:
        return path in self._tree

    # --------------------------------------------------------------------------------------------------------------- the accounts

    def enqueue(self, path: str, rank: int = 0) -> None:
        """A request of this tenant and of a class (0 goes first) begins to wait."""
        node = self._touch(path)
        node.num_by_rank[rank] += 1
        node.refresh()

    def dequeue(self, path: str, rank: int = 0) -> None:
        """A request of this tenant waits no more; the rank is the one that it was enqueued with."""
        node = self._touch(path)
        assert node.num_by_rank[rank] > 0, "nothing of that class waits in this tenant"
        node.num_by_rank[rank] -= 1
        node.refresh()

    def hold(self, path: str) -> None:
        """A request of this tenant begins to wait out of the line, or goes on so, through no doing of its own (invariant 2)."""
        self._touch(path).hold()

    def release(self, path: str) -> None:
        """A request that was held is in the line again, or has ended."""
        self._touch(path).release()

    def charge(self, path: str, cost: int) -> None:
        """Charge `cost` microseconds to a tenant and everybody above it."""
        assert cost >= 0, "give back with refund"
        for node in self._touch(path).lineage:
            if node.divisor == 1:  # most of them, once per row and step
                node.counter += cost * node.price
                node.service += cost
                node.is_new = False
            else:
                node.charge(cost)

    def refund(self, path: str, cost: int) -> None:
        """Give back what was charged for work that was not done (invariant 3)."""
        assert cost >= 0, "take with charge"
        if cost:
            for node in self._touch(path).lineage:
                node.refund(cost)

    # ----------------------------------------------------------------------------------------------------------------- who is next

    def pick(self) -> str | None:
        """The tenant that is next: from the root, always the active child of least deadline. None if nothing waits. Changes nothing."""
        node = self._tree.root
        while node.name != OWN:
            best = node.line.least()
            if best is None:
                return None
            node = best
        return _tenant_of(node)

    def near(self, lag_us: int, most: int) -> list[str]:
        """Tenants, `most` of them, that are at each level of their path within a lag of whoever is next there; `pick` first.

        Changes nothing. Whoever takes any of them in place of the pick adds the lag to the bound at each level.
        """
        return [_tenant_of(node) for node in self._tree.root.near(lag_us * SCALE, most)]

    def lag(self, path: str, other: str, rank: int = 0, other_rank: int = 0, *, returned_us: int = 0, charged_us: int = 0) -> int:
        """How far `path` is ahead of `other` in counter units, where their ways from the root part; 0 within one tenant.

        Ranks put each of them back by its slice, as when they are compared in the line. It is told as if `path` were given back
        `returned_us`, and `other` charged `charged_us`.
        """
        mine, theirs = self._tree.own(path).lineage, self._tree.own(other).lineage
        level, most = -1, -min(len(mine), len(theirs))
        while mine[level] is theirs[level]:
            level -= 1
            if level < most:
                return 0
        one, two = mine[level], theirs[level]
        lead = one.counter - two.counter
        if rank or other_rank:
            lead += one.slice_of(rank) - two.slice_of(other_rank)
        return lead - one.units(returned_us) - two.units(charged_us) if returned_us or charged_us else lead

    def place(self, path: str, rank: int) -> tuple[tuple[int, str], ...]:
        """The place of a tenant for which a request of a rank would begin to wait now: of two, the lesser one would be picked first."""
        return tuple((node.counter_if_active() + node.slice_of(rank), node.name) for node in reversed(self._tree.own(path).lineage))

    def counters(self, path: str) -> tuple[int, ...]:
        """The counters from the root down to a tenant's own requests: of two running requests, the greater is the more served one."""
        return tuple(node.counter for node in reversed(self._tree.own(path).lineage))

    def service(self, path: str) -> int:
        """Cost charged to a tenant and all below it, refunds taken off. Raises: NotFound."""
        return self._tree.get(path).service

    def own_service(self, path: str) -> int:
        """Cost charged to a tenant itself, without those below it, refunds taken off; 0 where nothing was."""
        own = self._tree.existing_own(path)
        return own.service if own is not None else 0

    def standings(self, *, with_own: bool = False) -> list[Standing]:
        """How every tenant stands among its siblings, those above first; for displays. `with_own`: hidden children too, as "TENANT/."."""
        return [standing_of(node) for node in self._tree if node.name and (with_own or node.name != OWN)]

    def fork(self) -> FairShare:
        """An independent copy of all who wait and may be next, for looking ahead; nobody else may begin to wait in it."""
        twin = FairShare()
        twin._tree = self._tree.fork()
        return twin

    # -------------------------------------------------------------------------------------------------------- keeping and restoring

    def snapshot(self) -> tuple[ShareAccount, ...]:
        """Every account, for `restore`. What waits is not part of it: requests queue again after a restart."""
        return tuple(node.account() for node in self._tree)

    def changes(self) -> tuple[ShareAccount, ...]:
        """The part of `snapshot` that changed since the last call: the later of two goes over the earlier, path by path."""
        nodes = self._changes.nodes()
        full = [node.parent for node in nodes if node.counter > REBASE_AT and node.parent is not None]
        if full and self._rebase(full):
            nodes = self._changes.nodes()
        return self._changes.take(self._tree.root, nodes)

    def unkept(self, changes: Iterable[ShareAccount]) -> None:
        """Changes that were told could not be written: they count as changed again."""
        self._changes.put_back(self._tree, changes)

    def restore(self, accounts: Iterable[ShareAccount]) -> None:
        """Put accounts back, as `snapshot` gave them or all `changes` one over the other. Weights are not part of them.

        Call it before anything waits. Tenants that are not known any more are left out. Those that were active are not lifted when
        their requests queue again, each at its first time, whenever that is: a restart is no sleep.
        """
        kept = [account for account in accounts if not account.is_removed]
        restored = [(node, account) for account in kept if (node := self._tree.kept(account.path)) is not None]
        for node, account in restored:
            node.restore(account)
            if account.last_child or account.last_active:
                node.was_last_active(account.last_active, account.last_child)
        self.rebase()

    def settle(self, tenants: Iterable[str]) -> None:
        """Requests of before a restart are back, all of them; those of `tenants` wait. Of the others nobody is lifted less than usual."""
        waiting = {node for tenant in tenants for node in self._tree.own(tenant).lineage}
        for node in self._tree:
            if node not in waiting:
                node.has_returned()

    def rebase(self) -> bool:
        """Move counters back, siblings together, where all that matter have passed `REBASE_AT`; differences between active siblings stay.

        A sibling that is behind the others by then is raised to them, which is what its next lift would do.
        """
        return self._rebase(node for node in self._tree if node.children)

    # ------------------------------------------------------------------------------------------------------------------- inside

    def _touch(self, path: str) -> ShareNode:
        """The hidden child of a tenant, whose account is about to change, and with it those of everybody above."""
        own = self._tree.own(path)
        self._touched[own] = None
        return own

    def _rebase(self, parents: Iterable[ShareNode]) -> bool:
        moved = [node for node in parents if rebase_children(node, REBASE_AT)]
        self._touched |= {child: None for node in moved for child in node.children.values()}
        return bool(moved)

    def _weigh(self, node: ShareNode, weight: int, factor_milli: int) -> None:
        if (weight, factor_milli) != (node.weight, node.factor_milli):
            self._touched[node] = None
            self.least_weight_milli = min(self.least_weight_milli, weight * factor_milli)
            self.num_reweighs += 1
            node.weigh(weight, factor_milli)


def _check_weight(weight: int) -> None:
    if not 1 <= weight <= MAX_WEIGHT:
        raise InvalidArgument("weight", f"{weight} is not between 1 and {MAX_WEIGHT}.")


def _tenant_of(node: ShareNode) -> str:
    assert node.parent is not None, "a hidden child has a parent"
    return node.parent.path
