"""Remedies: the smallest changes that would let something fit that does not.

    over a limit       raise it, or end what its tenant has running
    never fits         raise the limit; unload models; enlarge the tier; keep the context shorter
    no room now        unload or unpin a model that nobody uses; end or suspend what cannot be reclaimed: it runs, or a guarantee keeps it

They come smallest first: by what they cost others, in bytes. Contexts are named only to those who may know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kerneld.context import Context
from kerneld.deviceparts import DeviceParts
from kerneld.inventory import freed_bytes, has_active, is_busy, model_bytes, reclaimable_bytes
from memory.errors import NeverFits, OutOfFrames, OverLimit
from memory.ledger import lineage
from memory.mapping import frame_bytes
from memory.page import Tier
from memory.remedy import Action, Remedy

MOST = 3
MOST_PARTS = 8

Shortage = OutOfFrames | NeverFits | OverLimit


@dataclass(frozen=True, slots=True)
class Needer:
    """Who is short of memory: its tenant, the model that it runs on (both may be empty), and which contexts it may be told of by name."""

    tenant: str = ""
    model: str = ""
    more_bytes: int = 0  # of the device that it will need before it is done
    may_name: Callable[[Context], bool] = lambda _context: False

    @classmethod
    def of(cls, context: Context, more_bytes: int = 0) -> Needer:
        """A context that is short, for its owner, who may know of no other's in the same tenant either."""
        owner = context.tenant, context.owner
        return cls(context.tenant, context.model, more_bytes, lambda other: (other.tenant, other.owner) == owner)


def remedies_of(device: DeviceParts, shortage: Shortage, needer: Needer) -> list[Remedy]:
    """What would help against a shortage of a device, smallest change first, a few at most."""
    if isinstance(shortage, OverLimit):
        found = list(_over_limit(device, shortage, needer))
    elif isinstance(shortage, NeverFits):
        found = list(_never_fits(device, shortage, needer))
    else:
        found = list(_no_room(device, Tier[shortage.tier.upper()], _missing(device, shortage, needer), needer))
    if found and found[0].is_part:
        return [remedy for remedy in found if remedy.is_part][:MOST_PARTS]
    return [remedy for remedy in found if not remedy.is_part][:MOST]


def _missing(device: DeviceParts, shortage: OutOfFrames, needer: Needer) -> int:
    """Bytes that are to come free: what the plan lacked when it stopped, or what is not to be had of all that will be needed."""
    tier = Tier[shortage.tier.upper()]
    available = sum(each.free_bytes for each in device.pager.ledger.snapshot() if each.tier is tier)
    if needer.more_bytes > available:
        available += reclaimable_bytes(device, tier, needer.tenant)
    return max(shortage.needed_bytes - shortage.free_bytes, needer.more_bytes - available, 1)


def _over_limit(device: DeviceParts, shortage: OverLimit, needer: Needer) -> Iterator[Remedy]:
    needed = shortage.used_bytes + max(shortage.needed_bytes, needer.more_bytes)
    yield Remedy(Action.RAISE_LIMIT, shortage.tier, _rounded(device, needed), shortage.owner)
    tier = Tier[shortage.tier.upper()]
    missing = needed - shortage.limit_bytes
    yield from _enough(_of_contexts(device, device.own_contexts(shortage.owner), tier, needer), missing)


def _never_fits(device: DeviceParts, shortage: NeverFits, needer: Needer) -> Iterator[Remedy]:
    tier = Tier[shortage.tier.upper()]
    tenant = needer.tenant
    limits = ((name, device.pager.ledger.limit(name, tier).limit_bytes) for name in (lineage(tenant) if tenant else ()))
    capped = next((name for name, limit in limits if 0 < limit == shortage.limit_bytes), None)
    if capped is not None:
        yield Remedy(Action.RAISE_LIMIT, shortage.tier, _rounded(device, shortage.needed_bytes), capped)
    else:
        missing = shortage.needed_bytes - shortage.limit_bytes
        total = sum(each.total_bytes for each in device.pager.ledger.snapshot() if each.tier is tier)
        if shortage.limit_bytes < total:  # else it would be too large alone
            yield from _enough(_idle_models(device, tier, needer), missing)
        yield Remedy(Action.ENLARGE, shortage.tier, max(_rounded(device, total + missing), _beside_streamed(device, shortage, needer)))
    if tenant and shortage.limit_bytes:
        yield Remedy(Action.SHORTEN, shortage.tier, shortage.limit_bytes, tenant)


