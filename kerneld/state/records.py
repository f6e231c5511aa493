"""The records of the journal: everything that happens to contexts, in the order in which it happened.

Ids of contexts and requests are 16 raw bytes here (`bytes.fromhex` of what callers see), tokens are u32 little endian. Records are arrays
on disk: a new field goes to the end and has a default, so that older logs stay readable; a tag is never used twice.

How the scheduler stands travels beside: `kerneld.accounts.Accounts` says what changed of its books, `Standing` where a request is with it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

import msgspec

from drivers.contract import Sampling
from kerneld import calls
from kerneld.accounts import Accounts
from kerneld.calls import Durability, FinishReason, Priority, Usage
from kerneld.pricing.tariff import Tariff


def pack_tokens(tokens: Iterable[int]) -> bytes:
    """Return token ids as they travel in records."""
    packed = array("I", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> array[int]:
    """Return the token ids of a record. Raises: ValueError, if the bytes are not whole tokens."""
    tokens = array("I")
    tokens.frombytes(packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens


class Alloc(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A context begins. Its tokens are those of `parent` before `fork_at`, then `tokens` (a restore brings its own)."""

    context_id: bytes
    owner: str
    tenant: str
    model: str
    fingerprint: str
    max_tokens: int
    priority: Priority
    nice: int
    durability: Durability
    labels: dict[str, str]
    seed: int
    created_at: float
    parent: bytes = b""
    fork_at: int = 0
    tokens: bytes = b""
    adapter: str = ""
    sharing_group: str = ""


class Admit(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A request begins: its input is appended to the context."""

    context_id: bytes
    request: bytes
    tokens: bytes  # the input
    sampling: Sampling
    stop: tuple[str, ...]
    max_tokens: int  # of output
    ignore_eos: bool
    deadline_at: float  # Unix seconds, 0: none
    arrived_at: float
    output_start: int  # position of the first output token: tokens of the context, input included
    detach_grace_s: float
    unused: dict[str, int] = {}  # its place is taken in older logs
    num_input: int = 0  # tokens of the input; a replay counts them where a log says nothing
    queue_until: float = 0.0  # Unix seconds; by then it is seated for the first time, or ends; 0: no such time
    draft_model: str = ""


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """What one step sampled: (context id, tokens) per row."""

    batch: tuple[tuple[bytes, bytes], ...]


class Finish(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A request ended; the context keeps its tokens."""

    context_id: bytes
    request: bytes
    reason: FinishReason
    usage: Usage
    detail: str
    at: float


class Truncate(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A context was rolled back to its first `num_tokens` tokens."""

    context_id: bytes
    num_tokens: int


class Suspend(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A context was suspended."""

    context_id: bytes


class Resume(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A suspended context is idle again."""

    context_id: bytes


class Set(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Fields of a context changed; None leaves one as it is. Labels are merged, an empty value removes one."""

    context_id: bytes
    nice: int | None = None
    priority: Priority | None = None
    labels: dict[str, str] = {}
    max_tokens: int | None = None
    pinned_tokens: int | None = None


class Grant(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Somebody else got access; an earlier grant to the same grantee is replaced."""

    context_id: bytes
    grant: calls.Grant


class Revoke(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """A grantee lost access."""

    context_id: bytes
    grantee: str


class Fail(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """A context failed; its request, if it had one, has its own Finish."""

    context_id: bytes
    failure: str


class Free(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """A context is gone, and its active request with it."""

    context_id: bytes


class Effect(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """The answer to a call with a request id, kept so that the same call again gets the same answer."""

    principal: str
    request_id: str
    verb: str
    digest: bytes  # of the call's content
    answer: bytes
    at: float


class Counters(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Fair-share counters of an older kerneld, in units that mean nothing any more: read, and left aside."""

    values: dict[str, int]


class ContextSnapshot(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """A context as it stands, all of its tokens in `alloc.tokens`; `parent` and `fork_at` only tell where it came from."""

    alloc: Alloc
    is_suspended: bool
    failure: str
    grants: tuple[calls.Grant, ...]
    active: Admit | None  # without its input, which is among the tokens
    last_request: bytes
    last_finish: Finish | None
    last_used_at: float
    pinned_tokens: int = 0
    last_admit: Admit | None = None  # of the request that finished last, while what it generated stands at the end


class Synced(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Everything before `offset` of this segment was on the disk when this was written. The journal's own; no reader sees it."""

    offset: int


class SnapshotEnd(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """A snapshot is whole and had `num_records` records before this one. The journal's own; no reader sees it."""

    num_records: int


class Standing(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """How an unfinished request stands with the scheduler. Before its first one it waits in line, and has paid for nothing.

    Tokens that come after it use up what is prepaid, and count as generated since its seat.
    """

    context_id: bytes
    request: bytes
    num_cached: int  # input tokens that needed no computing when it was charged
    num_prepaid: int  # output tokens that are paid for, and to come
    is_running: bool
    num_served: int = 0  # tokens generated since its seat
    tariff: Tariff | None = None  # that it was admitted by
    is_charged: bool = True
    defer_until: float = 0.0  # Unix seconds; > 0: it waits beside the line


Record = (
    Alloc
    | Admit
    | Tokens
    | Finish
    | Truncate
    | Suspend
    | Resume
    | Set
    | Grant
    | Revoke
    | Fail
    | Free
    | Effect
    | Counters
    | ContextSnapshot
    | Synced
    | SnapshotEnd
    | Accounts
    | Standing
)


class Together(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Records of one append: all of them survive a death, or none. The journal's own; no reader sees it."""

    records: tuple[Record, ...]
