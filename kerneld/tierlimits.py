"""TierLimits: guarantees and limits of tenants in every tier, changed while the machine runs.

    check     before a change is stored: can the guarantee be kept? Refused as a whole if not; nothing has changed
    put       after it: it holds at once where use is within it (APPLIED), else as pages are reclaimed (DEFERRED)
    look      now and then: a deferred limit that has taken hold is told of

Where there are several devices, guarantees and limits hold on each of them by itself: on its memory, its host tier and its page file.

Invariants
1. The ledger's limits are those of the rows that were put last; a deferred one holds for new pages at once.
2. A limit is told of as applied once, and only while it is still the one that is set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kerneld.calls import Limits
from kerneld.errors import InvalidArgument, WrongState
from kerneld.events import Event
from kerneld.holdings import LimitChange, Outcome
from memory.errors import GuaranteeConflict
from memory.ledger import Ledger
from memory.page import Tier
from memory.remedy import size_text

TIERS = tuple(Tier)


@dataclass(frozen=True, slots=True)
class LimitDeferred(Event):
    """A limit was set below what its tenant uses."""

    tenant: str
    tier: str
    limit_bytes: int
    awaited_bytes: int  # on all devices


@dataclass(frozen=True, slots=True)
class LimitApplied(Event):
    """A limit that was deferred has taken hold."""

    tenant: str
    tier: str
    limit_bytes: int


class TierLimits:
    """What tenants may count on and may not pass."""

    def __init__(self, ledgers: Mapping[str, Ledger], publish: Callable[[Event], None]) -> None:
        """`ledgers`: those of the devices, by name; that of the only one may be empty."""
        self._ledgers = ledgers
        self._publish = publish
        self._deferred: dict[tuple[str, Tier], int] = {}

    def check(self, path: str, limits: Limits) -> None:
        """See whether a tenant's new limits can be kept. Raises: InvalidArgument; WrongState, naming the sum and who has the guarantees."""
        for tier in TIERS:
            guarantee_bytes, limit_bytes = pair_of(limits, tier)
            word = tier.name.lower()
            if 0 < limit_bytes < guarantee_bytes:
                sizes = f"{size_text(guarantee_bytes)} is more than the limit beside it, {size_text(limit_bytes)}."
                raise InvalidArgument(f"limits.{word}_guarantee_bytes", f"conflict: {sizes}")
            for device, ledger in self._ledgers.items():
                try:
                    ledger.check_limit(path, tier, guarantee_bytes, limit_bytes)
                except GuaranteeConflict as conflict:
                    raise conflict_error(conflict, device) from conflict

    def put(self, path: str, old: Limits, new: Limits) -> tuple[LimitChange, ...]:
        """Set a tenant's limits; says what became of each one that changed."""
        changes: list[LimitChange] = []
        for tier in TIERS:
            guarantee_bytes, limit_bytes = pair_of(new, tier)
            for ledger in self._ledgers.values():
                ledger.set_limit(path, tier, guarantee_bytes, limit_bytes)
            awaited = self.awaited_bytes(path, tier, limit_bytes)
            if awaited:
                self._deferred[path, tier] = limit_bytes
            else:
                self._deferred.pop((path, tier), None)
            word = tier.name.lower()
            for name, is_limit in ((f"{word}_guarantee_bytes", False), (f"{word}_bytes", True)):
                before, after = getattr(old, name), getattr(new, name)
                if before != after:
                    late = awaited if is_limit else 0
                    changes.append(LimitChange(word, name, before, after, Outcome.DEFERRED if late else Outcome.APPLIED, late))
                    if late:
                        self._publish(LimitDeferred(path, word, after, late))
        return tuple(changes)

    def awaited_bytes(self, path: str, tier: Tier, limit_bytes: int) -> int:
        """What a tenant has to give back for a limit, on all devices."""
        return sum(max(ledger.used(path, tier) - limit_bytes, 0) for ledger in self._ledgers.values()) if limit_bytes else 0

    def remove(self, path: str) -> None:
        """Forget a tenant's limits."""
        for tier in TIERS:
            self._deferred.pop((path, tier), None)
        for ledger in self._ledgers.values():
            for tier in TIERS:
                ledger.set_limit(path, tier, 0, 0)
            ledger.set_weight(path, 0)

    def look(self) -> None:
        """Tell of deferred limits that have taken hold (invariant 2)."""
        for (path, tier), limit_bytes in list(self._deferred.items()):
            if not self.awaited_bytes(path, tier, limit_bytes):
                del self._deferred[path, tier]
                self._publish(LimitApplied(path, tier.name.lower(), limit_bytes))

    @property
    def is_waiting(self) -> bool:
        """Whether a limit has not taken hold yet."""
        return bool(self._deferred)


def pair_of(limits: Limits, tier: Tier) -> tuple[int, int]:
    """Guarantee and limit of one tier."""
    word = tier.name.lower()
    return getattr(limits, f"{word}_guarantee_bytes"), getattr(limits, f"{word}_bytes")


def conflict_error(conflict: GuaranteeConflict, device: str = "") -> WrongState:
    """The refusal of a guarantee that cannot be kept; `device` is where, if there are several."""
    named = ", ".join(f"{holder.owner} {size_text(holder.size_bytes)}" for holder in conflict.holders)
    most = f"the limit of {conflict.within}" if conflict.within else f"what the {conflict.tier} tier has"
    of_device = f" of {device}" if device else ""
    text = (
        f"conflict: guarantees of the {conflict.tier} tier{of_device} would add up to {size_text(conflict.sum_bytes)}, more than {most}, "
        f"{size_text(conflict.most_bytes)}. Guaranteed: {named}."
    )
    facts = {
        "outcome": "conflict",
        "tier": conflict.tier,
        "owner": conflict.owner,
        "sum_bytes": str(conflict.sum_bytes),
        "limit_bytes": str(conflict.most_bytes),
        "holders": json.dumps({holder.owner: holder.size_bytes for holder in conflict.holders[:8]}),
    }
    return WrongState(text, reason="GUARANTEE_CONFLICT", facts=facts)
