"""The accounts of service: invariants of `kerneld.fairshare`, by examples and by random lives of a tree."""

from __future__ import annotations

import random
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.accounts import ShareAccount
from kerneld.errors import InvalidArgument, NotFound, WrongState
from kerneld.fairshare import MAX_FACTOR, MAX_WEIGHT, MIN_FACTOR, FairShare
from kerneld.sharenode import SCALE

SLICES_US = (0, 50, 200)
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
    assert shares.pick() == "c", "of equals, who has just come goes first"


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


def test_a_factor_multiplies_the_weight() -> None:
    shares = make_shares("a", "b")
    shares.set_factor("a", 2500)
    for path in ("a", "b"):
        shares.charge(path, 1000)

    assert (counter(shares, "a"), counter(shares, "b")) == (400, 1000)
    assert (shares.service("a"), shares.service("b")) == (1000, 1000)


@pytest.mark.parametrize("milli", [0, -1, MIN_FACTOR - 1, MAX_FACTOR + 1])
def test_factors_out_of_bounds_are_refused(milli: int) -> None:
    with pytest.raises(InvalidArgument):
        make_shares("a").set_factor("a", milli)


@given(changes=st.lists(st.tuples(st.integers(1, MAX_WEIGHT), st.integers(MIN_FACTOR, MAX_FACTOR), st.integers(0, 10**7)), max_size=20))
def test_reweighting_loses_less_than_one_counter_unit_each_time(changes: list[tuple[int, int, int]]) -> None:  # invariant 1
    shares = make_shares("a")
    exact = Fraction(0)
    for weight, milli, cost in changes:
        shares.set_weight("a", weight)
        shares.set_factor("a", milli)
        shares.charge("a", cost)
        exact += Fraction(cost * SCALE * 1000, weight * milli)

    assert 0 <= exact - account(shares, "a").counter <= 1 + 2 * len(changes)


def test_a_stricter_class_goes_first_until_it_is_a_slice_ahead() -> None:
    shares = FairShare((0, 50, 200))
    for path in ("batch", "quick"):
        shares.add(path)
    for _ in range(20):
        shares.enqueue("quick", 0)
        shares.enqueue("batch", 1)

    assert serve(shares, [20] * 8) == ["quick", "quick", "quick", "batch", "quick", "batch", "quick", "batch"]


def test_the_slice_is_that_of_the_best_class_that_waits_below() -> None:
    shares = FairShare((0, 50, 200))
    for path in ("lab/ann", "lab/bob", "other"):
        shares.add(path)
    shares.enqueue("other", 1)
    shares.enqueue("lab/ann", 2)
    shares.charge("lab/bob", 30)
    before = shares.pick()

    shares.enqueue("lab/bob", 0)
    with_quick = shares.pick()
    shares.dequeue("lab/bob", 0)

    assert (before, with_quick, shares.pick()) == ("other", "lab/bob", "other")


def test_slices_are_divided_by_the_weight() -> None:
    shares = FairShare((0, 100, 100))
    shares.add("heavy", 4)
    shares.add("light", 1)
    shares.enqueue("heavy", 1)
    shares.enqueue("light", 0)
    shares.charge("light", 26)

    assert shares.pick() == "heavy"


def test_whoever_wakes_is_lifted_to_the_least_counter_whatever_the_classes() -> None:  # invariant 2
    shares = FairShare((0, 50, 200))
    for path in "abc":
        shares.add(path)
    shares.enqueue("a", 0)
    shares.charge("a", 100)
    shares.enqueue("b", 2)
    shares.refund("a", 40)  # 60, and b, which waits behind its slice, has 100

    shares.enqueue("c", 0)

    assert counter(shares, "c") == 60


def test_a_tenant_that_wakes_far_ahead_is_put_back_to_the_cap() -> None:  # invariant 2
    shares = FairShare(cap_us=50)
    shares.add("a", 2)
    shares.add("b")
    shares.charge("a", 1000)
    shares.enqueue("b")

    shares.enqueue("a")

    assert (counter(shares, "a"), shares.service("a")) == (25, 1000)


def test_without_a_cap_a_tenant_stays_where_its_charges_brought_it() -> None:
    shares = make_shares("a", "b")
    shares.charge("a", 1000)
    shares.enqueue("b")
    shares.enqueue("a")

    assert counter(shares, "a") == 1000


