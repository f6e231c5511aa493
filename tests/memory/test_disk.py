"""The disk tier: pages that leave the host tier, come back, and what is punched out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memory.config import MemoryConfig
from memory.errors import OutOfFrames, PagingError
from memory.page import Space, Tier, Transfer
from memory.pager import Pager
from memory.table import PageTable, TableCounts
from tests.memory.test_pager import PT, SLAB, UP, Rig, keys, routes

HOST_FRAME = 32  # of space 1, on the host and on disk; two in a slab


class DiskRig(Rig):
    """A pager with a disk tier; pages are copied to the host tier behind."""

    def __init__(
        self, device_slabs: int = 4, host_slabs: int = 4, disk_slabs: int = 8, *, low: float = 0.3, high: float = 0.6, clean: float = 0.5
    ) -> None:
        super().__init__()
        self.pager = Pager(
            MemoryConfig(
                device_bytes=device_slabs * SLAB,
                host_bytes=host_slabs * SLAB,
                page_file_bytes=disk_slabs * SLAB,
                page_tokens=PT,
                slab_bytes=SLAB,
                granule_bytes=16,
                host_low=low,
                host_high=high,
                host_clean=clean,
            )
        )
        self.pager.open_space(Space(1, PT, 16, 32))
        self.pager.open_space(Space(2, PT, 32, 64))

    def settle(self, transfers: list[Transfer], ok: bool = True) -> None:
        for transfer in transfers:
            self.pager.transferred(transfer.ticket, ok)
        self.pager.check_integrity()

    def spilled(self, max_bytes: int = 1 << 20) -> list[Transfer]:
        """Let pages go to disk, all the way."""
        transfers = self.pager.spill(max_bytes)
        self.settle(transfers)
        return transfers

    def on_host(self, num_pages: int, owner: str = "lab/ann") -> PageTable:
        """A table whose pages are on the device and on the host."""
        table = self.grown(num_pages, owner)
        self.run()
        return table

    def far(self, num_pages: int, owner: str = "lab/ann") -> PageTable:
        """A table whose pages are on disk alone."""
        table = self.on_host(num_pages, owner)
        self.pager.bury(table, num_pages * PT, keys(num_pages), b"")
        self.spilled()
        assert self.pager.is_buried(table)
        return table

    def punch(self) -> list[int]:
        taken = [frame for frame, _size in self.pager.take_freed_disk()]
        for frame in taken:
            self.pager.punched(frame)
        return taken

    def free_disk(self) -> int:
        return next(each.free_bytes for each in self.pager.ledger.snapshot() if each.tier is Tier.DISK)


def counts(device: int = 0, host_only: int = 0, lost: int = 0, shared: int = 0, disk_only: int = 0) -> TableCounts:
    return TableCounts(device, host_only, lost, shared, disk_only)


# ---------------------------------------------------------------------------------------------------------------------- host to disk


def test_nothing_spills_while_the_host_tier_has_room() -> None:
    rig = DiskRig()
    rig.on_host(5)  # of 8 frames

    assert rig.pager.spill(1 << 20) == []


def test_the_coldest_pages_go_to_disk_until_the_high_mark_is_reached() -> None:
    rig = DiskRig()
    cold, warm = rig.on_host(4), rig.on_host(3)  # one frame of 8 is left, below the low mark

    transfers = rig.spilled()

    assert len(transfers) == 4  # the high mark is 4.8 frames: 3.8 are missing
    assert [transfer.is_fetch for transfer in transfers] == [False] * 4
    assert [page.key for page in reversed(cold.pages[0])] == [transfer.key for transfer in transfers]
    assert (cold.num_host, warm.num_host) == ([0], [3])
    assert cold.counts() == counts(device=4), "the copies on disk are below: nothing is lost"
    assert rig.pager.spill(1 << 20) == []


def test_suspended_tables_spill_before_idle_ones() -> None:
    rig = DiskRig()
    idle, suspended = rig.on_host(4), rig.on_host(3)
    rig.pager.suspend(suspended)

    rig.spilled(3 * HOST_FRAME)

    assert (idle.num_host, suspended.num_host) == ([4], [0])


def test_a_page_keeps_its_host_copy_until_it_is_on_disk() -> None:
    rig = DiskRig()
    table = rig.on_host(7)
    (transfer,) = rig.pager.spill(HOST_FRAME)

    assert (sum(table.num_host), table.pages[0][6].disk_frame) == (7, None)
    assert rig.pager.spill(HOST_FRAME) != [transfer], "nor is it given twice"


def test_a_transfer_that_fails_leaves_the_page_as_it_was() -> None:
    rig = DiskRig()
    table = rig.on_host(7)
    transfers = rig.pager.spill(2 * HOST_FRAME)

    rig.settle(transfers, ok=False)

    assert (sum(table.num_host), sum(table.num_saved)) == (7, 0)
    assert sorted(rig.punch()) == sorted(transfer.disk_frame for transfer in transfers), "what was written is punched out"


def test_a_page_that_dies_on_its_way_leaves_nothing() -> None:
    rig = DiskRig()
    table = rig.on_host(7)
    transfers = rig.pager.spill(1 << 20)
    rig.pager.drop(table)
    rig.pager.check_integrity()

    rig.settle(transfers)
    rig.punch()

    arenas = rig.pager._mapping.arenas
    assert all(arena.num_free == arena.num_slabs for arena in arenas.values())


def test_a_page_that_is_written_on_its_way_is_not_taken_for_the_one_on_disk() -> None:
    rig = DiskRig()
    table = rig.on_host(7)
    transfers = rig.pager.spill(HOST_FRAME)

    rig.run((table, 6 * PT, 7 * PT))
    rig.settle(transfers)

    page = table.pages[0][6]
    assert (page.host_frame, page.disk_frame, page.num_tokens) == (None, None, 0)


def test_an_abort_brings_back_a_host_copy_whose_transfer_ended_meanwhile() -> None:
    rig = DiskRig()
    table = rig.on_host(7)
    page = table.pages[0][6]
    before = page.host_frame, page.key, page.num_tokens
    transfers = rig.pager.spill(HOST_FRAME)
    plan = rig.plan((table, 6 * PT, 7 * PT))
    rig.settle(transfers)

    rig.pager.abort(plan.seq)
    rig.pager.check_integrity()

    assert (page.host_frame, page.key, page.num_tokens) == before


def test_a_full_disk_ends_spilling_and_the_host_tier_loses_pages_again() -> None:
    rig = DiskRig(device_slabs=2, disk_slabs=1)
    rig.on_host(7)
    assert len(rig.spilled()) == 2
    assert rig.pager.spill(1 << 20) == []

    tables = [rig.grown(8, owner) for owner in ("lab/bob", "guest")]

    assert sum(table.counts().lost for table in tables) > 0


def test_a_full_disk_gives_up_second_copies_of_warmer_pages() -> None:
    rig = DiskRig(disk_slabs=1)
    warm = rig.far(2)
    rig.settle(rig.pager.fetch(warm, 2 * PT))
    cold = rig.on_host(2)
    rig.run((warm, 2 * PT, 2 * PT))
    rig.pager.bury(cold, 2 * PT, keys(2), b"")
    assert rig.pager.spill(1 << 20) == []

    assert len(rig.punch()) == 2
    rig.spilled()

    assert (warm.counts(), cold.counts()) == (counts(device=2), counts(disk_only=2))


def test_host_copies_that_are_on_disk_go_before_any_page_is_lost() -> None:
    rig = DiskRig(device_slabs=2, low=0.0, high=0.0)
    cold, warm = rig.grown(4), rig.grown(4, "lab/bob")
    rig.run()
    rig.pager.bury(warm, 4 * PT, keys(4), b"")
    rig.spilled()
    rig.settle(rig.pager.fetch(warm, 4 * PT))  # warm: host and disk; cold: device and host
    rig.pager.unfetch(warm)
    taker = rig.grown(8, "guest")  # takes the device, and then the host frames that cost nothing
    rig.run()

    assert (cold.counts().lost, warm.counts().lost, taker.counts().device) == (0, 0, 8)
    assert warm.counts().disk_only > 0


def test_an_owner_at_its_limit_gives_up_its_own_coldest_pages() -> None:
    rig = DiskRig(device_slabs=8, host_slabs=8)
    rig.pager.ledger.set_limit("lab/ann", Tier.DISK, 0, 2 * HOST_FRAME)
    old, new = rig.far(2), rig.on_host(2)
    rig.pager.bury(new, 2 * PT, keys(2), b"")

    rig.spilled()

    assert (old.counts(), new.counts()) == (counts(lost=2), counts(disk_only=2))
    assert rig.pager.ledger.used("lab/ann", Tier.DISK) == 2 * HOST_FRAME


def test_a_limit_that_is_lowered_below_use_takes_the_coldest_pages() -> None:
    rig = DiskRig()
    cold, warm, other = rig.far(2), rig.far(3), rig.far(1, "guest")
    rig.pager.ledger.set_limit("lab/ann", Tier.DISK, 0, 2 * HOST_FRAME)

    assert rig.pager.spill(1 << 20) == []
    rig.pager.check_integrity()

    assert (cold.counts(), warm.counts(), other.counts()) == (counts(lost=2), counts(lost=1, disk_only=2), counts(disk_only=1))
    assert warm.intact_tokens() == 2 * PT


# ---------------------------------------------------------------------------------------------------------------------- disk to host


def test_far_pages_are_intact_and_not_at_hand() -> None:
    rig = DiskRig()
    table = rig.far(3)

    assert table.counts() == counts(disk_only=3)
    assert (table.intact_tokens(), table.at_hand_tokens()) == (3 * PT, 0)
    with pytest.raises(PagingError, match="has to be fetched first"):
        rig.plan((table, 3 * PT, 3 * PT + 1))


def test_fetched_pages_are_promoted_and_stay_on_disk() -> None:
    rig = DiskRig()
    table = rig.far(3)

    transfers = rig.pager.fetch(table, 3 * PT)
    assert [transfer.key for transfer in transfers] == [page.key for page in table.pages[0]]
    assert rig.pager.num_fetching(table, 3 * PT) == 3
    assert rig.pager.fetch(table, 3 * PT) == [], "they are on their way already"
    rig.settle(transfers)

    assert (table.at_hand_tokens(), rig.pager.num_fetching(table, 3 * PT)) == (3 * PT, 0)
    assert routes(rig.run((table, 3 * PT, 3 * PT)).moves) == [UP] * 3
    assert table.num_saved == [3]


def test_a_copy_on_disk_that_does_not_hold_is_given_up() -> None:
    rig = DiskRig()
    table = rig.far(3)
    first, *others = rig.pager.fetch(table, 3 * PT)

    rig.settle([first], ok=False)
    rig.settle(others)

    assert (table.counts(), table.intact_tokens()) == (counts(host_only=2, lost=1), 0)
    assert rig.punch() == [first.disk_frame]


def test_leading_pages_are_fetched_as_far_as_the_host_tier_has_room() -> None:
    rig = DiskRig(host_slabs=2)
    table = rig.far(3)
    other = rig.on_host(3, "lab/bob")
    rig.pager.hold_host(other)

    transfers = rig.pager.fetch(table, 3 * PT)

    assert [transfer.key for transfer in transfers] == [table.pages[0][0].key]


def test_a_fetch_that_may_lose_nothing_takes_free_frames_and_clean_copies_alone() -> None:
    rig = DiskRig(host_slabs=2, low=0.0, high=0.0)  # 4 frames on the host
    table, clean, cold = rig.far(4), rig.far(2, "lab/bob"), rig.table("guest")
    rig.settle(rig.pager.fetch(clean, 2 * PT))
    rig.pager.unfetch(clean)
    rig.pager.reserve_host(cold, 0, 0, b"c" * 16, PT)

    assert len(rig.pager.fetch(table, 4 * PT, may_lose=False)) == 3
    assert (cold.counts(), clean.counts()) == (counts(host_only=1), counts(disk_only=2))
    assert len(rig.pager.fetch(table, 4 * PT)) == 1
    assert cold.counts() == counts(lost=1)


def test_fetched_pages_are_kept_until_they_are_wanted_or_nobody_waits() -> None:
    rig = DiskRig(device_slabs=1, host_slabs=2)
    table = rig.far(4)
    rig.settle(rig.pager.fetch(table, 4 * PT))

    rig.grown(4, "lab/bob")
    rig.grown(4, "lab/bob")
    assert table.at_hand_tokens() == 4 * PT
    rig.pager.unfetch(table)
    rig.grown(4, "lab/bob")

    assert table.counts().disk_only > 0


def test_a_page_that_is_dropped_while_it_is_fetched_frees_all_its_frames_in_the_end() -> None:
    rig = DiskRig()
    table = rig.far(3)
    transfers = rig.pager.fetch(table, 3 * PT)
    rig.pager.drop(table)
    assert rig.pager.take_freed_disk() == [], "the front reads them"

    rig.settle(transfers)

    assert len(rig.punch()) == 3
    assert all(arena.num_free == arena.num_slabs for arena in rig.pager._mapping.arenas.values())


@pytest.mark.parametrize("is_fetch", [True, False])
def test_what_a_removed_tenant_leaves_in_transfers_is_zeroed_when_they_have_ended(is_fetch: bool) -> None:
    rig = DiskRig()
    table = rig.far(2) if is_fetch else rig.on_host(6)
    transfers = rig.pager.fetch(table, 2 * PT) if is_fetch else rig.pager.spill(2 * HOST_FRAME)
    rig.pager.drop(table)
    rig.pager.scrub("lab/ann")
    rig.run()

    rig.settle(transfers)
    plan = rig.run()

    zeroed = {zero.frame for zero in plan.late_zeros if zero.tier is Tier.HOST}
    assert {transfer.host_frame for transfer in transfers} <= zeroed


def test_a_frame_is_not_used_again_before_it_was_punched() -> None:
    rig = DiskRig(disk_slabs=1)
    rig.pager.drop(rig.far(2))
    table = rig.on_host(2)
    rig.pager.bury(table, 2 * PT, keys(2), b"")
    taken = rig.pager.take_freed_disk()

    assert rig.pager.spill(1 << 20) == []
    for frame, size in taken:
        assert size == HOST_FRAME
        rig.pager.punched(frame)

    assert len(rig.spilled()) == 2
    with pytest.raises(PagingError, match="was not to be punched"):
        rig.pager.punched(taken[0][0])


# ---------------------------------------------------------------------------------------------------------------------- buried


def test_a_buried_table_leaves_device_and_host_with_its_partial_page() -> None:
    rig = DiskRig()
    table = rig.table()
    rig.run((table, 0, 2 * PT + 3))

    rig.pager.bury(table, 2 * PT + 3, keys(2), b"p" * 16)
    assert rig.pager.has_backlog()
    rig.run()
    rig.spilled()

    assert rig.pager.is_buried(table)
    assert table.counts() == counts(disk_only=3)
    assert [(page.key, page.num_tokens) for page in table.pages[0]] == [*((key, PT) for key in keys(2)), (b"p" * 16, 3)]
    assert not rig.pager.has_backlog()


def test_pages_that_others_use_stay_when_a_table_is_buried() -> None:
    rig = DiskRig()
    parent = rig.on_host(3)
    child = rig.pager.fork(parent, 2 * PT)

    rig.pager.bury(parent, 3 * PT, keys(3), b"")
    rig.spilled()

    assert rig.pager.is_buried(parent)
    assert (child.counts().device, parent.counts().disk_only) == (2, 1)


@pytest.mark.parametrize("end", [Pager.commit, Pager.abort])
def test_a_burial_waits_for_plans_that_name_its_pages(end: Callable[[Pager, int], None]) -> None:
    rig = DiskRig()
    table = rig.on_host(3)
    plan = rig.plan((table, 3 * PT, 3 * PT))
    rig.pager.bury(table, 3 * PT, keys(3), b"")
    rig.spilled()
    assert not rig.pager.is_buried(table)

    end(rig.pager, plan.seq)

    assert rig.pager.is_buried(table)


def test_a_burial_needs_a_disk_tier() -> None:
    rig = Rig()
    with pytest.raises(PagingError, match="set memory"):
        rig.pager.bury(rig.grown(2), 2 * PT, keys(2), b"")


def test_whoever_resumes_a_buried_table_ends_it() -> None:
    rig = DiskRig()
    table = rig.on_host(3)
    rig.pager.bury(table, 3 * PT, keys(3), b"")

    rig.pager.resume(table)

    assert rig.pager.spill(1 << 20) == []
    assert not rig.pager.is_buried(table)


# ---------------------------------------------------------------------------------------------------------------------- adoption, deaths


def test_a_restarted_front_claims_pages_on_disk_also_beside_their_host_copies() -> None:
    rig = DiskRig()
    table = rig.table()
    key = keys(2)
    rig.pager.claim_host(table, 0, 0, 4, key[0], PT)

    rig.pager.claim_disk(table, 0, 0, 2, key[0], PT)
    rig.pager.claim_disk(table, 0, 1, 4, key[1], PT)
    rig.pager.check_integrity()

    assert table.counts() == counts(host_only=1, disk_only=1)
    assert (table.num_saved, table.reach) == ([1], 2 * PT)
    with pytest.raises(PagingError):
        rig.pager.claim_disk(table, 0, 2, 4, b"x" * 16, PT)


def test_transfers_go_on_when_the_worker_dies() -> None:
    rig = DiskRig()
    table = rig.on_host(7)
    transfers = rig.pager.spill(HOST_FRAME)

    rig.pager.lose_device()
    rig.settle(transfers)

    assert table.counts() == counts(host_only=6, disk_only=1)


def test_a_copy_that_is_read_stays_the_readers_when_its_page_died_and_a_plan_found_it_corrupt() -> None:
    rig = DiskRig(device_slabs=1, low=1.0, high=1.0)
    table = rig.on_host(2)
    rig.grown(4, "lab/bob")
    transfers = rig.pager.spill(2 * HOST_FRAME)
    plan = rig.plan((table, 2 * PT, 2 * PT))
    assert {transfer.host_frame for transfer in transfers} == {move.source_frame for move in plan.moves if move.target_tier is Tier.DEVICE}
    rig.pager.drop(table)

    rig.pager.abort(plan.seq)
    rig.pager.corrupt([move for move in plan.moves if move.target_tier is Tier.DEVICE])
    rig.pager.check_integrity()

    rig.settle(transfers, ok=False)


def test_a_transfer_is_settled_once() -> None:
    rig = DiskRig()
    rig.on_host(7)
    (transfer,) = rig.pager.spill(HOST_FRAME)
    rig.settle([transfer])

    with pytest.raises(PagingError, match="not on its way"):
        rig.pager.transferred(transfer.ticket, True)


def test_integrity_is_checked_in_slices_and_ends_when_the_books_move_on() -> None:
    rig = DiskRig(device_slabs=4)
    rig.on_host(6)
    steps = rig.pager.integrity_steps()
    next(steps)
    rig.grown(1)

    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value is False, "nothing can be said"


def test_without_room_there_is_an_error_and_nothing_is_fetched() -> None:
    rig = DiskRig(device_slabs=1, host_slabs=2)
    table = rig.far(2)
    rig.settle(rig.pager.fetch(table, 2 * PT))

    with pytest.raises(OutOfFrames):
        rig.plan((table, 2 * PT, 5 * PT))

    assert table.at_hand_tokens() == 2 * PT


def test_transfers_of_a_space_that_is_closed_end_without_a_trace() -> None:
    rig = DiskRig()
    far, near = rig.far(2), rig.on_host(4)
    transfers = rig.pager.fetch(far, 2 * PT)
    rig.pager.bury(near, 4 * PT, keys(4), b"")
    transfers += rig.pager.spill(1 << 20)
    assert len(transfers) == 6

    rig.pager.close_space(1)
    rig.pager.check_integrity()
    rig.settle(transfers)
    rig.punch()
    rig.pager.drop(far)
    rig.pager.drop(near)
    rig.run()

    assert all(arena.num_free == arena.num_slabs for arena in rig.pager._mapping.arenas.values())


# ---------------------------------------------------------------------------------------------------------------------- ahead of need


def ahead(rig: DiskRig, max_bytes: int = 1 << 20) -> list[Transfer]:
    """Let copies go to disk ahead of need, all the way."""
    transfers = rig.pager.spill(1 << 20, max_bytes)
    rig.settle(transfers)
    return transfers


def test_copies_go_to_disk_ahead_of_need_and_stay_on_the_host() -> None:
    rig = DiskRig(clean=0.75)
    cold, warm = rig.on_host(3), rig.on_host(2)  # 3 frames of 8 are free, and 6 are to cost nothing

    transfers = ahead(rig)

    assert [transfer.key for transfer in transfers] == [page.key for page in cold.pages[0]], "a beginning is worth more after a restart"
    assert (cold.num_host, cold.num_saved, warm.num_saved) == ([3], [3], [0])
    assert ahead(rig) == [], "each is written once"


def test_a_host_tier_with_enough_free_frames_writes_nothing_ahead() -> None:
    rig = DiskRig(clean=0.5)
    rig.on_host(4)

    assert ahead(rig) == []


def test_nothing_goes_ahead_beyond_what_is_asked_for() -> None:
    rig = DiskRig(clean=1.0)
    rig.on_host(5)

    assert (ahead(rig, 0), len(ahead(rig, 2 * HOST_FRAME))) == ([], 2)


def test_what_goes_due_goes_before_what_goes_ahead() -> None:
    rig = DiskRig(clean=1.0)
    idle, buried = rig.on_host(3), rig.on_host(2)
    rig.pager.bury(buried, 2 * PT, keys(2), b"")

    assert len(ahead(rig)) == 2
    assert rig.pager.is_buried(buried)
    assert idle.num_saved == [0]


def test_a_burst_takes_clean_copies_and_loses_no_page() -> None:
    rig = DiskRig(device_slabs=2, low=0.0, high=0.0, clean=1.0)  # device: 8 frames
    tables = []
    for owner in ("lab/ann", "lab/bob"):
        tables.append(rig.on_host(4, owner))
        ahead(rig)

    burst = [rig.grown(4, owner) for owner in ("guest", "lab/ann", "lab/bob")]

    assert [table.counts().lost for table in [*tables, *burst]] == [0] * 5


def test_a_partial_page_goes_ahead_only_with_a_suspended_context() -> None:
    rig = DiskRig(clean=1.0)
    table = rig.table()
    rig.run((table, 0, PT + 2))
    rig.pager.save(table, PT + 2, keys(1), b"p" * 16)
    rig.run()

    assert [transfer.num_tokens for transfer in ahead(rig)] == [PT]
    rig.pager.suspend(table)
    assert [transfer.num_tokens for transfer in ahead(rig)] == [2]


def test_a_limit_on_disk_and_a_full_disk_end_what_goes_ahead_and_no_other_copy_goes_for_it() -> None:
    rig = DiskRig(disk_slabs=4, low=0.0, high=0.25, clean=1.0)  # disk: 8 frames, of which 2 are left alone
    rig.pager.ledger.set_limit("guest", Tier.DISK, 0, HOST_FRAME)
    old = rig.far(4)
    guest, table = rig.on_host(2, "guest"), rig.on_host(4)

    assert len(ahead(rig)) == 2
    assert ahead(rig) == []

    assert (guest.num_saved, table.num_saved, old.counts()) == ([1], [1], counts(disk_only=4))


def test_weights_in_the_host_tier_are_no_room_for_clean_copies() -> None:
    rig = DiskRig(low=0.0, high=0.0, clean=0.5)
    rig.pager.weights[Tier.HOST].place("m", "models", (2 * SLAB,))
    rig.on_host(2)

    assert ahead(rig) == [], "half of what is left is free"


def test_no_page_of_whoever_holds_most_is_lost_while_anybody_has_clean_copies() -> None:
    rig = DiskRig(device_slabs=2, low=0.0, high=0.0, clean=0.5)
    clean = rig.on_host(2, "lab/bob")
    rig.pager.bury(clean, 2 * PT, keys(2), b"")
    rig.spilled()
    rig.settle(rig.pager.fetch(clean, 2 * PT))
    greedy = [rig.grown(count) for count in (4, 4, 4, 2)]  # with those two, all frames of device and host
    rig.pager.unfetch(clean)
    assert (clean.counts(), sum(table.counts().host_only for table in greedy)) == (counts(host_only=2), 6)

    taker = rig.grown(2, "guest")

    assert [table.counts().lost for table in (clean, *greedy, taker)] == [0] * 6
    assert clean.counts() == counts(disk_only=2)
