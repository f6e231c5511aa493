"""Who gives way: whose pages, and which of them."""

from __future__ import annotations

import pytest

from memory.errors import OutOfFrames, OverLimit
from memory.page import Tier
from memory.table import PageTable
from tests.memory.test_pager import DOWN, PT, SLAB, Rig, routes

FRAME = 16  # of space 1 on the device


def device_pages(*tables: PageTable) -> list[int]:
    return [table.counts().device for table in tables]


def test_whoever_holds_most_gives_way_first_however_warm_its_pages() -> None:
    rig = Rig(device_slabs=3)
    cold, warm = rig.grown(4, "lab/ann"), rig.grown(8, "lab/bob")

    rig.run((rig.table("guest"), 0, 3 * PT))

    assert device_pages(cold, warm) == [4, 5]


def test_what_is_borrowed_counts_and_not_what_is_guaranteed() -> None:
    rig = Rig(device_slabs=3)
    rig.pager.ledger.set_limit("bob", Tier.DEVICE, 7 * FRAME, 0)
    ann, bob = rig.grown(4, "ann"), rig.grown(8, "bob")

    rig.run((rig.table("guest"), 0, 3 * PT))

    assert device_pages(ann, bob) == [1, 8]  # ann borrows four frames, bob one


def test_borrowing_counts_per_weight() -> None:
    rig = Rig(device_slabs=3)
    rig.pager.ledger.set_weight("bob", 4)
    ann, bob = rig.grown(4, "ann"), rig.grown(8, "bob")

    rig.run((rig.table("guest"), 0, 2 * PT))

    assert device_pages(ann, bob) == [2, 8]  # eight frames at weight four weigh as much as two


def test_siblings_are_compared_first_and_then_who_is_beneath_them() -> None:
    rig = Rig(device_slabs=4)
    rig.pager.ledger.set_weight("lab", 3)
    guest = rig.grown(5, "guest")
    ann, bob = rig.grown(4, "lab/ann"), rig.grown(7, "lab/bob")

    rig.run((rig.table("other"), 0, 1 * PT))
    assert device_pages(guest, ann, bob) == [4, 4, 7]  # five against eleven thirds

    rig.pager.ledger.set_weight("lab", 1)
    rig.run((rig.table("other"), 0, 3 * PT))
    assert device_pages(guest, ann, bob) == [4, 4, 4]  # within the lab, bob holds most


def test_a_tenant_with_contexts_of_its_own_stands_beside_its_children() -> None:
    rig = Rig(device_slabs=3)
    own, child = rig.grown(4, "lab"), rig.grown(8, "lab/bob")

    rig.run((rig.table("guest"), 0, 3 * PT))

    assert device_pages(own, child) == [4, 5]


def test_whoever_is_above_its_limit_gives_way_before_all() -> None:
    rig = Rig(device_slabs=3, host_slabs=0)
    ann, bob = rig.grown(4, "ann"), rig.grown(8, "bob")
    rig.pager.ledger.set_limit("ann", Tier.DEVICE, 0, 2 * FRAME)

    rig.run((rig.table("guest"), 0, 2 * PT))

    assert device_pages(ann, bob) == [2, 8]


def test_a_guarantee_holds_against_siblings_that_are_at_the_limit_of_their_parent() -> None:
    rig = Rig(device_slabs=4)
    rig.pager.ledger.set_limit("lab", Tier.DEVICE, 0, 8 * FRAME)
    rig.pager.ledger.set_limit("lab/ann", Tier.DEVICE, 3 * FRAME, 0)
    ann, bob = rig.grown(4, "lab/ann"), rig.table("lab/bob")

    rig.run((bob, 0, 5 * PT))
    assert device_pages(ann, bob) == [3, 5]

    with pytest.raises(OverLimit):
        rig.plan((bob, 0, 6 * PT))


def test_clean_pages_go_before_suspended_ones_and_those_before_idle_ones() -> None:
    rig = Rig(device_slabs=3, host_slabs=8)
    clean = rig.grown(2)
    rig.pager.save(clean, 2 * PT, [page.key for page in clean.pages[0]], b"")
    rig.run()
    idle, suspended = rig.grown(5), rig.grown(5)
    suspended.is_suspended = True
    rig.pager.resume(clean)  # the warmest of all

    assert routes(rig.run((rig.table(), 0, 2 * PT)).moves) == []
    assert device_pages(clean, idle, suspended) == [0, 5, 5]

    assert routes(rig.run((rig.table(), 0, 5 * PT)).moves) == [DOWN] * 5
    assert device_pages(idle, suspended) == [5, 0]


