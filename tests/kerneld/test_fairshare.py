"""The accounts of service: invariants of `kerneld.fairshare`, by examples and by random lives of a tree."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kerneld.accounts import ShareAccount
from kerneld.errors import InvalidArgument, NotFound, WrongState
from kerneld.fairshare import MAX_WEIGHT, FairShare
from kerneld.sharenode import SCALE

PATHS = ["a", "b", "a/x", "a/y", "a/x/deep", "b/z"]


def make_shares(*paths: str) -> FairShare:
    shares = FairShare()
    for path in paths:
        shares.add(path)
    return shares


def serve(shares: FairShare, costs: list[int]) -> list[str]:
    """Who is picked when the picked ones are charged these costs, one after the other."""
    picks = []
    for cost in costs:
        path = shares.pick()
        assert path is not None
        shares.charge(path, cost)
        picks.append(path)
    return picks


def counter(shares: FairShare, path: str) -> int:
    """The counter of a tenant in cost units at weight 1."""
    return account(shares, path).counter // SCALE


def account(shares: FairShare, path: str) -> ShareAccount:
    """What is kept of a node."""
    return next(each for each in shares.snapshot() if each.path == path)


def test_the_least_served_tenant_is_next() -> None:
    shares = make_shares("a", "b", "c")
    for path in ("a", "b", "c"):
        shares.enqueue(path)

    assert serve(shares, [10] * 6) == ["a", "b", "c", "a", "b", "c"]


def test_a_group_competes_as_one_whatever_its_size() -> None:
    shares = make_shares("lab/ann", "lab/bob", "lab/eve", "solo")
    for path in ("lab/ann", "lab/bob", "lab/eve", "solo"):
        shares.enqueue(path)

    picks = serve(shares, [1] * 12)

    assert picks.count("solo") == 6
    assert {path: picks.count(path) for path in ("lab/ann", "lab/bob", "lab/eve")} == {"lab/ann": 2, "lab/bob": 2, "lab/eve": 2}


def test_requests_of_an_inner_tenant_compete_with_its_children() -> None:
    shares = make_shares("lab", "lab/ann")
    shares.enqueue("lab")
    shares.enqueue("lab/ann")

    first = shares.pick()
    shares.charge("lab", 5)
    second = shares.pick()

    assert (first, second) == ("lab", "lab/ann")


def test_weight_divides_the_charge_exactly() -> None:  # invariant 1
    shares = FairShare()
    shares.add("a", 3)
    for _ in range(1000):
        shares.charge("a", 1)

    kept = account(shares, "a")
    assert Fraction(kept.counter * 3 + kept.remainder, SCALE) == 1000
    assert shares.service("a") == 1000


def test_a_tenant_that_wakes_is_lifted_to_its_least_active_sibling() -> None:  # invariant 2, first branch
    shares = make_shares("a", "b", "c")
    shares.enqueue("a")
    shares.enqueue("b")
    shares.charge("a", 100)
    shares.charge("b", 70)

    shares.enqueue("c")

    assert [counter(shares, path) for path in "abc"] == [100, 70, 70]


def test_a_tenant_that_wakes_alone_is_lifted_to_the_last_that_was_active() -> None:  # invariant 2, second branch
    shares = make_shares("a", "b")
    shares.enqueue("a")
    shares.charge("a", 100)
    shares.dequeue("a")
    shares.charge("a", 20)  # still running

    shares.enqueue("b")

    assert counter(shares, "b") == 120


def test_a_lift_never_lowers() -> None:
    shares = make_shares("a", "b")
    shares.charge("b", 50)
    shares.enqueue("a")

    shares.enqueue("b")

    assert counter(shares, "b") == 50


def test_the_lift_works_at_every_level() -> None:
    shares = make_shares("lab/ann", "lab/bob", "other")
    shares.enqueue("other")
    shares.charge("other", 30)

    shares.enqueue("lab/ann")
    shares.charge("lab/ann", 8)
    shares.enqueue("lab/bob")

    assert [counter(shares, path) for path in ("lab", "lab/ann", "lab/bob")] == [38, 8, 8]


def test_more_requests_of_an_active_tenant_lift_nothing() -> None:
    shares = make_shares("a", "b")
    shares.enqueue("a")
    shares.enqueue("b")
    shares.charge("b", 10)

    shares.enqueue("a")

    assert counter(shares, "a") == 0


def test_a_refund_undoes_its_charge_to_the_unit() -> None:  # invariant 3
    shares = FairShare()
    for path, weight in (("a", 7), ("b", 1)):
        shares.add(path, weight)
        shares.enqueue(path)
    shares.charge("a", 1)
    before = shares.snapshot()

    shares.charge("a", 100)
    shares.refund("a", 100)

    assert shares.snapshot() == before


def test_who_is_refunded_may_be_next_again() -> None:  # invariant 3: its entry in the heap falls with it
    shares = make_shares("a", "b")
    shares.enqueue("a")
    shares.enqueue("b")
    shares.charge("a", 100)
    shares.charge("b", 60)
    before = shares.pick()

    shares.refund("a", 90)

    assert (before, shares.pick(), counter(shares, "a"), shares.service("a")) == ("b", "a", 10, 10)


def test_a_closed_tenant_is_passed_over_and_lifted_when_it_opens() -> None:  # invariant 4
    shares = make_shares("lab/ann", "other")
    shares.enqueue("lab/ann")
    shares.enqueue("other")
    shares.set_open("lab", False)

    picks = [shares.pick()]
    shares.charge("other", 40)
    shares.set_open("lab", True)
    picks.append(shares.pick())

    assert (picks, counter(shares, "lab")) == (["other", "lab/ann"], 40)


def test_nothing_is_next_when_nothing_waits() -> None:
    shares = make_shares("a")
    shares.enqueue("a")
    shares.dequeue("a")

    assert shares.pick() is None


def test_lag_is_measured_where_the_ways_part() -> None:
    shares = make_shares("lab/ann", "lab/bob", "other")
    shares.charge("lab/ann", 30)
    shares.charge("lab/bob", 10)

    assert shares.lag("lab/ann", "lab/bob") == 20 * SCALE
    assert shares.lag("lab/bob", "other") == 40 * SCALE
    assert shares.lag("lab/ann", "lab/ann") == 0


@pytest.mark.parametrize("weight", [0, -1, MAX_WEIGHT + 1])
def test_weights_out_of_bounds_are_refused(weight: int) -> None:
    with pytest.raises(InvalidArgument):
        FairShare().add("a", weight)


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/", "a/."])
def test_paths_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument):
        FairShare().add(path)


def test_unknown_tenants_are_not_found() -> None:
    with pytest.raises(NotFound):
        FairShare().enqueue("nobody")


def test_a_tenant_with_children_or_work_is_not_removed() -> None:
    shares = make_shares("lab/ann")
    shares.enqueue("lab/ann")

    for path in ("lab", "lab/ann"):
        with pytest.raises(WrongState):
            shares.remove(path)
    shares.dequeue("lab/ann")
    shares.remove("lab/ann")
    shares.remove("lab")

    assert "lab" not in shares
    assert [each.path for each in shares.snapshot()] == [""]


def test_changes_are_told_once() -> None:
    shares = make_shares("a", "b")
    shares.charge("a", 1)
    first = shares.changes()

    shares.enqueue("b")

    assert next(each.service for each in first if each.path == "a") == 1
    assert {each.path for each in shares.changes()} == {"", "b", "b/."}
    assert shares.changes() == ()


def test_changes_that_could_not_be_kept_are_told_again_as_they_are_by_then() -> None:
    shares = make_shares("a", "b")
    shares.charge("a", 1)
    lost = shares.changes()

    shares.unkept(lost)
    shares.charge("a", 1)

    assert {each.path: each.service for each in shares.changes()} == {"": 0, "a": 2, "a/.": 2, "b": 0}


def test_rebasing_keeps_every_difference_among_active_siblings() -> None:
    shares = make_shares("a", "b", "idle")
    shares.enqueue("a")
    shares.enqueue("b")
    shares.charge("a", 1 << 50)
    shares.charge("b", (1 << 50) + 77)

    moved = shares.rebase()

    assert (moved, [counter(shares, path) for path in ("a", "b", "idle")], shares.pick()) == (True, [0, 77, 0], "a")
    assert not shares.rebase()


def test_a_restart_does_not_change_the_next_picks() -> None:
    paths = [f"g{i % 3}/p{i}" for i in range(9)]
    draw = random.Random(5)
    costs = [draw.randrange(1, 500) for _ in range(1500)]
    before = make_shares(*paths)
    for i, path in enumerate(paths):
        before.set_weight(path, 1 + i)
        before.enqueue(path)
    kept = {each.path: each for each in before.changes()}
    serve(before, costs[:500])
    kept |= {each.path: each for each in before.changes()}

    after = make_shares(*paths)
    for i, path in enumerate(paths):
        after.set_weight(path, 1 + i)
    after.restore(kept.values())
    for path in reversed(paths):
        after.enqueue(path)

    assert serve(after, costs[500:]) == serve(before, costs[500:])


class LifeOfTree(RuleBasedStateMachine):
    """Random arrivals, departures, charges, refunds, weights and limits, against what the rules say of the whole tree."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = make_shares(*PATHS)
        self.waiting = dict.fromkeys(PATHS, 0)
        self.closed: set[str] = set()
        self.charged = dict.fromkeys(PATHS, 0)

    @rule(path=st.sampled_from(PATHS))
    def arrive(self, path: str) -> None:
        before = accounts(self.shares)
        was_active = self.active_nodes()
        self.shares.enqueue(path)
        self.waiting[path] += 1
        self.check_lifts(before, was_active)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def depart(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from([path for path, num in self.waiting.items() if num]))
        self.shares.dequeue(path)
        self.waiting[path] -= 1

    @rule(path=st.sampled_from(PATHS), cost=st.integers(0, 1000))
    def charge(self, path: str, cost: int) -> None:
        self.shares.charge(path, cost)
        self.charged[path] += cost

    @rule(path=st.sampled_from(PATHS), cost=st.integers(0, 1000))
    def refund(self, path: str, cost: int) -> None:
        cost = min(cost, self.charged[path])
        self.shares.refund(path, cost)
        self.charged[path] -= cost

    @rule(path=st.sampled_from(PATHS), weight=st.integers(1, 5))
    def reweight(self, path: str, weight: int) -> None:
        self.shares.set_weight(path, weight)

    @rule(path=st.sampled_from(PATHS), is_open=st.booleans())
    def open_or_close(self, path: str, is_open: bool) -> None:
        self.shares.set_open(path, is_open)
        (self.closed.discard if is_open else self.closed.add)(path)

    def active_nodes(self) -> set[str]:
        """Paths of all nodes that are active by rule 4, hidden children included."""
        active = set()
        for path, num in self.waiting.items():
            if not num:
                continue
            node = f"{path}/."
            while node and node not in self.closed:
                active.add(node)
                node = node.rpartition("/")[0]
        return active

    def check_lifts(self, before: dict[str, ShareAccount], was_active: set[str]) -> None:
        """Invariant 2, of every node that became active, against its siblings that were."""
        after = accounts(self.shares)
        for node in self.active_nodes() - was_active:
            siblings = [before[other].counter for other in was_active if parent_of(other) == parent_of(node)]
            reference = min(siblings) if siblings else before[parent_of(node)].last_active
            assert after[node].counter == max(before[node].counter if node in before else 0, reference)

    @invariant()
    def the_books_agree(self) -> None:
        active = self.active_nodes()
        assert {each.path for each in self.shares.snapshot() if each.is_active and each.path} == active
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
            node = min(children, key=lambda child: (kept[child].counter, child))
        assert self.shares.pick() == parent_of(node)


def accounts(shares: FairShare) -> dict[str, ShareAccount]:
    """Everything that is kept, by path."""
    return {each.path: each for each in shares.snapshot()}


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]


TestLifeOfTree = LifeOfTree.TestCase
TestLifeOfTree.settings = settings(stateful_step_count=40)
