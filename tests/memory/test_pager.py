"""The pager's promises, one by one; what contexts see is in test_pager_content.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from memory.config import MemoryConfig
from memory.errors import NeverFits, OutOfFrames, OverLimit, PagingError, UnknownSpace
from memory.page import Move, PagePlan, Space, Tier, Zero
from memory.pager import Pager, Want
from memory.table import PageTable

PT = 4
SLAB = 64  # four device frames of space 1, two of its host frames


class Rig:
    """A pager whose plans are committed as they come."""

    def __init__(self, device_slabs: int = 2, host_slabs: int = 4, *, write_behind: bool = False, max_copies: int = 64) -> None:
        config = MemoryConfig(device_slabs * SLAB, host_slabs * SLAB, 0, PT, SLAB, 16, write_behind, max_copies=max_copies)
        self.pager = Pager(config)
        self.pager.open_space(Space(1, PT, 16, 32))
        self.pager.open_space(Space(2, PT, 32, 64))
        self.seq = 0

    def table(self, owner: str = "lab/ann", space: int = 1) -> PageTable:
        return self.pager.new_table(owner, (space,))

    def plan(self, *wants: tuple[PageTable, int, int]) -> PagePlan:
        self.seq += 1
        return self.pager.plan(self.seq, [Want(*want) for want in wants])

    def run(self, *wants: tuple[PageTable, int, int]) -> PagePlan:
        plan = self.plan(*wants)
        self.pager.commit(plan.seq)
        self.pager.check_integrity()
        return plan

    def grown(self, num_pages: int, owner: str = "lab/ann", space: int = 1) -> PageTable:
        """A table with full, named pages."""
        table = self.table(owner, space)
        self.run((table, 0, num_pages * PT))
        self.pager.fill(table, num_pages * PT, keys(num_pages, str(id(table))))
        return table


def keys(count: int, salt: str = "") -> list[bytes]:
    return [f"{salt[-8:]:>8}{idx:08}".encode() for idx in range(count)]


def routes(moves: Sequence[Move]) -> list[tuple[Tier, Tier]]:
    return [(move.source_tier, move.target_tier) for move in moves]


DOWN, UP, ACROSS = (Tier.DEVICE, Tier.HOST), (Tier.HOST, Tier.DEVICE), (Tier.DEVICE, Tier.DEVICE)


# ---------------------------------------------------------------------------------------------------------------------- plan


def test_a_want_gets_pages_on_the_device_without_moves() -> None:
    rig = Rig()
    table = rig.table()

    plan = rig.run((table, 0, 6))

    assert (plan.zeros, plan.moves, plan.late_zeros) == ((), (), ())
    assert len(table.frames(0)) == 2
    assert table.counts() == (2, 0, 0, 0, 0)
    assert table.device_bytes == 32


def test_frames_are_given_from_a_page_on() -> None:
    rig = Rig()
    table = rig.grown(3)

    assert table.frames(0, 1) == table.frames(0)[1:]
    assert table.frames(0, 3) == []


def test_the_table_that_was_used_longest_ago_gives_way_from_its_tail() -> None:
    rig = Rig()
    cold, warm = rig.grown(4), rig.grown(4)

    plan = rig.run((rig.table(), 0, PT))

    assert routes(plan.moves) == [DOWN]
    assert cold.counts() == (3, 1, 0, 0, 0)
    assert cold.frames(0) == cold.frames(0)[:3]
    assert warm.counts() == (4, 0, 0, 0, 0)


def test_a_suspended_table_gives_way_first() -> None:
    rig = Rig()
    cold, warm = rig.grown(4), rig.grown(4)
    rig.pager.suspend(warm)

    rig.run((rig.table(), 0, PT))

    assert cold.counts().device == 4
    assert warm.counts().device == 3


def test_a_resumed_table_is_the_last_to_give_way() -> None:
    rig = Rig()
    first, second = rig.grown(4), rig.grown(4)
    rig.pager.suspend(first)
    rig.pager.resume(first)

    rig.run((rig.table(), 0, PT))

    assert (first.counts().device, second.counts().device) == (4, 3)


def test_an_evicted_page_comes_back_and_its_host_copy_stays() -> None:
    rig = Rig()
    cold = rig.grown(4)
    warm = rig.grown(5)
    assert cold.intact_tokens() == 4 * PT

    plan = rig.run((cold, 4 * PT, 4 * PT))

    assert UP in routes(plan.moves)
    assert cold.counts().device == 4
    assert len(rig.pager.host_pages(cold)) == 1
    assert warm.intact_tokens() == 5 * PT


def test_a_page_with_a_clean_copy_is_evicted_without_a_move() -> None:
    rig = Rig(write_behind=True)
    cold = rig.grown(8)
    rig.run()
    assert len(rig.pager.host_pages(cold)) == 8

    plan = rig.run((rig.table(), 0, PT))

    assert plan.moves == ()
    assert plan.evictions == (("lab/ann", 1, 0),)
    assert cold.counts() == (7, 1, 0, 0, 0)


def test_a_page_that_is_written_loses_its_host_copy_and_its_name() -> None:
    rig = Rig(write_behind=True)
    table = rig.grown(2)
    rig.run()

    rig.run((table, PT + 1, PT + 2))

    assert [page.page_idx for page in rig.pager.host_pages(table)] == [0]
    assert table.pages[0][1].key == b""


def test_a_wanted_table_is_never_evicted_for_another_want_of_the_plan() -> None:
    rig = Rig()
    first, second = rig.table(), rig.table()

    with pytest.raises(OutOfFrames) as caught:
        rig.plan((first, 0, 5 * PT), (second, 0, 4 * PT))

    assert caught.value.tier == "device"
    assert first.num_pages == second.num_pages == 0
    rig.pager.check_integrity()


def test_tables_of_outstanding_plans_are_not_evicted() -> None:
    rig = Rig()
    table, other = rig.table(), rig.table()
    plan = rig.plan((table, 0, 8 * PT))

    with pytest.raises(OutOfFrames):
        rig.plan((other, 0, PT))

    rig.pager.commit(plan.seq)
    rig.run((other, 0, PT))
    assert table.counts().device == 7


def test_the_holders_are_named_when_nothing_can_give_way() -> None:
    rig = Rig(device_slabs=1)
    rig.plan((rig.grown(3, "lab/bob"), 3 * PT, 3 * PT))

    with pytest.raises(OutOfFrames) as caught:
        rig.plan((rig.table("guest"), 0, 2 * PT))

    assert [(holder.owner, holder.size_bytes) for holder in caught.value.holders] == [("lab/bob", 48), ("guest", 16)]


def test_a_slab_of_another_space_is_emptied_when_its_own_space_has_nothing() -> None:
    rig = Rig(device_slabs=2)
    cold = rig.grown(8, space=1)

    plan = rig.run((rig.table("lab/bob", space=2), 0, 2 * PT))

    assert routes(plan.moves) == [DOWN] * 4
    assert cold.counts() == (4, 4, 0, 0, 0)
    assert len(plan.late_zeros) == 2


def test_a_frame_that_is_demoted_and_changes_its_owner_is_zeroed_after_the_move() -> None:
    rig = Rig(device_slabs=1)
    cold = rig.grown(4, "lab/ann")
    frame = cold.frames(0)[3]

    plan = rig.run((rig.table("lab/bob"), 0, PT))

    assert [move.source_frame for move in plan.moves] == [frame]
    assert plan.zeros == ()
    assert plan.late_zeros == (Zero(1, Tier.DEVICE, frame),)


def test_a_freed_frame_that_changes_its_owner_is_zeroed_first() -> None:
    rig = Rig(device_slabs=1)
    mine, kept = rig.grown(3, "lab/ann"), rig.grown(1, "lab/ann")
    rig.pager.drop(mine)

    same = rig.run((rig.table("lab/ann"), 0, PT))
    other = rig.run((rig.table("lab/bob"), 0, PT))

    assert (same.zeros, len(other.zeros)) == ((), 1)
    assert kept.counts().device == 1


def test_without_a_host_tier_evicted_pages_are_lost_from_the_tail() -> None:
    rig = Rig(device_slabs=1, host_slabs=0)
    cold = rig.grown(4)

    plan = rig.run((rig.table(), 0, 2 * PT))

    assert plan.moves == ()
    assert plan.evictions == (("lab/ann", 2, 2),)
    assert cold.counts() == (2, 0, 2, 0, 0)
    assert cold.intact_tokens() == 2 * PT


def test_a_full_host_tier_gives_up_the_coldest_context_from_its_tail() -> None:
    rig = Rig(device_slabs=1, host_slabs=2)
    coldest = rig.grown(4)
    cold = rig.grown(4)

    rig.run((rig.table(), 0, 2 * PT))

    assert coldest.intact_tokens() == 2 * PT
    assert cold.intact_tokens() == 4 * PT


def test_lost_pages_cannot_be_called_valid() -> None:
    rig = Rig(device_slabs=1, host_slabs=0)
    cold = rig.grown(4)
    rig.run((rig.table(), 0, PT))

    with pytest.raises(PagingError, match="lost"):
        rig.plan((cold, 4 * PT, 4 * PT))
    rig.pager.check_integrity()


# ---------------------------------------------------------------------------------------------------------------------- fork


def test_a_fork_shares_every_page_and_copies_one_when_it_writes() -> None:
    rig = Rig()
    parent = rig.grown(2)
    rig.run((parent, 2 * PT, 2 * PT + 2))
    child = rig.pager.fork(parent, 2 * PT + 2)
    assert child.frames(0) == parent.frames(0)
    assert child.counts().shared == 3

    plan = rig.run((child, 2 * PT + 2, 2 * PT + 3))

    assert routes(plan.moves) == [ACROSS]
    assert child.frames(0)[:2] == parent.frames(0)[:2]
    assert child.frames(0)[2] != parent.frames(0)[2]


def test_a_fork_at_a_page_border_copies_nothing() -> None:
    rig = Rig()
    parent = rig.grown(2)
    child = rig.pager.fork(parent, 2 * PT)

    assert rig.run((child, 2 * PT, 2 * PT + 1)).moves == ()
    assert child.counts() == (3, 0, 0, 2, 0)


def test_the_last_sharer_writes_in_place() -> None:
    rig = Rig()
    parent = rig.grown(1)
    rig.run((parent, PT, PT + 2))
    child = rig.pager.fork(parent, PT + 2)
    rig.pager.drop(parent)

    assert rig.run((child, PT + 2, PT + 3)).moves == ()


def test_a_shared_page_is_charged_to_its_holders() -> None:
    rig = Rig()
    parent = rig.grown(1)

    child = rig.pager.fork(parent, PT, owner="guest")

    assert rig.pager.ledger.snapshot()[0].kv_bytes == {"lab/ann": 8, "guest": 8}
    rig.pager.drop(child)
    assert rig.pager.ledger.snapshot()[0].kv_bytes == {"lab/ann": 16}


def test_a_fork_is_no_longer_than_its_parent() -> None:
    rig = Rig()

    with pytest.raises(PagingError):
        rig.pager.fork(rig.grown(1), 2 * PT)


# ---------------------------------------------------------------------------------------------------------------------- commit, abort


def test_plans_commit_in_order() -> None:
    rig = Rig()
    first, second = rig.plan(), rig.plan()

    with pytest.raises(PagingError):
        rig.pager.commit(second.seq)

    rig.pager.commit(first.seq)
    rig.pager.commit(second.seq)


def test_a_number_can_be_used_again_after_an_abort() -> None:
    rig = Rig()
    table = rig.table()
    plan = rig.plan((table, 0, PT))

    rig.pager.abort(plan.seq)

    assert table.num_pages == 0
    rig.pager.plan(plan.seq, [])


def test_frames_dropped_while_a_plan_is_outstanding_wait_for_it() -> None:
    rig = Rig(device_slabs=1)
    table = rig.grown(4)
    plan = rig.plan((table, 4 * PT, 4 * PT))
    rig.pager.drop(table)

    with pytest.raises(OutOfFrames):
        rig.plan((rig.table(), 0, PT))

    rig.pager.commit(plan.seq)
    rig.run((rig.table(), 0, 4 * PT))


def test_an_abort_does_not_revive_a_dropped_table() -> None:
    rig = Rig(device_slabs=1)
    cold, hot = rig.grown(4), rig.table()
    plan = rig.plan((hot, 0, 2 * PT))
    rig.pager.drop(cold)
    rig.pager.drop(hot)

    rig.pager.abort(plan.seq)

    rig.pager.check_integrity()
    assert rig.pager.ledger.snapshot()[0].kv_bytes == {}
    rig.run((rig.table(), 0, 4 * PT))


def test_a_corrupt_page_is_lost_and_what_the_plan_overwrote_is_not_trusted() -> None:
    rig = Rig(device_slabs=1, write_behind=True)
    cold = rig.grown(4)
    rig.run()
    warm = rig.grown(4)
    rig.run()
    plan = rig.plan((cold, 4 * PT, 4 * PT))
    rig.pager.abort(plan.seq)

    rig.pager.corrupt(plan.moves[:1])

    rig.pager.check_integrity()
    assert cold.counts().lost == 1
    assert warm.intact_tokens() == 4 * PT
    assert warm.counts() == (0, 4, 0, 0, 0)


# ---------------------------------------------------------------------------------------------------------------------- limits, fits


def test_an_owner_at_its_limit_gives_way_to_itself() -> None:
    rig = Rig()
    rig.pager.ledger.set_limit("lab", Tier.DEVICE, 0, 4 * 16)
    mine, others = rig.grown(3, "lab/ann"), rig.grown(2, "guest")

    rig.run((rig.table("lab/bob"), 0, 3 * PT))

    assert mine.counts().device == 1
    assert others.counts().device == 2
    assert rig.pager.ledger.used("lab", Tier.DEVICE) == 4 * 16


def test_an_owner_whose_pages_all_run_is_told_of_its_limit() -> None:
    rig = Rig()
    rig.pager.ledger.set_limit("lab", Tier.DEVICE, 0, 2 * 16)

    with pytest.raises(OverLimit) as caught:
        rig.plan((rig.table("lab/ann"), 0, 3 * PT))

    assert (caught.value.owner, caught.value.limit_bytes) == ("lab", 32)
    rig.pager.check_integrity()


def test_pages_under_a_guarantee_do_not_give_way_to_others() -> None:
    rig = Rig()
    rig.pager.ledger.set_limit("lab", Tier.DEVICE, 6 * 16, 0)
    mine = rig.grown(8, "lab/ann")

    rig.run((rig.table("guest"), 0, 2 * PT))
    with pytest.raises(OutOfFrames):
        rig.plan((rig.table("lab/bob"), 0, PT), (rig.table("guest"), 0, 4 * PT))

    assert mine.counts().device == 6


def test_a_context_that_fits_alone_is_admitted() -> None:
    rig = Rig()
    rig.grown(8)

    rig.pager.fits((1,), 8 * PT, "guest")
    with pytest.raises(NeverFits) as caught:
        rig.pager.fits((1,), 8 * PT + 1, "guest")
    assert (caught.value.needed_bytes, caught.value.limit_bytes) == (3 * SLAB, 2 * SLAB)


def test_weights_and_limits_count_for_what_fits() -> None:
    rig = Rig()
    rig.pager.weights[Tier.DEVICE].place("m", "models", (SLAB,))
    rig.pager.ledger.set_limit("lab", Tier.DEVICE, 0, 32)

    with pytest.raises(NeverFits):
        rig.pager.fits((1,), 5 * PT, "guest")
    with pytest.raises(NeverFits) as caught:
        rig.pager.fits((1,), 3 * PT, "lab/ann")
    assert caught.value.limit_bytes == 32


def test_a_space_whose_frame_is_larger_than_a_slab_never_fits() -> None:
    with pytest.raises(NeverFits):
        Rig().pager.open_space(Space(3, PT, 2 * SLAB, 2 * SLAB))


def test_pages_of_a_closed_space_are_lost() -> None:
    rig = Rig(write_behind=True)
    table = rig.grown(3)
    rig.run()

    rig.pager.close_space(1)

    rig.pager.check_integrity()
    assert table.counts() == (0, 0, 3, 0, 0)
    with pytest.raises(UnknownSpace):
        rig.plan((table, 0, PT))
    assert rig.pager.ledger.snapshot()[0].free_bytes == 2 * SLAB


def test_a_space_can_be_closed_while_plans_are_outstanding() -> None:
    rig = Rig(device_slabs=1)
    rig.grown(4)
    plan = rig.plan((rig.table(), 0, PT))
    rig.pager.close_space(1)

    rig.pager.abort(plan.seq)

    rig.pager.check_integrity()
    rig.run((rig.table(space=2), 0, PT))


# ---------------------------------------------------------------------------------------------------------------------- host copies


def test_full_pages_are_copied_behind_a_few_per_plan() -> None:
    rig = Rig(write_behind=True, max_copies=2)
    table = rig.grown(3)
    assert rig.pager.has_backlog()

    assert routes(rig.run().moves) == [DOWN, DOWN]
    assert routes(rig.run().moves) == [DOWN]
    assert not rig.pager.has_backlog()
    assert [page.page_idx for page in rig.pager.host_pages(table)] == [0, 1, 2]


def test_a_full_host_tier_ends_the_backlog() -> None:
    rig = Rig(write_behind=True, host_slabs=1)
    table = rig.grown(4)
    rig.plan((table, 4 * PT, 4 * PT))

    assert not rig.pager.has_backlog()
    assert sum(page.host_frame is not None for page in table.pages[0]) == 2


def test_copies_on_their_way_are_not_shown() -> None:
    rig = Rig(write_behind=True)
    table = rig.grown(1)
    plan = rig.plan()

    assert rig.pager.host_pages(table) == []
    rig.pager.commit(plan.seq)
    assert len(rig.pager.host_pages(table)) == 1


def test_an_aborted_copy_is_made_again() -> None:
    rig = Rig(write_behind=True)
    rig.grown(1)
    plan = rig.plan()

    rig.pager.abort(plan.seq)

    assert routes(rig.run().moves) == [DOWN]


def test_a_suspended_context_is_copied_to_the_host() -> None:
    rig = Rig(write_behind=False)
    table = rig.grown(3)

    rig.pager.suspend(table)

    assert routes(rig.run().moves) == [DOWN] * 3


def test_a_save_copies_the_partial_page_under_its_name() -> None:
    rig = Rig()
    table = rig.grown(1)
    rig.run((table, PT, PT + 2))
    names = keys(1, str(id(table)))

    rig.pager.save(table, PT + 2, names, b"partial" + bytes(9))
    rig.run()

    saved = [(page.page_idx, page.key, page.num_tokens) for page in rig.pager.host_pages(table)]
    assert saved == [(0, names[0], PT), (1, b"partial" + bytes(9), 2)]


def test_a_save_of_tokens_that_were_cut_since_is_forgotten() -> None:
    rig = Rig()
    table = rig.grown(2)
    rig.pager.save(table, 2 * PT, keys(2, str(id(table))), b"")

    rig.pager.truncate(table, PT + 1)
    rig.run((table, PT + 1, PT + 3))

    assert [page.page_idx for page in rig.pager.host_pages(table)] == [0]


def test_held_copies_outlive_writes_truncation_and_drop() -> None:
    rig = Rig(write_behind=True, host_slabs=2)
    table = rig.grown(2)
    rig.run()
    rig.pager.hold_host(table)
    held = rig.pager.host_pages(table)

    rig.run((table, PT, PT + 1))
    rig.pager.drop(table)
    rig.grown(8, "lab/bob")
    rig.run()

    used = [page.host_frame for page in rig.pager._mapping.pages(Tier.HOST).values() if page.is_parked]
    assert sorted(frame for frame in used if frame is not None) == sorted(page.frame for page in held)
    rig.pager.release_host(table)
    rig.pager.check_integrity()
    assert not any(page.is_parked for page in rig.pager._mapping.pages(Tier.HOST).values())


def test_a_hold_ends_once() -> None:
    rig = Rig()

    with pytest.raises(PagingError):
        rig.pager.release_host(rig.table())


def test_a_restored_page_is_promoted_like_any_other() -> None:
    rig = Rig()
    table = rig.table()
    frames = [rig.pager.reserve_host(table, 0, idx, key, PT) for idx, key in enumerate(keys(2))]

    plan = rig.run((table, 2 * PT, 2 * PT + 1))

    assert [(move.source_frame, move.key) for move in plan.moves] == list(zip(frames, keys(2), strict=True))
    assert table.counts() == (3, 0, 0, 0, 0)


def test_only_a_lost_or_new_page_is_restored() -> None:
    rig = Rig()
    table = rig.grown(1)

    with pytest.raises(PagingError):
        rig.pager.reserve_host(table, 0, 0, keys(1)[0], PT)
    with pytest.raises(PagingError):
        rig.pager.reserve_host(table, 0, 2, keys(1)[0], PT)


def test_a_restarted_front_claims_pages_where_they_lie() -> None:
    rig = Rig()
    table = rig.table()

    rig.pager.claim_host(table, 0, 0, 6, keys(1)[0], PT)

    assert [(page.frame, page.key) for page in rig.pager.host_pages(table)] == [(6, keys(1)[0])]
    with pytest.raises(PagingError):
        rig.pager.claim_host(rig.table(), 0, 0, 6, keys(1)[0], PT)
    with pytest.raises(PagingError):
        rig.pager.claim_host(rig.table(space=2), 0, 0, 4, keys(1)[0], PT)
    rig.pager.check_integrity()


# ---------------------------------------------------------------------------------------------------------------------- the device dies


def test_pages_with_a_host_copy_survive_the_device() -> None:
    rig = Rig(write_behind=True)
    table = rig.grown(3)
    rig.run((table, 3 * PT, 3 * PT + 1))
    rig.plan((table, 3 * PT + 1, 3 * PT + 2))

    rig.pager.lose_device()

    rig.pager.check_integrity()
    assert table.counts() == (0, 3, 1, 0, 0)
    assert table.intact_tokens() == 3 * PT
    assert rig.pager.ledger.snapshot()[0].free_bytes == 2 * SLAB


def test_a_new_device_is_zero_and_holds_no_weights() -> None:
    rig = Rig()
    rig.grown(4, "lab/ann")
    rig.pager.weights[Tier.DEVICE].place("m", "models", (SLAB,))

    rig.pager.lose_device()

    assert rig.run((rig.table("guest"), 0, 8 * PT)).zeros == ()
    rig.pager.weights[Tier.DEVICE].release("m")


# ---------------------------------------------------------------------------------------------------------------------- weights, scrub


def test_weights_lie_one_behind_the_other_on_granules() -> None:
    rig = Rig(device_slabs=4)

    assert rig.pager.weights[Tier.DEVICE].place("m", "models", (20, 64, 16)) == (128, 160, 224)
    assert rig.pager.ledger.snapshot()[0].weights_bytes == 2 * SLAB


def test_weights_go_to_several_runs_when_no_run_is_long_enough() -> None:
    rig = Rig(device_slabs=5)
    rig.pager.weights[Tier.DEVICE].place("high", "models", (SLAB,))
    rig.pager.weights[Tier.DEVICE].place("middle", "models", (SLAB,))
    rig.pager.weights[Tier.DEVICE].place("low", "models", (SLAB,))
    rig.pager.weights[Tier.DEVICE].release("middle")

    offsets = rig.pager.weights[Tier.DEVICE].place("m", "models", (SLAB, 2 * SLAB))

    assert offsets == (3 * SLAB, 0)
    rig.pager.check_integrity()


def test_room_for_weights_is_made_by_evicting_idle_pages() -> None:
    rig = Rig(device_slabs=2)
    table = rig.grown(8)
    with pytest.raises(OutOfFrames):
        rig.pager.weights[Tier.DEVICE].place("m", "models", (SLAB,))

    rig.seq += 1
    plan = rig.pager.plan_room(rig.seq, (SLAB,))
    assert routes(plan.moves) == [DOWN] * 4
    rig.pager.commit(plan.seq)
    rig.run()

    assert rig.pager.weights[Tier.DEVICE].place("m", "models", (SLAB,)) == (SLAB,)
    assert table.counts() == (4, 4, 0, 0, 0)


def test_room_is_not_made_of_running_contexts() -> None:
    rig = Rig(device_slabs=2)
    rig.plan((rig.table(), 0, 8 * PT))

    with pytest.raises(OutOfFrames):
        rig.pager.plan_room(2, (SLAB,))
    with pytest.raises(NeverFits):
        rig.pager.plan_room(2, (3 * SLAB,))
    rig.pager.check_integrity()


def test_claimed_weights_are_where_they_were() -> None:
    rig = Rig(device_slabs=4)
    rig.pager.weights[Tier.DEVICE].claim("m", "models", (SLAB, SLAB), (0, 2 * SLAB))

    with pytest.raises(PagingError):
        rig.pager.weights[Tier.DEVICE].claim("n", "models", (SLAB,), (2 * SLAB,))
    assert rig.pager.weights[Tier.DEVICE].place("n", "models", (SLAB,)) == (3 * SLAB,)
    rig.pager.weights[Tier.DEVICE].release("unknown")


def test_frames_that_held_weights_are_zeroed_for_pages() -> None:
    rig = Rig(device_slabs=1)
    rig.pager.weights[Tier.DEVICE].place("m", "models", (SLAB,))
    rig.pager.weights[Tier.DEVICE].release("m")

    assert len(rig.run((rig.table(), 0, PT)).zeros) == 1


def test_what_a_removed_tenant_left_is_zeroed_with_the_next_plan() -> None:
    rig = Rig(write_behind=True)
    gone, kept = rig.grown(3, "lab/ann"), rig.grown(1, "lab/bob")
    rig.run()
    rig.pager.drop(gone)

    rig.pager.scrub("lab/ann")
    plan = rig.run()

    zeroed = {zero.tier for zero in plan.late_zeros}
    assert zeroed == {Tier.DEVICE, Tier.HOST}
    assert rig.run().late_zeros == ()
    assert kept.counts().device == 1
    assert rig.run((rig.table("guest"), 0, 4 * PT)).zeros == ()
