"""Frame pools against a plain model of what is free, used and in limbo."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memory.errors import PagingError
from memory.frames import FramePool
from memory.slabs import Arena


class FramePools(RuleBasedStateMachine):
    """Two pools of different frame sizes on one arena."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(5, 128, 16)
        self.pools = [FramePool(self.arena, 32), FramePool(self.arena, 48)]
        self.used: list[list[int]] = [[], []]
        self.limbo: list[dict[int, int]] = [{}, {}]
        self.seq = 0
        self.bytes: list[set[str]] = [set() for _ in range(5 * 128 // 16)]  # whose, by granule

    @rule(which=st.integers(0, 1))
    def alloc(self, which: int) -> None:
        frame = self.pools[which].alloc()
        if frame is None:
            assert self.arena.num_free == 0
            assert self.pools[which].num_free == 0
            return
        assert frame not in self.used[which]
        assert frame not in self.limbo[which]
        self.used[which].append(frame)

    @rule(which=st.integers(0, 1), number=st.integers(0, 99), owner=st.sampled_from(("ann", "bob", "")))
    def write(self, which: int, number: int, owner: str) -> None:
        """Somebody writes a part of a used frame, or all of it is zeroed."""
        if not self.used[which]:
            return
        pool, frame = self.pools[which], self.used[which][number % len(self.used[which])]
        for granule in range(frame, frame + pool.frame_granules):
            self.bytes[granule] = {owner} | self.bytes[granule] if owner else set()
        pool.set_residue(frame, pool.residue(frame) | {owner} if owner else frozenset())

    @rule()
    def use_for_weights(self) -> None:
        slab = self.arena.lend_run(1)
        if slab is not None:
            for granule in range(slab * 8, slab * 8 + 8):
                self.bytes[granule].add("models")
            self.arena.give_back(slab, self.arena.residue(slab) | {"models"})

    @rule(number=st.integers(0, 4))
    def write_free_slab(self, number: int) -> None:
        if self.arena.is_free(number):
            self.bytes[number * 8].add("stray")
            self.arena.set_residue(number, self.arena.residue(number) | {"stray"})

    @invariant()
    def residues_name_everybody(self) -> None:
        for pool in self.pools:
            for slab in pool.slabs():
                for frame in pool.frames_of(slab):
                    assert pool.residue(frame) >= set().union(*self.bytes[frame : frame + pool.frame_granules])
        for slab in filter(self.arena.is_free, range(5)):
            assert self.arena.residue(slab) >= set().union(*self.bytes[slab * 8 : slab * 8 + 8])

    @rule(which=st.integers(0, 1), number=st.integers(0, 99))
    def free(self, which: int, number: int) -> None:
        if self.used[which]:
            self.pools[which].free(self.used[which].pop(number % len(self.used[which])))

    @rule(which=st.integers(0, 1), number=st.integers(0, 99), step=st.integers(0, 1))
    def defer(self, which: int, number: int, step: int) -> None:
        self.seq += step
        if self.used[which]:
            frame = self.used[which].pop(number % len(self.used[which]))
            self.pools[which].defer(frame, self.seq)
            self.limbo[which][frame] = self.seq

    @precondition(lambda self: any(self.limbo))
    @rule(which=st.integers(0, 1), number=st.integers(0, 99))
    def recall(self, which: int, number: int) -> None:
        if self.limbo[which]:
            frame = list(self.limbo[which])[number % len(self.limbo[which])]
            self.pools[which].recall(frame)
            del self.limbo[which][frame]
            self.used[which].append(frame)

    @rule(back=st.integers(0, 3))
    def retire(self, back: int) -> None:
        for pool, limbo in zip(self.pools, self.limbo, strict=True):
            pool.retire(self.seq - back)
            for frame in [frame for frame, seq in limbo.items() if seq <= self.seq - back]:
                del limbo[frame]

    @invariant()
    def every_frame_is_free_used_or_in_limbo(self) -> None:
        for pool, used, limbo in zip(self.pools, self.used, self.limbo, strict=True):
            assert pool.num_used == len(used)
            assert sorted(pool.limbo()) == sorted(limbo)
            frames = [frame for slab in pool.slabs() for frame in pool.frames_of(slab)]
            free = {frame for frame in frames if pool.is_free(frame)}
            assert free.isdisjoint(used)
            assert free.isdisjoint(limbo)
            assert len(frames) == len(free) + len(used) + len(limbo)  # invariant 1

    @invariant()
    def no_slab_is_held_for_nothing(self) -> None:
        for pool in self.pools:
            assert all(any(not pool.is_free(frame) for frame in pool.frames_of(slab)) for slab in pool.slabs())  # invariant 3

    @invariant()
    def frames_do_not_overlap(self) -> None:
        taken = [granule for which, size in enumerate((2, 3)) for frame in self.used[which] for granule in range(frame, frame + size)]
        assert len(taken) == len(set(taken))


TestFramePools = FramePools.TestCase
TestFramePools.settings = settings(max_examples=50, stateful_step_count=40)


def pool() -> FramePool:
    return FramePool(Arena(3, 128, 16), 48)


def test_a_frame_in_limbo_is_free_once_its_plan_has_finished() -> None:
    frames = pool()
    frame = frames.alloc()
    assert frame is not None
    frames.defer(frame, 7)

    frames.retire(6)
    assert frames.is_limbo(frame)

    frames.retire(7)
    assert frames.num_slabs == 0


def test_a_frame_cannot_be_freed_twice() -> None:
    frames = pool()
    frame = frames.alloc()
    other = frames.alloc()
    assert frame is not None
    assert other is not None
    frames.free(frame)

    with pytest.raises(PagingError):
        frames.free(frame)
    with pytest.raises(PagingError):
        frames.defer(frame, 1)


def test_a_frame_remembers_whose_bytes_it_holds_and_its_slab_tells_the_arena() -> None:
    arena = Arena(1, 128, 16)
    frames = FramePool(arena, 48)
    frame = frames.alloc()
    assert frame is not None
    frames.set_residue(frame, frozenset({"lab"}))

    frames.free(frame)

    assert arena.residue(0) == frozenset({"lab"})


def test_frames_of_a_slab_inherit_what_another_space_left_in_it() -> None:
    arena = Arena(1, 128, 16)
    small, large = FramePool(arena, 16), FramePool(arena, 64)
    frame = small.alloc()
    assert frame is not None
    small.set_residue(frame, frozenset({"lab"}))
    small.free(frame)

    taken = large.alloc()

    assert taken is not None
    assert large.residue(taken) == frozenset({"lab"})
    assert large.is_inherited(taken)


def test_a_certain_frame_can_be_taken_once() -> None:
    frames = pool()
    frames.take(8 + 3)

    with pytest.raises(PagingError):
        frames.take(8 + 3)
    with pytest.raises(PagingError, match="grid"):
        frames.take(8 + 1)


def test_aborted_plans_are_not_waited_for() -> None:
    frames = pool()
    frame = frames.alloc()
    assert frame is not None
    frames.defer(frame, 9)

    frames.rewind(5)
    frames.retire(5)

    assert frames.num_limbo == 0


def test_a_frame_larger_than_a_slab_is_refused() -> None:
    with pytest.raises(ValueError, match="spans"):
        FramePool(Arena(1, 128, 16), 144)


def test_a_pool_goes_on_with_the_slab_that_it_gave_back_last() -> None:
    pool = FramePool(Arena(2, 64, 16), 32)
    first = pool.alloc()
    assert first is not None
    pool.set_residue(first, frozenset({"ann"}))
    pool.free(first)
    assert (pool.num_slabs, pool.num_free) == (0, 0), "the arena has the slab"

    pool.take(first)

    assert [pool.residue(frame) for frame in pool.frames_of(0)] == [{"ann"} if frame == first else set() for frame in pool.frames_of(0)]


@pytest.mark.parametrize("how", ["another pool", "weights", "zeros"])
def test_a_slab_that_somebody_touched_is_not_the_one_that_was_given_back(how: str) -> None:
    arena = Arena(1, 64, 16)
    pool, other = FramePool(arena, 32), FramePool(arena, 16)
    first = pool.alloc()
    assert first is not None
    pool.set_residue(first, frozenset({"ann"}))
    pool.free(first)

    if how == "another pool":
        frame = other.alloc()
        assert frame is not None
        other.free(frame)
    elif how == "weights":
        arena.lend_run(1)
        arena.give_back(0, arena.residue(0) | {"models"})
    else:
        arena.set_residue(0, frozenset())
    pool.take(first)

    expected = {"another pool": {"ann"}, "weights": {"ann", "models"}, "zeros": set()}[how]
    assert [pool.residue(frame) for frame in pool.frames_of(0)] == [expected, expected]
