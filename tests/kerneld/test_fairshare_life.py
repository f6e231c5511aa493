"""Random lives of the tree of shares, against what the rules of `kerneld.fairshare` say of the whole tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kerneld.accounts import ShareAccount
from kerneld.fairshare import MAX_FACTOR, MIN_FACTOR, FairShare
from kerneld.sharenode import SCALE

SLICES_US = (0, 50, 200)
PATHS = ["a", "b", "a/x", "a/y", "a/x/deep", "b/z"]


class LifeOfTree(RuleBasedStateMachine):
    """Random arrivals, departures, charges, refunds, weights and limits, against what the rules say of the whole tree."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = FairShare(SLICES_US)
        for path in PATHS:
            self.shares.add(path)
        self.waiting: dict[str, list[int]] = {path: [] for path in PATHS}  # ranks
        self.closed: set[str] = set()
        self.charged = dict.fromkeys(PATHS, 0)
        self.weights = dict.fromkeys(PATHS, Fraction(1))  # effective
        self.exact: dict[str, Fraction] = {}  # counters without rounding, but for what a change of weight loses
        self.num_reweighted = 0

    @rule(path=st.sampled_from(PATHS), rank=st.integers(0, 2))
    def arrive(self, path: str, rank: int) -> None:
        with self.lifts_checked():
            self.shares.enqueue(path, rank)
            self.waiting[path].append(rank)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def depart(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from([path for path, ranks in self.waiting.items() if ranks]))
        rank = data.draw(st.sampled_from(self.waiting[path]))
        self.shares.dequeue(path, rank)
        self.waiting[path].remove(rank)

    @rule(path=st.sampled_from(PATHS), cost=st.integers(0, 1000))
    def charge(self, path: str, cost: int) -> None:
        self.shares.charge(path, cost)
        self.note(path, cost)

    @rule(path=st.sampled_from(PATHS), cost=st.integers(0, 1000))
    def refund(self, path: str, cost: int) -> None:
        cost = min(cost, self.charged[path])
        self.shares.refund(path, cost)
        self.note(path, -cost)

    @rule(path=st.sampled_from(PATHS), weight=st.integers(1, 5), milli=st.sampled_from([MIN_FACTOR, 900, 1000, MAX_FACTOR]))
    def reweight(self, path: str, weight: int, milli: int) -> None:
        self.shares.set_weight(path, weight)
        self.shares.set_factor(path, milli)
        self.weights[path] = Fraction(weight * milli, 1000)
        self.num_reweighted += 2

    @rule(path=st.sampled_from(PATHS), is_open=st.booleans())
    def open_or_close(self, path: str, is_open: bool) -> None:
        with self.lifts_checked():
            self.shares.set_open(path, is_open)
            (self.closed.discard if is_open else self.closed.add)(path)

    def note(self, path: str, cost: int) -> None:
        """Charge in the books of the test."""
        self.charged[path] += cost
        node = f"{path}/." if cost else ""
        while node:
            self.exact[node] = self.exact.get(node, Fraction(0)) + Fraction(cost * SCALE) / self.weights.get(node, 1)
            node = parent_of(node)

    def best_rank(self, node: str) -> int:
        """The best that waits below a node and is open, by rule 4; 3 if nothing does."""
        best = 3
        for path, ranks in self.waiting.items():
            way = [f"{path}/.", *ways_up(path)]
            if node in way and not self.closed & set(way[: way.index(node) + 1]):
                best = min([best, *ranks])
        return best

    def active_nodes(self) -> set[str]:
        """Paths of all nodes that are active by rule 4, hidden children included."""
        nodes = {node for path in PATHS for node in (f"{path}/.", path)}
        return {node for node in nodes if self.best_rank(node) < 3}

    @contextmanager
    def lifts_checked(self) -> Iterator[None]:
        """Check invariant 2 of every node that becomes active meanwhile, against its siblings that were."""
        before, was_active = accounts(self.shares), self.active_nodes()
        yield
        after = accounts(self.shares)
        for node in self.active_nodes() - was_active:
            siblings = [before[other].counter for other in was_active if parent_of(other) == parent_of(node)]
            reference = min(siblings) if siblings else before[parent_of(node)].last_active
            assert after[node].counter == max(before[node].counter if node in before else 0, reference)
            if after[node].counter != (before[node].counter if node in before else 0):
                self.exact[node] = Fraction(reference)

    @invariant()
    def counters_are_exact(self) -> None:  # invariant 1
        kept = accounts(self.shares)
        for node, exact in self.exact.items():
            assert abs(exact - kept[node].counter) <= 1 + self.num_reweighted
            if not self.num_reweighted:
                assert exact - 1 < kept[node].counter <= exact

    @invariant()
    def the_books_agree(self) -> None:
        assert {each.path for each in self.shares.snapshot() if each.is_active and each.path} == self.active_nodes()
        for path in PATHS:
            assert self.shares.service(path) == sum(cost for other, cost in self.charged.items() if f"{other}/".startswith(f"{path}/"))

    @invariant()
    def the_pick_is_that_of_the_rules(self) -> None:
        kept = accounts(self.shares)
        active = self.active_nodes()
        node = ""
        while not node.endswith("/."):
            children = [other for other in active if parent_of(other) == node]
            if not children:
                assert self.shares.pick() is None
                return
            node = min(children, key=lambda child: (kept[child].counter + self.slice_of(child), not kept[child].is_new, child))
        assert self.shares.pick() == parent_of(node)

    def slice_of(self, node: str) -> int:
        """The slice of the best class below a node, in counter units."""
        return int(SLICES_US[self.best_rank(node)] * SCALE / self.weights.get(node, Fraction(1)))


def ways_up(path: str) -> list[str]:
    """A path and those above it."""
    return [path, *ways_up(parent_of(path))] if path else []


def accounts(shares: FairShare) -> dict[str, ShareAccount]:
    """Everything that is kept, by path."""
    return {each.path: each for each in shares.snapshot()}


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]


TestLifeOfTree = LifeOfTree.TestCase
TestLifeOfTree.settings = settings(stateful_step_count=40)
