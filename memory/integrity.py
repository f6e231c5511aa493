"""Checks of everything that memory promises itself, over the whole state; for tests, and for a daemon that idles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memory.errors import PagingError
from memory.flights import Flights
from memory.frames import FramePool
from memory.ledger import Kind, shares
from memory.mapping import TIERS, Mapping, frame_bytes, frame_of
from memory.page import Tier
from memory.table import Page, PageTable
from memory.weights import WeightShelf


def check_integrity(mapping: Mapping, flights: Flights, shelf: WeightShelf, tables: Iterable[PageTable]) -> None:
    """Check every numbered invariant. Raises: PagingError, naming the one that does not hold."""
    for table in tables:
        _check_table(table)
    for tier in TIERS:
        for space_id, pool in mapping.pools(tier).items():
            _check_pool(mapping, tier, space_id, pool)
        _check_slabs(mapping, shelf, tier)
        _check_pages(mapping, tier)
        _check_ledger(mapping, shelf, tier)
    _check_pins(flights, tables)


def expect(holds: bool, invariant: str) -> None:
    """Raise PagingError unless the invariant holds."""
    if not holds:
        raise PagingError(f"Broken invariant: {invariant}.")


def _check_table(table: PageTable) -> None:
    for group, pages in enumerate(table.pages):
        for idx, page in enumerate(pages):
            is_here = page.idx == idx and page.group == group and page.space_id == table.spaces[group].space_id
            expect(is_here and page.holders.count(table) == 1, "table 1, a page knows its place and its holders")
            expect(idx >= table.resident[group] or page.device_frame is not None, "table 2, leading pages are resident")
            expect(page.host_frame is not None or page.num_tokens == 0, "table 4, no tokens without a host copy")
            is_whole = page.device_frame is not None or page.host_frame is None or page.is_clean
            expect(is_whole, "pager 4, a page on the host alone is whole")
        counts = (table.num_device[group], table.num_host[group], table.num_lost[group], table.num_shared[group])
        expect(counts == _counted(pages), "table 3, counters")


def _counted(pages: list[Page]) -> tuple[int, int, int, int]:
    device = sum(page.device_frame is not None for page in pages)
    host = sum(page.host_frame is not None for page in pages)
    return device, host, sum(page.is_lost for page in pages), sum(len(page.holders) > 1 for page in pages)


def _check_pool(mapping: Mapping, tier: Tier, space_id: int, pool: FramePool) -> None:
    num_used = 0
    for slab in pool.slabs():
        num_free = 0
        for frame in pool.frames_of(slab):
            page = mapping.page_at(tier, frame)
            is_free, is_limbo = pool.is_free(frame), pool.is_limbo(frame)
            num_free += is_free
            num_used += not is_free and not is_limbo
            is_used = page is not None and page.space_id == space_id
            expect(is_free + is_limbo + is_used == 1, "frames 1 and pager 1, a frame is free, used by a page, or in limbo")
        expect(num_free < pool.frames_per_slab, "frames 3, no slab is held for nothing")
    expect(num_used == pool.num_used, "frames 1, counts")
    seqs = [pool.limbo_seq(frame) or 0 for frame in pool.limbo()]
    expect(seqs == sorted(seqs), "frames 2, limbo is in order")


def _check_slabs(mapping: Mapping, shelf: WeightShelf, tier: Tier) -> None:
    arena = mapping.arenas[tier]
    lent = [slab for pool in mapping.pools(tier).values() for slab in pool.slabs()]
    if tier is Tier.DEVICE:
        lent += shelf.slabs()
    expect(len(lent) == len(set(lent)), "slabs 1 and weights 1, a slab is lent once")
    expect(not any(arena.is_free(slab) for slab in lent), "slabs 1, a lent slab is not free")
    expect(arena.num_free + len(lent) == arena.num_slabs, "slabs 1, a slab is free or lent")


def _check_pages(mapping: Mapping, tier: Tier) -> None:
    for frame, page in mapping.pages(tier).items():
        expect(frame_of(page, tier) == frame, "mapping 1, a page names its frame")
        expect(bool(page.holders), "mapping 2, a page in a frame has a holder")
        if not page.is_parked:
            expect(all(table.pages[page.group][page.idx] is page for table in page.holders), "table 1, holders have the page")


def _check_ledger(mapping: Mapping, shelf: WeightShelf, tier: Tier) -> None:
    kv: dict[str, int] = {}
    for page in mapping.pages(tier).values():
        for owner, size_bytes in _charges(mapping, tier, page):
            kv[owner] = kv.get(owner, 0) + size_bytes
    charged = next(each for each in mapping.ledger.snapshot() if each.tier is tier)
    expect(charged.kv_bytes == {owner: size for owner, size in kv.items() if size}, "mapping 3 and pager 5, the ledger of KV")
    if tier is Tier.DEVICE:
        in_slabs = shelf.num_slabs * mapping.arenas[tier].slab_bytes
        expect(mapping.ledger.kind_bytes(tier, Kind.WEIGHTS) == in_slabs, "weights 1 and pager 5, the ledger of weights")


def _charges(mapping: Mapping, tier: Tier, page: Page) -> Iterator[tuple[str, int]]:
    oldest, each = shares(frame_bytes(mapping.space(page.space_id), tier), len(page.holders))
    for position, table in enumerate(page.holders):
        yield table.owner, oldest if position == 0 else each


def _check_pins(flights: Flights, tables: Iterable[PageTable]) -> None:
    if flights.drafts:
        return
    pages = (page for table in tables for group in table.pages for page in group)
    is_free = not any(table.pins for table in tables) and not any(page.pins for page in pages)
    expect(is_free, "draft 3 and pager 2, nothing is pinned when no plan is on its way")
