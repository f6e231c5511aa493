"""The frames of one slab, as a pool keeps them: which are free, and whose bytes may be in each.

A pool remembers the slab that it gave back last, so that taking and freeing one frame at a slab's border does not write the same books anew
each time. The arena has the slab meanwhile, like any other; a stamp that it changes says whether somebody touched it.

Invariants
1. The residue of a frame names every owner whose bytes may be in it; an empty residue means zeros.
2. `residue()` is the union of those of all frames and of the waste behind the last one, and costs as much as there are different ones.
"""

from __future__ import annotations

from memory.slabs import CLEAN


class SlabFrames:
    """The frames of one slab."""

    __slots__ = ("_num_by_residue", "_residues", "first", "free", "inherited", "num_frames", "num_limbo", "slab", "tail")

    def __init__(self, slab: int, first: int, num_frames: int, frame_granules: int, residue: frozenset[str]) -> None:
        self.slab = slab
        self.first = first
        self.num_frames = num_frames
        self.free = {first + idx * frame_granules: None for idx in range(num_frames)}  # an ordered set
        self.num_limbo = 0
        self._residues = dict.fromkeys(self.free, residue) if residue else {}
        self._num_by_residue = {residue: num_frames} if residue else {}
        self.inherited = set(self._residues)  # frames nobody wrote or zeroed since the slab came from the arena
        self.tail = residue  # of the waste behind the last frame

    @property
    def num_used(self) -> int:
        """Frames neither free nor in limbo."""
        return self.num_frames - len(self.free) - self.num_limbo

    def residue(self) -> frozenset[str]:
        """Owners whose bytes may be anywhere in the slab."""
        return self.tail.union(*self._num_by_residue)

    def residue_of(self, frame: int) -> frozenset[str]:
        """Owners whose bytes may be in a frame."""
        return self._residues.get(frame, CLEAN)

    def set_residue(self, frame: int, residue: frozenset[str]) -> None:
        """Say whose bytes may be in a frame."""
        counts = self._num_by_residue
        before = self._residues.pop(frame, CLEAN)
        if before:
            counts[before] -= 1
            if not counts[before]:
                del counts[before]
        if residue:
            self._residues[frame] = residue
            counts[residue] = counts.get(residue, 0) + 1

    def free_residues(self) -> list[tuple[int, frozenset[str]]]:
        """Free frames that are not known to be zero, with whose bytes may be in them."""
        return [(frame, self._residues[frame]) for frame in self.free if frame in self._residues] if self._residues else []