@pytest.mark.parametrize(("cap_us", "expected"), [(0, 0), (30, 70), (500, 0)])
def test_a_tenant_that_was_held_stays_behind_by_the_cap_at_most(cap_us: int, expected: int) -> None:  # invariant 2
    shares = FairShare(held_cap_us=cap_us)
    shares.add("a")
    shares.add("b")
    shares.enqueue("a")
    shares.enqueue("b")
    shares.hold("a")
    shares.dequeue("a")
    shares.charge("b", 100)

    shares.enqueue("a")
    shares.release("a")

    assert counter(shares, "a") == expected


def test_near_ones_are_within_the_lag_at_each_level_and_the_pick_comes_first() -> None:
    shares = make_shares("g/a", "g/b", "g/c", "h", "i")
    costs = {"g/a": 5, "g/b": 15, "g/c": 40, "h": 70, "i": 300}  # 60 for g
    for path, cost in costs.items():
        shares.charge(path, cost)
    for path in costs:
        shares.enqueue(path)

    assert shares.near(0, 8) == [shares.pick()] == ["g/a"]
    assert shares.near(10, 8) == ["g/a", "g/b", "h"]
    assert shares.near(1000, 8) == ["g/a", "g/b", "g/c", "h", "i"]
    assert shares.near(1000, 2) == ["g/a", "g/b"]
    assert FairShare().near(1000, 8) == []


def test_a_look_at_near_ones_changes_nothing() -> None:
    shares = make_shares(*PATHS)
    for idx, path in enumerate(PATHS):
        shares.enqueue(path)
        shares.charge(path, 10 * idx)
    kept = shares.snapshot()

    shares.near(1000, 3)

    assert shares.snapshot() == kept
    assert serve(shares, [7] * 50) == serve(restored(shares, kept), [7] * 50)


def restored(shares: FairShare, kept: tuple[ShareAccount, ...]) -> FairShare:
    """A tree like another one, with the accounts that were kept of it."""
    other = make_shares(*PATHS)
    other.restore(kept)
    for path in PATHS:
        other.enqueue(path)
    return other


def test_a_fork_goes_on_like_the_original_and_leaves_it_alone() -> None:
    shares = FairShare((0, 50, 200))
    for idx, path in enumerate(PATHS):
        shares.add(path, 1 + idx)
        for _ in range(9):
            shares.enqueue(path, idx % 3)
        shares.charge(path, 13 * idx)
    shares.set_open("b", False)
    kept = shares.snapshot()

    twin = shares.fork()
    picks = serve(twin, [11] * 60)

    assert shares.snapshot() == kept
    assert serve(shares, [11] * 60) == picks
    assert len(set(picks)) > 2


def test_a_fork_holds_those_who_wait_and_nobody_else() -> None:
    shares = make_shares("a", "b", "idle", "closed")
    for path in ("a", "b", "closed"):
        shares.enqueue(path)
    shares.set_open("closed", False)

    twin = shares.fork()

    assert {each.path for each in twin.standings()} == {"a", "b"}


def test_a_tenant_with_a_held_request_is_not_removed() -> None:
    shares = make_shares("a")
    shares.hold("a")
    with pytest.raises(WrongState):
        shares.remove("a")
    shares.release("a")

    shares.remove("a")

    assert "a" not in shares


def test_an_account_that_was_kept_of_a_removed_tenant_is_overwritten_by_the_next_of_its_name() -> None:
    shares = make_shares("a")
    shares.charge("a", 100)
    kept = {each.path: each for each in shares.changes()}
    shares.remove("a")
    shares.add("a")
    kept |= {each.path: each for each in shares.changes()}

    assert kept["a"].service == 0


def test_ten_thousand_requests_of_one_tenant_are_one_entry_in_the_line() -> None:
    shares = make_shares("crowd", "other")
    shares.enqueue("other")
    for _ in range(10_000):
        shares.enqueue("crowd")
    for _ in range(3000):
        shares.charge("crowd", 1)
        shares.dequeue("crowd")
        shares.pick()
        shares.charge("other", 1)

    line = shares._tree.root.line
    assert len(line._entries) == 2
    assert abs(counter(shares, "crowd") - counter(shares, "other")) <= 1


