"""The frames of one space in the page file, which the front alone writes and reads.

A frame that is given up is *stale*: it is punched out of the file before anybody gets it again, so a free frame of this tier reads as zeros
and takes no room. A frame that a transfer still names is *held*, and is not punched before the transfer is settled.

    USED --free--> STALE --take_stale--> being punched --punched--> FREE
                     '------ waits while it is held ---'

Invariants
1. A stale frame counts as used until it was punched.
2. A free frame of the disk tier is a hole: it needs no residue, and no zeroing.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from memory.errors import PagingError
from memory.frames import FramePool
from memory.slabs import Arena


class DiskPool(FramePool):
    """Gives and takes the frames of one space in the disk tier."""

    def __init__(self, arena: Arena, frame_bytes: int) -> None:
        super().__init__(arena, frame_bytes)
        self._stale: OrderedDict[int, None] = OrderedDict()
        self._punching: set[int] = set()
        self._held: set[int] = set()

    def is_stale(self, frame: int) -> bool:
        """Whether a frame waits to be punched."""
        return frame in self._stale or frame in self._punching

    def stale(self) -> set[int]:
        """All frames that wait to be punched."""
        return self._punching.union(self._stale)

    def free(self, frame: int) -> None:
        """Give up a used frame; it is free when it was punched. Raises: PagingError, if it is not used."""
        self._used(frame)
        if self.is_stale(frame):
            raise PagingError(f"Frame {frame} is given up already.")
        self._stale[frame] = None

    def hold(self, frame: int) -> None:
        """A transfer names a frame: it is not punched before `release`."""
        self._held.add(frame)

    def release(self, frame: int) -> None:
        """The transfer is settled."""
        self._held.discard(frame)

    def take_stale(self, max_frames: int) -> list[int]:
        """Frames to be punched now, at most so many."""
        taken = list(islice((frame for frame in self._stale if frame not in self._held), max_frames))
        for frame in taken:
            del self._stale[frame]
        self._punching.update(taken)
        return taken

    def punched(self, frame: int) -> None:
        """A frame reads as zeros now. Raises: PagingError, if `take_stale` did not give it."""
        if frame not in self._punching:
            raise PagingError(f"Frame {frame} of the disk tier was not to be punched.")
        self._punching.discard(frame)
        super().free(frame)
