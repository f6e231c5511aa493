"""The frames of one space in one tier.

                   alloc, take                       a page took it
        FREE  ---------------------->  USED          (mapped, or the target of a move in flight: the pager knows which)
         ^ ^           free             | ^
         | '----------------------------' |
         |                          defer | | recall: the plan that freed it was aborted, or uses it again
         |     retire: no plan            v |
         '------ names it ------------  LIMBO

A frame that a plan on its way may still name goes to limbo with the number of the newest plan, and is free once that plan has finished.
A slab whose frames are all free goes back to the arena; the pool remembers them, and goes on with them if it gets the slab again before
anybody else did: at a border between two slabs, alloc and free cost no more than inside one. Frames come from the fullest slab that has one
(`memory.openslabs`).

Invariants
1. Every frame of every slab held is free, used or in limbo: exactly one.
2. Numbers in limbo do not fall, so `retire` looks only at what it frees.
3. No slab is held whose frames are all free.
4. What is remembered of a slab is used only while the arena's stamp says that nobody had or wrote the slab since.
"""

from __future__ import annotations

from collections import OrderedDict

from memory.errors import PagingError
from memory.openslabs import OpenSlabs
from memory.slabframes import SlabFrames
from memory.slabs import CLEAN, Arena


class FramePool:
    """Gives and takes the frames of one space in one tier."""

    def __init__(self, arena: Arena, frame_bytes: int) -> None:
        if frame_bytes <= 0 or frame_bytes % arena.granule_bytes:
            raise ValueError(f"a frame of {frame_bytes} bytes is not whole granules of {arena.granule_bytes}")
        if frame_bytes > arena.slab_bytes:
            raise ValueError(f"a frame of {frame_bytes} bytes spans slabs of {arena.slab_bytes}")
        self._arena = arena
        self.frame_bytes = frame_bytes
        self.frame_granules = frame_bytes // arena.granule_bytes
        self.frames_per_slab = arena.slab_granules // self.frame_granules
        self._wastes = arena.slab_granules % self.frame_granules != 0
        self._slabs: dict[int, SlabFrames] = {}
        self._open = OpenSlabs()
        # Frame -> newest plan that may name it; invariant 2. A plain dict looks for its first item past all that were deleted.
        self._limbo: OrderedDict[int, int] = OrderedDict()
        self._last: tuple[int, SlabFrames] | None = None  # the slab given back last, and the arena's stamp of it

    # ------------------------------------------------------------------------------------------------------------------ counts

    @property
    def num_slabs(self) -> int:
        """Slabs held."""
        return len(self._slabs)

    @property
    def num_free(self) -> int:
        """Frames that `alloc` gives without another slab."""
        return self._open.num_free

    @property
    def num_limbo(self) -> int:
        """Frames that wait for a plan to finish."""
        return len(self._limbo)

    @property
    def num_used(self) -> int:
        """Frames that are neither free nor in limbo."""
        return len(self._slabs) * self.frames_per_slab - self.num_free - self.num_limbo

    def slabs(self) -> list[int]:
        """Slabs held, those longest held first."""
        return list(self._slabs)

    def frames_of(self, slab: int) -> range:
        """All frames of a slab, whatever their state."""
        first = slab * self._arena.slab_granules
        return range(first, first + self.frames_per_slab * self.frame_granules, self.frame_granules)

    def use_of(self, slab: int) -> int:
        """Frames of a slab that are neither free nor in limbo."""
        return self._slabs[slab].num_used

    def holds(self, frame: int) -> bool:
        """Whether a frame index is one of this pool's."""
        slab = self._slabs.get(self._arena.slab_of(frame))
        return slab is not None and (frame - slab.first) % self.frame_granules == 0 and frame in self.frames_of(slab.slab)

    def is_free(self, frame: int) -> bool:
        """Whether a frame of this pool is free."""
        return frame in self._slabs[self._arena.slab_of(frame)].free

    def limbo(self) -> list[int]:
        """Frames that wait for a plan to finish."""
        return list(self._limbo)

    def is_limbo(self, frame: int) -> bool:
        """Whether a frame waits for a plan to finish."""
        return frame in self._limbo

    # ------------------------------------------------------------------------------------------------------------------ alloc, free

    def alloc(self) -> int | None:
        """Take a free frame, with another slab where none is left, or None if the arena has none either."""
        number = self._open.fullest()
        if number is None:
            number = self._arena.lend()
            if number is None:
                return None
            self._add(number)
        return self._pop(self._slabs[number])

    def alloc_fuller(self, slab: int, num_used: int) -> int | None:
        """Take a free frame of another slab that is held, of so many used frames or more; None if there is none."""
        number = self._open.fullest(slab, num_used)
        return None if number is None else self._pop(self._slabs[number])

    def _pop(self, slab: SlabFrames) -> int:
        frame, _ = slab.free.popitem()
        self._open.note(slab)
        return frame

    def take(self, frame: int) -> None:
        """Take a certain frame, with the slab it lies in where need be. Raises: PagingError, if either is not to be had."""
        number = self._arena.slab_of(frame)
        if frame not in self.frames_of(number):
            raise PagingError(f"Frame {frame} is not on the grid of frames of {self.frame_granules} granules.")
        if number not in self._slabs:
            self._arena.claim(number)
            self._add(number)
        slab = self._slabs[number]
        if frame not in slab.free:
            raise PagingError(f"Frame {frame} is not free.")
        del slab.free[frame]
        self._open.note(slab)

    def free(self, frame: int) -> None:
        """Free a used frame that no plan on its way names. Raises: PagingError, if it is not used (invariant 1)."""
        slab = self._used(frame)
        slab.free[frame] = None
        if len(slab.free) == slab.num_frames:
            self._give_back(slab)
            self._last = self._arena.stamp(slab.slab), slab
        else:
            self._open.note(slab)

    def defer(self, frame: int, seq: int) -> None:
        """Free a used frame as soon as plan `seq` has finished. Raises: PagingError, if it is not used (invariant 1)."""
        slab = self._used(frame)
        self._limbo[frame] = seq
        self._count_limbo(slab, 1)

    def recall(self, frame: int) -> None:
        """Make a frame in limbo a used one again. Raises: PagingError, if it is not in limbo."""
        if frame not in self._limbo:
            raise PagingError(f"Frame {frame} is not in limbo.")
        del self._limbo[frame]
        self._count_limbo(self._slabs[self._arena.slab_of(frame)], -1)

    def retire(self, seq: int) -> None:
        """Plans up to `seq` have finished: free what waited for them."""
        while self._limbo:
            frame, newest = next(iter(self._limbo.items()))
            if newest > seq:
                return
            self.recall(frame)
            self.free(frame)

    def rewind(self, seq: int) -> None:
        """Plans after `seq` were aborted: nothing waits for them any more."""
        for frame, newest in self._limbo.items():
            self._limbo[frame] = min(newest, seq)

    # ------------------------------------------------------------------------------------------------------------------ residue

    def residue(self, frame: int) -> frozenset[str]:
        """Owners whose bytes may be in a frame."""
        return self._slabs[self._arena.slab_of(frame)].residue_of(frame)

    def is_inherited(self, frame: int) -> bool:
        """Whether the bytes in a frame are of other spaces, so that a page need not cover all of them."""
        return frame in self._slabs[self._arena.slab_of(frame)].inherited

    def set_residue(self, frame: int, residue: frozenset[str], *, is_inherited: bool = False) -> None:
        """Say whose bytes may be in a frame."""
        slab = self._slabs[self._arena.slab_of(frame)]
        slab.set_residue(frame, residue)
        if is_inherited:
            slab.inherited.add(frame)
        else:
            slab.inherited.discard(frame)

    def spoil(self, granules: range, residue: frozenset[str]) -> list[int]:
        """Note that bytes of others were written over granules of a slab; returns the frames that were hit."""
        slab = self._slabs[self._arena.slab_of(granules.start)]
        frames = self.frames_of(slab.slab)
        hit = [frame for frame in frames if frame < granules.stop and frame + self.frame_granules > granules.start]
        for frame in hit:
            self.set_residue(frame, self.residue(frame) | residue, is_inherited=True)
        if granules.stop > frames.stop:
            slab.tail |= residue
        return hit

    def clean_tail(self, slab: int) -> None:
        """The waste behind the last frame of a slab was zeroed."""
        self._slabs[slab].tail = CLEAN

    def limbo_seq(self, frame: int) -> int | None:
        """The newest plan that may name a frame in limbo; None if it is not in limbo."""
        return self._limbo.get(frame)

    def free_residues(self) -> list[tuple[int, frozenset[str]]]:
        """Free frames that are not known to be zero, with whose bytes may be in them."""
        return [each for number in self._open for each in self._slabs[number].free_residues()]

    # ------------------------------------------------------------------------------------------------------------------ whole slabs

    def withdraw(self, slab: int) -> tuple[SlabFrames, dict[int, int]]:
        """Give a slab without used frames to the arena at once, and what `restore` needs to undo it. Raises: PagingError."""
        frames = self._slabs[slab]
        waiting = {frame: self._limbo[frame] for frame in self.frames_of(slab) if frame in self._limbo}
        if len(frames.free) + len(waiting) != frames.num_frames:
            raise PagingError(f"Slab {slab} has frames in use.")
        for frame in waiting:
            del self._limbo[frame]
        self._give_back(frames)
        return frames, waiting

    def restore(self, frames: SlabFrames, waiting: dict[int, int]) -> None:
        """Undo a `withdraw`; the slab is free in the arena. Plans after those in `waiting` were aborted (invariant 2)."""
        self._arena.claim(frames.slab)
        self._slabs[frames.slab] = frames
        self._open.note(frames)
        self._limbo.update(waiting)

    def reset(self) -> None:
        """Forget every frame and slab; the caller resets the arena."""
        self._slabs.clear()
        self._open.clear()
        self._limbo.clear()
        self._last = None

    def _add(self, number: int) -> None:
        """Hold a slab that the arena lent."""
        slab = self._remembered(number) or self._new(number)
        self._slabs[number] = slab
        self._open.note(slab)

    def _remembered(self, number: int) -> SlabFrames | None:
        """The slab, if it is the one given back last, and nobody had it since."""
        if self._last is None or self._last[1].slab != number or self._last[0] != self._arena.stamp(number):
            return None
        (_stamp, slab), self._last = self._last, None
        return slab

    def _new(self, number: int) -> SlabFrames:
        residue = self._arena.residue(number)
        slab = SlabFrames(number, number * self._arena.slab_granules, self.frames_per_slab, self.frame_granules, residue)
        if not self._wastes:
            slab.tail = CLEAN
        return slab

    def _count_limbo(self, slab: SlabFrames, change: int) -> None:
        slab.num_limbo += change
        self._open.note(slab)

    def _give_back(self, slab: SlabFrames) -> None:
        del self._slabs[slab.slab]
        self._open.drop(slab.slab)
        self._arena.give_back(slab.slab, slab.residue())  # invariant 3

    def _used(self, frame: int) -> SlabFrames:
        slab = self._slabs.get(self._arena.slab_of(frame))
        if slab is None or frame in slab.free or frame in self._limbo or frame not in self.frames_of(slab.slab):
            raise PagingError(f"Frame {frame} is not in use.")
        return slab
