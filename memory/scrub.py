"""Zeroing what a removed tenant left: every free frame that may hold bytes of an owner, on device and host. The disk tier
has none: what is given up there is punched out of the file.

Frames in limbo are zeroed by a later plan, when they are free. Frames in use are zeroed when their owner changes, as always.

Invariants
1. An owner stays due until no frame or slab that is free, in limbo, or only used by the front's own reads and writes, may hold its bytes.
2. A frame that is being zeroed is in limbo until the plan has finished: nobody gets it before.
"""

from __future__ import annotations

from collections.abc import Callable

from memory.draft import Draft
from memory.frames import FramePool
from memory.mapping import WORKER_TIERS, Mapping
from memory.page import Tier


class Scrubber:
    """Owners whose bytes are due to be zeroed."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._due: set[str] = set()
        self.front_frames: Callable[[], list[tuple[int, int]]] = list  # the front still uses, of no table's page: space, frame

    def add(self, owner: str) -> None:
        """Zero the bytes of an owner with the next plan."""
        self._due.add(owner)

    def queue(self, draft: Draft) -> None:
        """Let a plan zero what it can."""
        if not self._due:
            return
        due = frozenset(self._due)
        self._due = {owner for owner in due if self._will_be_free(owner)}  # invariant 1
        for tier in WORKER_TIERS:
            self._scrub_tier(draft, tier, due)
        draft.scrubs.update(due)

    def undone(self, draft: Draft) -> None:
        """A plan did not happen: what it should have zeroed is due again."""
        self._due |= draft.scrubs

    def _scrub_tier(self, draft: Draft, tier: Tier, due: frozenset[str]) -> None:
        arena, pools = self._mapping.arenas[tier], self._mapping.pools(tier)
        for space_id, pool in pools.items():
            for frame, residue in pool.free_residues():
                if residue & due:
                    draft.scrub(space_id, tier, frame)
        slabs = [(slab, residue) for slab, residue in arena.residues() if residue & due]
        open_ids = [space_id for space_id in pools if space_id in self._mapping.spaces]
        for slab, residue in slabs:
            if open_ids:
                draft.scrub_slab(open_ids[0], tier, slab)
            else:
                self._due |= residue & due  # no space is open through which it could be zeroed

    def _will_be_free(self, owner: str) -> bool:
        """Whether a frame with bytes of an owner is about to be free."""
        pools = self._mapping.pools(Tier.HOST)
        if any(space_id in pools and owner in pools[space_id].residue(frame) for space_id, frame in self.front_frames()):
            return True
        return any(_waits(pool, owner) for tier in WORKER_TIERS for pool in self._mapping.pools(tier).values())


def _waits(pool: FramePool, owner: str) -> bool:
    return any(owner in pool.residue(frame) for frame in pool.limbo())
