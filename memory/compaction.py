"""Compaction: pages of thinly filled device slabs move together, so that whole slabs go back to the arena.

    slab 3   |A| | | |      --moves-->     | | | | |   back to the arena when the plan has ended
    slab 5   |B|C|D| |                     |B|C|D|A|

A space that holds more slabs than its pages need packed, by a ratio and by `SLACK`, has its emptiest slabs emptied: a plan copies their
pages, device to device, into free frames of fuller ones. A plan's moves are carried out after the steps of every plan before it and
before its own, so pages of running rows move as well: their tables count it (`num_relocated`), and the same plan tells the device.

Invariants
1. A page that a move of an unfinished plan names stays where it is.
2. No slab is taken from the arena to compact, and a plan copies no more than its allowance.
3. A page goes only to a slab that is as full as the one it leaves, or fuller, so moving comes to an end.
4. A frame that the same plan zeroes is not moved: that may be done after its moves, and a copy would carry what others left in it.
"""

from __future__ import annotations

from functools import partial

from memory.draft import Draft
from memory.frames import FramePool
from memory.mapping import Mapping
from memory.pace import Allowance
from memory.page import Move, Tier
from memory.table import Page

SLACK = 1  # slabs over the packed ones that a space may always hold
MAX_REST = 8  # plans for which a space is left alone after nothing of it could be moved


class Compactor:
    """Moves pages of one device together."""

    def __init__(self, mapping: Mapping, ratio: float) -> None:
        """`ratio`: slabs that a space may hold over those that its pages need packed; 0 turns compaction off."""
        self._mapping = mapping
        self._ratio = ratio
        self.slack, self.max_rest = SLACK, MAX_REST
        self._resting: dict[int, int] = {}  # plans to come in which a space is not looked at
        self.num_moved = 0  # pages, ever

    def drain(self, draft: Draft, allowance: Allowance) -> None:
        """Let a plan empty slabs, as far as its allowance goes."""
        for space_id, pool in self._mapping.pools(Tier.DEVICE).items():
            if not self._is_thin(pool) or space_id not in self._mapping.spaces:
                continue
            rest = self._resting.get(space_id, 0)
            if rest:
                self._resting[space_id] = rest - 1
            elif not self._compact(draft, pool, allowance):
                self._resting[space_id] = self.max_rest

    def _is_thin(self, pool: FramePool, num_leaving: int = 0) -> bool:
        packed = -(-pool.num_used // pool.frames_per_slab)
        return self._ratio > 0 and pool.num_slabs - num_leaving > max(packed + self.slack, self._ratio * packed)

    def _compact(self, draft: Draft, pool: FramePool, allowance: Allowance) -> bool:
        """Empty the emptiest slabs. Returns whether any page moved, or will have left by itself."""
        by_use = sorted((pool.use_of(slab), slab) for slab in pool.slabs())
        num_leaving = sum(use == 0 for use, _slab in by_use)  # their frames are in limbo
        num_before = self.num_moved
        for use, slab in by_use[num_leaving:]:
            if not allowance.is_left or not self._is_thin(pool, num_leaving):
                break
            pages = self._pages(draft, pool, slab)
            if pages is None:
                continue
            for page in pages:
                if allowance.is_left and not self._move(draft, pool, page, use):
                    return self.num_moved > num_before
                allowance.spend(pool.frame_bytes)
            num_leaving += 1
        return self.num_moved > num_before or num_leaving > 0

    def _pages(self, draft: Draft, pool: FramePool, slab: int) -> list[Page] | None:
        """The pages of a slab; None if one of them may not move (invariants 1 and 4)."""
        pages: list[Page] = []
        for frame in pool.frames_of(slab):
            page = self._mapping.page_at(Tier.DEVICE, frame)
            if page is not None:
                if page.pins or (Tier.DEVICE, frame) in draft.written:
                    return None
                pages.append(page)
        return pages if len(pages) == pool.use_of(slab) else None

    def _move(self, draft: Draft, pool: FramePool, page: Page, use: int) -> bool:
        """Move a page to a slab as full as its own was (invariant 3). Returns whether there is one."""
        old = page.device_frame
        assert old is not None
        frame = pool.alloc_fuller(self._mapping.arenas[Tier.DEVICE].slab_of(old), use)
        if frame is None:
            return False
        draft.on_undo(partial(pool.free, frame))
        move = Move(page.space_id, Tier.DEVICE, old, Tier.DEVICE, frame, page.key, page.space.page_tokens)
        draft.order(move, pool.residue(old))
        draft.note_evicted(old)
        draft.pin(page)
        self._mapping.relocate(page, frame)
        pool.defer(old, draft.seq)
        draft.on_undo(partial(self._move_back, pool, page, (old, frame)))
        self.num_moved += 1
        return True

    def _move_back(self, pool: FramePool, page: Page, frames: tuple[int, int]) -> None:
        """Undo a move, unless the page left since: then the frame that it had first stays in limbo, and retires."""
        old, frame = frames
        if self._mapping.page_at(Tier.DEVICE, frame) is page:
            pool.recall(old)
            self._mapping.relocate(page, old)
        else:
            pool.recall(frame)
