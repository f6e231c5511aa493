"""Checks of everything that memory promises itself, over the whole state; for tests, and for a daemon that idles.

The checks go in slices, so that a daemon with many pages can do something else in between. What changes in between ends a round: a look at
books that moved on says nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from memory.counters import counted, counters_of
from memory.disk import Disk
from memory.errors import PagingError
from memory.flights import Flights
from memory.frames import FramePool
from memory.ledger import Kind, shares
from memory.mapping import TIERS, Mapping, frame_bytes, frame_of
from memory.page import Tier, Transfer
from memory.table import Page, PageTable
from memory.tables import Tables
from memory.weights import Shelves, WeightShelf

SLICE = 500  # pages or frames between two places where a check may pause: half a millisecond, and a few on a busy machine


@dataclass(frozen=True, slots=True)
class Books:
    """Everything that is checked."""

    mapping: Mapping
    flights: Flights
    shelves: Shelves
    tables: Tables
    disk: Disk

    def mark(self) -> tuple[int, ...]:
        """Changes whenever the books do."""
        return (
            self.mapping.num_changes,
            self.flights.num_changes,
            self.disk.num_changes,
            self.mapping.index.num_changes,
            sum(shelf.num_slabs for shelf in self.shelves.values()),
        )


def integrity_steps(books: Books) -> Generator[None, None, bool]:
    """Check every numbered invariant, a slice at a time; ends early, and returns False, when the books changed in between.

    Raises: PagingError, naming the one that does not hold.
    """
    mark = books.mark()
    for _ in _steps(books):
        yield
        if books.mark() != mark:
            return False
    return True


def _steps(books: Books) -> Iterator[None]:
    mapping = books.mapping
    for table in list(books.tables):  # which come, go and are used in between; the pages of those that go end the round
        yield from _check_table(table)
    for tier in TIERS:
        for space_id, pool in mapping.pools(tier).items():
            yield from _check_pool(books, tier, space_id, pool)
        _check_slabs(mapping, books.shelves.get(tier), tier)
        yield from _check_pages(mapping, tier)
        yield from _check_ledger(mapping, books.shelves.get(tier), tier)
    _check_transfers(books)
    yield from _check_pins(books.flights, books.tables)
    yield from _check_index(mapping)


def expect(holds: bool, invariant: str) -> None:
    """Raise PagingError unless the invariant holds."""
    if not holds:
        raise PagingError(f"Broken invariant: {invariant}.")


def _check_table(table: PageTable) -> Iterator[None]:
    for group, pages in enumerate(table.pages):
        counts = (0,) * len(counters_of(table, group))
        for first in range(0, len(pages), SLICE):
            part = pages[first : first + SLICE]
            for idx, page in enumerate(part, first):
                _check_page(table, group, idx, page)
            counts = tuple(map(sum, zip(counts, counted(part), strict=True)))
            yield
        expect(counts == counters_of(table, group), "table 3, counters")


def _check_page(table: PageTable, group: int, idx: int, page: Page) -> None:
    is_here = page.idx == idx and page.group == group and page.space_id == table.spaces[group].space_id
    expect(is_here and page.holders.count(table) == 1, "table 1, a page knows its place and its holders")
    expect(idx >= table.resident[group] or page.device_frame is not None, "table 2, leading pages are resident")
    expect(page.is_below or page.num_tokens == 0, "table 4, no tokens without a copy below")
    is_whole = page.device_frame is not None or page.is_lost or page.is_clean
    expect(is_whole, "pager 4, a page that is only below is whole there")


def _check_pool(books: Books, tier: Tier, space_id: int, pool: FramePool) -> Iterator[None]:
    num_used = 0
    underway = _frames_underway(books.disk, tier)
    stale = books.mapping.disk_pools()[space_id].stale() if tier is Tier.DISK else frozenset()
    for slab in pool.slabs():
        num_free = 0
        for idx, frame in enumerate(pool.frames_of(slab)):
            if idx % SLICE == SLICE - 1:
                yield
            page = books.mapping.page_at(tier, frame)
            is_free, is_limbo = pool.is_free(frame), pool.is_limbo(frame)
            num_free += is_free
            num_used += not is_free and not is_limbo
            is_used = page is not None and page.space_id == space_id
            is_one = is_free + is_limbo + is_used + (frame in underway) + (frame in stale) == 1
            expect(is_one, "frames 1, pager 1 and disk 1, a frame is free, a page's, the target of a transfer, stale, or in limbo")
        expect(num_free < pool.frames_per_slab, "frames 3, no slab is held for nothing")
        yield
    expect(num_used == pool.num_used, "frames 1, counts")
    seqs = [pool.limbo_seq(frame) or 0 for frame in pool.limbo()]
    expect(seqs == sorted(seqs), "frames 2, limbo is in order")


def _frames_underway(disk: Disk, tier: Tier) -> set[int]:
    """Frames of a tier that transfers write."""
    targets = {Tier.HOST: True, Tier.DISK: False}
    if tier not in targets:
        return set()
    transfers = [transfer for _page, transfer in disk.on_way if transfer.is_fetch is targets[tier]]
    return {transfer.host_frame if transfer.is_fetch else transfer.disk_frame for transfer in transfers}


def _check_slabs(mapping: Mapping, shelf: WeightShelf | None, tier: Tier) -> None:
    arena = mapping.arenas[tier]
    lent = [slab for pool in mapping.pools(tier).values() for slab in pool.slabs()]
    if shelf is not None:
        lent += shelf.slabs()
    expect(len(lent) == len(set(lent)), "slabs 1 and weights 1, a slab is lent once")
    expect(not any(arena.is_free(slab) for slab in lent), "slabs 1, a lent slab is not free")
    expect(arena.num_free + arena.num_away + len(lent) == arena.num_slabs, "slabs 1, a slab is free or lent")


def _check_pages(mapping: Mapping, tier: Tier) -> Iterator[None]:
    items = iter(mapping.pages(tier).items())
    while part := list(islice(items, SLICE)):
        for frame, page in part:
            expect(frame_of(page, tier) == frame, "mapping 1, a page names its frame")
            expect(bool(page.holders), "mapping 2, a page in a frame has a holder")
            if not page.is_parked:
                expect(all(table.pages[page.group][page.idx] is page for table in page.holders), "table 1, holders have the page")
        yield


def _check_ledger(mapping: Mapping, shelf: WeightShelf | None, tier: Tier) -> Iterator[None]:
    kv: dict[str, int] = {}
    saved_bytes = 0
    pages = iter(mapping.pages(tier).values())
    while part := list(islice(pages, SLICE)):
        for page in part:
            saved_bytes += page.is_saved * frame_bytes(mapping.space(page.space_id), Tier.HOST)
            for owner, size_bytes in _charges(mapping, tier, page):
                kv[owner] = kv.get(owner, 0) + size_bytes
        yield
    ledger = mapping.ledger
    is_charged = all(ledger.kv_bytes(owner, tier) == size for owner, size in kv.items())
    expect(is_charged and ledger.kind_bytes(tier, Kind.KV) == sum(kv.values()), "mapping 3 and pager 5, the ledger of KV")
    if tier is Tier.HOST:
        expect(mapping.saved_bytes == saved_bytes, "mapping 3, bytes of host copies that are on disk too")
    if shelf is not None:
        in_slabs = shelf.num_slabs * mapping.arenas[tier].slab_bytes
        held = ledger.kind_bytes(tier, Kind.WEIGHTS) + ledger.kind_bytes(tier, Kind.ADAPTER)
        expect(held == in_slabs, "weights 1 and pager 5, the ledger of weights")
        expect(ledger.kind_bytes(tier, Kind.WORKSPACE) == shelf.workspace_bytes, "weights 2, the ledger of workspace")


def _charges(mapping: Mapping, tier: Tier, page: Page) -> Iterator[tuple[str, int]]:
    oldest, each = shares(frame_bytes(mapping.space(page.space_id), tier), len(page.holders))
    for position, table in enumerate(page.holders):
        yield table.owner, oldest if position == 0 else each


def _check_transfers(books: Books) -> None:
    pages = [page for page, _transfer in books.disk.on_way]
    expect(len(pages) == len(set(pages)), "disk 1, a page is on one way at most")
    for page, transfer in books.disk.on_way:
        expect(transfer.is_fetch or page.readers > 0, "disk 1, a copy that is read is held")
        read = (Tier.DISK, transfer.disk_frame) if transfer.is_fetch else (Tier.HOST, transfer.host_frame)
        expect(_is_kept(books, page, transfer, *read), "disk 1, a frame that a transfer reads is nobody else's")


def _is_kept(books: Books, page: Page, transfer: Transfer, tier: Tier, frame: int) -> bool:
    """Whether a frame is still that of the page, or waits unused for the transfer to end."""
    if transfer.space_id not in books.mapping.spaces:
        return True  # the page died with its space
    holder = books.mapping.page_at(tier, frame)
    if holder is not None:
        return holder is page or holder.is_parked
    return not books.mapping.pool(transfer.space_id, tier).is_free(frame)


def _check_pins(flights: Flights, tables: Iterable[PageTable]) -> Iterator[None]:
    if flights.drafts:
        return
    for table in list(tables):
        is_free = not table.pins and not any(page.pins for pages in table.pages for page in pages)
        expect(is_free, "draft 3 and pager 2, nothing is pinned when no plan is on its way")
        yield


def _check_index(mapping: Mapping) -> Iterator[None]:
    problems = mapping.index.problems()
    while part := list(islice(problems, SLICE)):
        for problem in part:
            expect(not problem, f"prefix index {problem}")
        yield
