"""What the journal's records come to: a pure fold.

Invariants
1. fold(snapshot(fold(first)) + rest) == fold(first + rest), for every cut of every log: a compaction changes nothing.
2. Requests that have not finished stand in `active` in the order in which they were admitted, and in `standings` in the order in which
   they were seated, preempted or otherwise changed their standing last.
3. A record that cannot follow those before it (a context that never began, tokens past an end) is DataLoss: a log that a daemon wrote has
   none.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import TypeVar

import msgspec

from kerneld.accounts import Accounts, LoadAccount, RateAccount, ShareAccount
from kerneld.errors import DataLoss
from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.state.contextrecord import ContextRecord
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
    Standing,
    Suspend,
    Tokens,
    Truncate,
    unpack_tokens,
)

ValueT = TypeVar("ValueT")

EFFECT_LIFETIME_S = 24 * 3600.0


@dataclass(slots=True)
class _Stand:
    """A standing, and how many tokens the context had when it was written."""

    standing: Standing
    num_tokens: int


class LogState:
    """The contexts, effects and books that a sequence of records leaves behind."""

    def __init__(self) -> None:
        self.contexts: dict[bytes, ContextRecord] = {}
        self.active: dict[bytes, None] = {}  # context ids with an unfinished request, in order of admission
        self.effects: dict[tuple[str, str], Effect] = {}  # by principal and request id
        self._shares: dict[str, ShareAccount] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._tariffs: dict[str, Tariff] = {}
        self._rates: dict[str, dict[str, RateAccount]] = {}
        self._loads: dict[str, LoadAccount] = {}
        self._stands: dict[bytes, _Stand] = {}  # by context id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogState):
            return NotImplemented
        mine = (self.contexts, list(self.active), self.effects, self.accounts, self.standings)
        return mine == (other.contexts, list(other.active), other.effects, other.accounts, other.standings)

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def accounts(self) -> Accounts:
        """The scheduler's books, as they were written last."""
        return Accounts(tuple(self._shares.values()), dict(self._outputs), dict(self._tariffs), dict(self._rates), dict(self._loads))

    @property
    def standings(self) -> list[Standing]:
        """How unfinished requests stand with the scheduler, tokens counted that came since it was written."""
        return [self._standing(context_id, stand) for context_id, stand in self._stands.items()]

    @classmethod
    def fold(cls, records: Iterable[Record]) -> LogState:
        """Return what `records` come to. Raises: DataLoss (invariant 3)."""
        state = cls()
        for record in records:
            state.apply(record)
        return state

    def snapshot(self) -> Iterator[Record]:
        """Give records that come to this state."""
        yield self.accounts
        yield from self.effects.values()
        for context_id, context in self.contexts.items():
            if context_id not in self.active:
                yield context.snapshot()
        for context_id in self.active:  # last and in order: invariant 2
            yield self.contexts[context_id].snapshot()
        yield from self.standings

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
        given = unpack_tokens(record.tokens)
        context.tokens.extend(given)
        context.active = msgspec.structs.replace(record, tokens=b"", unused={}, num_input=len(given))
        context.last_admit = None
        context.last_used_at = record.arrived_at
        self.active[record.context_id] = None

    @apply.register
    def _tokens(self, record: Tokens) -> None:
        for context_id, packed in record.batch:
            self._context(context_id).tokens.extend(unpack_tokens(packed))

    @apply.register
    def _finish(self, record: Finish) -> None:
        context = self._context(record.context_id)
        if context.active is None or context.active.request != record.request:
            raise _impossible(record.context_id, "finished a request that it did not have")
        context.active, context.last_admit = None, context.active
        context.last_request = record.request
        context.last_finish = record
        context.last_used_at = record.at
        self._leave(record.context_id)

    @apply.register
    def _truncate(self, record: Truncate) -> None:
        context = self._context(record.context_id)
        _check_offset(context, record.num_tokens)
        del context.tokens[record.num_tokens :]
        context.last_admit = None
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
        self._leave(record.context_id)

    @apply.register
    def _effect(self, record: Effect) -> None:
        self.effects[record.principal, record.request_id] = record

    @apply.register
    def _counters(self, record: Counters) -> None:
        """Counted in other units: left aside."""

    @apply.register
    def _accounts(self, record: Accounts) -> None:
        for share in record.shares:
            if share.is_removed:
                self._shares.pop(share.path, None)
            else:
                self._shares[share.path] = share
        _update(self._tariffs, record.tariffs, lambda tariff: tariff != UNCALIBRATED)
        _update(self._outputs, record.outputs, bool)
        _update(self._rates, record.rates, bool)
        _update(self._loads, record.loads, lambda load: bool(load.owed_us))

    @apply.register
    def _stands_so(self, record: Standing) -> None:
        context = self.contexts.get(record.context_id)
        if context is None or context.active is None or context.active.request != record.request:
            return  # of a request that has ended: it tells nothing any more
        self._stands.pop(record.context_id, None)  # invariant 2
        self._stands[record.context_id] = _Stand(record, len(context.tokens))

    @apply.register
    def _context_snapshot(self, record: ContextSnapshot) -> None:
        context = self._add(record.alloc, unpack_tokens(record.alloc.tokens))
        context.is_suspended = record.is_suspended
        context.failure = record.failure
        context.grants = {grant.grantee: grant for grant in record.grants}
        context.active = record.active
        context.last_request = record.last_request
        context.last_finish = record.last_finish
        context.last_admit = record.last_admit
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

    def _leave(self, context_id: bytes) -> None:
        """The request of a context has ended, if it had one."""
        self.active.pop(context_id, None)
        self._stands.pop(context_id, None)

    def _standing(self, context_id: bytes, stand: _Stand) -> Standing:
        standing, num_new = stand.standing, len(self.contexts[context_id].tokens) - stand.num_tokens
        if not num_new:
            return standing
        num_prepaid = max(standing.num_prepaid - num_new, 0)
        return msgspec.structs.replace(standing, num_prepaid=num_prepaid, num_served=standing.num_served + num_new)


def compacted(records: Iterable[Record], now: float) -> Iterator[Record]:
    """Return the shortest records that come to the same, without effects older than a day: the fold for `Journal.compact`."""
    state = LogState.fold(records)
    state.forget_effects(now - EFFECT_LIFETIME_S)
    return state.snapshot()


def _update(known: dict[str, ValueT], changes: dict[str, ValueT], tells: Callable[[ValueT], bool]) -> None:
    """Put changes over what is known; one that tells nothing takes its entry away."""
    known.update(changes)
    for key, value in changes.items():
        if not tells(value):
            del known[key]


def _check_offset(context: ContextRecord, offset: int) -> None:
    if not 0 <= offset <= len(context.tokens):
        raise _impossible(context.context_id, f"has {len(context.tokens)} tokens, offset {offset} is named")


def _impossible(context_id: bytes, problem: str) -> DataLoss:
    return DataLoss(
        f"The journal contradicts itself: context {context_id.hex()} {problem}. Restore the state directory from a backup.",
        facts={"context_id": context_id.hex()},
    )
