"""The context: what a process control block is to an operating system.

           infer            admitted
    NEW -> IDLE <-> READY <----------> RUNNING        any but FREED and FAILED -> FAILED(reason)
           ^  |      ^ |                  |           any but FREED            -> FREED
    resume |  |      | v                  |
           |  v      BLOCKED <------------'           READY, RUNNING, BLOCKED -> IDLE: the request ended
        SUSPENDED    (pages or model not there yet, or preempted)

`LEGAL_MOVES` is that picture; `Context.move` is the only code that writes `state`.

Invariants
1. `kv_valid <= len(tokens)`: KV is a cache of the tokens, never ahead of them.
2. `active_request` is set if and only if the state is READY, RUNNING or BLOCKED, from the end of the verb that moved it.
3. FREED is final; FAILED leads to FREED only. A failed context says why in `failure`.
4. Tokens are appended when they are durable (durability `none` excepted), so every token here may be shown to a reader.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kerneld.calls import ContextInfo, ContextState, Durability, Finished, Grant, PageCounts, Priority
from kerneld.errors import WrongState

if TYPE_CHECKING:
    from memory.prefix import HashChain
    from memory.table import PageTable

_MASK_64: Final = (1 << 64) - 1
_GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15

_ENDED: Final = frozenset({ContextState.FAILED, ContextState.FREED})

LEGAL_MOVES: Final[Mapping[ContextState, frozenset[ContextState]]] = {
    ContextState.NEW: _ENDED | {ContextState.IDLE},
    ContextState.IDLE: _ENDED | {ContextState.READY, ContextState.SUSPENDED},
    ContextState.READY: _ENDED | {ContextState.RUNNING, ContextState.BLOCKED, ContextState.IDLE},
    ContextState.RUNNING: _ENDED | {ContextState.READY, ContextState.BLOCKED, ContextState.IDLE},
    ContextState.BLOCKED: _ENDED | {ContextState.READY, ContextState.IDLE},
    ContextState.SUSPENDED: _ENDED | {ContextState.IDLE},
    ContextState.FAILED: frozenset({ContextState.FREED}),
    ContextState.FREED: frozenset(),
}


def derive_seed(seed: int, counter: int) -> int:
    """The `counter`-th 64-bit seed that descends from `seed`; different counters give unrelated draws.

    Source: SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 10.
    """
    mixed = (seed + (counter + 1) * _GOLDEN_GAMMA) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return mixed ^ (mixed >> 31)


def priced_as(model: str, device: str) -> str:
    """The name of a model's copy on a device in tariffs and step costs; `device` is empty for the only one."""
    return f"{model}@{device}" if device else model


@dataclass(slots=True, eq=False)
class Context:
    """Tokens and sampler state of one conversation or program, and the page table of its KV cache."""

    # Written once, by alloc, fork, restore or recovery.
    id: str  # 32 hexadecimal digits
    owner: str  # name of the principal
    tenant: str  # path
    model: str  # name
    fingerprint: str  # of everything that its KV depends on
    seed: int  # 64 bit
    created_at: float  # Unix seconds
    durability: Durability = Durability.JOURNAL
    parent: str = ""  # context it was forked from
    adapter: str = ""  # name; its KV is that of the model as the adapter changes it
    sharing_group: str = ""  # name; empty: its tenant alone is its sharing domain

    # Written by whoever places it (`kerneld.placing`), and not journaled: pages are a cache.
    device: str = ""  # where its pages are, and where it runs; empty: nowhere yet, or on the only device

    # Written by the verb Set, and by Grant and Revoke.
    max_tokens: int = 0
    priority: Priority = Priority.INTERACTIVE
    nice: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    pinned_tokens: int = 0  # leading tokens whose pages go last of all that its tenant has
    grants: dict[str, Grant] = field(default_factory=dict)  # by grantee

    # Written by the dispatcher (commit) and the verbs that edit the past (truncate).
    tokens: array[int] = field(default_factory=lambda: array("I"))  # index = position
    kv_valid: int = 0  # leading tokens whose KV is committed, on the device or below
    table: PageTable | None = None  # None until it runs for the first time
    chain: HashChain | None = None  # names of its full pages; there if and only if the table is

    # Written by `move` alone.
    state: ContextState = ContextState.NEW
    failure: str = ""

    # Written by the kernel when a request starts and ends.
    last_used_at: float = 0.0
    active_request: str = ""
    last_request: str = ""
    last_finished: Finished | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """Everything that has to be resident for it to run: its model, and its adapter if it has one."""
        return (self.model, self.adapter) if self.adapter else (self.model,)

    @property
    def priced_as(self) -> str:
        """Under which name it is known what computing on it costs: its model has prices for each device."""
        return priced_as(self.model, self.device)

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)

    @property
    def is_alive(self) -> bool:
        """Whether verbs may still work on it."""
        return self.state not in _ENDED

    @property
    def is_active(self) -> bool:
        """Whether a request is in flight."""
        return self.state in (ContextState.READY, ContextState.RUNNING, ContextState.BLOCKED)

    def move(self, to: ContextState, reason: str = "") -> None:
        """Go to another state; `reason` is kept as the failure of a context that goes to FAILED.

        Raises: WrongState, if the move is not in `LEGAL_MOVES`.
        """
        if to not in LEGAL_MOVES[self.state]:
            raise WrongState(
                f"Context {self.id} is {self.state.value}; it cannot become {to.value}.",
                facts={"context": self.id, "state": self.state.value, "wanted": to.value},
            )
        self.state = to
        if to is ContextState.FAILED:
            self.failure = reason

    def fork_seed(self, child_id: str) -> int:
        """The seed of a fork that is not given one: another for every child, before a restart and after it."""
        return derive_seed(self.seed, int(child_id, 16))

    def info(self, pages: PageCounts | None = None, kv_bytes: int = 0) -> ContextInfo:
        """The context as `stat` shows it; where its pages are is the pager's to say."""
        return ContextInfo(
            id=self.id,
            model=self.model,
            adapter=self.adapter,
            sharing_group=self.sharing_group,
            owner=self.owner,
            tenant=self.tenant,
            state=self.state,
            num_tokens=len(self.tokens),
            max_tokens=self.max_tokens,
            priority=self.priority,
            nice=self.nice,
            durability=self.durability,
            labels=dict(self.labels),
            created_at=self.created_at,
            last_used_at=self.last_used_at,
            seed=self.seed,
            pages=pages or PageCounts(),
            kv_bytes=kv_bytes,
            parent=self.parent,
            active_request=self.active_request,
            last_request=self.last_request,
            failure=self.failure,
            grants=tuple(self.grants.values()),
            pinned_tokens=self.pinned_tokens,
            device=self.device,
        )
