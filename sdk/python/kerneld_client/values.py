"""What calls give back: frozen values. Names are those of the interface; points in time are Unix seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kerneld_client.memory_values import LimitChange, TenantActivity


class ContextState(StrEnum):
    """Where a context is in its life."""

    NEW = "new"
    IDLE = "idle"
    READY = "ready"
    RUNNING = "running"
    BLOCKED = "blocked"
    SUSPENDED = "suspended"
    FAILED = "failed"
    FREED = "freed"
    UNSPECIFIED = "unspecified"  # a state that this client is too old to know


class ModelState(StrEnum):
    """Where a model is."""

    REGISTERED = "registered"
    LOADING = "loading"
    RESIDENT = "resident"
    FAILED = "failed"
    UNSPECIFIED = "unspecified"


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"
    UNSPECIFIED = "unspecified"


class Priority(StrEnum):
    """Latency class of a context's requests; it changes slice and order, not share."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    IDLE = "idle"
    UNSPECIFIED = "unspecified"


class Durability(StrEnum):
    """How hard a context's tokens are kept."""

    JOURNAL = "journal"
    FSYNC = "fsync"
    NONE = "none"
    UNSPECIFIED = "unspecified"


class Access(StrEnum):
    """What a grant allows."""

    READ = "read"
    WRITE = "write"
    FORK = "fork"
    UNSPECIFIED = "unspecified"


class LimitMode(StrEnum):
    """What a limit does with a request that is above it."""

    SOFT = "soft"  # it waits
    HARD = "hard"  # it is refused
    UNSPECIFIED = "unspecified"


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Where a context's pages are."""

    device: int
    host: int
    lost: int
    shared: int
    disk: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Access of somebody else to a context."""

    grantee: str
    access: frozenset[Access]
    expires_at: float


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """A context as it stood when asked."""

    id: str
    model: str
    owner: str
    tenant: str
    state: ContextState
    num_tokens: int
    max_tokens: int
    priority: Priority
    nice: int
    durability: Durability
    labels: Mapping[str, str]
    created_at: float
    last_used_at: float
    pages: PageCounts
    kv_bytes: int
    parent: str
    active_request: str
    last_request: str
    failure: str
    grants: tuple[Grant, ...]
    seed: int
    pinned_tokens: int
    sharing_group: str
    adapter: str = ""
    device: str = ""  # where its pages are; empty: nowhere yet, or there is only one


@dataclass(frozen=True, slots=True)
class ContextText:
    """A range of a context's tokens, and their text. `num_tokens` is of the whole context."""

    offset: int
    tokens: tuple[int, ...]
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of a token, and of the likeliest ones at its position."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens that came, and the text that they completed. `offset` is the position of the first of them in the context."""

    offset: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[Logprob, ...] = ()

    @property
    def end(self) -> int:
        """The position of the next token."""
        return self.offset + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request used."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    pages_restored: int = 0
    pages_recomputed: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    shared_tokens: int = 0
    drafted_tokens: int = 0  # guessed ahead and verified
    accepted_tokens: int = 0  # of those, the ones that are in the output


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer. `offset` is the position of the first of its tokens; `detail` says more where the reason is error."""

    offset: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[Logprob, ...]
    finish_reason: FinishReason
    usage: Usage
    request: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probabilities of a continuation."""

    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...]
    total: float


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """What one of several devices has of a model, or could have."""

    device: str
    state: ModelState
    tier: str
    dtype: str
    device_bytes: int
    host_bytes: int
    streamed_bytes: int
    failure: str
    prefill_s: float  # per token of input, when it was loaded; 0: not known


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as it stood when asked. `bytes` are those of its weights; `streamed_bytes` of them are read again in every pass."""

    name: str
    path: str
    state: ModelState
    architecture: str
    dtype: str
    bytes: int
    num_parameters: int
    max_positions: int
    vocab_size: int
    weights_hash: str
    device: str
    kv_bytes_per_token: int
    num_contexts: int
    failure: str
    quant: str
    has_chat_template: bool
    streamed_bytes: int = 0
    stream_bytes_per_s: int = 0
    base: str = ""  # of an adapter: the model that it changes
    tier: str = ""  # the fastest that holds its weights: "device", "host" or "disk"
    device_bytes: int = 0
    host_bytes: int = 0
    is_pinned: bool = False  # it does not leave the device for another model
    last_used_at: float = 0.0
    num_loads: int = 0
    kv_quant: str = ""  # how its keys and values are kept; "": in `dtype`
    copies: tuple[ModelCopy, ...] = ()  # by device, where there are several


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is."""

    stage: str
    bytes_done: int
    bytes_total: int
    source: str = ""  # of the bytes: "host" or "disk"
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Image:
    """What a checkpoint left."""

    id: str
    context_id: str
    model: str
    owner: str
    tenant: str
    num_tokens: int
    num_pages: int
    bytes: int
    created_at: float
    name: str


