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

from collections.abc import Generator, Iterable, Sequence
from functools import partial

from memory.capacity import Room, check_fits
from memory.config import MemoryConfig
from memory.costs import Costs
from memory.disk import Disk
from memory.eviction import EvictionPolicy, LruPolicy
from memory.faults import Want
from memory.flights import Flights
from memory.hostcopies import HostCopies
from memory.integrity import Books, integrity_steps
from memory.ledger import Ledger
from memory.mapping import Mapping
from memory.page import Move, PagePlan, Space, Tier, Transfer
from memory.planner import Planner
from memory.sharing import Sharing
from memory.table import HostPage, PageTable
from memory.tables import Tables
from memory.watermarks import Watermarks
from memory.weights import WeightShelf
from memory.writebehind import saves

__all__ = ["Pager", "Want"]


class Pager:
    """Memory of one device and its host tier."""

    def __init__(self, config: MemoryConfig, policy: EvictionPolicy | None = None, costs: Costs | None = None) -> None:
        self.costs = costs or Costs()
        self.page_tokens, self._writes_behind = config.page_tokens, config.write_behind
        self._mapping = Mapping(config)
        self._flights = Flights(self._mapping)
        self.weights = {tier: WeightShelf(self._mapping, tier) for tier in (Tier.DEVICE, Tier.HOST)}
        self._tables = Tables(self._mapping, self._flights)
        self.room = Room(self._mapping, self.weights[Tier.DEVICE])
        self.sharing = Sharing(self._mapping, self._flights, self._tables)
        order = partial((policy or LruPolicy()).order, self._tables)
        self._planner = Planner(config, self._tables, self._flights, self.weights, self._mapping, self.costs)
        self._planner.order = order
        self._host = HostCopies(self._mapping, self._flights, order)
        self._disk = Disk(self._tables, self._host, self._flights, Watermarks(config, self._mapping), self._mapping)
        self._planner.scrubber.front_frames = self._disk.host_frames

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
        for tier in Tier:
            for page in [page for page in self._mapping.pages(tier).values() if page.space_id == space_id]:
                self._flights.free(page, tier)
        self._mapping.close_space(space_id)

    def new_table(self, owner: str, space_ids: tuple[int, ...]) -> PageTable:
        """An empty table for a context of a model. Raises: UnknownSpace."""
        return self._tables.add(owner, space_ids)

    def fork(self, table: PageTable, num_tokens: int, owner: str | None = None) -> PageTable:
        """A table that shares pages of a longer one; whoever writes one first gets a page of its own. Raises: PagingError (too short)."""
        return self._tables.fork(table, num_tokens, table.owner if owner is None else owner)

    def truncate(self, table: PageTable, num_tokens: int) -> None:
        """Forget what comes after the first `num_tokens` tokens."""
        self._planner.behind.cut(table, num_tokens)
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
        return self._planner.plan(seq, wants)

    def plan_room(self, seq: int, sizes: tuple[int, ...], tier: Tier = Tier.DEVICE) -> PagePlan:
        """Evict idle pages so that, after its commit, weights of these sizes can be placed in a tier.

        Raises: NeverFits, OutOfFrames; nothing is changed.
        """
        return self._planner.plan_room(seq, sizes, tier)

    def commit(self, seq: int) -> None:
        """The last step of plan `seq` has answered. Raises: PagingError, if it is not the oldest on its way."""
        self._flights.commit(seq)
        self._planner.burials.landed()

    def abort(self, seq: int) -> None:
        """Plan `seq` and all later ones did not happen; if some of its moves did, `corrupt` says so next.

        Raises: PagingError, if it is not on its way.
        """
        self._planner.abort(seq)

    def corrupt(self, moves: Sequence[Move]) -> None:
        """The oldest plan of the last abort did happen, but for these moves: what they read from the host tier did not hold.

        Frames that it wrote do not hold any more what was in them before; pages without another copy are lost.
        """
        self._planner.corrupt(moves)

    def lose_device(self) -> None:
        """The worker died: plans on their way and everything on the device are gone; the next device starts with zeros."""
        self._planner.lose_device()

    def has_backlog(self) -> bool:
        """Whether pages wait to be copied to the host tier with the next plan."""
        return len(self._planner.behind) > 0 or self._planner.burials.has_backlog()

    # ------------------------------------------------------------------------------------------------------------------ contents

    def fill(self, table: PageTable, num_tokens: int, keys: Sequence[bytes]) -> None:
        """Tokens [0, num_tokens) have valid KV; `keys[i]` names full page i."""
        for page in self._tables.fill(table, num_tokens, keys):
            if self._writes_behind:
                self._planner.behind.add(page)

    def suspend(self, table: PageTable) -> None:
        """Let its pages be the first to go, and have its full pages copied to the host tier."""
        table.is_suspended, table.is_awaited = True, False
        self._planner.behind.add_table(table)

    def resume(self, table: PageTable) -> None:
        """Let its pages go no sooner than those of others."""
        table.is_suspended = table.is_buried = False
        self._tables.touch(table)

    def pin(self, table: PageTable, num_tokens: int) -> None:
        """Let the pages of its first `num_tokens` tokens go last of all that its owner has; 0 ends that."""
        table.num_pinned = -(-num_tokens // self.page_tokens)

    def save(self, table: PageTable, num_tokens: int, keys: Sequence[bytes], partial_key: bytes) -> None:
        """Have the pages of the first `num_tokens` tokens, full ones and a partial one, copied to the host tier with the next plan."""
        self.fill(table, num_tokens, keys)
        for page, key, num_valid in saves(table, num_tokens, keys, partial_key):
            self._host.extend_hold(table, page)
            self._planner.behind.add_save(page, key, num_valid)

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
        self._planner.scrubber.add(owner)

    # ------------------------------------------------------------------------------------------------------------------ disk

    def spill(self, max_bytes: int, ahead_bytes: int = 0) -> list[Transfer]:
        """Host copies to be written to the page file now; each is outstanding until `transferred`.

        Pages of buried tables first; then, while the host tier is short of free frames (config: `host_low`, `host_high`), those of
        suspended and of the coldest idle contexts; if none is due, up to `ahead_bytes` that stay on the host too (`host_clean`). To be
        called often: costs nothing where nothing is due."""
        return self._disk.spill(max_bytes, ahead_bytes)

    def fetch(self, table: PageTable, num_tokens: int, *, may_lose: bool = True) -> list[Transfer]:
        """Far pages among the first tokens of a table to be read from the page file now; each is outstanding until `transferred`.

        As many as find a frame on the host (`may_lose`: colder ones may go for it), first ones first; what comes is kept for it until
        the next plan that wants it, or `unfetch`. Pages that come for somebody else are not given again: `num_fetching` counts both.
        """
        self._tables.touch(table)
        return self._disk.fetch(table, num_tokens, may_lose=may_lose)

    def unfetch(self, table: PageTable) -> None:
        """Nobody waits for a table any more: pages that were fetched for it may go."""
        table.is_awaited = False

    def num_fetching(self, table: PageTable, num_tokens: int) -> int:
        """Pages among the first tokens of a table that are on their way from disk, whoever asked for them."""
        return self._disk.num_fetching(table, num_tokens)

    def transferred(self, ticket: int, ok: bool) -> None:
        """A transfer has ended; not `ok`: it failed, or found something else than its key. Raises: PagingError, if it is unknown."""
        page = self._disk.transferred(ticket, ok)
        if page is not None:
            self._planner.burials.leave(page)

    def bury(self, table: PageTable, num_tokens: int, keys: Sequence[bytes], partial_key: bytes) -> None:
        """Suspend a table to disk: cut to its valid tokens, its pages leave device and host as soon as they are on disk.

        Takes plans (`has_backlog`) and transfers (`spill`); `is_buried` says when it is done. Wanting, fetching or resuming the table ends
        it. `keys[i]` names full page i, `partial_key` a partial last one. Raises: PagingError, if there is no disk tier.
        """
        self.truncate(table, num_tokens)
        self.fill(table, num_tokens, keys)
        self._planner.burials.add(table, partial_key)

    def is_buried(self, table: PageTable) -> bool:
        """Whether a table that was buried has left device and host; pages that others use stay, and lost ones count as gone."""
        return self._planner.burials.is_done(table)

    def claim_disk(self, table: PageTable, group: int, page_idx: int, frame: int, key: bytes, num_tokens: int) -> None:
        """Adopt what already lies in a frame of the page file, as a page that is lost or new, or whose host copy is the same.

        Raises: PagingError, if the frame is not to be had, or the page is somewhere else.
        """
        self._disk.claim(table, group, page_idx, frame, key, num_tokens)

    def take_freed_disk(self, max_frames: int = 1024) -> list[tuple[int, int]]:
        """Frames to be punched out of the page file (first granule, bytes); nobody gets one before `punched`."""
        return self._disk.take_freed(max_frames)

    def punched(self, frame: int) -> None:
        """A frame that `take_freed_disk` gave reads as zeros. Raises: PagingError, if it was not given."""
        self._disk.punched(frame)

    # ------------------------------------------------------------------------------------------------------------------ weights

    def could_place(self, sizes: tuple[int, ...], without: Iterable[str]) -> bool:
        """Whether weights would find room on the device, idle pages evicted, if these models were gone. Changes nothing."""
        return self._planner.could_place(sizes, without)

    # ------------------------------------------------------------------------------------------------------------------ questions

    def give_back_slabs(self) -> tuple[int, ...]:
        """Part with every free slab of the device; they are nobody's until they came back."""
        return self._mapping.arenas[Tier.DEVICE].send_away()

    def slabs_came_back(self, slabs: tuple[int, ...]) -> None:
        """Slabs are there again, with anybody's bytes in them. Raises: PagingError, if they were not away."""
        self._mapping.arenas[Tier.DEVICE].come_back(slabs)

    def fits(self, space_ids: tuple[int, ...], num_tokens: int, owner: str, staying: Iterable[str] | None = None) -> None:
        """See whether a context of that size could ever be wholly on the device, beside the weights that stay; None: all that are there.

        Raises: NeverFits, with what it needs, what there is at most, and who holds it.
        """
        num_pages, shelf = -(-num_tokens // self.page_tokens), self.weights[Tier.DEVICE]
        num_slabs = shelf.num_slabs if staying is None else sum(len(shelf.slabs_of(key)) for key in staying)
        check_fits(self._mapping, num_slabs, space_ids, num_pages, owner)

    def check_integrity(self) -> None:
        """Check every numbered invariant of memory. Raises: PagingError, naming the one that does not hold."""
        for _ in self.integrity_steps():
            pass

    def integrity_steps(self) -> Generator[None, None, bool]:
        """The same in slices of about a millisecond; ends early, and returns False, when something changed in between."""
        return integrity_steps(Books(self._mapping, self._flights, self.weights, self._tables, self._disk))
