"""The verbs on contexts: alloc, fork, free, stat, list, read, truncate, suspend, resume, set, grant, revoke.

Every change is journaled before it is made in memory, and both happen without a pause between, so no reader sees one without the other.
"""

from __future__ import annotations

import asyncio
import secrets

from kerneld.bounds import check_fork, check_nice, check_seed
from kerneld.calls import (
    Access,
    AllocArgs,
    Caller,
    ContextInfo,
    ContextState,
    ContextText,
    Durability,
    FinishReason,
    ForkArgs,
    Grant,
    ListArgs,
    ListPage,
    PageCounts,
    SetArgs,
)
from kerneld.context import Context
from kerneld.errors import InvalidArgument, KernelError, OutOfRange, PermissionDenied, WrongState
from kerneld.events import ContextAllocated, ContextChanged, ContextForked, ContextFreed
from kerneld.machine import Machine
from kerneld.models import Model
from kerneld.seating import cut_chain, name_pages
from kerneld.state import records
from kerneld.state.journal import RECORD_BYTES
from kerneld.state.records import Alloc, Free, Record, Resume, Revoke, Set, Suspend, Truncate, pack_tokens

DEFAULT_READ_TOKENS = 4096
MAX_READ_TOKENS = 65536


class ContextVerbs:
    """Verbs on contexts."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    # ---------------------------------------------------------------------------------------------------------------- begin and end

    async def alloc(self, caller: Caller, args: AllocArgs) -> ContextInfo:
        """Make an empty context. Raises: NotFound, QuotaExceeded, InvalidArgument, OutOfRange, DiskFull."""
        machine = self._machine
        known = machine.effects.find(caller, "alloc")
        if known is not None:
            return self._info_of(caller, known.hex())
        model = machine.models.get(args.model)
        machine.bounds.check_labels(args.labels)
        check_nice(args.nice)
        check_seed(args.seed)
        machine.admission.check_context(caller.principal.tenant)
        context = Context(
            id=secrets.token_hex(16),
            owner=caller.principal.name,
            tenant=caller.principal.tenant,
            model=model.name,
            fingerprint=model.weights_hash,
            seed=secrets.randbits(64) if args.seed is None else args.seed,
            created_at=machine.clock(),
            durability=args.durability,
            max_tokens=self._max_tokens(args.max_tokens, model),
            priority=args.priority,
            nice=args.nice,
            labels=dict(args.labels),
        )
        await self.begin(caller, "alloc", context)
        machine.events.publish(ContextAllocated(context.id, context.tenant, context.model))
        return self.info(context)

    async def fork(self, caller: Caller, args: ForkArgs) -> ContextInfo:
        """Make a context that shares the past of another: full pages are shared, at most one is copied, when somebody writes to it.

        Raises: NotFound, OutOfRange, QuotaExceeded, WrongState.
        """
        machine = self._machine
        known = machine.effects.find(caller, "fork")
        if known is not None:
            return self._info_of(caller, known.hex())
        parent = machine.contexts.get(caller, args.context_id, Access.FORK)
        _check_usable(parent)
        machine.bounds.check_labels(args.labels)
        check_fork(args)
        machine.admission.check_context(caller.principal.tenant)
        at = parent.num_tokens if args.at is None else args.at
        if at > parent.num_tokens:
            raise OutOfRange(f"The context has {parent.num_tokens} tokens; it cannot be forked at {at}.")
        child = Context(
            id=secrets.token_hex(16),
            owner=caller.principal.name,
            tenant=caller.principal.tenant,
            model=parent.model,
            fingerprint=parent.fingerprint,
            seed=parent.next_fork_seed() if args.seed is None else args.seed,
            created_at=machine.clock(),
            durability=parent.durability,
            parent=parent.id,
            max_tokens=parent.max_tokens,
            priority=parent.priority,
            nice=parent.nice,
            labels={**parent.labels, **args.labels},
        )
        child.tokens = parent.tokens[:at]
        self._share_pages(parent, child, at)
        try:
            await self.begin(caller, "fork", child, forked_from=parent)
        except KernelError:
            if child.state is ContextState.NEW and child.table is not None:
                machine.pager.drop(child.table)
            raise
        machine.events.publish(ContextForked(child.id, parent.id, child.tenant, at))
        return self.info(child)

    async def begin(self, caller: Caller, verb: str, context: Context, forked_from: Context | None = None) -> None:
        """Journal a new context and make it known. On failure it leaves nothing behind."""
        machine = self._machine
        handle = bytes.fromhex(context.id)
        record = alloc_record(context, forked_from)
        self._begin_with(context, [record, *machine.effects.record(caller, verb, handle)], len(record.tokens) + RECORD_BYTES)
        context.move(ContextState.IDLE)
        context.last_used_at = context.created_at
        machine.contexts.add(context)
        if context.durability is Durability.FSYNC:
            await machine.journal.sync()

    async def free(self, caller: Caller, context_id: str) -> None:
        """End a context; a request that runs on it is cancelled. Raises: NotFound."""
        machine = self._machine
        if machine.effects.find(caller, "free") is not None:
            return
        context = machine.contexts.control(caller, context_id)
        self.end(context, machine.effects.record(caller, "free"))
        await self._sync(context)

    def end(self, context: Context, effects: list[records.Effect]) -> None:
        """Cancel what runs on a context, journal its end, and give its pages back."""
        machine = self._machine
        request = machine.requests.get(context.active_request)
        if request is not None:
            machine.dispatcher.end(request, FinishReason.CANCELLED, "The context was freed.")
        self._write(context, [Free(bytes.fromhex(context.id)), *effects])
        machine.contexts.remove(context)
        machine.last_logs.pop(context.id, None)
        if context.table is not None:
            machine.pager.drop(context.table)
            context.table, context.chain = None, None
        context.move(ContextState.FREED)
        machine.events.publish(ContextFreed(context.id, context.tenant))
        machine.dispatcher.room_made()

    # ---------------------------------------------------------------------------------------------------------------------- look

    def stat(self, caller: Caller, context_id: str) -> ContextInfo:
        """A context as it stands. Raises: NotFound."""
        return self.info(self._machine.contexts.look(caller, context_id))

    def list_contexts(self, caller: Caller, args: ListArgs) -> ListPage[ContextInfo]:
        """The caller's contexts, or everybody's. Raises: InvalidArgument, PermissionDenied."""
        page = self._machine.contexts.page(caller, args)
        return ListPage(tuple(self.info(context) for context in page.items), page.next_page_token)

    async def read(self, caller: Caller, context_id: str, offset: int, limit: int) -> ContextText:
        """Tokens and text from an offset. Raises: NotFound, OutOfRange."""
        context = self._machine.contexts.get(caller, context_id, Access.READ)
        if offset > context.num_tokens:
            raise OutOfRange(f"The context has {context.num_tokens} tokens; there is nothing at {offset}.")
        end = offset + min(limit or DEFAULT_READ_TOKENS, MAX_READ_TOKENS)
        tokens = tuple(context.tokens[offset:end])
        tokenizer = self._machine.models.get(context.model).tokenizer
        text = await asyncio.to_thread(tokenizer.decode, tokens) if tokenizer is not None else ""
        return ContextText(offset, tokens, text, context.num_tokens)

    # ---------------------------------------------------------------------------------------------------------------------- change

    async def truncate(self, caller: Caller, context_id: str, num_tokens: int) -> ContextInfo:
        """Roll a context back to its first `num_tokens` tokens; their pages stay. Raises: NotFound, OutOfRange, WrongState."""
        machine = self._machine
        if machine.effects.find(caller, "truncate") is not None:
            return self._info_of(caller, context_id)
        context = self._idle(caller, context_id)
        if num_tokens > context.num_tokens:
            raise OutOfRange(f"The context has {context.num_tokens} tokens; it cannot be truncated to {num_tokens}.")
        effects = machine.effects.record(caller, "truncate")
        self._write(context, [Truncate(bytes.fromhex(context.id), num_tokens), *effects])
        del context.tokens[num_tokens:]
        machine.last_logs.pop(context.id, None)
        context.kv_valid = min(context.kv_valid, num_tokens)
        if context.table is not None and context.chain is not None:
            machine.pager.truncate(context.table, num_tokens)
            cut_chain(context.chain, num_tokens, context)
        return await self._changed(context, "truncated")

    async def suspend(self, caller: Caller, context_id: str) -> ContextInfo:
        """Make a context's pages the first to be reclaimed. Raises: NotFound, WrongState."""
        machine = self._machine
        if machine.effects.find(caller, "suspend") is not None:
            return self._info_of(caller, context_id)
        context = machine.contexts.control(caller, context_id)
        if context.state is not ContextState.SUSPENDED:
            _check_idle(context)
            self._write(context, [Suspend(bytes.fromhex(context.id)), *machine.effects.record(caller, "suspend")])
            context.move(ContextState.SUSPENDED)
            if context.table is not None:
                machine.pager.suspend(context.table)
            machine.dispatcher.pump()
        return await self._changed(context, "suspended")

    async def resume(self, caller: Caller, context_id: str) -> ContextInfo:
        """Let a suspended context be used again. Raises: NotFound, WrongState."""
        machine = self._machine
        if machine.effects.find(caller, "resume") is not None:
            return self._info_of(caller, context_id)
        context = machine.contexts.control(caller, context_id)
        if context.state is ContextState.SUSPENDED:
            self._write(context, [Resume(bytes.fromhex(context.id)), *machine.effects.record(caller, "resume")])
            context.move(ContextState.IDLE)
            if context.table is not None:
                machine.pager.resume(context.table)
        return await self._changed(context, "resumed")

    async def set(self, caller: Caller, args: SetArgs) -> ContextInfo:
        """Change niceness, class, labels or length limit. Raises: NotFound, InvalidArgument, OutOfRange."""
        machine = self._machine
        if machine.effects.find(caller, "set") is not None:
            return self._info_of(caller, args.context_id)
        context = machine.contexts.control(caller, args.context_id)
        labels = {key: value for key, value in {**context.labels, **args.labels}.items() if value}
        machine.bounds.check_labels(labels)
        max_tokens = None
        if args.nice is not None:
            check_nice(args.nice)
        if args.max_tokens is not None:
            max_tokens = self._max_tokens(args.max_tokens, machine.models.get(context.model))
        record = Set(bytes.fromhex(context.id), args.nice, args.priority, dict(args.labels), max_tokens)
        self._write(context, [record, *machine.effects.record(caller, "set")])
        context.nice = context.nice if args.nice is None else args.nice
        context.priority = args.priority or context.priority
        context.max_tokens = context.max_tokens if max_tokens is None else max_tokens
        context.labels = labels
        request = machine.requests.get(context.active_request)
        if request is not None:
            machine.scheduler.reorder(request)
        return await self._changed(context, "set")

    async def grant(self, caller: Caller, context_id: str, grant: Grant) -> ContextInfo:
        """Give somebody else access. Raises: NotFound, InvalidArgument, PermissionDenied."""
        context = self._own(caller, context_id)
        if not grant.grantee.startswith(("principal:", "tenant:")) or not grant.access:
            raise InvalidArgument("grant", 'name a grantee such as "principal:ann" or "tenant:lab/group", and what it may do.')
        record = records.Grant(bytes.fromhex(context.id), grant)
        self._write(context, [record, *self._machine.effects.record(caller, "grant")])
        context.grants[grant.grantee] = grant
        return await self._changed(context, "granted")

    async def revoke(self, caller: Caller, context_id: str, grantee: str) -> ContextInfo:
        """Take access away again. Raises: NotFound."""
        context = self._own(caller, context_id)
        self._write(context, [Revoke(bytes.fromhex(context.id), grantee), *self._machine.effects.record(caller, "revoke")])
        context.grants.pop(grantee, None)
        return await self._changed(context, "revoked")

    # ------------------------------------------------------------------------------------------------------------------------ inside

    def info(self, context: Context) -> ContextInfo:
        """A context with where its pages are."""
        table = context.table
        if table is None:
            return context.info()
        return context.info(PageCounts(*table.counts()), table.device_bytes)

    def _info_of(self, caller: Caller, context_id: str) -> ContextInfo:
        return self.info(self._machine.contexts.look(caller, context_id))

    def _idle(self, caller: Caller, context_id: str) -> Context:
        context = self._machine.contexts.get(caller, context_id, Access.WRITE)
        _check_idle(context)
        return context

    def _own(self, caller: Caller, context_id: str) -> Context:
        """A context whose grants the caller may change: its own, or any for an admin."""
        context = self._machine.contexts.get(caller, context_id, Access.WRITE)
        if context.owner != caller.principal.name and not caller.principal.is_admin:
            raise PermissionDenied("Only the owner of a context, or an admin, changes who else may use it.")
        return context

    def _share_pages(self, parent: Context, child: Context, at: int) -> None:
        """Let a fork hold the pages of what it inherits. A fork by another tenant recomputes: pages never cross a tenant unasked."""
        if parent.table is None or parent.chain is None or child.tenant != parent.tenant:
            return
        child.kv_valid = min(parent.kv_valid, at)
        name_pages(parent, parent.kv_valid)
        child.table = self._machine.pager.fork(parent.table, child.kv_valid)
        child.chain = parent.chain.fork()
        cut_chain(child.chain, child.kv_valid, child)

    def _max_tokens(self, wanted: int, model: Model) -> int:
        limit = model.context_limit()
        if limit and wanted > limit:
            raise OutOfRange(f"The model {model.name!r} holds contexts of at most {limit} tokens, {wanted} were asked for.")
        return wanted or limit

    def _begin_with(self, context: Context, batch: list[Record], num_bytes: int) -> None:
        """Journal the beginning of a context, unless its durability is `none`. Raises: DiskFull; then nothing happened."""
        machine = self._machine
        if context.durability is not Durability.NONE:
            machine.disk.check()
            machine.journal.reserve(num_bytes)
            try:
                machine.journal.append(batch)
            finally:
                machine.journal.release(num_bytes)
        machine.effects.keep(batch)

    def _write(self, context: Context, batch: list[Record]) -> None:
        """Journal what happens to a context, unless its durability is `none`; a full disk has room for that. Raises: Unavailable."""
        if context.durability is not Durability.NONE:
            self._machine.journal.append_unreserved(batch)
        self._machine.effects.keep(batch)

    async def _sync(self, context: Context) -> None:
        if context.durability is Durability.FSYNC:
            await self._machine.journal.sync()

    async def _changed(self, context: Context, change: str) -> ContextInfo:
        await self._sync(context)
        self._machine.events.publish(ContextChanged(context.id, context.tenant, change))
        return self.info(context)


def alloc_record(context: Context, forked_from: Context | None = None) -> Alloc:
    """How a new context stands in the journal. A fork of a context that is not in the journal brings its tokens with it."""
    inherits = forked_from is not None and forked_from.durability is not Durability.NONE
    return Alloc(
        context_id=bytes.fromhex(context.id),
        owner=context.owner,
        tenant=context.tenant,
        model=context.model,
        fingerprint=context.fingerprint,
        max_tokens=context.max_tokens,
        priority=context.priority,
        nice=context.nice,
        durability=context.durability,
        labels=dict(context.labels),
        seed=context.seed,
        created_at=context.created_at,
        parent=bytes.fromhex(context.parent),
        fork_at=context.num_tokens if inherits else 0,
        tokens=b"" if inherits else pack_tokens(context.tokens),
    )


def _check_usable(context: Context) -> None:
    if not context.is_alive:
        raise WrongState(f"The context has failed and can only be freed: {context.failure}")


def _check_idle(context: Context) -> None:
    _check_usable(context)
    if context.state is not ContextState.IDLE:
        raise WrongState(
            f"The context is {context.state.value}; this needs an idle one.", facts={"context": context.id, "state": context.state.value}
        )
