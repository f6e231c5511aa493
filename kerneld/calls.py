"""What the kernel's verbs take and return: frozen values, free of gRPC and of live objects.

The system-call side speaks to `kerneld.kernel.Kernel` only in these, so that it can become a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from drivers.contract import Sampling, TokenLogprob
from kerneld.holdings import LimitChange, TenantActivity

T = TypeVar("T")


class Durability(Enum):
    """How hard a context's tokens are kept."""

    JOURNAL = "journal"  # survives the death of any process
    FSYNC = "fsync"  # survives power loss
    NONE = "none"  # lives as long as the daemon


class Priority(Enum):
    """Latency class of a context's requests; it changes slice and order, not share."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    IDLE = "idle"


class LimitMode(Enum):
    """What a limit does with a request that is above it."""

    SOFT = "soft"  # it is accepted, and waits until it is within the limit
    HARD = "hard"  # it is refused, and told when to come again


class ContextState(Enum):
    """The states of a context; legal moves are in `kerneld.context`."""

    NEW = "new"
    IDLE = "idle"
    READY = "ready"
    RUNNING = "running"
    BLOCKED = "blocked"
    SUSPENDED = "suspended"
    FAILED = "failed"
    FREED = "freed"


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


class ModelState(Enum):
    """Where a model is."""

    REGISTERED = "registered"
    LOADING = "loading"
    RESIDENT = "resident"
    FAILED = "failed"


class Access(Enum):
    """What a grant allows on a context."""

    READ = "read"
    WRITE = "write"
    FORK = "fork"


class Role(Enum):
    """What a principal is; `kerneld.security.acl` says what each may do."""

    ADMIN = "admin"
    OPERATOR = "operator"
    USER = "user"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a call comes from. `via` is "peer", "token" or "tls"; `credential_id` names the token or certificate in the audit log."""

    name: str
    tenant: str
    roles: frozenset[Role]
    via: str = "peer"
    credential_id: str = ""

    @property
    def is_admin(self) -> bool:
        """Whether everything is allowed."""
        return Role.ADMIN in self.roles


@dataclass(frozen=True, slots=True)
class Caller:
    """One call's identity: the principal, and the caller's idempotency key (empty: none) with a digest of the call's content."""

    principal: Principal
    request_id: str = ""
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Grant:
    """Access of somebody else to a context. `grantee` is "principal:NAME" or "tenant:PATH"; `expires_at` 0 is never."""

    grantee: str
    access: frozenset[Access]
    expires_at: float = 0.0


@dataclass(frozen=True, slots=True)
class AllocArgs:
    """A new, empty context on a model."""

    model: str
    max_tokens: int = 0  # 0: the model's limit
    priority: Priority = Priority.INTERACTIVE
    nice: int = 0
    durability: Durability = Durability.JOURNAL
    labels: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    adapter: str = ""  # of that model; an adapter in place of the model stands for its base and itself
    sharing_group: str = ""  # with whose contexts it computes equal beginnings once; empty: with those of its own tenant


@dataclass(frozen=True, slots=True)
class ForkArgs:
    """A context that shares its past with another."""

    context_id: str
    at: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class SetArgs:
    """Changes to a context; None leaves a field as it is."""

    context_id: str
    nice: int | None = None
    priority: Priority | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    is_pinned: bool | None = None  # whether the tokens that it has now go last of its tenant's


@dataclass(frozen=True, slots=True)
class TextInput:
    """Input as text, tokenized as it stands (no special tokens added unless the context is empty and the tokenizer adds a bos)."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Input as token ids."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatInput:
    """Input as chat messages (role, content), rendered by the model's template."""

    messages: tuple[tuple[str, str], ...]


InferInput = TextInput | TokenInput | ChatInput | None


@dataclass(frozen=True, slots=True)
class InferArgs:
    """Append input to a context and generate."""

    context_id: str
    input: InferInput = None
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    has_seed: bool = False  # whether sampling.seed was given; else the context's seed is used
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    deadline_s: float = 0.0
    detach_grace_s: float | None = None
    max_queue_s: float = 0.0  # 0: it waits as long as its deadline lets it
    draft_model: str = ""  # that guesses, where `sampling.draft_tokens` asks for guesses; "": the context's own tokens are looked up


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream: the request was admitted."""

    request: str
    offset: int
    input_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens that became durable, with the text that they completed."""

    offset: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


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
class Finished:
    """Last event of a stream."""

    reason: FinishReason
    usage: Usage
    detail: str = ""


StreamEvent = Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class ScoreArgs:
    """Log-probabilities of a continuation; the context is left as it was."""

    context_id: str
    input: TextInput | TokenInput
    top: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """The tokens that were scored, and what the model thought of each."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(item.logprob for item in self.logprobs)


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Where a context's pages are."""

    device: int = 0
    host: int = 0
    lost: int = 0
    shared: int = 0
    disk: int = 0  # there alone


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """A context as `stat` shows it."""

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
    seed: int
    pages: PageCounts = PageCounts()
    kv_bytes: int = 0
    parent: str = ""
    active_request: str = ""
    last_request: str = ""
    failure: str = ""
    grants: tuple[Grant, ...] = ()
    adapter: str = ""
    pinned_tokens: int = 0
    sharing_group: str = ""
    device: str = ""  # where its pages are; empty: nowhere yet, or there is only one


