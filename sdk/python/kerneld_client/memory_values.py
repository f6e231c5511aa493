"""What the daemon says of memory: who holds what, and why something is not where it is wanted. Frozen; sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class LimitOutcome(Enum):
    """What became of a change of a limit."""

    UNSPECIFIED = "unspecified"
    APPLIED = "applied"
    DEFERRED = "deferred"  # use is above it; it takes hold as pages are reclaimed


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes of one tier that something holds. `name` is a context or a model, empty where that is not the caller's to know."""

    tier: str
    owner: str
    kind: str
    name: str
    state: str
    bytes: int
    device: str = ""  # empty: the only one


@dataclass(frozen=True, slots=True)
class LimitChange:
    """One limit that was changed; if deferred, how many bytes are still to be given back, and by whom."""

    tier: str
    field: str
    before: int
    after: int
    outcome: LimitOutcome
    awaited_bytes: int
    awaited_from: tuple[Holding, ...]


@dataclass(frozen=True, slots=True)
class TierTotal:
    """One tier, all owners together."""

    tier: str
    total_bytes: int
    free_bytes: int
    guaranteed_bytes: int
    kinds: Mapping[str, int]
    device: str = ""  # empty: the only one


@dataclass(frozen=True, slots=True)
class TierAccount:
    """What one owner holds of one tier: `kinds` itself, `used_bytes` with everybody beneath it."""

    owner: str
    tier: str
    kinds: Mapping[str, int]
    used_bytes: int
    guarantee_bytes: int
    limit_bytes: int
    borrowed_bytes: int
    excess_bytes: int
    weight: int
    pinned_bytes: int
    device: str = ""  # empty: the only one


@dataclass(frozen=True, slots=True)
class PathDecision:
    """How the pages of a context were brought back, what that was expected to cost, and what the other way would have."""

    at: float
    model: str
    context_id: str
    num_tokens: int
    keep_tokens: int
    chosen: str
    cost_s: float | None  # None: nobody knows yet what computing costs
    alternative: str
    alternative_cost_s: float | None
    measured_s: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """The ledger as the caller may see it."""

    tiers: tuple[TierTotal, ...]
    accounts: tuple[TierAccount, ...]
    decisions: tuple[PathDecision, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """How much of something is where; "nowhere" is what has to be computed again."""

    tier: str
    bytes: int
    num_pages: int
    device: str = ""  # empty: the only one, or nowhere


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that stands in the way; `code` is stable."""

    code: str
    text: str
    tier: str
    owner: str
    needed_bytes: int
    available_bytes: int
    limit_bytes: int
    device: str = ""


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change that would help; `text` says it to a person. `is_part`: it helps only together with the others that are parts."""

    action: str
    tier: str
    bytes: int
    owner: str
    subject: str
    text: str
    is_part: bool


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a request stands in line."""

    position: int
    tenant_waiting: int
    waiting: int
    running: int
    service: int  # what its tenant was charged, ever: microseconds of device time


@dataclass(frozen=True, slots=True)
class TenantActivity:
    """What a tenant and everybody beneath it do just now."""

    tenant: str
    weight: int
    factor_milli: int  # its weight is multiplied by this / 1000
    recent_us: int  # device time charged of late; negative where more was given back
    recent_share: float  # of what was charged to everybody of late
    owed_us: int  # device time that its siblings with something to run owe it; negative: it owes them
    num_waiting: int
    num_running: int
    num_contexts: int
    kv_device_bytes: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A tenant on the level of the tree where the ways of a request and of those ahead of it part."""

    tenant: str  # path; "others" where it is not the caller's to know
    is_own: bool
    weight: int
    factor_milli: int  # its weight is multiplied by this / 1000
    lag_us: int  # device time, over its weight, by which it is ahead of the least served one that waits
    service_us: int
    num_waiting: int
    num_running: int


@dataclass(frozen=True, slots=True)
class StartEstimate:
    """When a request starts, and how far the last such estimates were off, as a part of the wait. None: unknown."""

    seconds: float | None
    error: float | None
    num_judged: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a request stands: its places in line, who is ahead, and when it starts; of one that ended, how it went."""

    request: str
    context_id: str
    tenant: str
    model: str
    state: str  # "waiting", "parked", "deferred", "running" or "finished"
    priority: str
    nice: int
    arrived_at: float
    queue_s: float
    position: int  # in the whole line, from 1; 0: it is in none
    is_position_least: bool  # nobody looked further: it is that far behind at least
    tenant_position: int
    contenders: tuple[Contender, ...]
    estimate: StartEstimate
    deferred_until: float
    deadline: float
    num_preemptions: int
    output_tokens: int
    first_token_s: float | None
    reason: str
    detail: str
    ended_at: float
    queue_until: float = 0.0  # it ends if it has not started by then


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request, a context or a model is where it is, what is in its way, and what would help, the smallest change first."""

    subject: str
    state: str
    summary: str
    placements: tuple[Placement, ...]
    obstacles: tuple[Obstacle, ...]
    holders: tuple[Holding, ...]
    remedies: tuple[Remedy, ...]
    queue: QueuePlace | None
    outlook: Outlook | None = None


@dataclass(frozen=True, slots=True)
class PartChecked:
    """One part of the daemon's state that fsck looked at."""

    part: str
    num_checked: int
    unit: str
    bytes_read: int
    problems: tuple[str, ...]