def test_coming_and_going_leaves_no_dead_entries_behind() -> None:
    shares = make_shares("low", "high")
    shares.enqueue("low")
    shares.charge("high", 1000)
    for rank in [0, 1, 2] * 1000:
        shares.enqueue("high", rank)
        shares.dequeue("high", rank)

    assert len(shares._tree.root.line._entries) <= 2


def test_counters_are_moved_back_before_they_leave_64_bits() -> None:
    shares = FairShare((0, 50, 200))
    for path in ("a", "b"):
        shares.add(path)
        shares.set_factor(path, MIN_FACTOR)
        shares.enqueue(path)
    kept: dict[str, ShareAccount] = {}
    for day in range(200):
        shares.charge("a", 86_400_000_000)
        shares.charge("b", 86_400_000_000 + day)
        kept |= {each.path: each for each in shares.changes()}
        assert all(abs(each.counter) < 1 << 62 for each in kept.values())

    behind = account(shares, "a").counter - account(shares, "b").counter
    assert behind == -sum(range(200)) * 4 * SCALE
    assert kept == {each.path: each for each in shares.snapshot()}


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


def test_what_was_kept_of_a_removed_tenant_is_gone_whether_or_not_another_of_its_name_came() -> None:
    shares = make_shares("a", "b")
    for path in "ab":
        shares.enqueue(path)
        shares.charge(path, 100)
        shares.dequeue(path)
    kept = keep({}, shares.changes())
    for path in "ab":
        shares.remove(path)
    shares.add("a")  # it has not asked for anything yet

    told = shares.changes()
    shares.unkept(told)
    assert shares.changes() == told
    assert set(keep(kept, told)) == {"", "a"}
    again = make_shares("a", "b")
    again.restore((*kept.values(), *told))
    assert (again.own_service("a"), again.service("b")) == (0, 0)


def keep(kept: dict[str, ShareAccount], told: Iterable[ShareAccount]) -> dict[str, ShareAccount]:
    """What changes come to, as the journal has it."""
    for each in told:
        if each.is_removed:
            kept.pop(each.path, None)
        else:
            kept[each.path] = each
    return kept


def test_a_counter_that_has_left_64_bits_behind_waits_for_its_siblings_and_costs_no_walk() -> None:
    shares = make_shares("a", "b", "c")
    shares.enqueue("a")
    shares.enqueue("b")
    shares.charge("a", 1 << 41)  # b is far behind, so nobody is moved

    assert [each.counter for each in shares.changes() if each.path == "a"] == [1 << 61]
    shares.charge("b", 1 << 41)
    assert {each.path: each.counter for each in shares.changes() if each.path in ("a", "b")} == {"a": 0, "b": 0}


def test_who_waits_with_nothing_after_a_restart_has_been_asleep() -> None:
    before = make_shares("a", "b", "c")
    for path in "abc":
        before.enqueue(path)
    before.charge("a", 1000)

    after = make_shares("a", "b", "c")
    after.restore(before.snapshot())
    after.settle(["a", "b"])
    for path in "abc":  # c comes anew
        after.enqueue(path)
        after.charge("b", 100 if path == "b" else 0)

    assert [counter(after, path) for path in "abc"] == [1000, 100, 100]


def test_who_was_held_at_a_death_is_behind_by_the_held_cap_at_most() -> None:
    def made() -> FairShare:
        shares = FairShare(held_cap_us=30)
        for path in "ab":
            shares.add(path)
        return shares

    before, after = made(), made()
    before.enqueue("b")
    before.hold("a")
    before.charge("b", 100)
    after.restore(before.snapshot())
    after.enqueue("b")
    after.hold("a")
    for shares in (before, after):
        shares.enqueue("a")
        shares.release("a")

    assert [counter(shares, "a") for shares in (before, after)] == [70, 70]
    assert [each for each in after.snapshot() if each.is_held] == []


def test_who_was_removed_before_it_came_back_lifts_nobody() -> None:
    before, after = make_shares("a", "b"), make_shares("a", "b")
    before.enqueue("a")
    before.charge("b", 1000)
    before.enqueue("b")
    after.restore(before.snapshot())
    after.remove("a")

    after.hold("b")
    after.release("b")

    assert not after._tree.root.returning
    assert counter(after, "b") == 1000
