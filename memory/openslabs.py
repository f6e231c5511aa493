"""Slabs of one pool that have a free frame, the fullest first, so that emptier ones run empty and go back to the arena.

    used frames   0     1        2     3          a slab of four frames; those in limbo count as gone
    slabs         {7}   {2, 9}   {}    {4}
                                        ^ fullest

Invariants
1. A slab is here if and only if it has a free frame, filed under its number of used frames.
2. `num_free` counts the free frames of all slabs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Fillable(Protocol):
    """A slab, as far as it matters here."""

    slab: int
    free: dict[int, None]

    @property
    def num_used(self) -> int:
        """Frames neither free nor in limbo."""


class OpenSlabs:
    """A priority queue of slabs by use. Every operation takes a constant time, but for slabs of very many frames."""

    def __init__(self) -> None:
        self.clear()

    def __iter__(self) -> Iterator[int]:
        return iter(self._filed)

    def clear(self) -> None:
        """Forget every slab."""
        self.num_free = 0
        self._filed: dict[int, tuple[int, int]] = {}  # slab -> its use and its free frames when it was noted last
        self._by_use: dict[int, dict[int, None]] = {}  # use -> slabs, those filed first in front
        self._uses = 0  # bit n: a slab is filed under n

    def note(self, slab: Fillable) -> None:
        """A slab has changed: file it where it belongs (invariant 1)."""
        self.drop(slab.slab)
        num_free, num_used = len(slab.free), slab.num_used
        if num_free:
            self._filed[slab.slab] = num_used, num_free
            self._by_use.setdefault(num_used, {})[slab.slab] = None
            self._uses |= 1 << num_used
            self.num_free += num_free

    def drop(self, slab: int) -> None:
        """A slab is not here any more; one that is not is no error."""
        num_used, num_free = self._filed.pop(slab, (0, 0))
        if num_free:
            self.num_free -= num_free
            same = self._by_use[num_used]
            del same[slab]
            if not same:
                self._uses &= ~(1 << num_used)

    def fullest(self, besides: int = -1, least: int = 0) -> int | None:
        """The slab of most use, `besides` one, of a use of `least` or more; None if there is none."""
        uses = self._uses >> least << least
        while uses:
            num_used = uses.bit_length() - 1
            for slab in self._by_use[num_used]:
                if slab != besides:
                    return slab
            uses &= ~(1 << num_used)
        return None
