"""Frames for one plan: free ones, else a free slab, else those of pages that nobody needs soon.

The ladder for a device frame, cheapest first:

    free frame -> free slab -> a page of the same space -> all pages of a slab of another space -> OutOfFrames

Whose page goes is `memory.eviction`'s to say: of the owner furthest above its guarantee per weight. An evicted page leaves its device frame
at once if its host copy is clean; else it is demoted first, into a free host frame or that of a page that has to go before it: of one that
is on disk too, whosever it is, before any is lost. Where the host tier has none, the page is lost and will be recomputed. An owner at its
limit gives way to itself alone.

Invariants
1. No page goes that a move of an unfinished plan names, or that a table wanted by an unfinished plan holds.
2. What a context loses is a suffix of it: tables give way from the tail.
3. Use covered by a guarantee is not reclaimed for somebody who has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from memory.costs import Costs
from memory.draft import Draft
from memory.errors import OutOfFrames, OverLimit
from memory.eviction import Line, Place, Question, Rung, Tail, Victims
from memory.frames import FramePool
from memory.kept import kept_pages
from memory.ledger import lineage
from memory.mapping import Mapping, frame_bytes
from memory.page import Tier, serial_key
from memory.table import Page, PageTable

# Tier, space, who takes, of whom alone (and those below; empty: anybody), and which question is asked.
_Asked = tuple[Tier, int, str, str, str]


class Sweep:
    """Finds the frames of one draft. It looks at tables and pages as they are, and changes them through the draft alone."""

    def __init__(self, mapping: Mapping, draft: Draft, order: Callable[[], list[PageTable]], costs: Costs) -> None:
        """`order` gives all tables as the policy ranks them; it is asked at most once, when something has to go."""
        self._mapping, self._draft, self._costs = mapping, draft, costs
        self._order = order
        self._victims: dict[_Asked, Victims] = {}
        self._second_copies: dict[_Asked, Line] = {}
        self._own_tails: dict[tuple[PageTable, int], Tail] = {}
        self._has_host_slab = True

    @cached_property
    def tables(self) -> list[PageTable]:
        """All tables, coldest first."""
        return self._order()

    @cached_property
    def _ranks(self) -> dict[PageTable, int]:
        return {table: rank for rank, table in enumerate(self.tables)}

    # ------------------------------------------------------------------------------------------------------------------ device

    def device_frame(self, space_id: int, owner: str, charge_bytes: int) -> int:
        """A device frame for a page of which the owner will be charged so much.

        Raises: OverLimit, OutOfFrames; then the draft is to be undone.
        """
        frame = self._within_limit(space_id, owner, charge_bytes)
        if frame is None:
            frame = self._draft.alloc(space_id, Tier.DEVICE)
        if frame is None:
            frame = self._from_page(space_id, owner)
        if frame is None and self._vacate(space_id, Tier.DEVICE, None, owner):
            frame = self._draft.alloc(space_id, Tier.DEVICE)
        if frame is None:
            self._mapping.arenas[Tier.DEVICE].unreserve()  # weights that are not placed yet wait, rather than nobody running
            frame = self._draft.alloc(space_id, Tier.DEVICE)
        if frame is None:
            needed = frame_bytes(self._mapping.space(space_id), Tier.DEVICE)
            raise OutOfFrames("device", needed, self._mapping.free_bytes(Tier.DEVICE), self._mapping.ledger.holders(Tier.DEVICE))
        return frame

    def evict(self, page: Page) -> int:
        """Take the device frame of a page, demoting the page first where its content is nowhere else; the frame is in limbo."""
        if page.num_reached and not page.is_clean:
            if page.is_below:
                self._draft.drop_below(page)
            self.demote(page)
        return self._draft.take_away(page, Tier.DEVICE)

    def demote(self, page: Page) -> bool:
        """Have all of a page copied to the host tier, as it is about to leave the device. Returns False if there is no room, or no gain."""
        host_frame = self.host_frame(page, may_lose=True) if self._costs.is_worth_keeping(page) else None
        if host_frame is None:
            return False
        self.copy_down(page, host_frame, page.num_reached)
        assert page.device_frame is not None
        self._draft.note_evicted(page.device_frame)
        return True

    def copy_down(self, page: Page, host_frame: int, num_tokens: int) -> None:
        """Copy a page to a host frame; a page without a name gets one, because the host tier keeps pages by name."""
        if not page.key:
            self._draft.rekey(page, serial_key())
        self._draft.copy(page, Tier.DEVICE, page, Tier.HOST, host_frame, num_tokens=num_tokens)

    def may_leave_device(self, page: Page) -> bool:
        """Whether a page is on the device and may go (invariant 1)."""
        return page.device_frame is not None and not page.pins and not any(table.pins for table in page.holders)

    def _within_limit(self, space_id: int, owner: str, charge_bytes: int) -> int | None:
        """Evict the owner's own pages until it may be charged more; a frame of the space that came free is for the caller."""
        ledger = self._mapping.ledger
        spare: int | None = None
        while (capped := ledger.exceeded(owner, Tier.DEVICE, charge_bytes)) is not None:
            page = self.own_page(capped, owner, space_id)
            if page is None:
                limit = ledger.limit(capped, Tier.DEVICE).limit_bytes
                raise OverLimit(capped, "device", charge_bytes, limit, ledger.used(capped, Tier.DEVICE))
            frame = self.evict(page)
            spare = frame if page.space_id == space_id else None
        if spare is not None:
            self._draft.take_over(space_id, Tier.DEVICE, spare)
        return spare

    def own_page(self, owner: str, taker: str, space_id: int | None = None) -> Page | None:
        """A page on the device of an owner, or of those below it, that the taker may have: of the space if possible, else of any."""
        first = [] if space_id is None else [space_id]
        order = first + [other for other in self._mapping.spaces if other != space_id]
        queues = (self._queue((Tier.DEVICE, each, taker, owner, "own"), self._to_be_had(Tier.DEVICE, each, taker)) for each in order)
        return next((page for queue in queues if (page := queue.peek()) is not None), None)

    def own_host_page(self, owner: str) -> Page | None:
        """A page on the host of an owner, or of those below it, that may go: one with another copy if possible, else the coldest one."""
        spaces = self._mapping.pools(Tier.HOST)
        queues = (self._queue((Tier.HOST, each, owner, owner, "own"), self._to_be_had(Tier.HOST, each, owner)) for each in spaces)
        return next((page for queue in queues if (page := queue.peek()) is not None), None)

    def _to_be_had(self, tier: Tier, space_id: int, taker: str) -> Callable[[Page], bool]:
        """Whether a page may leave a tier for the good of somebody (invariants 1 and 3)."""
        size = frame_bytes(self._mapping.space(space_id), tier)

        def may_go(page: Page) -> bool:
            may_leave = self.may_leave_device(page) if tier is Tier.DEVICE else self.may_leave_host(page, may_lose=True)
            return may_leave and not self._is_guaranteed(page, taker, tier, size)

        return may_go

    def _from_page(self, space_id: int, owner: str) -> int | None:
        page = self._queue((Tier.DEVICE, space_id, owner, "", "any"), self._to_be_had(Tier.DEVICE, space_id, owner)).peek()
        if page is None:
            return None
        frame = self.evict(page)
        self._draft.take_over(space_id, Tier.DEVICE, frame)
        return frame

    # ------------------------------------------------------------------------------------------------------------------ host

    def host_frame(self, page: Page, *, may_lose: bool) -> int | None:
        """A host frame for the copy of a page, or None. `may_lose`: pages of colder contexts may be lost for it."""
        mapping, space_id, owner = self._mapping, page.space_id, page.holders[0].owner
        if space_id not in mapping.pools(Tier.HOST):
            return None
        size = frame_bytes(mapping.space(space_id), Tier.HOST)
        capped = mapping.ledger.exceeded(owner, Tier.HOST, size)
        if capped is not None:
            return self._from_host_page(page, capped, may_lose=may_lose) if may_lose else None
        frame = self._draft.alloc(space_id, Tier.HOST)
        if frame is None:
            frame = self._from_host_page(page, None, may_lose=may_lose)
        if frame is None and may_lose and self._has_host_slab:
            self._has_host_slab = self._vacate(space_id, Tier.HOST, page, owner)
            frame = self._draft.alloc(space_id, Tier.HOST) if self._has_host_slab else None
        return frame

    def may_leave_host(self, page: Page, *, may_lose: bool) -> bool:
        """Whether a page's host copy may go: nobody reads it, and it is a second copy, or the page may be lost."""
        if page.host_frame is None or page.pins or page.readers or page.is_parked:
            return False
        is_wanted = any(table.pins or table.is_awaited for table in page.holders)
        return not is_wanted and (may_lose or page.device_frame is not None or page.disk_frame is not None)

    def _from_host_page(self, page: Page, within: str | None, *, may_lose: bool) -> int | None:
        """The host frame of a page that has to go before this one, or of the tail of the same context; `within`: of the same owner only."""
        owner, space_id = page.holders[0].owner, page.space_id
        place = Rung.PINNED if page.is_pinned else Rung.UNPINNED, min(self._ranks[table] for table in page.holders)
        if may_lose:
            queue = self._queue((Tier.HOST, space_id, owner, within or "", "lose"), self._to_be_had(Tier.HOST, space_id, owner))
            if (victim := queue.peek(place, owner)) is None or (victim.device_frame is None and victim.disk_frame is None):
                saved = self._second_copy(page, within, (Rung.UNPINNED, 0)) if self._mapping.saved_bytes else None
                victim = saved or victim or self._own_tail(page).peek(page.idx + 1) or self._second_copy(page, within)
        else:
            victim = self._second_copy(page, within, place)
        if victim is not None:
            frame = self._draft.take_away(victim, Tier.HOST)
            self._draft.take_over(space_id, Tier.HOST, frame)
        return None if victim is None else frame

    def _own_tail(self, page: Page) -> Tail:
        """Host copies of the context that holds the page, from its end (invariant 2)."""
        table = page.holders[0]
        if (table, page.group) not in self._own_tails:
            self._own_tails[table, page.group] = Tail(table.pages[page.group], lambda other: self.may_leave_host(other, may_lose=True))
        return self._own_tails[table, page.group]

    def _second_copy(self, page: Page, within: str | None, before: Place | None = None) -> Page | None:
        """A page, coldest first, that is on the device or on disk too; with `before`, of a colder context than that one's."""
        owner = page.holders[0].owner
        size = frame_bytes(self._mapping.space(page.space_id), Tier.HOST)

        def may_go(other: Page) -> bool:
            if other.host_frame is None or other.pins or other.readers:
                return False
            if other.device_frame is None and not self.may_leave_host(other, may_lose=False):
                return False
            if self._is_guaranteed(other, owner, Tier.HOST, size):
                return False
            return before is None or not any(table.pins for table in other.holders)

        asked = (Tier.HOST, page.space_id, owner, within or "", "copies" if before is None else "colder copies")
        if asked not in self._second_copies:
            ranked = sorted(entry for tables in self._tables_of(page.space_id, within or "").values() for entry in tables)
            self._second_copies[asked] = Line(ranked, Question(page.space_id, Tier.HOST, owner, size, may_go, spares_wanted=False))
        return self._second_copies[asked].peek(before)

    # ------------------------------------------------------------------------------------------------------------------ slabs

    def empty(self, space_id: int, tier: Tier, slab: int) -> None:
        """Make every page of a slab leave it."""
        for frame in self._mapping.pools(tier)[space_id].frames_of(slab):
            page = self._mapping.page_at(tier, frame)
            if page is None:
                continue
            if tier is Tier.DEVICE:
                self.evict(page)
            else:
                self._draft.take_away(page, Tier.HOST)

    def slab_cost(self, space_id: int, tier: Tier, slab: int, may_go: Callable[[Page], bool]) -> int | None:
        """How many pages would have to leave a slab for it to be empty; None if one of them may not."""
        pool = self._mapping.pools(tier)[space_id]
        num_pages = 0
        for frame in pool.frames_of(slab):
            page = self._mapping.page_at(tier, frame)
            if page is not None:
                if not may_go(page):
                    return None
                num_pages += 1
            elif not pool.is_free(frame) and not self._is_left(pool, tier, frame):
                return None
        return num_pages

    def _is_left(self, pool: FramePool, tier: Tier, frame: int) -> bool:
        """Whether this draft took a page out of a frame, which may change hands: on the host, zeros come before all moves that read it."""
        is_read = tier is Tier.HOST and (tier, frame) in self._draft.reads
        return pool.limbo_seq(frame) == self._draft.seq and not is_read

    def _vacate(self, space_id: int, tier: Tier, for_page: Page | None, owner: str) -> bool:
        """Empty the cheapest slab of another space and give it to the arena. Returns whether there was one."""
        kept = kept_pages(self._mapping.ledger, self.tables, tier, owner)
        rank = min((self._ranks[table] for table in for_page.holders), default=0) if for_page is not None else 0

        def may_go(page: Page) -> bool:
            if page in kept:
                return False
            if tier is Tier.DEVICE:
                return self.may_leave_device(page)
            return self.may_leave_host(page, may_lose=True) and all(self._ranks[table] < rank for table in page.holders)

        best: tuple[int, int, int] | None = None
        for other, pool in self._mapping.pools(tier).items():
            if other == space_id:
                continue
            costs = ((self.slab_cost(other, tier, slab, may_go), slab) for slab in pool.slabs())
            cheapest = min(((cost, other, slab) for cost, slab in costs if cost is not None), default=None)
            best = min((each for each in (best, cheapest) if each is not None), default=None)
        if best is None:
            return False
        self.empty(best[1], tier, best[2])
        self._draft.withdraw(best[1], tier, best[2])
        return True

    def _is_guaranteed(self, page: Page, taker: str, tier: Tier, size_bytes: int) -> bool:
        """Whether a guarantee of one of its holders keeps the page from the taker (invariant 3)."""
        ledger = self._mapping.ledger
        return any(ledger.is_guaranteed(table.owner, taker, tier, size_bytes) for table in page.holders)

    def _queue(self, asked: _Asked, may_go: Callable[[Page], bool]) -> Victims:
        """The queue of pages that may go, one for each question that the sweep asks."""
        if asked not in self._victims:
            tier, space_id, taker, within, _question = asked
            question = Question(space_id, tier, taker, frame_bytes(self._mapping.space(space_id), tier), may_go)
            self._victims[asked] = Victims(self._mapping.ledger, question, self._tables_of(space_id, within), within)
        return self._victims[asked]

    def _tables_of(self, space_id: int, within: str) -> dict[str, list[tuple[int, PageTable]]]:
        """Tables with a group of a space and their ranks, coldest first, by owner; with `within`, of owners at or beneath it."""
        ranked: dict[str, list[tuple[int, PageTable]]] = {}
        for rank, table in enumerate(self.tables):
            if space_id in table.space_ids and (not within or within in lineage(table.owner)):
                ranked.setdefault(table.owner, []).append((rank, table))
        return ranked
