"""A node of the tree of shares: the account of a tenant, and which of its children are active. The rules stand in `kerneld.fairshare`.

    counter + remainder / divisor   =   sum of cost * price / divisor over what was charged        price / divisor = SCALE / weight

The fraction is in lowest terms, so that a weight that divides `SCALE` needs no division at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from kerneld.accounts import ShareAccount
from kerneld.shareheap import ShareHeap

# Counter units per microsecond of cost at weight 1. Large, so that a microsecond still counts at the greatest weight.
SCALE: Final = 1 << 20
# Name of the hidden child that holds a tenant's own requests.
OWN: Final = "."

NUM_RANKS: Final = 3  # latency classes: interactive, batch, idle
FULL_FACTOR: Final = 1000  # thousandths


@dataclass(slots=True)
class ShareRules:
    """What holds for all nodes of a tree, in microseconds of device time."""

    slices_us: tuple[int, int, int] = (0, 0, 0)  # by rank: how far a request's tenant is put back in line against others
    cap_us: int = 0  # that a node may be ahead of its siblings when it becomes active; 0: any distance
    held_cap_us: int = 0  # that one with a held request may be behind them then; 0: any distance


class ShareNode:
    """A tenant in the tree, or the hidden child that holds its own requests."""

    __slots__ = (
        "children",
        "counter",
        "divisor",
        "factor_milli",
        "is_active",
        "is_new",
        "is_open",
        "last_active",
        "lead",
        "least_served",
        "line",
        "lineage",
        "name",
        "num_by_rank",
        "num_held",
        "parent",
        "path",
        "price",
        "rank",
        "remainder",
        "returning",
        "rules",
        "service",
        "was_held",
        "weight",
    )

    def __init__(self, name: str, path: str, parent: ShareNode | None, rules: ShareRules) -> None:
        self.name = name
        self.path = path
        self.parent = parent
        self.rules = rules
        # The node and everybody above it, but for the root, which competes with nobody.
        self.lineage: tuple[ShareNode, ...] = () if parent is None else (self, *parent.lineage)
        self.children: dict[str, ShareNode] = {}
        self.weight = 1
        self.factor_milli = FULL_FACTOR  # of the weight
        self.price = SCALE  # counter units per microsecond, times the divisor
        self.divisor = 1
        self.counter = 0
        self.remainder = 0  # of the division by `divisor`, in [0, divisor)
        self.service = 0  # cost charged, refunds taken off, weights apart
        self.is_open = True
        self.is_active = False
        self.is_new = False  # nothing was charged since it became active: of equals, it is next
        self.rank = 0  # the best that waits at it or below; the last one that did, if it is not active
        self.lead = 0  # the slice of that rank, in counter units
        self.was_held = False  # a request was held when the accounts were kept: so is the first that comes back
        self.num_by_rank = [0] * NUM_RANKS  # active children by their rank; in a hidden child: requests that wait
        self.num_held = 0  # requests at it and below that are out of the line for a while
        self.returning: dict[ShareNode, None] = {}  # children that were active when the accounts were kept, and not since
        self.last_active: ShareNode | None = None  # the child that was active last
        # Active children: by who is next, and by who was served least. Without slices these are the same.
        self.line: ShareHeap[ShareNode] = ShareHeap(counts_class=True)
        self.least_served = ShareHeap[ShareNode](counts_class=False) if any(rules.slices_us) else self.line

    # ------------------------------------------------------------------------------------------------------------------ the account

    def charge(self, cost: int) -> None:
        """Add `cost / weight` to the counter (invariant 1); a negative cost is given back."""
        quotient, self.remainder = divmod(cost * self.price + self.remainder, self.divisor)
        self.counter += quotient
        self.service += cost
        self.is_new = False

    def refund(self, cost: int) -> None:
        """Undo a charge (invariant 3)."""
        self.charge(-cost)
        if self.is_active:
            self.enter()

    def weigh(self, weight: int, factor_milli: int) -> None:
        """Change the weight; charges to come are divided by it. What is left of earlier divisions loses less than one counter unit."""
        price = Fraction(SCALE * FULL_FACTOR, weight * factor_milli)
        self.weight, self.factor_milli = weight, factor_milli
        self.remainder = self.remainder * price.denominator // self.divisor
        self.price, self.divisor = price.numerator, price.denominator
        self.lead = self.slice_of(self.rank)
        if self.is_active:
            self.enter()

    def units(self, cost_us: int) -> int:
        """A cost in counter units, at this node's weight."""
        return cost_us * self.price // self.divisor

    def slice_of(self, rank: int) -> int:
        """What a request of a rank adds to the counter where this node is compared with its siblings."""
        return self.units(self.rules.slices_us[rank])

    def account(self) -> ShareAccount:
        """The durable form."""
        last = self.last_active
        return ShareAccount(
            path=self.path,
            counter=self.counter,
            remainder=self.remainder,
            service=self.service,
            is_active=self.is_active or self.keeps_counter,
            last_active=last.counter if last else 0,
            factor_milli=self.factor_milli,
            last_child=last.name if last and self.children.get(last.name) is last else "",
            is_held=self.num_held > 0 or self.was_held,
            is_new=self.is_new,
        )

    def restore(self, account: ShareAccount) -> None:
        """Put an account back; the weight is not part of it."""
        self.weigh(self.weight, account.factor_milli)
        self.counter, self.remainder = account.counter, account.remainder % self.divisor
        self.service, self.is_new = account.service, account.is_new
        self.has_returned()
        self.was_held = account.is_held
        if account.is_active and self.parent is not None:
            self.parent.returning[self] = None

    def was_last_active(self, counter: int, name: str = "") -> None:
        """Whoever of the children was active last had this counter: it is what the next lift asks for. `name` is empty if it is gone."""
        self.last_active = self.children.get(name) or ShareNode("", "", None, self.rules)
        if self.last_active.parent is None:
            self.last_active.counter = counter

    # --------------------------------------------------------------------------------------------------------------- active children

    def refresh(self) -> None:
        """Make invariant 4 true again from here upward."""
        node = self
        while (parent := node.parent) is not None:
            rank = node.best_rank() if node.is_open else NUM_RANKS
            was = node.rank if node.is_active else NUM_RANKS
            if rank == was:
                return
            if rank < NUM_RANKS:
                node._become(rank)
                parent.num_by_rank[rank] += 1
            else:
                node.is_active = False
                parent.last_active = node
            if was < NUM_RANKS:
                parent.num_by_rank[was] -= 1
            node = parent

    def best_rank(self) -> int:
        """The least rank of what waits at it and below and is open; `NUM_RANKS` if nothing does."""
        first, second, third = self.num_by_rank
        return 0 if first else 1 if second else 2 if third else NUM_RANKS

    def lift(self) -> None:
        """Invariant 2, for a node that is about to be active."""
        assert self.parent is not None, "the root is not lifted"
        if self.keeps_counter:
            self.has_returned()
            return
        self.is_new = True
        least = self.parent.least_served.least()
        reference = least or self.parent.last_active
        is_held, self.was_held = self.is_held, False
        if reference is None:
            return
        if self.counter < reference.counter:
            if not is_held:
                self._put(reference.counter)
            elif self.rules.held_cap_us:
                self._put(max(self.counter, reference.counter - self.units(self.rules.held_cap_us)))
        elif self.rules.cap_us and least is not None:
            self._put(min(self.counter, least.counter + self.units(self.rules.cap_us)))

    @property
    def keeps_counter(self) -> bool:
        """Whether it was active when the accounts were kept, and not since: its next lift is left out."""
        return self.parent is not None and self in self.parent.returning

    def has_returned(self) -> None:
        """How it was when the accounts were kept tells nothing any more."""
        self.was_held = False
        if self.parent is not None:
            self.parent.returning.pop(self, None)

    @property
    def is_held(self) -> bool:
        """Whether a request at it or below is held, or was when the accounts were kept."""
        return self.num_held > 0 or self.was_held

    def hold(self) -> None:
        """A request of a hidden child is held. Who was asleep is lifted as if that waited in line: nobody is owed anything of before."""
        is_open = True
        for node in self.lineage:
            is_open = is_open and node.is_open
            if is_open and not node.is_held:
                node.wake()
            node.num_held, node.was_held = node.num_held + 1, False

    def release(self) -> None:
        """A request of a hidden child that was held is in line, or has ended."""
        assert self.num_held > 0, "nothing is held in this tenant"
        for node in self.lineage:
            node.num_held -= 1
            if not node.num_held:
                node.has_returned()  # it is in line, or asleep

    def wake(self) -> None:
        """Lift it, unless it is active, as if it became active now; siblings that are about to return after a restart count as active."""
        assert self.parent is not None, "the root is not lifted"
        if not (self.is_active or self.keeps_counter):
            returning = min(self.parent.returning, key=_counter_of, default=self.parent.last_active)
            reference = self.parent.least_served.least() or returning
            if reference is not None:
                self._put(max(self.counter, reference.counter))

    def counter_if_active(self) -> int:
        """The counter that it has, or would be lifted to; the cap is left aside."""
        if self.is_active or self.keeps_counter or self.is_held or self.parent is None:
            return self.counter
        reference = self.parent.least_served.least() or self.parent.last_active
        return self.counter if reference is None else max(self.counter, reference.counter)

    def near(self, window: int, most: int) -> list[ShareNode]:
        """The first hidden children below that may be next if everybody within `window` of who is next may be, the very next one first."""
        if self.name == OWN:
            return [self]
        found: list[ShareNode] = []
        for child in self.line.first(most, window):
            found += child.near(window, most - len(found))
            if len(found) == most:
                break
        return found

    def leave(self) -> None:
        """Be no child of its parent any more."""
        assert self.parent is not None, "the root stays"
        self.has_returned()
        del self.parent.children[self.name]
        for heap in (self.parent.line, self.parent.least_served):
            heap.drop(self)

    def _become(self, rank: int) -> None:
        """Be active with a rank."""
        if not self.is_active:
            self.lift()
            self.is_active = True
        self.rank, self.lead = rank, self.slice_of(rank)
        self.enter()

    def _put(self, counter: int) -> None:
        """Move the counter to where no charge brought it; nothing is left over from earlier divisions."""
        if counter != self.counter:
            self.counter, self.remainder = counter, 0

    def enter(self) -> None:
        """Have entries in the parent's heaps that are low enough."""
        assert self.parent is not None, "the root is in no heap"
        self.parent.line.enter(self)
        if self.parent.least_served is not self.parent.line:
            self.parent.least_served.enter(self)


def _counter_of(node: ShareNode) -> int:
    return node.counter