@dataclass(frozen=True, slots=True)
class ContextText:
    """A range of a context's tokens, and their text."""

    offset: int
    tokens: tuple[int, ...]
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class RegisterArgs:
    """A model directory under one of the configured roots, and the name it is to have."""

    name: str
    path: str = ""
    max_positions: int = 0
    quant: str = ""
    base: str = ""  # name of the registered model that an adapter changes
    kv_quant: str = ""
    device: str = ""  # on which it is to be loaded; empty: wherever it does best


@dataclass(frozen=True, slots=True)
class CopyInfo:
    """What one of several devices has of a model, or could have."""

    device: str
    state: ModelState
    tier: str = "disk"
    dtype: str = ""
    device_bytes: int = 0
    host_bytes: int = 0
    streamed_bytes: int = 0
    failure: str = ""
    prefill_s: float = 0.0  # per token of input, when it was loaded; 0: not known


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as `model show` shows it."""

    name: str
    path: str
    state: ModelState
    architecture: str = ""
    dtype: str = ""
    size_bytes: int = 0
    num_parameters: int = 0
    max_positions: int = 0
    vocab_size: int = 0
    weights_hash: str = ""
    device: str = ""
    kv_bytes_per_token: int = 0
    num_contexts: int = 0
    failure: str = ""
    quant: str = ""
    has_chat_template: bool = False
    base: str = ""
    streamed_bytes: int = 0
    stream_bytes_per_s: int = 0
    tier: str = "disk"  # the fastest that holds its weights: "device", "host" or "disk"
    device_bytes: int = 0
    host_bytes: int = 0
    is_pinned: bool = False
    last_used_at: float = 0.0
    num_loads: int = 0
    kv_quant: str = ""
    copies: tuple[CopyInfo, ...] = ()  # by device, where there are several


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is."""

    stage: str
    bytes_done: int
    bytes_total: int
    source: str = ""  # of the bytes: "host" or "disk"
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CheckpointArgs:
    """Write an image of a context."""

    context_id: str
    name: str = ""
    tokens_only: bool = False


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as `ckpt ls` shows it."""

    id: str
    context_id: str
    model: str
    owner: str
    tenant: str
    num_tokens: int
    num_pages: int
    size_bytes: int
    created_at: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """A context made from an image, and how much of it needs no prefill."""

    context: ContextInfo
    pages_restored: int
    pages_to_recompute: int
    recompute_reason: str = ""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a re-read of an image found."""

    problems: tuple[str, ...]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may have; 0 is no limit of its own, a parent's limits hold all the same."""

    device_bytes: int = 0
    host_bytes: int = 0
    max_contexts: int = 0
    max_running: int = 0
    max_queued: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    image_bytes: int = 0
    device_guarantee_bytes: int = 0  # use below it is not reclaimed for others
    host_guarantee_bytes: int = 0
    disk_bytes: int = 0  # of KV pages on disk; images have a limit of their own
    disk_guarantee_bytes: int = 0
    loads_per_hour: int = 0  # of models that were not on the device
    modes: Mapping[str, LimitMode] = field(default_factory=dict)  # by limit, where it is not the one of `kerneld.limitmodes`


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """A tenant as `tenant ls` shows it; `service` in microseconds of device time, bytes of KV.

    `changes` are those of the call that it answers.
    """

    path: str
    weight: int
    limits: Limits
    created_at: float
    num_contexts: int = 0
    num_running: int = 0
    num_queued: int = 0
    service: int = 0
    kv_device_bytes: int = 0
    kv_host_bytes: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    kv_disk_bytes: int = 0
    revision: str = ""  # of weight and limits; SetTenant refuses another one
    changes: tuple[LimitChange, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A sharing group as `share-group ls` shows it: its members, and every tenant below one, may opt in."""

    name: str
    members: tuple[str, ...]
    created_at: float
    num_contexts: int = 0


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """An API token without its secret."""

    id: str
    tenant: str
    name: str
    roles: frozenset[Role]
    created_at: float
    expires_at: float = 0.0
    last_used_at: float = 0.0


@dataclass(frozen=True, slots=True)
class NewToken:
    """An API token with its secret, which is shown once."""

    info: TokenInfo
    secret: str


@dataclass(frozen=True, slots=True)
class TierUse:
    """Bytes of one tier."""

    tier: str
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: Mapping[str, int]
    device: str = ""  # empty: the only one


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as `top` shows it."""

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
class EventRecord:
    """One event as `events` shows it."""

    sequence: int
    at: float
    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain did with the requests that ran when it began."""

    finished: int
    left_for_next_start: int


@dataclass(frozen=True, slots=True)
class ListArgs:
    """A page of a list. `everybody` needs operator or admin."""

    page_size: int = 0
    page_token: str = ""
    everybody: bool = False
    model: str = ""
    tenant: str = ""
    context_id: str = ""


@dataclass(frozen=True, slots=True)
class ListPage(Generic[T]):
    """Items of a list, and where the next page starts (empty: there is none)."""

    items: tuple[T, ...]
    next_page_token: str = ""
