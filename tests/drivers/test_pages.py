"""Page copies of the CPU driver, natively and one by one: the same frames, the same refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from drivers.arena import Arena, FrameShape
from drivers.contract import CopyTimes, Plan
from drivers.errors import PageCorrupt, PlanRejected
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.native.pages import NativePages, native_pages
from drivers.ops.table import fused_table
from drivers.page_header import HEADER_BYTES
from drivers.pages import MEASURED_FRAME_BYTES, PageMover, fastest_mover
from memory.page import Move, Tier

GRANULE = 4096
SHAPE = FrameShape(1, 4, 1, 512, 4 * GRANULE, torch.float32)
HOST_GRANULES = host_frame_bytes(SHAPE.size_bytes, GRANULE) // GRANULE
SPACES = {7: SHAPE}
NUM_FRAMES = 8
DOWN, UP = (Tier.DEVICE, Tier.HOST), (Tier.HOST, Tier.DEVICE)


class Rig:
    """An arena of eight frames, each filled with its own byte, and a host tier of as many."""

    def __init__(self, native: NativePages | None) -> None:
        self.arena = Arena(NUM_FRAMES * SHAPE.size_bytes, GRANULE)
        self.host = HostMemory.create(NUM_FRAMES * HOST_GRANULES * GRANULE, GRANULE)
        self.host.boot_generation = 3
        self.mover = PageMover(self.arena, self.host, fused_table(), native)
        for idx in range(NUM_FRAMES):
            self.arena.frame(4 * idx, SHAPE.size_bytes)[:] = bytes([idx + 1]) * SHAPE.size_bytes

    def move(self, route: tuple[Tier, Tier], source: int, target: int, page: int, num_tokens: int = 4) -> Move:
        """Copy page number `page`, between frames by number."""
        size = {Tier.DEVICE: 4, Tier.HOST: HOST_GRANULES}
        return Move(7, route[0], source * size[route[0]], route[1], target * size[route[1]], key(page), num_tokens)

    def run(self, *moves: Move) -> None:
        plan = Plan(1, 1, moves=moves)
        self.mover.check(plan, SPACES)
        self.mover.carry_out(plan, SPACES)

    def content(self, frame: int) -> set[int]:
        """The bytes that a device frame holds."""
        return set(self.arena.frame(4 * frame, SHAPE.size_bytes).tobytes())

    def image(self, frame: int) -> bytes:
        """A host frame, header and all."""
        return bytes(self.host.span(frame * HOST_GRANULES * GRANULE, HOST_GRANULES * GRANULE))


def key(page: int) -> bytes:
    return f"page {page:011}".encode()


@pytest.fixture(params=[native_pages(), None], ids=["native", "one by one"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(request.param)
    yield made
    made.host.close()


def test_a_page_goes_down_and_comes_back(rig: Rig) -> None:
    rig.run(rig.move(DOWN, 2, 5, 1, num_tokens=3))
    rig.run(rig.move(UP, 5, 6, 1))

    header = rig.host.peek(5 * HOST_GRANULES)
    assert rig.content(6) == {3}
    assert header is not None
    assert (header.key, header.space_id, header.num_tokens, header.boot_generation) == (key(1), 7, 3, 3)


def test_both_ways_of_copying_leave_the_same_bytes() -> None:
    images = []
    for native in (native_pages(), None):
        made = Rig(native)
        made.run(made.move(DOWN, 2, 5, 1, num_tokens=3), made.move(DOWN, 0, 1, 2))
        images.append([made.image(frame) for frame in range(NUM_FRAMES)])
        made.host.close()

    assert images[0] == images[1]


def test_moves_are_made_in_order_through_the_same_frame(rig: Rig) -> None:
    across = Move(7, Tier.DEVICE, 0, Tier.DEVICE, 4 * 4, b"", 4)

    rig.run(
        rig.move(DOWN, 0, 0, 10),
        rig.move(DOWN, 1, 1, 11),
        rig.move(UP, 1, 0, 11),  # frame 0 holds page 11 now
        across,
        rig.move(UP, 0, 1, 10),  # and frame 1 page 10
        rig.move(DOWN, 0, 2, 12),
    )

    assert [rig.content(frame) for frame in (0, 1, 4)] == [{2}, {1}, {2}]
    assert rig.image(2)[HEADER_BYTES] == 2


@pytest.mark.parametrize("at", [0, 9, 20, 33, 41, 57, 100, 125, HEADER_BYTES, HEADER_BYTES + SHAPE.size_bytes - 1])
def test_a_page_with_a_flipped_byte_is_named_and_does_not_arrive(rig: Rig, at: int) -> None:
    rig.run(rig.move(DOWN, 0, 0, 10), rig.move(DOWN, 1, 1, 11))
    span = rig.host.span(at, 1)
    span[0] ^= 1
    del span

    with pytest.raises(PageCorrupt) as corrupt:
        rig.run(rig.move(UP, 0, 4, 10), rig.move(UP, 1, 5, 11))

    assert corrupt.value.move_idxs == (0,)
    assert (rig.content(4), rig.content(5)) == ({5}, {2})


def test_a_page_of_another_name_or_space_does_not_arrive(rig: Rig) -> None:
    rig.run(rig.move(DOWN, 0, 0, 10))
    other = rig.move(UP, 0, 4, 10)._replace(space_id=8)

    with pytest.raises(PageCorrupt) as by_name:
        rig.run(rig.move(UP, 0, 4, 99))
    with pytest.raises(PageCorrupt) as by_space:
        rig.mover.carry_out(Plan(1, 1, moves=(other,)), {**SPACES, 8: SHAPE})

    assert (by_name.value.move_idxs, by_space.value.move_idxs) == ((0,), (0,))
    assert rig.content(4) == {5}


def test_what_was_copied_is_told_once_by_direction(rig: Rig) -> None:
    rig.run(rig.move(DOWN, 0, 0, 10), rig.move(DOWN, 1, 1, 11), rig.move(UP, 0, 4, 10))

    times = rig.mover.copied()

    assert (times.down_bytes, times.up_bytes) == (2 * SHAPE.size_bytes, SHAPE.size_bytes)
    assert times.down_s > 0.0
    assert times.up_s > 0.0
    assert rig.mover.copied() == CopyTimes()


@pytest.mark.parametrize(
    ("move", "complaint"),
    [
        (Move(7, Tier.DEVICE, 29, Tier.HOST, 0, bytes(16), 4), "Frame 29 of space 7"),
        (Move(7, Tier.HOST, -1, Tier.DEVICE, 0, bytes(16), 4), "Frame -1 of space 7"),
        (Move(7, Tier.DEVICE, 0, Tier.HOST, 0, b"short", 4), "named by 16 bytes"),
        (Move(7, Tier.HOST, 0, Tier.HOST, 0, bytes(16), 4), "inside the host tier"),
        (Move(7, Tier.DISK, 0, Tier.DEVICE, 0, bytes(16), 4), "disk tier"),
        (Move(9, Tier.DEVICE, 0, Tier.HOST, 0, bytes(16), 4), "Space 9"),
    ],
)
def test_moves_that_cannot_be_are_refused_before_any_is_made(rig: Rig, move: Move, complaint: str) -> None:
    with pytest.raises(PlanRejected, match=complaint):
        rig.run(rig.move(DOWN, 0, 0, 10), move)

    assert rig.host.peek(0) is None


def test_the_measurement_at_open_tells_bytes_and_leaves_the_arena_zero() -> None:
    arena = Arena(4 * MEASURED_FRAME_BYTES, GRANULE)
    host = HostMemory.create(GRANULE, GRANULE)

    told = fastest_mover(arena, host, fused_table()).copied()

    assert (told.up_bytes, told.down_bytes) == (arena.size_bytes, arena.size_bytes)
    assert told.up_s > 0.0
    assert not arena.bytes.any()
    assert host.peek(0) is None
    host.close()


def test_without_a_host_tier_there_is_nothing_to_measure() -> None:
    assert fastest_mover(Arena(GRANULE, GRANULE), None, fused_table()).copied() == CopyTimes()
