"""Where the weight segments of models lie in the arena of a tier: in runs of slabs from its high end.

A model's segments lie one behind the other in a single run where there is one, else each in a run of its own. They start on granules.
In the host tier lie images of segments, byte for byte as on the device.

Invariants
1. Every slab of a placement is lent to it alone; a placement's bytes in the ledger are those of its slabs.
2. What its user has beyond the arena is charged to its owner as workspace, until it is released.
3. The residue of its slabs, when they go back, names its owner and everybody whose bytes were there before: weights need not cover a slab.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memory.errors import NeverFits, OutOfFrames, OverLimit, PagingError
from memory.ledger import Kind
from memory.mapping import Mapping
from memory.page import Tier
from memory.slabs import Arena


@dataclass(frozen=True, slots=True)
class Placement:
    """The segments of one model or adapter."""

    owner: str
    kind: Kind
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    slabs: tuple[int, ...]


class WeightShelf:
    """The placements of all models in one tier."""

    def __init__(self, mapping: Mapping, tier: Tier) -> None:
        self.tier = tier
        self._arena = mapping.arenas[tier]
        self._ledger = mapping.ledger
        self._placements: dict[str, Placement] = {}
        self._workspace: dict[str, int] = {}  # bytes beyond the arena (invariant 2)

    @property
    def num_slabs(self) -> int:
        """Slabs that hold weights."""
        return sum(len(placement.slabs) for placement in self._placements.values())

    def __contains__(self, key: str) -> bool:
        return key in self._placements

    def slabs_of(self, key: str) -> tuple[int, ...]:
        """The slabs of one placement, none of an unknown one."""
        return self._placements[key].slabs if key in self._placements else ()

    @property
    def num_free(self) -> int:
        """Slabs of the tier that are lent to nobody."""
        return self._arena.num_free

    @property
    def slab_bytes(self) -> int:
        """Bytes of a slab of the tier."""
        return self._arena.slab_bytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes beyond the arena, of all placements."""
        return sum(self._workspace.values())

    @property
    def left_slabs(self) -> int:
        """Slabs of the tier that weights leave to pages."""
        return self._arena.num_slabs - self.num_slabs

    def held_bytes(self, without: Iterable[str] = ()) -> int:
        """Bytes of the slabs of all placements but these."""
        gone = set(without)
        return sum(len(placement.slabs) for key, placement in self._placements.items() if key not in gone) * self._arena.slab_bytes

    def unreserve(self) -> None:
        """Nobody places what room was made for."""
        self._arena.unreserve()

    def runs(self) -> list[tuple[int, int]]:
        """Granules that hold weights, as runs (first, count), in order."""
        runs: list[tuple[int, int]] = []
        for slab in sorted(self.slabs()):
            first, size = slab * self._arena.slab_granules, self._arena.slab_granules
            if runs and sum(runs[-1]) == first:
                runs[-1] = runs[-1][0], runs[-1][1] + size
            else:
                runs.append((first, size))
        return runs

    def slabs(self) -> set[int]:
        """Every slab that holds weights."""
        return {slab for placement in self._placements.values() for slab in placement.slabs}

    def place(self, key: str, owner: str, sizes: tuple[int, ...], kind: Kind = Kind.WEIGHTS) -> tuple[int, ...]:
        """Find room for segments, and return the byte offset of each.

        Raises: NeverFits, OverLimit, OutOfFrames (evicting pages would help), PagingError (the key is taken); nothing is changed.
        """
        self.check(key, owner, sizes)
        offsets = self._in_one_run(sizes) or self._in_runs(sizes)
        if offsets is None:
            needed = needed_slabs(self._arena, sizes) * self._arena.slab_bytes
            free = self._arena.num_free * self._arena.slab_bytes
            raise OutOfFrames(self.tier.name.lower(), needed, free, self._ledger.holders(self.tier))
        self._keep(key, Placement(owner, kind, sizes, offsets, slabs_of(self._arena, sizes, offsets)))
        self._arena.unreserve()
        return offsets

    def claim(self, key: str, owner: str, sizes: tuple[int, ...], offsets: tuple[int, ...], kind: Kind = Kind.WEIGHTS) -> None:
        """Take the room where segments lie already. Raises: PagingError, if it is not free; nothing is changed."""
        self.check(key, owner, sizes)
        slabs = slabs_of(self._arena, sizes, offsets)
        if not all(self._arena.is_free(slab) for slab in slabs):
            raise PagingError(f"The place of the weights {key!r} is not free.")
        for slab in slabs:
            self._arena.claim(slab)
        self._keep(key, Placement(owner, kind, sizes, offsets, slabs))

    def note_workspace(self, key: str, size_bytes: int) -> None:
        """Whoever uses a placement has so many bytes beyond the arena now; of an unknown one nothing is noted."""
        if key in self._placements:
            owner, before = self._placements[key].owner, self._workspace.pop(key, 0)
            self._ledger.refund(self.tier, owner, Kind.WORKSPACE, before)
            self._ledger.charge(self.tier, owner, Kind.WORKSPACE, size_bytes)
            if size_bytes:
                self._workspace[key] = size_bytes

    def release(self, key: str) -> None:
        """Give the room of a model back; unknown ones have none."""
        self.note_workspace(key, 0)
        placement = self._placements.pop(key, None)
        if placement is None:
            return
        self._ledger.refund(self.tier, placement.owner, placement.kind, len(placement.slabs) * self._arena.slab_bytes)
        for slab in placement.slabs:
            self._arena.give_back(slab, self._arena.residue(slab) | {placement.owner})  # invariant 3

    def reset(self) -> None:
        """What was in the tier is gone; the caller resets the arena."""
        for key, placement in self._placements.items():
            self.note_workspace(key, 0)
            self._ledger.refund(self.tier, placement.owner, placement.kind, len(placement.slabs) * self._arena.slab_bytes)
        self._placements.clear()

    def check(self, key: str, owner: str, sizes: tuple[int, ...]) -> None:
        """See whether segments could ever be placed. Raises: NeverFits, OverLimit, PagingError."""
        if key in self._placements:
            raise PagingError(f"The weights {key!r} are placed already.")
        needed = self.check_room(sizes)
        capped = self._ledger.exceeded(owner, self.tier, needed)
        if capped is not None:
            limit = self._ledger.limit(capped, self.tier).limit_bytes
            raise OverLimit(capped, self.tier.name.lower(), needed, limit, self._ledger.used(capped, self.tier))

    def check_room(self, sizes: tuple[int, ...]) -> int:
        """Bytes of the slabs that segments take. Raises: NeverFits, if the arena is smaller; PagingError, if they have no size."""
        if not sizes or min(sizes) <= 0:
            raise PagingError("Segments have a size.")
        needed = needed_slabs(self._arena, sizes) * self._arena.slab_bytes
        if needed > self._arena.total_bytes:
            raise NeverFits(self.tier.name.lower(), needed, self._arena.total_bytes, self._ledger.holders(self.tier))
        return needed

    def _in_one_run(self, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
        first = self._arena.lend_run(needed_slabs(self._arena, sizes))
        if first is None:
            return None
        return tuple(first * self._arena.slab_bytes + start for start in packed(sizes, self._arena.granule_bytes))

    def _in_runs(self, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
        """A run for each segment, the largest first."""
        firsts: dict[int, int] = {}
        for idx in sorted(range(len(sizes)), key=lambda idx: (-sizes[idx], idx)):
            first = self._arena.lend_run(needed_slabs(self._arena, sizes[idx : idx + 1]))
            if first is None:
                for taken, start in firsts.items():
                    for slab in range(start, start + needed_slabs(self._arena, sizes[taken : taken + 1])):
                        self._arena.give_back(slab, self._arena.residue(slab))
                return None
            firsts[idx] = first
        return tuple(firsts[idx] * self._arena.slab_bytes for idx in range(len(sizes)))

    def _keep(self, key: str, placement: Placement) -> None:
        self._placements[key] = placement
        self._ledger.charge(self.tier, placement.owner, placement.kind, len(placement.slabs) * self._arena.slab_bytes)  # invariant 1


Shelves = dict[Tier, WeightShelf]


def packed(sizes: Sequence[int], granule_bytes: int) -> list[int]:
    """Starts of segments that lie one behind the other on granules, and the end of the last."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // granule_bytes) * granule_bytes)
    return starts[:-1]


def needed_slabs(arena: Arena, sizes: Sequence[int]) -> int:
    """Slabs of a run that holds all segments."""
    starts = packed(sizes, arena.granule_bytes)
    return -(-(starts[-1] + sizes[-1]) // arena.slab_bytes)


def slabs_of(arena: Arena, sizes: Sequence[int], offsets: Sequence[int]) -> tuple[int, ...]:
    """Slabs in which segments lie."""
    ranges = (range(start // arena.slab_bytes, -(-(start + size) // arena.slab_bytes)) for start, size in zip(offsets, sizes, strict=True))
    return tuple(sorted({slab for each in ranges for slab in each}))
