"""The pager: what verbs, dispatcher and recovery ask of memory. It decides where every page is; it never copies a byte.

    plan(seq) ----> outstanding ----> commit(seq)        two or more may be outstanding; the state kept is projected:
                         '----------> abort(seq)         as if all of them were done

Invariants (checked by `check_integrity`; those of frames, tables, mapping and ledger are numbered in their files)
1. A used frame is named by exactly one page, mapped or the target of a move in flight; the others are free or in limbo.
2. Pages that an outstanding plan names, and tables that it wants, are pinned: they are not evicted.
3. `abort` restores the state before the plan, as far as tables were not dropped or truncated since; what they left is not revived.
4. A page that is on the host alone holds there every token that anybody may need of it.
5. KV bytes in the ledger are the frame bytes of mapped pages; weights are whole slabs.
6. No frame is handed to an owner while it may hold bytes of another, unless the plan zeroes it or overwrites all of it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from memory.capacity import check_fits
from memory.config import MemoryConfig
from memory.draft import Draft
from memory.errors import PagingError
from memory.eviction import EvictionPolicy, LruPolicy
from memory.excess import Excess
from memory.faults import Faults, Want
from memory.flights import Flights
from memory.hostcopies import HostCopies
from memory.integrity import check_integrity
from memory.ledger import Ledger
from memory.mapping import Mapping
from memory.page import Move, PagePlan, Space, Tier
from memory.reclaim import Sweep
from memory.room import Room
from memory.scrub import Scrubber
from memory.table import HostPage, PageTable
from memory.tables import Tables
from memory.weights import WeightShelf
from memory.writebehind import WriteBehind

__all__ = ["Pager", "Want"]


class Pager:
    """Memory of one device and its host tier."""

    def __init__(self, config: MemoryConfig, policy: EvictionPolicy | None = None) -> None:
        self.page_tokens = config.page_tokens
        self._writes_behind = config.write_behind
        self._mapping = Mapping(config)
        self._flights = Flights(self._mapping)
        self._shelf = WeightShelf(self._mapping)
        self._behind = WriteBehind(config.max_copies)
        self._scrubber = Scrubber(self._mapping)
        self._excess = Excess(self._mapping, self._flights, config.max_copies)
        self._tables = Tables(self._mapping, self._flights)
        self._order = partial((policy or LruPolicy()).order, self._tables)
        self._host = HostCopies(self._mapping, self._flights, self._order)
        self._aborted: list[Draft] = []  # by the latest abort, until the next plan; oldest first

    @property
    def ledger(self) -> Ledger:
        """Who holds what."""
        return self._mapping.ledger

    # ------------------------------------------------------------------------------------------------------------------ spaces, tables

    def open_space(self, space: Space) -> None:
        """Let tables use a space. Raises: NeverFits, if its frames do not fit a slab; PagingError, if it is open."""
        self._mapping.open_space(space)

    def close_space(self, space_id: int) -> None:
        """Lose every page of a space. Raises: UnknownSpace."""
        self._mapping.space(space_id)
        for tier in (Tier.DEVICE, Tier.HOST):
            for page in [page for page in self._mapping.pages(tier).values() if page.space_id == space_id]:
                self._flights.free(page, tier)
        self._mapping.close_space(space_id)

    def new_table(self, owner: str, space_ids: tuple[int, ...]) -> PageTable:
        """An empty table for a context of a model. Raises: UnknownSpace."""
        return self._tables.add(owner, space_ids)

    def fork(self, table: PageTable, num_tokens: int, owner: str | None = None) -> PageTable:
        """A table that shares the pages of the first `num_tokens` tokens; whoever writes one first gets a page of its own.

        Raises: PagingError, if the table is not that long.
        """
        return self._tables.fork(table, num_tokens, table.owner if owner is None else owner)

    def truncate(self, table: PageTable, num_tokens: int) -> None:
        """Forget what comes after the first `num_tokens` tokens."""
        self._behind.cut(table, num_tokens)
        self._tables.truncate(table, num_tokens)

    def drop(self, table: PageTable) -> None:
        """Forget a table; one that is dropped already stays so."""
        self._tables.drop(table)

    # ------------------------------------------------------------------------------------------------------------------ plans

    def plan(self, seq: int, wants: Sequence[Want]) -> PagePlan:
        """What has to happen to pages so that every want is met; outstanding until `commit` or `abort`.

        Raises: OutOfFrames, OverLimit (waiting or preempting helps), PagingError (a want cannot be: a page is lost, the number does not
        rise); nothing is changed.
        """
        draft = self._flights.begin(seq)
        sweep = Sweep(self._mapping, draft, self._order)
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
            self._behind.cut(want.table, want.valid_tokens)
            self._tables.touch(want.table)
        return self._issue(draft, sweep)

    def plan_room(self, seq: int, sizes: tuple[int, ...]) -> PagePlan:
        """Evict idle pages so that, after its commit, weights of these sizes can be placed.

        Raises: NeverFits, OutOfFrames; nothing is changed.
        """
        self._shelf.check_room(sizes)
        draft = self._flights.begin(seq)
        sweep = Sweep(self._mapping, draft, self._order)
        try:
            Room(self._mapping, self._shelf, draft, sweep).make(sizes)
        except PagingError:
            draft.undo()
            raise
        return self._issue(draft, sweep)

    def commit(self, seq: int) -> None:
        """The last step of plan `seq` has answered. Raises: PagingError, if it is not the oldest on its way."""
        self._flights.commit(seq)

    def abort(self, seq: int) -> None:
        """Plan `seq` and all later ones did not happen; if some of its moves did, `corrupt` says so next.

        Raises: PagingError, if it is not on its way.
        """
        self._aborted = self._flights.abort(seq)
        for draft in self._aborted:
            self._scrubber.undone(draft)

    def corrupt(self, moves: Sequence[Move]) -> None:
        """The oldest plan of the last abort did happen, but for these moves: what they read from the host tier did not hold.

        Frames that it wrote do not hold any more what was in them before; pages without another copy are lost.
        """
        for move in moves:
            page = self._mapping.page_at(move.source_tier, move.source_frame)
            if move.source_tier is Tier.HOST and page is not None and page.key == move.key:
                self._flights.free_host(page)
        for draft in self._aborted[:1]:
            self._spoil(draft, (Tier.DEVICE, Tier.HOST))
        self._aborted = []

    def lose_device(self) -> None:
        """The worker died: plans on their way and everything on the device are gone; the next device starts with zeros."""
        if self._flights.drafts:
            self.abort(self._flights.drafts[0].seq)
        while self._aborted:
            self._spoil(self._aborted.pop(), (Tier.HOST,))  # nobody knows how far they got
        for page in list(self._mapping.pages(Tier.DEVICE).values()):
            self._mapping.unmap(page, Tier.DEVICE)
            if page.host_frame is not None and not page.is_clean:
                self._flights.free_host(page)  # invariant 4
        self._shelf.reset()
        self._mapping.reset_device()
        self._behind.forget()

    def has_backlog(self) -> bool:
        """Whether pages wait to be copied to the host tier with the next plan."""
        return len(self._behind) > 0

    # ------------------------------------------------------------------------------------------------------------------ contents

    def fill(self, table: PageTable, num_tokens: int, keys: Sequence[bytes]) -> None:
        """Tokens [0, num_tokens) have valid KV; `keys[i]` names full page i."""
        for page in self._tables.fill(table, num_tokens, keys):
            if self._writes_behind:
                self._behind.add(page)

    def suspend(self, table: PageTable) -> None:
        """Let its pages be the first to go, and have its full pages copied to the host tier."""
        table.is_suspended = True
        for pages in table.pages:
            for page in pages[: table.reach // self.page_tokens]:
                if page.host_frame is None and page.key:
                    self._behind.add(page)

    def resume(self, table: PageTable) -> None:
        """Let its pages go no sooner than those of others."""
        table.is_suspended = False
        self._tables.touch(table)

    def pin(self, table: PageTable, num_tokens: int) -> None:
        """Let the pages of its first `num_tokens` tokens go last of all that its owner has; 0 ends that."""
        table.num_pinned = -(-num_tokens // self.page_tokens)

    def save(self, table: PageTable, num_tokens: int, keys: Sequence[bytes], partial_key: bytes) -> None:
        """Have the pages of the first `num_tokens` tokens, full ones and a partial one, copied to the host tier with the next plan."""
        self.fill(table, num_tokens, keys)
        num_full, num_tail = divmod(num_tokens, self.page_tokens)
        for pages in table.pages:
            for page in pages[: num_full + (num_tail > 0)]:
                is_full = page.idx < num_full or (page.idx < table.num_filled and page.key != b"")
                key = (page.key or keys[page.idx]) if is_full else partial_key
                self._host.extend_hold(table, page)
                self._behind.add_save(page, key, self.page_tokens if is_full else num_tail)

    def host_pages(self, table: PageTable) -> list[HostPage]:
        """Pages of a table whose host copy is there; to be read while the table is held."""
        return self._host.pages(table)

    def hold_host(self, table: PageTable) -> None:
        """Keep the host copies of a table's pages as they are until `release_host`."""
        self._host.hold(table)

    def release_host(self, table: PageTable) -> None:
        """End the latest hold. Raises: PagingError, if the table is not held."""
        self._host.release(table)

    def reserve_host(self, table: PageTable, group: int, page_idx: int, key: bytes, num_tokens: int) -> int:
        """A host frame for a page that is lost or new; the caller writes the page into it before the next plan.

        Raises: OverLimit, OutOfFrames, PagingError (the page is somewhere); a new page may stay, lost.
        """
        page = self._host.lost_page(table, group, page_idx)
        frame = self._host.reserve(table, page)
        self._host.adopt(table, page, frame, key, num_tokens)
        return frame

    def claim_host(self, table: PageTable, group: int, page_idx: int, frame: int, key: bytes, num_tokens: int) -> None:
        """Adopt what already lies in a host frame as a page that is lost or new.

        Raises: PagingError, if the frame is not to be had, or the page is somewhere.
        """
        page = self._host.lost_page(table, group, page_idx)
        self._mapping.pool(page.space_id, Tier.HOST).take(frame)
        self._host.adopt(table, page, frame, key, num_tokens)

    def scrub(self, owner: str) -> None:
        """Have every free frame that may hold bytes of an owner zeroed with the next plan, or as soon as no plan names it."""
        self._scrubber.add(owner)

    # ------------------------------------------------------------------------------------------------------------------ weights

    def place_weights(self, key: str, owner: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Find room for the segments of a model, and return the byte offset of each, on granules.

        Raises: OutOfFrames (`plan_room` may help), OverLimit, NeverFits, PagingError (the key is placed); nothing is changed.
        """
        return self._shelf.place(key, owner, sizes)

    def claim_weights(self, key: str, owner: str, sizes: tuple[int, ...], offsets: tuple[int, ...]) -> None:
        """Adopt segments that a living worker holds already. Raises: PagingError, if their place is not free; nothing is changed."""
        self._shelf.claim(key, owner, sizes, offsets)

    def release_weights(self, key: str) -> None:
        """Give back the room of a model; one that has none is no error."""
        self._shelf.release(key)

    # ------------------------------------------------------------------------------------------------------------------ questions

    def fits(self, space_ids: tuple[int, ...], num_tokens: int, owner: str) -> None:
        """See whether a context of that size could ever be wholly on the device, beside the weights that are there.

        Raises: NeverFits, with what it needs, what there is at most, and who holds it.
        """
        num_pages = -(-num_tokens // self.page_tokens)
        check_fits(self._mapping, self._shelf.num_slabs, space_ids, num_pages, owner)

    def check_integrity(self) -> None:
        """Check every numbered invariant of memory. Raises: PagingError, naming the one that does not hold."""
        check_integrity(self._mapping, self._flights, self._shelf, self._tables)

    # ------------------------------------------------------------------------------------------------------------------ inner steps

    def _issue(self, draft: Draft, sweep: Sweep) -> PagePlan:
        """Take along what waits for a plan, and let the draft go."""
        self._excess.drain(draft, sweep)
        self._behind.drain(draft, sweep)
        self._scrubber.queue(draft)
        self._aborted = []
        return self._flights.issue(draft)

    def _spoil(self, draft: Draft, tiers: tuple[Tier, ...]) -> None:
        """An aborted draft may have been carried out: what was in the frames that it wrote is not there any more."""
        for (tier, _frame), (granules, residue) in draft.written.items():
            for page in self._mapping.spoil(tier, granules, residue) if tier in tiers else ():
                self._flights.give_up(page, tier)
