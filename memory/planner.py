"""Plans of page moves: made for what rows want, taken back when they did not happen, and made good after a death.

    plan ---> wants served (faults) ---> what waits for a plan taken along ---> issued      `memory.flights` has what happens then
               '--> not enough: undone, nothing is changed

Invariants
1. A plan that fails changes nothing.
2. What a plan that was taken back may have written is believed by nobody (`corrupt`, `lose_device`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from memory.ahead import Ahead
from memory.burial import Burials
from memory.compaction import Compactor
from memory.config import MemoryConfig
from memory.costs import Costs
from memory.draft import Draft
from memory.errors import PagingError
from memory.excess import Excess
from memory.faults import Faults, Want
from memory.flights import Flights
from memory.mapping import Mapping
from memory.page import Eviction, Move, PagePlan, Tier
from memory.reclaim import Sweep
from memory.room import Room
from memory.scrub import Scrubber
from memory.table import Page, PageTable
from memory.tables import Tables
from memory.weights import Shelves
from memory.writebehind import WriteBehind


class Planner:
    """Makes plans, and takes along what waits for one."""

    def __init__(self, config: MemoryConfig, tables: Tables, flights: Flights, shelves: Shelves, mapping: Mapping, costs: Costs) -> None:
        self._max_copies = config.max_copies
        self._costs = costs
        self._mapping = mapping
        self._flights = flights
        self._tables = tables
        self._shelves = shelves
        self.order: Callable[[], list[PageTable]] = lambda: list(tables)  # all tables, coldest first
        self.behind = WriteBehind()
        self.scrubber = Scrubber(mapping)
        self.burials = Burials(mapping, flights, config.max_copies)
        self._ahead = Ahead(config, mapping, costs)
        self.compactor = Compactor(mapping, config.compact_ratio)
        self._excess = Excess(mapping, flights)
        self._aborted: list[Draft] = []  # by the latest abort, until the next plan; oldest first

    def plan(self, seq: int, wants: Sequence[Want]) -> PagePlan:
        """What has to happen so that every want is met. Raises: OutOfFrames, OverLimit, PagingError (invariant 1)."""
        draft = self._begin(seq)
        sweep = Sweep(self._mapping, draft, self.order, self._costs)
        try:
            for want in wants:
                self._tables.expect(want.table)
                draft.want(want.table)
            faults = Faults(draft, sweep)
            for want in wants:
                faults.serve(want)
        except PagingError:
            draft.undo()
            raise
        for want in wants:
            self.behind.cut(want.table, want.valid_tokens)
            self._tables.touch(want.table)
            want.table.is_buried = want.table.is_awaited = False
        return self._issue(draft, sweep, has_rows=bool(wants))

    def plan_room(self, seq: int, sizes: tuple[int, ...], tier: Tier) -> PagePlan:
        """Evict idle pages so that weights of these sizes can be placed. Raises: NeverFits, OutOfFrames (invariant 1)."""
        shelf = self._shelves[tier]
        shelf.check_room(sizes)
        draft = self._begin(seq)
        sweep = Sweep(self._mapping, draft, self.order, self._costs)
        try:
            Room(self._mapping, shelf, draft, sweep).make(sizes)
        except PagingError:
            draft.undo()
            raise
        if tier is Tier.HOST:  # what waits to be copied down would lie in the way again
            self._flights.issue(draft)
            return self._sent(draft)
        return self._issue(draft, sweep, has_rows=True)

    def could_place(self, sizes: tuple[int, ...], without: Iterable[str]) -> bool:
        """Whether weights could be placed on the device, pages evicted, if these placements were gone. Changes nothing."""
        draft = self._flights.begin(self._flights.newest + 1)
        sweep = Sweep(self._mapping, draft, self.order, self._costs)
        return Room(self._mapping, self._shelves[Tier.DEVICE], draft, sweep).could_be(sizes, without)

    def abort(self, seq: int) -> None:
        """Plan `seq` and all later ones did not happen. Raises: PagingError, if it is not on its way."""
        self._aborted = self._flights.abort(seq)
        for draft in self._aborted:
            self.scrubber.undone(draft)
        self.burials.landed()

    def corrupt(self, moves: Sequence[Move]) -> None:
        """The oldest plan of the last abort did happen, but for these moves (invariant 2)."""
        for move in moves:
            page = self._mapping.page_at(move.source_tier, move.source_frame)
            if move.source_tier is Tier.HOST and page is not None and page.key == move.key:
                self._flights.give_up(page, Tier.HOST)
        for draft in self._aborted[:1]:
            self._spoil(draft, (Tier.DEVICE, Tier.HOST))
        self._aborted = []

    def lose_device(self) -> None:
        """The worker died: plans on their way and everything on the device are gone."""
        if self._flights.drafts:
            self.abort(self._flights.drafts[0].seq)
        while self._aborted:
            self._spoil(self._aborted.pop(), (Tier.HOST,))  # nobody knows how far they got
        for page in list(self._mapping.pages(Tier.DEVICE).values()):
            self._mapping.unmap(page, Tier.DEVICE)
            if page.is_below and not page.is_clean:
                self._flights.free_below(page)  # pager 4
        self._shelves[Tier.DEVICE].reset()
        self._mapping.reset_device()
        self.behind.forget()

    def _issue(self, draft: Draft, sweep: Sweep, *, has_rows: bool) -> PagePlan:
        """Let the draft go, and take along what waits for a plan: what leaves its frame outside the draft waits for it too."""
        self._flights.issue(draft)
        allowance = self._costs.allowance(self._max_copies, has_rows=has_rows)
        self._excess.drain(draft, sweep, allowance)
        self.behind.drain(draft, sweep, allowance)
        self.burials.drain(draft, sweep)
        self._ahead.drain(draft, sweep, allowance, has_rows=has_rows)
        self.compactor.drain(draft, allowance)
        self.scrubber.queue(draft)
        return self._sent(draft)

    def _sent(self, draft: Draft) -> PagePlan:
        self._aborted = []
        self._costs.note_dropped(page for page in self._mapping.departed if page.is_lost and page.num_reached)
        return replace(draft.page_plan(), evictions=self._evictions())

    def _begin(self, seq: int) -> Draft:
        self._mapping.departed.clear()
        return self._flights.begin(seq)

    def _evictions(self) -> tuple[Eviction, ...]:
        """What left the device since the draft was begun, by owner."""
        gone: dict[str, list[Page]] = {}
        for page in self._mapping.departed:
            if page.device_frame is None and page.num_reached:
                gone.setdefault(page.holders[0].owner, []).append(page)
        return tuple(Eviction(owner, len(pages), sum(page.is_lost for page in pages)) for owner, pages in gone.items())

    def _spoil(self, draft: Draft, tiers: tuple[Tier, ...]) -> None:
        """An aborted draft may have been carried out: what was in the frames that it wrote is not there any more."""
        for (tier, _frame), (granules, residue) in draft.written.items():
            for page in self._mapping.spoil(tier, granules, residue) if tier in tiers else ():
                self._flights.give_up(page, tier)