def _beside_streamed(device: DeviceParts, shortage: NeverFits, needer: Needer) -> int:
    """How large the device has to be for pages beside a model that is streamed, which takes its part of what the device has more."""
    name = device.models.get(needer.model).base or needer.model if needer.model in device.models else ""
    model, slab_bytes = device.models.get(name) if name else None, device.config.memory.slab_bytes
    if model is None or not model.streamed_bytes or shortage.tier != "device":
        return 0
    return device.residency.placement.enough_bytes(model, -(-shortage.needed_bytes // slab_bytes))


def _no_room(device: DeviceParts, tier: Tier, missing: int, needer: Needer) -> Iterator[Remedy]:
    stuck = [context for context in device.own_contexts() if is_busy(context) or _is_kept(device, context, needer.tenant, tier)]
    candidates = [*_idle_models(device, tier, needer), *_of_contexts(device, stuck, tier, needer)]
    found = list(_enough(iter(candidates), missing))
    yield from found
    if not found:
        total = sum(each.total_bytes for each in device.pager.ledger.snapshot() if each.tier is tier)
        yield Remedy(Action.ENLARGE, tier.name.lower(), _rounded(device, total + missing))


def _idle_models(device: DeviceParts, tier: Tier, needer: Needer) -> Iterator[Remedy]:
    """Models on the device on which nothing runs or waits; of one that a pin keeps there, the model that is pinned."""
    for model in device.models:
        if tier is Tier.DEVICE and model.is_resident and model.name != needer.model and not has_active(device, model):
            pinned = next((each for each in device.models if each.is_pinned and model.name in (each.name, each.base)), None)
            action = Action.UNLOAD if pinned is None else Action.UNPIN
            yield Remedy(action, "device", model_bytes(device, model), "models", (pinned or model).name)


def _of_contexts(device: DeviceParts, contexts: list[Context], tier: Tier, needer: Needer) -> Iterator[Remedy]:
    idle = Action.SUSPEND if device.config.memory.page_file_bytes else Action.FREE
    for context in contexts:
        size_bytes = freed_bytes(context.table, tier) if context.table is not None else 0
        if size_bytes:
            action = Action.CANCEL if context.is_active else idle
            yield Remedy(action, tier.name.lower(), size_bytes, context.tenant, context.id if needer.may_name(context) else "")


def _enough(candidates: Iterator[Remedy], missing: int) -> list[Remedy]:
    """The smallest that is enough alone and the next ones; if none is, the largest until they are enough together."""
    ranked = sorted(candidates, key=lambda remedy: (remedy.size_bytes, remedy.subject))
    alone = [remedy for remedy in ranked if remedy.size_bytes >= missing]
    if alone:
        return alone[: MOST - 1]
    together: list[Remedy] = []
    for remedy in reversed(ranked):
        together.append(replace(remedy, is_part=True))
        if sum(each.size_bytes for each in together) >= missing:
            return together
    return []


def _is_kept(device: DeviceParts, context: Context, taker: str, tier: Tier) -> bool:
    page_bytes = max((frame_bytes(space, tier) for space in context.table.spaces), default=0) if context.table is not None else 0
    return device.pager.ledger.is_guaranteed(context.tenant, taker, tier, page_bytes)


def _rounded(device: DeviceParts, size_bytes: int) -> int:
    slab_bytes = device.config.memory.slab_bytes
    return -(-size_bytes // slab_bytes) * slab_bytes