@dataclass(frozen=True, slots=True)
class Restored:
    """How much of a restored context needs no prefill; `recompute_reason` is empty when all of its pages came back."""

    context: ContextInfo
    pages_restored: int
    pages_to_recompute: int
    recompute_reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a re-read of an image found."""

    ok: bool
    problems: tuple[str, ...]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class Principal:
    """Who the caller is to the daemon."""

    name: str
    tenant: str
    roles: tuple[str, ...]
    via: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may have; 0 is no limit of its own."""

    device_bytes: int = 0
    host_bytes: int = 0
    max_contexts: int = 0
    max_running: int = 0
    max_queued: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    image_bytes: int = 0
    device_guarantee_bytes: int = 0
    host_guarantee_bytes: int = 0
    disk_bytes: int = 0
    disk_guarantee_bytes: int = 0
    loads_per_hour: int = 0
    modes: Mapping[str, LimitMode] = field(default_factory=dict)  # by limit, where it is not the usual one


@dataclass(frozen=True, slots=True)
class SharingGroup:
    """Tenants, and all below them, whose contexts may compute equal beginnings once."""

    name: str
    members: tuple[str, ...]
    created_at: float
    num_contexts: int


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """A tenant as it stood when asked."""

    path: str
    weight: int
    limits: Limits
    num_contexts: int
    num_running: int
    num_queued: int
    service: int  # charged to it and everybody beneath it, ever: microseconds of device time
    kv_device_bytes: int
    kv_host_bytes: int
    created_at: float
    input_tokens: int
    output_tokens: int
    kv_disk_bytes: int
    revision: str
    changes: tuple[LimitChange, ...]


@dataclass(frozen=True, slots=True)
class NewToken:
    """An API token; `token` is shown this once."""

    id: str
    token: str
    tenant: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """An API token without its secret."""

    id: str
    tenant: str
    name: str
    roles: tuple[str, ...]
    created_at: float
    expires_at: float
    last_used_at: float


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain did with the requests that ran when it began."""

    finished: int
    left_for_next_start: int


@dataclass(frozen=True, slots=True)
class TierUse:
    """Bytes of one tier; KV by tenant."""

    tier: str
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: Mapping[str, int]
    device: str = ""  # empty: the only one


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker."""

    device: str
    driver: str
    pid: int
    state: str
    restarts: int
    busy: float


@dataclass(frozen=True, slots=True)
class TopFrame:
    """The machine at one moment."""

    at: float
    uptime_s: float
    running: int
    waiting: int
    num_contexts: int
    tokens_per_s: float
    prefill_tokens_per_s: float
    tiers: tuple[TierUse, ...]
    tenants: tuple[TenantInfo, ...]
    workers: tuple[WorkerStatus, ...]
    models: tuple[ModelInfo, ...]
    boot_generation: int
    activities: tuple[TenantActivity, ...] = ()
    recent_s: float = 0.0  # that "recent" means
    jain: float = 1.0  # index of service by weight over the last minute


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the daemon."""

    sequence: int
    at: float
    name: str
    facts: Mapping[str, str]