def test_a_pinned_prefix_goes_last_and_is_kept_for_those_who_share_it() -> None:
    rig = Rig(device_slabs=3)
    prefix = rig.grown(6)
    rig.pager.pin(prefix, 2 * PT)
    fork = rig.pager.fork(prefix, 6 * PT)
    warm = rig.grown(6)

    rig.run((rig.table(), 0, 10 * PT))
    assert device_pages(prefix, fork, warm) == [2, 2, 0]

    rig.run((rig.table(), 0, 11 * PT))
    assert prefix.counts().device == 1, "rather than that nobody runs"


def test_truncating_and_dropping_end_a_pin() -> None:
    rig = Rig()
    table = rig.grown(4)
    rig.pager.pin(table, 3 * PT)

    rig.pager.truncate(table, PT)

    assert table.num_pinned == 1


# ---------------------------------------------------------------------------------------------------------------------- excess


def test_a_limit_below_use_takes_hold_with_the_next_plans() -> None:
    rig = Rig(device_slabs=2, host_slabs=4, max_copies=3)
    table, other = rig.grown(6, "ann"), rig.grown(2, "bob")
    rig.pager.ledger.set_limit("ann", Tier.DEVICE, 0, 2 * FRAME)
    assert rig.pager.ledger.in_excess(Tier.DEVICE) == ("ann",)

    assert routes(rig.run().moves) == [DOWN] * 3
    assert routes(rig.run().moves) == [DOWN]

    assert rig.pager.ledger.in_excess(Tier.DEVICE) == ()
    assert device_pages(table, other) == [2, 2]
    assert table.intact_tokens() == 6 * PT


def test_pages_that_run_stay_until_their_plan_has_ended() -> None:
    rig = Rig(device_slabs=2)
    table = rig.grown(4, "ann")
    running = rig.plan((table, 4 * PT, 4 * PT + 1))
    rig.pager.ledger.set_limit("ann", Tier.DEVICE, 0, 2 * FRAME)
    assert rig.plan().moves == ()
    assert rig.pager.ledger.in_excess(Tier.DEVICE) == ("ann",)

    rig.pager.commit(running.seq)
    rig.pager.commit(rig.seq)
    rig.run()

    assert table.counts().device == 2


def test_a_host_limit_below_use_costs_second_copies_first() -> None:
    rig = Rig(device_slabs=2, host_slabs=4, write_behind=True)
    table = rig.grown(4, "ann")
    rig.run()
    rig.pager.ledger.set_limit("ann", Tier.HOST, 0, 32)

    rig.run()

    assert len(rig.pager.host_pages(table)) == 1
    assert table.intact_tokens() == 4 * PT
    assert rig.pager.ledger.in_excess(Tier.HOST) == ()


def test_a_sharer_that_leaves_puts_others_over_their_limit_and_that_is_reclaimed() -> None:
    rig = Rig(device_slabs=2)
    parent = rig.grown(4, "ann")
    fork = rig.pager.fork(parent, 4 * PT, owner="bob")
    rig.pager.ledger.set_limit("bob", Tier.DEVICE, 0, 2 * FRAME)
    rig.pager.drop(parent)
    assert rig.pager.ledger.in_excess(Tier.DEVICE) == ("bob",)

    rig.run()

    assert fork.counts() == (2, 2, 0, 0, 0)


def test_weights_do_not_take_what_is_guaranteed() -> None:
    rig = Rig(device_slabs=3, host_slabs=4)
    rig.pager.ledger.set_limit("ann", Tier.DEVICE, 6 * FRAME, 0)
    rig.grown(8, "ann")

    rig.seq += 1
    rig.pager.plan_room(rig.seq, (SLAB,))  # the slab that is free
    rig.pager.commit(rig.seq)
    with pytest.raises(OutOfFrames):
        rig.pager.plan_room(rig.seq + 1, (2 * SLAB,))
    rig.pager.ledger.set_limit("ann", Tier.DEVICE, 4 * FRAME, 0)
    rig.pager.plan_room(rig.seq + 1, (2 * SLAB,))
