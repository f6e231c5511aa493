"""The arena of one tier: slabs lent to spaces, one by one, and to weights, in runs.

    slabs    |0|1|2|3|4|5|6|7|8|9|
              s s s . . . . w w w      spaces from the low end, runs for weights from the high end; free ones between

Every slab remembers whose bytes may still be in it (its *residue*), so that whoever gets it next knows whether it must be zeroed.

Invariants
1. Every slab is free or lent, and lent once, or away: then the device has its memory.
2. The residue of a free slab names every owner whose bytes may be in it; an empty residue means zeros.
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from itertools import count

from memory.errors import PagingError

CLEAN: frozenset[str] = frozenset()
STRANGER: frozenset[str] = frozenset(("(device)",))  # nobody knows whose bytes


@lru_cache(maxsize=4096)
def only(owner: str) -> frozenset[str]:
    """The residue of bytes of one owner."""
    return frozenset((owner,))


class Arena:
    """The slabs of one tier."""

    def __init__(self, num_slabs: int, slab_bytes: int, granule_bytes: int) -> None:
        if slab_bytes % granule_bytes:
            raise ValueError(f"a slab of {slab_bytes} bytes is not whole granules of {granule_bytes}")
        self.num_slabs = num_slabs
        self.slab_bytes = slab_bytes
        self.granule_bytes = granule_bytes
        self.slab_granules = slab_bytes // granule_bytes
        self._stamp = count(1)
        self.reset()

    def reset(self) -> None:
        """Take every slab back; the memory behind them is new and zero."""
        self._stamps: dict[int, int] = {}
        self._free = set(range(self.num_slabs))
        self._lowest = list(range(self.num_slabs))  # a heap over the free slabs; also holds some that were lent since
        self._residues: dict[int, frozenset[str]] = {}
        self._reserved: set[int] = set()
        self._away: set[int] = set()

    @property
    def num_away(self) -> int:
        """How many slabs were given back to the device."""
        return len(self._away)

    @property
    def total_bytes(self) -> int:
        """Bytes of all slabs."""
        return self.num_slabs * self.slab_bytes

    @property
    def num_free(self) -> int:
        """How many slabs are not lent."""
        return len(self._free)

    def is_free(self, slab: int) -> bool:
        """Whether a slab may be lent."""
        return slab in self._free

    def slab_of(self, frame: int) -> int:
        """The slab in which a frame lies."""
        return frame // self.slab_granules

    def residue(self, slab: int) -> frozenset[str]:
        """Owners whose bytes may be in a free slab."""
        return self._residues.get(slab, CLEAN)

    def stamp(self, slab: int) -> int:
        """A number that changes whenever a slab is given back, or something else than its last holder writes it while it is free."""
        return self._stamps.get(slab, 0)

    def set_residue(self, slab: int, residue: frozenset[str]) -> None:
        """Say whose bytes may be in a free slab."""
        self._stamps[slab] = next(self._stamp)
        if residue:
            self._residues[slab] = residue
        else:
            self._residues.pop(slab, None)

    def residues(self) -> list[tuple[int, frozenset[str]]]:
        """Free slabs that are not known to be zero, with whose bytes may be in them."""
        return [(slab, residue) for slab, residue in self._residues.items() if slab in self._free]

    def reserve(self, slabs: set[int]) -> None:
        """Keep slabs for the next run; what was reserved before is not any more."""
        self.unreserve()
        self._reserved = set(slabs)

    def unreserve(self) -> None:
        """Let `lend` give what was reserved."""
        freed, self._reserved = self._reserved & self._free, set()
        for slab in freed:
            self._offer(slab)

    def lend(self) -> int | None:
        """Lend the lowest free slab that is not reserved, or None if there is none."""
        while self._lowest:
            slab = heapq.heappop(self._lowest)
            if slab in self._free and slab not in self._reserved:
                self._free.discard(slab)
                return slab
        return None

    def claim(self, slab: int) -> None:
        """Lend a certain slab. Raises: PagingError, if it is lent already or outside the arena."""
        if slab not in self._free:
            raise PagingError(f"Slab {slab} is not free.")
        self._free.discard(slab)

    def find_run(self, num_slabs: int) -> int | None:
        """The first slab of the highest run of free slabs, or None if no run is that long. Nothing is lent."""
        length = 0
        for slab in range(self.num_slabs - 1, -1, -1):
            length = length + 1 if slab in self._free else 0
            if length == num_slabs:
                return slab
        return None

    def lend_run(self, num_slabs: int) -> int | None:
        """Lend the highest run of free slabs and give its first, or None if no run is that long."""
        first = self.find_run(num_slabs)
        if first is not None:
            self._free.difference_update(range(first, first + num_slabs))
        return first

    def send_away(self) -> tuple[int, ...]:
        """Part with every free slab that is not reserved; they are nobody's until they come back."""
        going = sorted(self._free - self._reserved)
        self._free.difference_update(going)
        self._away.update(going)
        return tuple(going)

    def come_back(self, slabs: tuple[int, ...]) -> None:
        """Slabs are here again, with anybody's bytes in them. Raises: PagingError, if one was not away."""
        if not self._away.issuperset(slabs):
            raise PagingError(f"Some of the slabs {list(slabs)} were not away.")
        self._away.difference_update(slabs)
        for slab in slabs:
            self.give_back(slab, STRANGER)

    def give_back(self, slab: int, residue: frozenset[str]) -> None:
        """Take a slab back, and remember whose bytes may be in it. Raises: PagingError, if it was not lent."""
        if slab in self._free or slab in self._away or not 0 <= slab < self.num_slabs:
            raise PagingError(f"Slab {slab} was not lent.")  # invariant 1
        self._free.add(slab)
        if slab not in self._reserved:
            self._offer(slab)
        self.set_residue(slab, residue)  # invariant 2

    def _offer(self, slab: int) -> None:
        """Let `lend` give a free slab. Runs leave what they took in the heap: it is made anew before it outgrows the arena."""
        heapq.heappush(self._lowest, slab)
        if len(self._lowest) > 2 * self.num_slabs:
            self._lowest = sorted(self._free - self._reserved)
