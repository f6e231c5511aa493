"""The verbs on contexts: alloc, fork, free, stat, list, read. Those that change a living one are in `kerneld.verbs.edits`.

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
    ListArgs,
    ListPage,
    PageCounts,
)
from kerneld.catalog import Registered
from kerneld.context import Context
from kerneld.errors import KernelError, OutOfRange, WrongState
from kerneld.events import ContextAllocated, ContextForked, ContextFreed
from kerneld.machine import Machine
from kerneld.seating import cut_chain, name_pages
from kerneld.state import records
from kerneld.state.journal import RECORD_BYTES
from kerneld.state.records import Alloc, Free, Record, pack_tokens

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
            return self.info_of(caller, known.hex())
        model, adapter = machine.models.pair(args.model, args.adapter)
        machine.bounds.check_labels(args.labels)
        check_nice(args.nice)
        check_seed(args.seed)
        if args.sharing_group:
            machine.tenants.groups.check(caller.principal.tenant, args.sharing_group)
        machine.admission.check_context(caller.principal.tenant)
        context = Context(
            id=secrets.token_hex(16),
            owner=caller.principal.name,
            tenant=caller.principal.tenant,
            model=model.name,
            adapter=adapter,
            sharing_group=args.sharing_group,
            fingerprint=machine.models.weights_of((model.name, adapter) if adapter else (model.name,)),
            seed=secrets.randbits(64) if args.seed is None else args.seed,
            created_at=machine.clock(),
            durability=args.durability,
            max_tokens=self.check_max_tokens(args.max_tokens, model),
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
            return self.info_of(caller, known.hex())
        parent = machine.contexts.get(caller, args.context_id, Access.FORK)
        check_usable(parent)
        machine.bounds.check_labels(args.labels)
        check_fork(args)
        machine.admission.check_context(caller.principal.tenant)
        at = parent.num_tokens if args.at is None else args.at
        if at > parent.num_tokens:
            raise OutOfRange(f"The context has {parent.num_tokens} tokens; it cannot be forked at {at}.")
        child_id = secrets.token_hex(16)
        child = Context(
            id=child_id,
            owner=caller.principal.name,
            tenant=caller.principal.tenant,
            model=parent.model,
            adapter=parent.adapter,
            sharing_group=machine.tenants.groups.still(parent.sharing_group, caller.principal.tenant),
            fingerprint=parent.fingerprint,
            seed=parent.fork_seed(child_id) if args.seed is None else args.seed,
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
                machine.devices.of(child).pager.drop(child.table)
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
        await self.sync(context)

    def end(self, context: Context, effects: list[records.Effect]) -> None:
        """Cancel what runs on a context, journal its end, and give its pages back."""
        machine = self._machine
        request = machine.requests.get(context.active_request)
        if request is not None:
            machine.end(request, FinishReason.CANCELLED, "The context was freed.")
        self.write(context, [Free(bytes.fromhex(context.id)), *effects])
        machine.contexts.remove(context)
        machine.last_logs.forget(context.id)
        if context.table is not None:
            machine.devices.of(context).pager.sharing.retain(context.table)
            context.table, context.chain = None, None
        context.move(ContextState.FREED)
        machine.events.publish(ContextFreed(context.id, context.tenant))
        machine.devices.of(context).dispatcher.room_made()

    # ---------------------------------------------------------------------------------------------------------------------- look

    def stat(self, caller: Caller, context_id: str) -> ContextInfo:
        """A context as it stands. Raises: NotFound."""
        return self.info(self._machine.contexts.look(caller, context_id))

    def list_contexts(self, caller: Caller, args: ListArgs) -> ListPage[ContextInfo]:
        """The caller's contexts, or everybody's for those who may see them. Raises: InvalidArgument."""
        page = self._machine.contexts.page(caller, args)
        return ListPage(tuple(self.info(context) for context in page.items), page.next_page_token)

    async def read(self, caller: Caller, context_id: str, offset: int, limit: int) -> ContextText:
        """Tokens and text from an offset, as far as they are durable. Raises: NotFound, OutOfRange."""
        machine = self._machine
        context = machine.contexts.get(caller, context_id, Access.READ)
        num_tokens = machine.num_visible(context)
        if offset > num_tokens:
            raise OutOfRange(f"The context has {num_tokens} tokens; there is nothing at {offset}.")
        end = min(offset + min(limit or DEFAULT_READ_TOKENS, MAX_READ_TOKENS), num_tokens)
        tokens = tuple(context.tokens[offset:end])
        tokenizer = machine.models.get(context.model).tokenizer if context.model in machine.models else None
        text = await asyncio.to_thread(tokenizer.decode, tokens) if tokenizer is not None else ""
        return ContextText(offset, tokens, text, num_tokens)

    # ------------------------------------------------------------------------------------------------------------------------ inside

    def info(self, context: Context) -> ContextInfo:
        """A context with where its pages are."""
        table = context.table
        if table is None:
            return context.info()
        return context.info(PageCounts(*table.counts()), table.device_bytes)

    def info_of(self, caller: Caller, context_id: str) -> ContextInfo:
        """The answer to a call that was made before. Raises: NotFound."""
        return self.info(self._machine.contexts.look(caller, context_id))

    def _share_pages(self, parent: Context, child: Context, at: int) -> None:
        """Let a fork hold the pages of what it inherits, read-only and charged to both, whoever owns it: it was granted.

        In another sharing domain it names its pages anew, so that what is shared is never found by a third.
        """
        if parent.table is None or parent.chain is None:
            return
        child.device, device = parent.device, self._machine.devices.of(parent)
        child.kv_valid = min(parent.kv_valid, at)
        name_pages(parent, parent.kv_valid)
        child.table = device.pager.fork(parent.table, child.kv_valid, child.tenant)
        if (child.sharing_group or child.tenant) == (parent.sharing_group or parent.tenant):
            child.chain = parent.chain.fork()
            cut_chain(child.chain, child.kv_valid, child)
            return
        child.chain = device.seating.chain_of(child)
        name_pages(child, child.kv_valid)

    def check_max_tokens(self, wanted: int, model: Registered) -> int:
        """The length that a context of this model may have; 0 asks for the longest. Raises: OutOfRange."""
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

    def write(self, context: Context, batch: list[Record]) -> None:
        """Journal what happens to a context, unless its durability is `none`; a full disk has room for that. Raises: Unavailable."""
        if context.durability is not Durability.NONE:
            self._machine.journal.append_unreserved(batch)
        self._machine.effects.keep(batch)

    async def sync(self, context: Context) -> None:
        """Answer only once what was written of a context is on the disk, if it wants that."""
        if context.durability is Durability.FSYNC:
            await self._machine.journal.sync()


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
        adapter=context.adapter,
        sharing_group=context.sharing_group,
    )


def check_usable(context: Context) -> None:
    """A context that failed can only be freed. Raises: WrongState."""
    if not context.is_alive:
        raise WrongState(f"The context has failed and can only be freed: {context.failure}")
