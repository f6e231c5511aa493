"""Who holds what of the machine's memory, and what stands in somebody's way: values that verbs give back, free of live objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from memory.remedy import Remedy


class Outcome(Enum):
    """What became of a change of a limit. A change that conflicts with what is promised to others is refused whole, as an error."""

    APPLIED = "applied"
    DEFERRED = "deferred"  # use is above it; it takes hold as pages are reclaimed


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes of one tier that something holds. `name` is a context or a model, empty where that is not the caller's to know."""

    tier: str
    owner: str  # path of the tenant
    kind: str  # of memory.ledger.Kind
    name: str
    state: str
    size_bytes: int
    device: str = ""  # empty: the only one


@dataclass(frozen=True, slots=True)
class LimitChange:
    """One limit that was changed; if deferred, how many bytes are still to be given back, and by whom."""

    tier: str
    field: str  # of kerneld.calls.Limits
    before: int
    after: int
    outcome: Outcome
    awaited_bytes: int = 0
    awaited_from: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True)
class TierAccount:
    """What one owner holds of one tier: `kinds` itself, `used_bytes` with everybody below it."""

    owner: str
    tier: str
    kinds: Mapping[str, int]
    used_bytes: int
    guarantee_bytes: int = 0
    limit_bytes: int = 0
    borrowed_bytes: int = 0
    excess_bytes: int = 0
    weight: int = 1
    pinned_bytes: int = 0
    device: str = ""  # empty: the only one


@dataclass(frozen=True, slots=True)
class TierTotal:
    """One tier of a device, all owners together."""

    tier: str
    total_bytes: int
    free_bytes: int
    guaranteed_bytes: int
    kinds: Mapping[str, int]
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
    measured_s: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The ledger as one caller may see it: own rows, and one "others" per tier."""

    tiers: tuple[TierTotal, ...]
    accounts: tuple[TierAccount, ...]
    decisions: tuple[PathDecision, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """How much of a context or a model is where. The tier "nowhere" is what has to be computed or read again."""

    tier: str
    size_bytes: int
    num_pages: int = 0
    device: str = ""  # empty: the only one, or nowhere


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that stands in the way. `code` is stable, for programs: MODEL, FETCH, PREFIX, RUNNING_LIMIT,
    LIMIT, FRAMES, ROWS, DEFERRED, QUEUE."""

    code: str
    text: str
    tier: str = ""
    owner: str = ""
    needed_bytes: int = 0
    available_bytes: int = 0
    limit_bytes: int = 0
    device: str = ""  # empty: the only one, or none in particular


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a request stands in line: its place among its tenant's, and how many wait and run on the machine."""

    position: int
    tenant_waiting: int
    waiting: int
    running: int
    service: int = 0  # what its tenant was charged, in microseconds of device time


@dataclass(frozen=True, slots=True)
class TenantActivity:
    """What a tenant and everybody beneath it do just now."""

    tenant: str
    weight: int = 1
    factor_milli: int = 1000  # its weight is multiplied by this / 1000
    recent_us: int = 0  # device time charged of late; negative where more was given back
    recent_share: float = 0.0  # of what was charged to everybody of late
    owed_us: int = 0  # device time that its siblings with something to run owe it; negative: it owes them
    num_waiting: int = 0
    num_running: int = 0
    num_contexts: int = 0
    kv_device_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Contender:
    """A tenant on the level of the tree where the ways of a request and of those ahead of it part."""

    tenant: str  # path; "others" where it is not the caller's to know
    is_own: bool  # the request's own, or one above it
    weight: int = 1
    factor_milli: int = 1000  # its weight is multiplied by this / 1000
    lag_us: int = 0  # device time, over its weight, by which it is ahead of the least served one that waits
    service_us: int = 0  # device time charged to it, ever
    num_waiting: int = 0
    num_running: int = 0


@dataclass(frozen=True, slots=True)
class StartEstimate:
    """When a request starts, and how far the last such estimates were off."""

    seconds: float | None = None  # from now; None: unknown
    error: float | None = None  # median of how far they were off, as a part of the wait; None: none was judged yet
    num_judged: int = 0


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
    queue_s: float = 0.0  # all its waits together, so far
    position: int = 0  # in the whole line, from 1; 0: it is in none
    is_position_least: bool = False  # nobody looked further: it is that far behind at least
    tenant_position: int = 0  # in the line of its own tenant
    contenders: tuple[Contender, ...] = ()
    estimate: StartEstimate = StartEstimate()
    deferred_until: float = 0.0
    deadline: float = 0.0  # 0: none
    num_preemptions: int = 0
    output_tokens: int = 0
    first_token_s: float | None = None  # from its arrival
    reason: str = ""  # why it ended
    detail: str = ""
    ended_at: float = 0.0
    queue_until: float = 0.0  # it ends if it has not started by then; 0: whenever it starts


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request, a context or a model is where it is, and what would change that."""

    subject: str
    state: str
    summary: str
    placements: tuple[Placement, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    holders: tuple[Holding, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    queue: QueuePlace | None = None
    outlook: Outlook | None = None


@dataclass(frozen=True, slots=True)
class PartChecked:
    """One part of the daemon's state that fsck looked at."""

    part: str
    num_checked: int
    unit: str
    bytes_read: int = 0
    problems: tuple[str, ...] = field(default=())
