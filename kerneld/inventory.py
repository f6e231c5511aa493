"""Inventory: what holds bytes of a tier of a device, one by one: contexts and models. The ledger says how much; this says which."""

from __future__ import annotations

from collections.abc import Iterator

from kerneld.context import Context
from kerneld.deviceparts import DeviceParts
from kerneld.holdings import Holding
from kerneld.models import Model
from kerneld.weights.placement import WEIGHTS_OWNER, kind_of
from memory.kept import kept_pages
from memory.ledger import Kind, lineage
from memory.mapping import frame_bytes, frame_of
from memory.page import Tier
from memory.table import Page, PageTable


def holdings_of(device: DeviceParts, tier: Tier, path: str = "") -> list[Holding]:
    """Contexts and models that hold bytes of a tier, largest first; with `path`, only those of that tenant and beneath it."""
    found = [*_of_contexts(device, tier, path), *_of_cache(device, tier, path), *_of_models(device, tier, path)]
    return sorted(found, key=lambda holding: (-holding.size_bytes, holding.name))


def tier_bytes(table: PageTable, tier: Tier) -> int:
    """Bytes of the frames of a table in a tier, shared ones in full."""
    return sum(_page_bytes(table, group, tier) * num_in(pages, tier) for group, pages in enumerate(table.pages))


def freed_bytes(table: PageTable, tier: Tier) -> int:
    """Bytes that come free in a tier when a table goes: of pages that nobody else holds."""
    own = ([page for page in pages if len(page.holders) == 1] for pages in table.pages)
    return sum(_page_bytes(table, group, tier) * num_in(pages, tier) for group, pages in enumerate(own))


def num_in(pages: list[Page], tier: Tier) -> int:
    """How many of some pages are in a tier."""
    return sum(frame_of(page, tier) is not None for page in pages)


def reclaimable_bytes(device: DeviceParts, tier: Tier, taker: str, but: PageTable | None = None) -> int:
    """Bytes of pages in a tier that would give way to a taker: nobody needs them just now, and no guarantee keeps them."""
    tables = [context.table for context in device.own_contexts() if context.table is not None]
    kept = kept_pages(device.pager.ledger, tables, tier, taker)
    own = {page for pages in but.pages for page in pages} if but is not None else set[Page]()
    size_of = {
        page: frame_bytes(table.spaces[group], tier)
        for table in tables
        for group, pages in enumerate(table.pages)
        for page in pages
        if frame_of(page, tier) is not None and page not in kept and page not in own and not any(holder.pins for holder in page.holders)
    }
    cached = device.pager.sharing.cached_bytes(tier).items()
    ledger = device.pager.ledger
    return sum(size_of.values()) + sum(size for owner, size in cached if not ledger.is_guaranteed(owner, taker, tier, size))


def missing_bytes(device: DeviceParts, context: Context, num_more: int) -> int:
    """Bytes of the device that a context lacks for being wholly there with so many more tokens."""
    model = device.models.get(context.model) if context.model in device.models else None
    spaces = context.table.spaces if context.table is not None else model.spaces if model is not None else ()
    num_pages = -(-(context.num_tokens + max(num_more, 0)) // device.pager.page_tokens)
    wanted = num_pages * sum(space.device_frame_bytes for space in spaces)
    return max(wanted - (context.table.device_bytes if context.table is not None else 0), 0)


def is_busy(context: Context) -> bool:
    """Whether its pages may not be reclaimed just now."""
    return context.is_active and context.table is not None and context.table.pins > 0


def has_active(device: DeviceParts, model: Model) -> bool:
    """Whether a request runs or waits on a model."""
    return any(context.is_active and model.name in context.models for context in device.own_contexts())


def held_bytes(device: DeviceParts, model: Model, tier: Tier) -> int:
    """Bytes of the slabs that a model's weights have in a tier: those of a streamed model are fewer than its weights."""
    shelf = device.pager.weights.get(tier)
    return shelf.held_bytes() - shelf.held_bytes((model.name,)) if shelf is not None else 0


def model_bytes(device: DeviceParts, model: Model) -> int:
    """Bytes of the slabs that a model's weights take when they are in place, as a whole if they are not."""
    held = held_bytes(device, model, Tier.DEVICE)
    if held:
        return held
    slab_bytes = device.config.memory.slab_bytes
    return -(-model.size_bytes // slab_bytes) * slab_bytes


def _of_contexts(device: DeviceParts, tier: Tier, path: str) -> Iterator[Holding]:
    for context in device.own_contexts(path):
        size_bytes = tier_bytes(context.table, tier) if context.table is not None else 0
        if size_bytes:
            yield Holding(tier.name.lower(), context.tenant, Kind.KV.value, context.id, context.state.value, size_bytes, device.label)


def _of_cache(device: DeviceParts, tier: Tier, path: str) -> Iterator[Holding]:
    """What is kept of freed contexts, by owner."""
    for owner, size_bytes in device.pager.sharing.cached_bytes(tier).items():
        if not path or path in lineage(owner):
            yield Holding(tier.name.lower(), owner, Kind.KV.value, "", "cache", size_bytes, device.label)


def _of_models(device: DeviceParts, tier: Tier, path: str) -> Iterator[Holding]:
    if path and path not in lineage(WEIGHTS_OWNER):
        return
    for model in device.models:
        size_bytes = held_bytes(device, model, tier)
        if size_bytes:
            yield Holding(tier.name.lower(), WEIGHTS_OWNER, kind_of(model).value, model.name, model.state.value, size_bytes, device.label)


def _page_bytes(table: PageTable, group: int, tier: Tier) -> int:
    return frame_bytes(table.spaces[group], tier)
