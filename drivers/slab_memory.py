"""The bytes of an arena, slab by slab: held, or given back to the device and taken again at the same address.

    address   | base                                                        | base + num_slabs * slab_bytes
    slabs     | held | held | away | away | held |
                         ^ give_back      ^ take

Two kinds: `PlainMemory` is one buffer of ordinary memory (any device has that), `drivers.vmm.VirtualMemory` is CUDA virtual memory.

Invariants, of either kind
1. A slab is held or away; its address never changes.
2. The bytes of a held slab are touched by nobody but their user, whatever becomes of other slabs.
3. What an away slab held is gone. Taken again, it holds anything: whoever uses it writes first.
4. A `take` or `give_back` that is refused changes nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Protocol

import psutil

from drivers.errors import DeviceOutOfMemory, PlanRejected


class SlabMemory(Protocol):
    """Memory of one device in slabs."""

    num_slabs: int
    slab_bytes: int

    @property
    def base(self) -> int:
        """Address of slab 0."""

    @property
    def held_bytes(self) -> int:
        """Bytes that the device cannot give to others."""

    def is_held(self, slab: int) -> bool:
        """Whether a slab may be used."""

    def give_back(self, slabs: Sequence[int]) -> None:
        """Let the device have the memory of these slabs; nothing that runs may name them. Raises: PlanRejected, if one is not held."""

    def take(self, slabs: Sequence[int]) -> None:
        """Have memory for these slabs again. Raises: DeviceOutOfMemory; PlanRejected, if one is held."""

    def close(self) -> None:
        """Give everything back, addresses too. Safe to call twice."""


def check_slabs(memory: SlabMemory, slabs: Sequence[int], *, are_held: bool) -> None:
    """Whether slabs exist, once each, and all are held or all away. Raises: PlanRejected."""
    if len(set(slabs)) != len(slabs) or any(not 0 <= slab < memory.num_slabs for slab in slabs):
        raise PlanRejected(f"Slabs {list(slabs)} are not some of the {memory.num_slabs} of the arena, once each.")
    wrong = [slab for slab in slabs if memory.is_held(slab) is not are_held]
    if wrong:
        raise PlanRejected(f"Slabs {wrong} are {'not held' if are_held else 'held already'}.")


class PlainMemory:
    """One private buffer, all of it touched. An away slab is unmapped from physical memory, so that the process shrinks."""

    def __init__(self, num_slabs: int, slab_bytes: int) -> None:
        """Take every slab. Raises: DeviceOutOfMemory."""
        self.num_slabs = num_slabs
        self.slab_bytes = slab_bytes
        self._away: set[int] = set()
        size_bytes = num_slabs * slab_bytes
        free: int = psutil.virtual_memory().available
        if size_bytes > free:
            raise DeviceOutOfMemory(size_bytes, free)
        try:
            self.buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise DeviceOutOfMemory(size_bytes, free, str(error)) from error
        self.buffer.madvise(mmap.MADV_HUGEPAGE)
        self._is_open = True

    @property
    def base(self) -> int:
        """Addresses are offsets in `buffer`."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the slabs that are held."""
        return (self.num_slabs - len(self._away)) * self.slab_bytes if self._is_open else 0

    def is_held(self, slab: int) -> bool:
        """Whether a slab may be used."""
        return self._is_open and slab not in self._away

    def give_back(self, slabs: Sequence[int]) -> None:
        """Drop the pages of these slabs. Raises: PlanRejected; also where a slab is not whole pages of the machine."""
        check_slabs(self, slabs, are_held=True)
        if self.slab_bytes % mmap.PAGESIZE:
            raise PlanRejected(f"Slabs of {self.slab_bytes} bytes are not whole pages of {mmap.PAGESIZE}; they cannot be given back.")
        for slab in slabs:
            self.buffer.madvise(mmap.MADV_DONTNEED, slab * self.slab_bytes, self.slab_bytes)
        self._away.update(slabs)

    def take(self, slabs: Sequence[int]) -> None:
        """Have pages for these slabs again, touched: fresh ones in the middle of a step would cost six times a copy.

        Raises: DeviceOutOfMemory, PlanRejected.
        """
        check_slabs(self, slabs, are_held=False)
        free: int = psutil.virtual_memory().available
        if len(slabs) * self.slab_bytes > free:
            raise DeviceOutOfMemory(len(slabs) * self.slab_bytes, free)
        zeros = bytes(min(self.slab_bytes, 1 << 20))
        for slab in slabs:
            end = (slab + 1) * self.slab_bytes
            for start in range(slab * self.slab_bytes, end, len(zeros)):
                self.buffer[start : min(start + len(zeros), end)] = zeros[: end - start]
        self._away.difference_update(slabs)

    def close(self) -> None:
        """Nothing is held any more; the buffer is unmapped when the last view of it is gone."""
        self._is_open = False
