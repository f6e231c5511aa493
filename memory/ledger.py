"""Who holds how many bytes of which tier, and how many they may hold.

Owners are tenant paths: what "lab/ann" holds counts for "lab" too. A page that several hold is charged in equal integer parts, and the
remainder to the oldest holder.

    0            guarantee               limit
    |-- its own ----|-- borrowed, as long as nobody else needs it --|-- in excess: a sharer left, or the limit was lowered; taken first

A guarantee of "lab" covers those beneath it: what is promised to a node is the larger of its own guarantee and what is promised below it.

Invariants
1. Charges are never negative; the charges of a tier and kind add up to the bytes in use there.
2. What an owner uses is the sum of its own charges and those of every path below it.
3. A guarantee is no larger than the limit beside it, where there is one.
4. `in_excess` names exactly the owners that use more than a limit of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from memory import guarantees
from memory.errors import GuaranteeConflict, Holder, PagingError
from memory.page import Tier


class Kind(Enum):
    """What bytes are used for."""

    KV = "kv"
    WEIGHTS = "weights"
    ADAPTER = "adapter"
    WORKSPACE = "workspace"  # of drivers, beyond what the tier has for all others
    STAGING = "staging"
    JOB = "job"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Limit:
    """What an owner may count on and may not pass, in one tier; 0 is none."""

    guarantee_bytes: int = 0
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """What one owner holds of one tier, and what was promised to it. `used_bytes` counts those below it too, `kinds` does not."""

    owner: str
    tier: Tier
    kinds: dict[Kind, int]
    used_bytes: int
    limit: Limit
    weight: int

    @property
    def borrowed_bytes(self) -> int:
        """What it uses beyond its guarantee, and gives back when others need it."""
        return max(self.used_bytes - self.limit.guarantee_bytes, 0)

    @property
    def excess_bytes(self) -> int:
        """What it uses beyond its limit, and has to give back."""
        return max(self.used_bytes - self.limit.limit_bytes, 0) if self.limit.limit_bytes else 0


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """One tier, as `top` shows it."""

    tier: Tier
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: dict[str, int]  # by owner


_NO_LIMIT = Limit()
_WITHIN = tuple(kind for kind in Kind if kind is not Kind.WORKSPACE)  # what a tier's own bytes are used for


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
        self._charges: dict[tuple[Tier, Kind], dict[str, int]] = {(tier, kind): {} for tier in Tier for kind in Kind}
        self._used: dict[Tier, dict[str, int]] = {tier: {} for tier in Tier}
        self._limits: dict[Tier, dict[str, Limit]] = {tier: {} for tier in Tier}
        self._in_excess: dict[Tier, set[str]] = {tier: set() for tier in Tier}
        self._weights: dict[str, int] = {}
        self.num_pages = dict.fromkeys(Tier, 0)  # in each tier, however many hold a page

    # ------------------------------------------------------------------------------------------------------------------ limits, weights

    def set_limit(self, owner: str, tier: Tier, guarantee_bytes: int, limit_bytes: int) -> None:
        """Set what an owner may count on and may not pass; 0 is none. Use above the limit is reclaimed with the next plans.

        Raises: ValueError (invariant 3), and nothing is changed. Whether the guarantee can be kept is `check_limit`'s to say.
        """
        if guarantee_bytes < 0 or limit_bytes < 0 or 0 < limit_bytes < guarantee_bytes:
            raise ValueError(f"a guarantee of {guarantee_bytes} bytes does not go with a limit of {limit_bytes}")
        if guarantee_bytes or limit_bytes:
            self._limits[tier][owner] = Limit(guarantee_bytes, limit_bytes)
        else:
            self._limits[tier].pop(owner, None)
        if 0 < limit_bytes < self.used(owner, tier):
            self._in_excess[tier].add(owner)
        else:
            self._in_excess[tier].discard(owner)

    def check_limit(self, owner: str, tier: Tier, guarantee_bytes: int, limit_bytes: int) -> None:
        """See whether what `set_limit` is about to set can be kept: by the tier, and along the tree.

        Raises: GuaranteeConflict, with the sum of the guarantees, what there is for them, and who has them; ValueError (invariant 3).
        """
        if 0 < limit_bytes < guarantee_bytes:
            raise ValueError(f"a guarantee of {guarantee_bytes} bytes does not go with a limit of {limit_bytes}")
        given = {**self.guarantees(tier), owner: guarantee_bytes}
        promised = guarantees.promised(given)
        for name in lineage(owner):
            most = limit_bytes if name == owner else self.limit(name, tier).limit_bytes
            if 0 < most < promised[name]:
                raise GuaranteeConflict(tier.name.lower(), owner, promised[name], most, guarantees.beneath(given, name), within=name)
        most = self._totals.get(tier, 0)
        if guarantee_bytes and guarantees.total(given) > most:
            raise GuaranteeConflict(tier.name.lower(), owner, guarantees.total(given), most, guarantees.beneath(given, ""))

    def promised(self, tier: Tier) -> int:
        """The sum of all guarantees of a tier."""
        return guarantees.total(self.guarantees(tier))

    def guarantees(self, tier: Tier) -> dict[str, int]:
        """What was guaranteed, by owner."""
        return {owner: limit.guarantee_bytes for owner, limit in self._limits[tier].items() if limit.guarantee_bytes}

    def limit(self, owner: str, tier: Tier) -> Limit:
        """What was set for exactly this owner."""
        return self._limits[tier].get(owner, _NO_LIMIT)

    def in_excess(self, tier: Tier) -> tuple[str, ...]:
        """Owners that use more of a tier than their limit, in order of their paths (invariant 4)."""
        return tuple(sorted(self._in_excess[tier])) if self._in_excess[tier] else ()

    def set_weight(self, owner: str, weight: int) -> None:
        """Set what an owner's borrowing counts against that of its siblings; 1 where nothing was set, 0 takes it back to that."""
        if weight < 0:
            raise ValueError(f"a weight of {weight} is none")
        if weight > 1:
            self._weights[owner] = weight
        else:
            self._weights.pop(owner, None)

    def weight(self, owner: str) -> int:
        """What was set for exactly this owner, else 1."""
        return self._weights.get(owner, 1)

    def standing(self, owner: str, tier: Tier) -> tuple[int, int]:
        """How soon an owner gives way against its siblings, greater is sooner: by its excess, then by its borrowing per weight."""
        limit, used = self.limit(owner, tier), self.used(owner, tier)
        excess = max(used - limit.limit_bytes, 0) if limit.limit_bytes else 0
        return excess, ((used - limit.guarantee_bytes) << 16) // self.weight(owner)

    # ------------------------------------------------------------------------------------------------------------------ charge, refund

    def charge(self, tier: Tier, owner: str, kind: Kind, size_bytes: int) -> None:
        """Note that an owner holds more."""
        if not size_bytes:
            return  # the share of a page that more hold than it has bytes
        charges = self._charges[tier, kind]
        charges[owner] = charges.get(owner, 0) + size_bytes
        used, limits = self._used[tier], self._limits[tier]
        for name in lineage(owner):
            used[name] = size = used.get(name, 0) + size_bytes
            if limits and (limit := limits.get(name)) is not None and 0 < limit.limit_bytes < size:
                self._in_excess[tier].add(name)

    def refund(self, tier: Tier, owner: str, kind: Kind, size_bytes: int) -> None:
        """Note that an owner holds less. Raises: PagingError, if it does not hold that much (invariant 1)."""
        if not size_bytes:
            return
        charges = self._charges[tier, kind]
        left = charges.get(owner, 0) - size_bytes
        if left < 0:
            raise PagingError(f"{owner} does not hold {size_bytes} bytes of {kind.value} in the {tier.name.lower()} tier.")
        if left:
            charges[owner] = left
        else:
            charges.pop(owner, None)
        used, in_excess = self._used[tier], self._in_excess[tier]
        for name in lineage(owner):
            used[name] -= size_bytes
            if name in in_excess and used[name] <= self._limits[tier][name].limit_bytes:
                in_excess.discard(name)
            if not used[name]:
                del used[name]

    def charge_page(self, tier: Tier, holders: Mapping[str, int], oldest: str, size_bytes: int) -> None:
        """Charge a page to its holders: how many there are by owner, and the owner of the oldest. Costs what there are owners."""
        self.num_pages[tier] += 1
        for owner, charge in _charges_of(holders, oldest, size_bytes):
            self.charge(tier, owner, Kind.KV, charge)

    def refund_page(self, tier: Tier, holders: Mapping[str, int], oldest: str, size_bytes: int) -> None:
        """Take back what `charge_page` charged."""
        self.num_pages[tier] -= 1
        for owner, charge in _charges_of(holders, oldest, size_bytes):
            self.refund(tier, owner, Kind.KV, charge)

    # ------------------------------------------------------------------------------------------------------------------ questions

    def used(self, owner: str, tier: Tier) -> int:
        """Bytes that an owner and all below it hold."""
        return self._used[tier].get(owner, 0)

    def kv_bytes(self, owner: str, tier: Tier) -> int:
        """Bytes of KV that exactly this owner holds."""
        return self._charges[tier, Kind.KV].get(owner, 0)

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

    def keeps(self, owner: str, taker: str, tier: Tier, size_bytes: int) -> bool:
        """Whether a guarantee of exactly this owner keeps `size_bytes` from a taker that has no part in it."""
        limit = self._limits[tier].get(owner)
        if limit is None or not limit.guarantee_bytes or self.used(owner, tier) - size_bytes >= limit.guarantee_bytes:
            return False
        return owner not in lineage(taker)

    def holders(self, tier: Tier) -> tuple[Holder, ...]:
        """Who holds bytes of a tier, largest first; what lies beyond it is left out."""
        held: dict[str, int] = {}
        for kind in _WITHIN:
            for owner, size_bytes in self._charges[tier, kind].items():
                held[owner] = held.get(owner, 0) + size_bytes
        return tuple(Holder(owner, size) for owner, size in sorted(held.items(), key=lambda item: (-item[1], item[0])))

    def accounts(self, tier: Tier) -> tuple[Account, ...]:
        """Everybody who holds bytes of a tier, or was promised some, and all above them, in order of their paths."""
        return tuple(self._account(owner, tier) for owner in sorted(set(self._used[tier]) | set(self._limits[tier])))

    def _account(self, owner: str, tier: Tier) -> Account:
        kinds = {kind: size for kind in Kind if (size := self._charges[tier, kind].get(owner, 0))}
        return Account(owner, tier, kinds, self.used(owner, tier), self.limit(owner, tier), self.weight(owner))

    def snapshot(self) -> tuple[TierSnapshot, ...]:
        """Every tier, in order."""
        return tuple(self._snapshot(tier) for tier in sorted(self._totals))

    def _snapshot(self, tier: Tier) -> TierSnapshot:
        total = self._totals[tier]
        used = sum(self.kind_bytes(tier, kind) for kind in _WITHIN)
        return TierSnapshot(tier, total, total - used, self.kind_bytes(tier, Kind.WEIGHTS), dict(self._charges[tier, Kind.KV]))


def _charges_of(holders: Mapping[str, int], oldest: str, size_bytes: int) -> list[tuple[str, int]]:
    """What each owner pays for a page: a share per holder, and the oldest one's owner the remainder."""
    most, each = shares(size_bytes, sum(holders.values()))
    return [(owner, count * each + (most - each if owner == oldest else 0)) for owner, count in holders.items()]
