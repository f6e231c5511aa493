"""A plan in the making, and then on its way: what it does to pages, and how to undo it.

    Pager.plan -> Draft -> PagePlan sent -> finish (commit)
                    '--------------------> undo   (abort, newest plan first)

State is kept *projected*: as if every plan on its way were done already. Between plan and abort, verbs may drop, truncate and fork tables;
an undo therefore looks at what is still there, and never gives a frame to a page that died meanwhile.

Invariants
1. A frame that a draft takes from a page is in limbo under the draft's number until it is taken over within the draft or retires.
2. Undone newest first, with nothing else done between, drafts leave every page, frame and table as it was.
3. A page that a move of an unfinished draft names is pinned; so is a table that an unfinished draft wants.
4. Zeros come before moves; a frame in a slab that a move of this draft still reads for an evicted page is zeroed late.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memory.frames import FramePool
from memory.mapping import Mapping, frame_of
from memory.page import Move, PagePlan, Tier, Zero
from memory.slabs import CLEAN, only
from memory.table import Page, PageTable


class Draft:
    """What one plan does to pages."""

    def __init__(self, seq: int, mapping: Mapping) -> None:
        self.seq = seq
        self._mapping = mapping
        self.index = mapping.index
        self._zeros: list[Zero] = []
        self._moves: list[Move] = []
        self._late_zeros: list[Zero] = []
        self._undo: list[Callable[[], None]] = []
        self._pinned: list[Page | PageTable] = []
        self._scrubbed: list[tuple[FramePool, int]] = []
        self._borrowed: list[tuple[FramePool, int]] = []
        self._vacated: set[int] = set()  # device slabs in which moves read frames of evicted pages
        self.reads: set[tuple[Tier, int]] = set()  # frames that its moves read
        self.scrubs: set[str] = set()  # owners whose bytes it zeroes
        self.written: dict[tuple[Tier, int], tuple[range, frozenset[str]]] = {}  # frames that it writes: their granules, whose bytes

    def page_plan(self) -> PagePlan:
        """What the device has to do."""
        return PagePlan(self.seq, tuple(self._zeros), tuple(self._moves), tuple(self._late_zeros))

    def finish(self) -> None:
        """Its last step has answered: what it did is true."""
        self._unpin()
        for pool, frame in self._scrubbed:
            pool.set_residue(frame, CLEAN)
        for pool, slab in self._borrowed:
            pool.clean_tail(slab)

    def undo(self) -> None:
        """Make it not have been (invariant 2)."""
        self._unpin()
        while self._undo:
            self._undo.pop()()

    def on_undo(self, step: Callable[[], None]) -> None:
        """Let `step` be a part of the undo."""
        self._undo.append(step)

    def pin(self, page: Page) -> None:
        """Keep a page from eviction until the draft has ended (invariant 3)."""
        page.pins += 1
        self._pinned.append(page)

    def want(self, table: PageTable) -> None:
        """Keep all pages of a table from eviction until the draft has ended (invariant 3)."""
        table.pins += 1
        self._pinned.append(table)

    def _unpin(self) -> None:
        for each in self._pinned:
            each.pins -= 1
        self._pinned.clear()

    # ------------------------------------------------------------------------------------------------------------------ frames

    def alloc(self, space_id: int, tier: Tier) -> int | None:
        """Take a free frame, or that of a cached page, or None."""
        pool = self._mapping.pool(space_id, tier)
        frame = pool.alloc()
        if frame is None:
            return self._mapping.retention.give(space_id, tier, self)
        self._undo.append(partial(pool.free, frame))
        return frame

    def take_over(self, space_id: int, tier: Tier, frame: int) -> None:
        """Use a frame again that this draft took from a page."""
        pool = self._mapping.pool(space_id, tier)
        pool.recall(frame)
        self._undo.append(partial(pool.defer, frame, self.seq))

    def give(self, page: Page, tier: Tier, frame: int) -> None:
        """Put a page into a frame that was allocated or taken over."""
        mapping, pool = self._mapping, self._mapping.pool(page.space_id, tier)
        mapping.map(page, tier, frame)

        def undo() -> None:
            holder = mapping.page_at(tier, frame)
            if holder is None:
                pool.recall(frame)  # the page died since
                return
            if holder.is_parked:
                mapping.parked.pop(holder)
            mapping.unmap(holder, tier)

        self._undo.append(undo)

    def take_away(self, page: Page, tier: Tier) -> int:
        """Take a page out of its frame; the frame waits in limbo (invariant 1)."""
        put_back = self._put_back(page, tier)
        frame = self._mapping.unmap(page, tier)
        self._mapping.pool(page.space_id, tier).defer(frame, self.seq)
        self._undo.append(put_back)
        return frame

    def drop_below(self, page: Page) -> None:
        """The copies of a page below do not hold what it will hold; readers of the one on the host keep theirs."""
        if page.disk_frame is not None:
            self.take_away(page, Tier.DISK)
        if page.host_frame is None:
            return
        if not page.readers:
            self.take_away(page, Tier.HOST)
            return
        mapping, put_back = self._mapping, self._put_back(page, Tier.HOST)
        parked = mapping.park(page)

        def undo() -> None:
            if page.holders and parked in mapping.parked.of(page):
                mapping.unpark(parked)
            else:  # its readers are done
                put_back()

        self._undo.append(undo)

    def _put_back(self, page: Page, tier: Tier) -> Callable[[], None]:
        """How to undo that a page leaves its frame; not if it died or got another since: then the frame stays in limbo, and retires."""
        mapping, pool, frame = self._mapping, self._mapping.pool(page.space_id, tier), frame_of(page, tier)
        assert frame is not None
        key, num_tokens, link = page.key, page.num_tokens, mapping.index.link_of(page)

        def undo() -> None:
            is_gone = not page.holders or page.space_id not in mapping.spaces or not pool.is_limbo(frame)
            if is_gone or frame_of(page, tier) is not None:
                return
            pool.recall(frame)
            mapping.map(page, tier, frame)
            if tier is not Tier.DEVICE:
                page.key, page.num_tokens = key, num_tokens
            mapping.index.restore(page, link)

        return undo

    def withdraw(self, space_id: int, tier: Tier, slab: int) -> None:
        """Give a slab that this draft emptied back to the arena, for another space to take."""
        pool, arena = self._mapping.pools(tier)[space_id], self._mapping.arenas[tier]
        frames, waiting = pool.withdraw(slab)

        def undo() -> None:
            if arena.is_free(slab):  # else the front took other frames of it for itself: its pages stay away
                pool.restore(frames, waiting)

        self._undo.append(undo)

    # ------------------------------------------------------------------------------------------------------------------ content

    def prepare(self, page: Page, frame: int, owner: str) -> None:
        """A device frame is about to hold a fresh page of an owner: zero it if it may hold bytes of another."""
        pool = self._mapping.pool(page.space_id, Tier.DEVICE)
        if pool.residue(frame) - only(owner):
            zero = Zero(page.space_id, Tier.DEVICE, frame)
            is_late = self._mapping.arenas[Tier.DEVICE].slab_of(frame) in self._vacated  # invariant 4
            (self._late_zeros if is_late else self._zeros).append(zero)
            self._note_written(pool, Tier.DEVICE, frame, CLEAN)
        self._set_residue(pool, frame, only(owner))

    def copy(self, source: Page, source_tier: Tier, target: Page, target_tier: Tier, frame: int, *, num_tokens: int) -> None:
        """Copy a whole page into a frame, and map it there."""
        from_frame = frame_of(source, source_tier)
        assert from_frame is not None
        residue = self._mapping.pool(source.space_id, source_tier).residue(from_frame)
        if target_tier is Tier.HOST and self._mapping.pool(source.space_id, target_tier).is_inherited(frame):
            self._zeros.append(Zero(source.space_id, Tier.HOST, frame))  # a host frame is larger than what is copied
        move = Move(source.space_id, source_tier, from_frame, target_tier, frame, source.key, num_tokens)
        self.order(move, residue | only(target.holders[0].owner))
        self.pin(source)
        if target is not source:
            self.pin(target)
        self.give(target, target_tier, frame)
        if target_tier is Tier.HOST:
            target.num_tokens = num_tokens

    def note_evicted(self, frame: int) -> None:
        """A move reads a device frame that is about to change hands (invariant 4)."""
        self._vacated.add(self._mapping.arenas[Tier.DEVICE].slab_of(frame))

    def order(self, move: Move, residue: frozenset[str]) -> None:
        """Have a page copied over all of a frame, which may hold bytes of these owners then."""
        pool = self._mapping.pool(move.space_id, move.target_tier)
        self.reads.add((move.source_tier, move.source_frame))
        self._moves.append(move)
        self._set_residue(pool, move.target_frame, residue)
        self._note_written(pool, move.target_tier, move.target_frame, residue)

    def scrub(self, space_id: int, tier: Tier, frame: int) -> None:
        """Zero a free frame; nobody gets it before that is done."""
        pool = self._mapping.pool(space_id, tier)
        pool.take(frame)
        pool.defer(frame, self.seq)
        self._late_zeros.append(Zero(space_id, tier, frame))
        self._note_written(pool, tier, frame, CLEAN)
        self._scrubbed.append((pool, frame))

        def undo() -> None:
            pool.recall(frame)
            pool.free(frame)

        self._undo.append(undo)

    def scrub_slab(self, space_id: int, tier: Tier, slab: int) -> None:
        """Zero a free slab of the arena through frames of a space that borrows it; nobody gets it before that is done."""
        pool = self._mapping.pool(space_id, tier)
        for frame in pool.frames_of(slab):
            self.scrub(space_id, tier, frame)
        last = (slab + 1) * self._mapping.arenas[tier].slab_granules - pool.frame_granules
        if last not in pool.frames_of(slab):
            self._late_zeros.append(Zero(space_id, tier, last))  # overlaps the last frame, so that the waste is zeroed too
        self._borrowed.append((pool, slab))

    def _note_written(self, pool: FramePool, tier: Tier, frame: int, residue: frozenset[str]) -> None:
        self.written[tier, frame] = range(frame, frame + pool.frame_granules), residue

    def _set_residue(self, pool: FramePool, frame: int, residue: frozenset[str]) -> None:
        before, is_inherited = pool.residue(frame), pool.is_inherited(frame)
        pool.set_residue(frame, residue)
        self._undo.append(lambda: pool.set_residue(frame, before, is_inherited=is_inherited))

    # ------------------------------------------------------------------------------------------------------------------ tables

    def append(self, table: PageTable, page: Page) -> None:
        """Put a new page at the end of its group."""
        mapping, group = self._mapping, page.group
        table.pages[group].append(page)
        mapping.attach(page, table)

        def undo() -> None:
            for holder in list(page.holders):
                if holder.pages[group] and holder.pages[group][-1] is page:
                    holder.pages[group].pop()
                    holder.resident[group] = min(holder.resident[group], len(holder.pages[group]))
                    mapping.detach(page, holder)

        self._undo.append(undo)

    def swap(self, table: PageTable, old: Page, new: Page) -> None:
        """Put a new page in the place of a shared one (copy on write)."""
        mapping, group, idx = self._mapping, old.group, old.idx
        position = mapping.replace(table, old, new)

        def undo() -> None:
            if not old.holders:
                return  # everybody else left, and its content with them: the new page stays, lost
            for holder in list(new.holders):
                if idx < len(holder.pages[group]) and holder.pages[group][idx] is new:
                    at = min(position, len(old.holders)) if holder is table else None
                    mapping.replace(holder, new, old, at)

        self._undo.append(undo)

    def rekey(self, page: Page, key: bytes) -> None:
        """Give a page's content another name."""
        before = page.key
        page.key = key

        def undo() -> None:
            if page.key == key:
                page.key = before

        self._undo.append(undo)

    def reach(self, table: PageTable, num_tokens: int) -> None:
        """Tokens up to `num_tokens` may become valid."""
        before = table.reach
        if num_tokens <= before:
            return
        table.reach = num_tokens

        def undo() -> None:
            table.reach = min(table.reach, max(before, table.num_filled * table.page_tokens))

        self._undo.append(undo)
