"""Copies of the coldest pages ahead of need, while few frames of the device are free."""

from __future__ import annotations

from memory.config import MemoryConfig
from memory.page import Space
from memory.pager import Pager
from memory.table import PageTable
from tests.memory.test_pager import DOWN, PT, SLAB, Rig, routes


class AheadRig(Rig):
    """A pager with 16 device frames that looks ahead below 4 free ones, and keeps 8 free or clean."""

    def __init__(self, host_slabs: int = 16) -> None:
        super().__init__()
        self.pager = Pager(
            MemoryConfig(
                device_bytes=4 * SLAB,
                host_bytes=host_slabs * SLAB,
                page_tokens=PT,
                slab_bytes=SLAB,
                granule_bytes=16,
                device_low=0.25,
                device_high=0.5,
            )
        )
        self.pager.open_space(Space(1, PT, 16, 32))

    def partial(self) -> PageTable:
        """A table with a full, named page and a partial one."""
        table = self.grown(1)
        self.run((table, PT, PT + 2))
        return table


def on_host(tables: list[PageTable]) -> list[int]:
    return [sum(table.num_host) for table in tables]


def test_partial_pages_of_the_coldest_tables_are_copied_until_the_high_mark_is_covered() -> None:
    rig = AheadRig()
    tables = [rig.partial() for _ in range(7)]  # two frames are left

    moves = rig.run().moves

    assert routes(moves) == [DOWN] * 3
    assert on_host(tables) == [2, 2, 2, 1, 1, 1, 1], "six clean frames and two free ones"
    assert rig.run().moves == (), "nothing is left to do"


def test_nothing_is_copied_ahead_while_frames_are_free() -> None:
    rig = AheadRig()
    tables = [rig.partial() for _ in range(6)]

    rig.run()

    assert on_host(tables) == [1] * 6


def test_a_fault_that_takes_a_page_copied_ahead_needs_no_copy() -> None:
    rig = AheadRig()
    cold, *_others = [rig.partial() for _ in range(7)]
    rig.run()
    guest = rig.table("guest")

    plan = rig.run((guest, 0, 4 * PT))

    assert cold.counts().host_only == 2
    assert not {move.source_frame for move in plan.moves} & set(guest.frames(0)), "what it copies is ahead of the next fault"


def test_what_finds_no_room_on_the_host_stays_as_it_is() -> None:
    rig = AheadRig(host_slabs=0)
    tables = [rig.partial() for _ in range(7)]

    assert rig.run().moves == ()
    assert on_host(tables) == [0] * 7
