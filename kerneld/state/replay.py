"""What the journal's records come to: a pure fold.

Invariants
1. fold(snapshot(fold(first)) + rest) == fold(first + rest), for every cut of every log: a compaction changes nothing.
2. Requests that have not finished stand in `active` in the order in which they were admitted.
3. A record that cannot follow those before it (a context that never began, tokens past an end) is DataLoss: a log that a daemon wrote has
   none.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import singledispatchmethod

import msgspec

from kerneld import calls
from kerneld.calls import Durability, Priority
from kerneld.errors import DataLoss
from kerneld.state.records import (
    Admit,
    Alloc,
    ContextSnapshot,
    Counters,
    Effect,
    Fail,
    Finish,
    Free,
    Grant,
    Record,
    Resume,
    Revoke,
    Set,
    Suspend,
    Tokens,
    Truncate,
    pack_tokens,
    unpack_tokens,
)

EFFECT_LIFETIME_S = 24 * 3600.0


@dataclass(slots=True)
class ContextRecord:
    """A live context as the log tells it. The first fields are those of its Alloc."""

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
    parent: bytes
    fork_at: int
    tokens: array[int]
    adapter: str
    sharing_group: str
    last_used_at: float
    is_suspended: bool = False
    pinned_tokens: int = 0
    failure: str = ""
    grants: dict[str, calls.Grant] = field(default_factory=dict)  # by grantee
    active: Admit | None = None  # without its input, which is among the tokens
    last_request: bytes = b""
    last_finish: Finish | None = None

    @property
    def output(self) -> array[int]:
        """What the active request has generated so far; empty if there is none."""
        return self.tokens[self.active.output_start :] if self.active else array("I")


class LogState:
    """The contexts, effects and counters that a sequence of records leaves behind."""

    def __init__(self) -> None:
        self.contexts: dict[bytes, ContextRecord] = {}
        self.active: dict[bytes, None] = {}  # context ids with an unfinished request, in order of admission
        self.effects: dict[tuple[str, str], Effect] = {}  # by principal and request id
        self.counters: dict[str, int] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogState):
            return NotImplemented
        mine = (self.contexts, list(self.active), self.effects, self.counters)
        return mine == (other.contexts, list(other.active), other.effects, other.counters)

    __hash__ = None  # type: ignore[assignment]  # it changes

    @classmethod
    def fold(cls, records: Iterable[Record]) -> LogState:
        """Return what `records` come to. Raises: DataLoss (invariant 3)."""
        state = cls()
        for record in records:
            state.apply(record)
        return state

    def snapshot(self) -> Iterator[Record]:
        """Give records that come to this state."""
        yield Counters(dict(self.counters))
        yield from self.effects.values()
        for context_id, context in self.contexts.items():
            if context_id not in self.active:
                yield _snapshot(context)
        for context_id in self.active:  # last and in order: invariant 2
            yield _snapshot(self.contexts[context_id])

    def forget_effects(self, before: float) -> None:
        """Drop the effects of calls that were made before a time."""
        self.effects = {key: effect for key, effect in self.effects.items() if effect.at >= before}

    @singledispatchmethod
    def apply(self, record: Record) -> None:
        """Let one record happen. Raises: DataLoss (invariant 3)."""
        raise DataLoss(f"The journal has a record that does not belong there: {type(record).__name__}.")

    @apply.register
    def _alloc(self, record: Alloc) -> None:
        tokens = array("I")
        if record.fork_at:
            parent = self._context(record.parent)
            _check_offset(parent, record.fork_at)
            tokens = parent.tokens[: record.fork_at]
        tokens.extend(unpack_tokens(record.tokens))
        self._add(record, tokens)

    @apply.register
    def _admit(self, record: Admit) -> None:
        context = self._context(record.context_id)
        if context.active is not None:
            raise _impossible(record.context_id, "began a request while it had one")
        context.tokens.extend(unpack_tokens(record.tokens))
        context.active = msgspec.structs.replace(record, tokens=b"", charges={})
        context.last_used_at = record.arrived_at
        self.active[record.context_id] = None
        self._charge(record.charges)

    @apply.register
    def _tokens(self, record: Tokens) -> None:
        for context_id, packed in record.batch:
            self._context(context_id).tokens.extend(unpack_tokens(packed))
        self._charge(record.charges)

    @apply.register
    def _finish(self, record: Finish) -> None:
        context = self._context(record.context_id)
        if context.active is None or context.active.request != record.request:
            raise _impossible(record.context_id, "finished a request that it did not have")
        context.active = None
        context.last_request = record.request
        context.last_finish = msgspec.structs.replace(record, charges={})
        context.last_used_at = record.at
        del self.active[record.context_id]
        self._charge(record.charges)

    @apply.register
    def _truncate(self, record: Truncate) -> None:
        context = self._context(record.context_id)
        _check_offset(context, record.num_tokens)
        del context.tokens[record.num_tokens :]
        context.pinned_tokens = min(context.pinned_tokens, record.num_tokens)

    @apply.register
    def _suspend(self, record: Suspend) -> None:
        self._context(record.context_id).is_suspended = True

    @apply.register
    def _resume(self, record: Resume) -> None:
        self._context(record.context_id).is_suspended = False

    @apply.register
    def _set(self, record: Set) -> None:
        context = self._context(record.context_id)
        if record.nice is not None:
            context.nice = record.nice
        if record.priority is not None:
            context.priority = record.priority
        if record.max_tokens is not None:
            context.max_tokens = record.max_tokens
        if record.pinned_tokens is not None:
            context.pinned_tokens = record.pinned_tokens
        merged = {**context.labels, **record.labels}
        context.labels = {name: value for name, value in merged.items() if value}

    @apply.register
    def _grant(self, record: Grant) -> None:
        self._context(record.context_id).grants[record.grant.grantee] = record.grant

    @apply.register
    def _revoke(self, record: Revoke) -> None:
        self._context(record.context_id).grants.pop(record.grantee, None)

    @apply.register
    def _fail(self, record: Fail) -> None:
        self._context(record.context_id).failure = record.failure

    @apply.register
    def _free(self, record: Free) -> None:
        self._context(record.context_id)
        del self.contexts[record.context_id]
        self.active.pop(record.context_id, None)

    @apply.register
    def _effect(self, record: Effect) -> None:
        self.effects[record.principal, record.request_id] = record

    @apply.register
    def _counters(self, record: Counters) -> None:
        self.counters.update(record.values)

    @apply.register
    def _context_snapshot(self, record: ContextSnapshot) -> None:
        context = self._add(record.alloc, unpack_tokens(record.alloc.tokens))
        context.is_suspended = record.is_suspended
        context.failure = record.failure
        context.grants = {grant.grantee: grant for grant in record.grants}
        context.active = record.active
        context.last_request = record.last_request
        context.last_finish = record.last_finish
        context.last_used_at = record.last_used_at
        context.pinned_tokens = record.pinned_tokens
        if record.active is not None:
            self.active[context.context_id] = None

    def _add(self, alloc: Alloc, tokens: array[int]) -> ContextRecord:
        if alloc.context_id in self.contexts:
            raise _impossible(alloc.context_id, "began twice")
        facts = msgspec.structs.asdict(alloc) | {"labels": dict(alloc.labels), "tokens": tokens}
        context = ContextRecord(**facts, last_used_at=alloc.created_at)
        self.contexts[alloc.context_id] = context
        return context

    def _context(self, context_id: bytes) -> ContextRecord:
        context = self.contexts.get(context_id)
        if context is None:
            raise _impossible(context_id, "is named, but is not there")
        return context

    def _charge(self, charges: dict[str, int]) -> None:
        for tenant, cost in charges.items():
            self.counters[tenant] = self.counters.get(tenant, 0) + cost


def compacted(records: Iterable[Record], now: float) -> Iterator[Record]:
    """Return the shortest records that come to the same, without effects older than a day: the fold for `Journal.compact`."""
    state = LogState.fold(records)
    state.forget_effects(now - EFFECT_LIFETIME_S)
    return state.snapshot()


def _snapshot(context: ContextRecord) -> ContextSnapshot:
    facts = {name: getattr(context, name) for name in Alloc.__struct_fields__}
    alloc = Alloc(**facts | {"labels": dict(context.labels), "tokens": pack_tokens(context.tokens)})
    return ContextSnapshot(
        alloc=alloc,
        is_suspended=context.is_suspended,
        failure=context.failure,
        grants=tuple(context.grants.values()),
        active=context.active,
        last_request=context.last_request,
        last_finish=context.last_finish,
        last_used_at=context.last_used_at,
        pinned_tokens=context.pinned_tokens,
    )


def _check_offset(context: ContextRecord, offset: int) -> None:
    if not 0 <= offset <= len(context.tokens):
        raise _impossible(context.context_id, f"has {len(context.tokens)} tokens, offset {offset} is named")


def _impossible(context_id: bytes, problem: str) -> DataLoss:
    return DataLoss(
        f"The journal contradicts itself: context {context_id.hex()} {problem}. Restore the state directory from a backup.",
        facts={"context_id": context_id.hex()},
    )
