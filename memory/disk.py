"""The disk tier: pages on their way between host and disk, and frames to be punched out of the page file.

    host copy  --spill-->  transfer  --transferred(ok)-->  host and disk: the host copy may go at no cost
    far page   --fetch-->  transfer  --transferred(ok)-->  host and disk: a plan can promote it

The front carries transfers out beside the plans, from one file to the other; the worker never sees the disk.

Invariants
1. While a transfer is on its way nobody else gets its frames: the host copy that it reads is held as by a reader, the disk frame that it
   reads is not punched, and the frame that it writes is used and nobody's page.
2. A transfer that ends well counts only for a page that still is what it was; else the frame that it wrote is given up.
3. Nothing here fails a plan, and no plan names a frame of the disk tier.
4. What goes to disk ahead of need takes free frames alone, within its owner's limit, and is not written again while its content stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from memory.diskroom import DiskRoom, Walk, head_first, leading, tail_first
from memory.errors import OutOfFrames, OverLimit, PagingError
from memory.flights import Flights
from memory.hostcopies import HostCopies
from memory.mapping import Mapping, frame_bytes
from memory.page import Tier, Transfer
from memory.table import Page, PageTable
from memory.tables import Tables
from memory.watermarks import Watermarks

THINNED = 64  # second copies that leave a full disk tier at once


class Disk:
    """Transfers between host and disk, and the frames of the disk tier."""

    def __init__(self, tables: Tables, host: HostCopies, flights: Flights, marks: Watermarks, mapping: Mapping) -> None:
        self._tables = tables
        self._mapping = mapping
        self._flights = flights
        self._host = host
        self._marks = marks
        self._tickets = count(1)
        self._on_way: dict[int, tuple[Page, Transfer]] = {}
        self._pages: dict[Page, int] = {}  # page -> ticket
        self._spilling_bytes = 0
        self._room = DiskRoom(mapping, flights, self._pages.__contains__)
        self.num_changes = 0  # of transfers and stale frames
        self._idle_at = (-1, -1, -1)  # changes when nothing was found to go ahead of need

    @property
    def on_way(self) -> list[tuple[Page, Transfer]]:
        """Transfers that are not settled, oldest first."""
        return list(self._on_way.values())

    def host_frames(self) -> list[tuple[int, int]]:
        """Host frames that are no table's page now, and are read or written by the front: space and frame."""
        fetched = [(transfer.space_id, transfer.host_frame) for _page, transfer in self._on_way.values() if transfer.is_fetch]
        return fetched + self._mapping.parked_frames()

    # ------------------------------------------------------------------------------------------------------------------ host to disk

    def spill(self, max_bytes: int, ahead_bytes: int) -> list[Transfer]:
        """Host copies that go to disk now: those of buried tables, and, while the host tier is short of frames, the coldest.

        A copy that is on disk already only leaves the host. Where none of these is due, so many bytes go ahead of need.
        Nothing when there is no disk tier, or no room in it.
        """
        if not self._mapping.arenas[Tier.DISK].num_slabs:
            return []
        return self._spill_due(max_bytes) or self._spill_ahead(min(ahead_bytes, max_bytes))

    def _spill_due(self, max_bytes: int) -> list[Transfer]:
        short, burials, is_beyond = self._marks.missing(), self._burials(), bool(self._mapping.ledger.in_excess(Tier.DISK))
        if not (short > 0 or burials or is_beyond):
            return []
        tables = self._host.order()
        self._room.shrink(tables)
        missing = self._shed(tables, short) - self._spilling_bytes
        chosen: list[Transfer] = []
        full: set[tuple[int, str]] = set()  # space and owner for which there is no frame
        for page, is_buried in self._candidates(burials, tables):
            size = frame_bytes(self._mapping.space(page.space_id), Tier.DISK)
            if size > max_bytes or (not is_buried and missing <= 0):
                break
            place = page.space_id, page.holders[0].owner
            frame = None if place in full else self._disk_frame(page, size, tables)
            if frame is None:
                full.add(place)
                continue
            max_bytes, missing = max_bytes - size, missing - size
            chosen.append(self._send(page, frame, size))
        return chosen

    def _spill_ahead(self, max_bytes: int) -> list[Transfer]:
        """Copies that stay on the host, coldest first, until enough of it costs nothing to have (invariant 4)."""
        missing, room = self._marks.unsaved() - self._spilling_bytes, self._marks.spare_disk()
        now = self._mapping.num_changes, self._flights.num_changes, self.num_changes
        if not max_bytes or missing <= 0 or now == self._idle_at:
            return []
        chosen: list[Transfer] = []
        full: set[tuple[int, str]] = set()  # space and owner for which there is no frame
        for page in self._coldest(self._host.order(), head_first):  # what a restart finds on disk should be a beginning
            size, place = frame_bytes(self._mapping.space(page.space_id), Tier.DISK), (page.space_id, page.holders[0].owner)
            if missing <= 0 or size > min(max_bytes, room):
                break
            if place in full or not _is_settled(page):
                continue
            frame = None
            if self._mapping.ledger.exceeded(place[1], Tier.DISK, size + self._spilling_bytes) is None:
                frame = self._mapping.pool(page.space_id, Tier.DISK).alloc()
            if frame is None:
                full.add(place)
                continue
            max_bytes, missing, room = max_bytes - size, missing - size, room - size
            chosen.append(self._send(page, frame, size))
        if not chosen:
            self._idle_at = now
        return chosen

    def _burials(self) -> list[PageTable]:
        """Buried tables with host copies that are not on disk."""
        return [table for table in self._tables if table.is_buried and _has_unsaved(table)]

    def _candidates(self, burials: list[PageTable], tables: list[PageTable]) -> Iterator[tuple[Page, bool]]:
        """Host copies that are not on disk, in the order in which they go, and whether they belong to a buried table."""
        for table in burials:
            yield from ((page, True) for page in tail_first(table) if self._may_spill(page))
        yield from ((page, False) for page in self._coldest(tables, tail_first))

    def _coldest(self, tables: list[PageTable], walk: Walk) -> Iterator[Page]:
        """Host copies that are not on disk and that nobody needs now: of the coldest tables first, pinned prefixes last."""
        pinned: list[Page] = []
        met: set[Page] = set()  # a page that many share is looked at once
        for table in tables:
            is_hot = table.pins or table.is_awaited or table.is_buried or table.is_cache
            for page in walk(table) if _has_unsaved(table) and not is_hot else ():
                if page not in met and self._may_spill(page):
                    met.add(page)
                    if page.is_pinned:
                        pinned.append(page)
                    else:
                        yield page
        yield from (page for page in pinned if self._may_spill(page))

    def _may_spill(self, page: Page) -> bool:
        return page.host_frame is not None and page.disk_frame is None and not page.pins and page not in self._pages

    def _shed(self, tables: list[PageTable], missing: int) -> int:
        """Let host copies go that are on disk too, coldest first; returns how many of the missing bytes are missing still."""
        for table in tables:
            if missing <= 0:
                break
            for page in tail_first(table) if any(table.num_saved) else ():
                if missing > 0 and page.is_saved and self._may_shed(page):
                    missing -= self._mapping.space(page.space_id).host_frame_bytes
                    self._flights.free_host(page)
        return missing

    def _may_shed(self, page: Page) -> bool:
        return not page.pins and not page.readers and not any(table.pins or table.is_awaited for table in page.holders)

    def _send(self, page: Page, frame: int, size: int) -> Transfer:
        assert page.host_frame is not None
        page.readers += 1  # invariant 1
        self._spilling_bytes += size
        return self._begin(
            page, Transfer(next(self._tickets), page.space_id, False, page.host_frame, frame, size, page.key, page.num_tokens)
        )

    def _disk_frame(self, page: Page, size: int, tables: list[PageTable]) -> int | None:
        """A frame for the copy of a page, or None."""
        if not self._room.make_within_limit(page, size + self._spilling_bytes, tables):
            return None
        frame = self._mapping.pool(page.space_id, Tier.DISK).alloc()
        if frame is None:
            self._room.thin_out(page, THINNED * size, tables)
        return frame

    # ------------------------------------------------------------------------------------------------------------------ disk to host

    def fetch(self, table: PageTable, num_tokens: int, *, may_lose: bool) -> list[Transfer]:
        """Transfers for the leading pages of a table that are far, as many as find a frame on the host."""
        if not any(table.num_disk):
            return []
        table.is_awaited, table.is_buried = True, False
        chosen: list[Transfer] = []
        for page in leading(table, num_tokens):
            if not page.is_far or page in self._pages:
                continue
            try:
                host_frame = self._host.reserve(table, page, may_lose=may_lose)
            except (OutOfFrames, OverLimit):
                break
            pool = self._mapping.pool(page.space_id, Tier.HOST)
            pool.set_residue(host_frame, pool.residue(host_frame) | set(page.owners), is_inherited=pool.is_inherited(host_frame))
            assert page.disk_frame is not None
            self._mapping.disk_pools()[page.space_id].hold(page.disk_frame)  # invariant 1
            ticket, size = next(self._tickets), pool.frame_bytes
            transfer = Transfer(ticket, page.space_id, True, host_frame, page.disk_frame, size, page.key, page.num_tokens)
            chosen.append(self._begin(page, transfer))
        return chosen

    def num_fetching(self, table: PageTable, num_tokens: int) -> int:
        """Leading pages of a table that are on their way from disk, whoever asked for them."""
        if not self._on_way or not any(table.num_disk):
            return 0
        return sum(page.is_far and page in self._pages for page in leading(table, num_tokens))

    # ------------------------------------------------------------------------------------------------------------------ settled

    def transferred(self, ticket: int, ok: bool) -> Page | None:
        """A transfer has ended; returns its page if that is on disk now. Raises: PagingError, if it is unknown."""
        if ticket not in self._on_way:
            raise PagingError(f"Transfer {ticket} is not on its way.")
        self.num_changes += 1
        page, transfer = self._on_way.pop(ticket)
        del self._pages[page]
        settle = self._fetched if transfer.is_fetch else self._spilled
        return page if settle(page, transfer, ok) else None

    def _spilled(self, page: Page, transfer: Transfer, ok: bool) -> bool:
        self._spilling_bytes -= transfer.size_bytes
        is_same = page.host_frame == transfer.host_frame and page.disk_frame is None and _is_same(page, transfer)
        self._host.let_go(page)
        if ok and is_same:  # invariant 2
            self._mapping.map(page, Tier.DISK, transfer.disk_frame)
            if self._may_shed(page) and self._marks.missing() > 0:
                self._flights.free_host(page)
            return True
        self._mapping.pools(Tier.DISK)[transfer.space_id].free(transfer.disk_frame)
        return False

    def _fetched(self, page: Page, transfer: Transfer, ok: bool) -> bool:
        is_same = page.disk_frame == transfer.disk_frame and _is_same(page, transfer)
        self._mapping.disk_pools()[transfer.space_id].release(transfer.disk_frame)
        if is_same and not ok:
            self._flights.free(page, Tier.DISK)
        if ok and is_same and page.host_frame is None:  # invariant 2
            self._mapping.map(page, Tier.HOST, transfer.host_frame)
            return True
        self._mapping.pools(Tier.HOST)[transfer.space_id].free(transfer.host_frame)
        return False

    def _begin(self, page: Page, transfer: Transfer) -> Transfer:
        self.num_changes += 1
        self._on_way[transfer.ticket] = page, transfer
        self._pages[page] = transfer.ticket
        return transfer

    def claim(self, table: PageTable, group: int, page_idx: int, frame: int, key: bytes, num_tokens: int) -> None:
        """Adopt what already lies in a frame of the disk tier. Raises: PagingError; nothing is changed but for a new, lost page."""
        pages = table.pages[group]
        page = pages[page_idx] if page_idx < len(pages) else None
        if page is None or not page.is_below or page.disk_frame is not None or (page.key, page.num_tokens) != (key, num_tokens):
            page = self._host.lost_page(table, group, page_idx)
        self._mapping.pool(page.space_id, Tier.DISK).take(frame)
        self._mapping.map(page, Tier.DISK, frame)
        page.key, page.num_tokens = key, num_tokens
        table.reach = max(table.reach, page_idx * table.page_tokens + num_tokens)

    # ------------------------------------------------------------------------------------------------------------------ stale frames

    def take_freed(self, max_frames: int) -> list[tuple[int, int]]:
        """Frames to be punched out of the page file, and the bytes of each."""
        self.num_changes += 1
        taken: list[tuple[int, int]] = []
        for pool in self._mapping.disk_pools().values():
            taken.extend((frame, pool.frame_bytes) for frame in pool.take_stale(max_frames - len(taken)))
        return taken

    def punched(self, frame: int) -> None:
        """A frame that `take_freed` gave reads as zeros, and may be used again. Raises: PagingError, if it was not given."""
        self.num_changes += 1
        slab = self._mapping.arenas[Tier.DISK].slab_of(frame)
        pool = next((pool for pool in self._mapping.disk_pools().values() if slab in pool.slabs()), None)
        if pool is None:
            raise PagingError(f"Frame {frame} of the disk tier was not to be punched.")
        pool.punched(frame)


def _has_unsaved(table: PageTable) -> bool:
    """Whether a table has host copies that are not on disk."""
    return any(num_host > num_saved for num_host, num_saved in zip(table.num_host, table.num_saved, strict=True))


def _is_settled(page: Page) -> bool:
    """Whether a host copy will not soon be written over: its page is full, or nobody is about to go on with it."""
    return page.num_tokens >= page.holders[0].page_tokens or all(table.is_suspended for table in page.holders)


def _is_same(page: Page, transfer: Transfer) -> bool:
    """Whether a page still is what a transfer copied."""
    return bool(page.holders) and page.key == transfer.key and page.num_tokens == transfer.num_tokens
