"""Who holds how many bytes of which tier, and how many they may hold.

Owners are tenant paths: what "lab/ann" holds counts for "lab" too. A page that several hold is charged in equal integer parts, and the
remainder to the oldest holder.

Invariants
1. Charges are never negative; the charges of a tier and kind add up to the bytes in use there.
2. What an owner uses is the sum of its own charges and those of every path below it.
3. A guarantee is no larger than the limit beside it, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from memory.errors import Holder, PagingError
from memory.page import Tier


class Kind(Enum):
    """What bytes are used for."""

    KV = "kv"
    WEIGHTS = "weights"
    ADAPTER = "adapter"
    WORKSPACE = "workspace"
    STAGING = "staging"
    JOB = "job"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Limit:
    """What an owner may count on and may not pass, in one tier; 0 is none."""

    guarantee_bytes: int = 0
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """One tier, as `top` shows it."""

    tier: Tier
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: dict[str, int]  # by owner


@lru_cache(maxsize=4096)
def lineage(owner: str) -> tuple[str, ...]:
    """An owner and all above it, itself first: "lab/ann" gives ("lab/ann", "lab")."""
    parts = owner.split("/")
    return tuple("/".join(parts[:depth]) for depth in range(len(parts), 0, -1))


def shares(size_bytes: int, num_holders: int) -> tuple[int, int]:
    """Charge of the oldest holder and of each of the others for a page of that size."""
    each = size_bytes // num_holders
    return size_bytes - each * (num_holders - 1), each


class Ledger:
    """Bytes by tier, owner and kind."""

    def __init__(self, totals: dict[Tier, int]) -> None:
        """Start with nothing charged; `totals` says how large the tiers are."""
        self._totals = dict(totals)
        self._charges: dict[tuple[Tier, Kind], dict[str, int]] = {(tier, kind): {} for tier in totals for kind in Kind}
        self._used: dict[Tier, dict[str, int]] = {tier: {} for tier in totals}
        self._limits: dict[Tier, dict[str, Limit]] = {tier: {} for tier in totals}

    def set_limit(self, owner: str, tier: Tier, guarantee_bytes: int, limit_bytes: int) -> None:
        """Set what an owner may count on and may not pass; 0 is none. Raises: ValueError (invariant 3), and nothing is changed."""
        if guarantee_bytes < 0 or limit_bytes < 0 or 0 < limit_bytes < guarantee_bytes:
            raise ValueError(f"a guarantee of {guarantee_bytes} bytes does not go with a limit of {limit_bytes}")
        if guarantee_bytes or limit_bytes:
            self._limits[tier][owner] = Limit(guarantee_bytes, limit_bytes)
        else:
            self._limits[tier].pop(owner, None)

    def limit(self, owner: str, tier: Tier) -> Limit:
        """What was set for exactly this owner."""
        return self._limits[tier].get(owner, Limit())

    # ------------------------------------------------------------------------------------------------------------------ charge, refund

    def charge(self, tier: Tier, owner: str, kind: Kind, size_bytes: int) -> None:
        """Note that an owner holds more."""
        charges = self._charges[tier, kind]
        charges[owner] = charges.get(owner, 0) + size_bytes
        used = self._used[tier]
        for name in lineage(owner):
            used[name] = used.get(name, 0) + size_bytes

    def refund(self, tier: Tier, owner: str, kind: Kind, size_bytes: int) -> None:
        """Note that an owner holds less. Raises: PagingError, if it does not hold that much (invariant 1)."""
        charges = self._charges[tier, kind]
        left = charges.get(owner, 0) - size_bytes
        if left < 0:
            raise PagingError(f"{owner} does not hold {size_bytes} bytes of {kind.value} in the {tier.name.lower()} tier.")
        if left:
            charges[owner] = left
        else:
            charges.pop(owner, None)
        used = self._used[tier]
        for name in lineage(owner):
            used[name] -= size_bytes
            if not used[name]:
                del used[name]

    def charge_page(self, tier: Tier, holders: Mapping[str, int], oldest: str, size_bytes: int) -> None:
        """Charge a page to its holders: how many there are by owner, and the owner of the oldest. Costs what there are owners."""
        for owner, charge in _charges_of(holders, oldest, size_bytes):
            self.charge(tier, owner, Kind.KV, charge)

    def refund_page(self, tier: Tier, holders: Mapping[str, int], oldest: str, size_bytes: int) -> None:
        """Take back what `charge_page` charged."""
        for owner, charge in _charges_of(holders, oldest, size_bytes):
            self.refund(tier, owner, Kind.KV, charge)

    # ------------------------------------------------------------------------------------------------------------------ questions

    def used(self, owner: str, tier: Tier) -> int:
        """Bytes that an owner and all below it hold."""
        return self._used[tier].get(owner, 0)

    def kind_bytes(self, tier: Tier, kind: Kind) -> int:
        """Bytes of one kind, all owners together."""
        return sum(self._charges[tier, kind].values())

    def exceeded(self, owner: str, tier: Tier, more_bytes: int) -> str | None:
        """The nearest of an owner and those above it whose limit `more_bytes` would pass, or None."""
        limits = self._limits[tier]
        if not limits:
            return None
        for name in lineage(owner):
            limit = limits.get(name)
            if limit is not None and limit.limit_bytes and self.used(name, tier) + more_bytes > limit.limit_bytes:
                return name
        return None

    def is_guaranteed(self, owner: str, taker: str, tier: Tier, size_bytes: int) -> bool:
        """Whether `size_bytes` of an owner are covered by a guarantee that the taker has no part in."""
        limits = self._limits[tier]
        if not limits:
            return False
        kin = lineage(taker)
        guarantees = ((name, limits[name].guarantee_bytes) for name in lineage(owner) if name in limits and name not in kin)
        return any(guarantee and self.used(name, tier) - size_bytes < guarantee for name, guarantee in guarantees)

    def holders(self, tier: Tier) -> tuple[Holder, ...]:
        """Who holds bytes of a tier, largest first."""
        held: dict[str, int] = {}
        for kind in Kind:
            for owner, size_bytes in self._charges[tier, kind].items():
                held[owner] = held.get(owner, 0) + size_bytes
        return tuple(Holder(owner, size) for owner, size in sorted(held.items(), key=lambda item: (-item[1], item[0])))

    def snapshot(self) -> tuple[TierSnapshot, ...]:
        """Every tier, in order."""
        return tuple(self._snapshot(tier) for tier in sorted(self._totals))

    def _snapshot(self, tier: Tier) -> TierSnapshot:
        total = self._totals[tier]
        used = sum(self.kind_bytes(tier, kind) for kind in Kind)
        return TierSnapshot(tier, total, total - used, self.kind_bytes(tier, Kind.WEIGHTS), dict(self._charges[tier, Kind.KV]))


def _charges_of(holders: Mapping[str, int], oldest: str, size_bytes: int) -> list[tuple[str, int]]:
    """What each owner pays for a page: a share per holder, and the oldest one's owner the remainder."""
    most, each = shares(size_bytes, sum(holders.values()))
    return [(owner, count * each + (most - each if owner == oldest else 0)) for owner, count in holders.items()]
