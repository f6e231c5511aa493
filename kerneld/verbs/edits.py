"""The verbs that change a living context: truncate, suspend, resume, set, grant, revoke.

Every change is journaled before it is made in memory, and both happen without a pause between, so no reader sees one without the other.
"""

from __future__ import annotations

from kerneld.bounds import check_nice
from kerneld.calls import Access, Caller, ContextInfo, ContextState, Grant, SetArgs
from kerneld.context import Context
from kerneld.errors import InvalidArgument, OutOfRange, PermissionDenied, WrongState
from kerneld.events import ContextChanged
from kerneld.machine import Machine
from kerneld.seating import cut_chain
from kerneld.state import records
from kerneld.state.records import Record, Resume, Revoke, Set, Suspend, Truncate
from kerneld.verbs.contexts import ContextVerbs, check_usable


class EditVerbs:
    """Verbs that change contexts."""

    def __init__(self, machine: Machine, contexts: ContextVerbs) -> None:
        self._machine = machine
        self._contexts = contexts

    async def truncate(self, caller: Caller, context_id: str, num_tokens: int) -> ContextInfo:
        """Roll a context back to its first `num_tokens` tokens; their pages stay. Raises: NotFound, OutOfRange, WrongState."""
        machine = self._machine
        if machine.effects.find(caller, "truncate") is not None:
            return self._contexts.info_of(caller, context_id)
        context = machine.contexts.get(caller, context_id, Access.WRITE)
        _check_idle(context)
        if not 0 <= num_tokens <= context.num_tokens:
            raise OutOfRange(f"The context has {context.num_tokens} tokens; it cannot be truncated to {num_tokens}.")
        self._write(caller, "truncate", context, Truncate(bytes.fromhex(context.id), num_tokens))
        del context.tokens[num_tokens:]
        machine.last_logs.forget(context.id)
        context.kv_valid = min(context.kv_valid, num_tokens)
        context.pinned_tokens = min(context.pinned_tokens, num_tokens)
        if context.table is not None and context.chain is not None:
            device = machine.devices.of(context)
            device.pager.truncate(context.table, num_tokens)
            cut_chain(context.chain, num_tokens, context)
            device.dispatcher.room_made()
        return await self._changed(context, "truncated")

    async def suspend(self, caller: Caller, context_id: str) -> ContextInfo:
        """Make a context's pages the first to be reclaimed. Raises: NotFound, WrongState."""
        machine = self._machine
        if machine.effects.find(caller, "suspend") is not None:
            return self._contexts.info_of(caller, context_id)
        context = machine.contexts.control(caller, context_id)
        device = machine.devices.of(context)
        if context.state is ContextState.SUSPENDED:
            self._write(caller, "suspend", context)
            return await self._changed(context, "suspended")
        _check_idle(context)
        self._write(caller, "suspend", context, Suspend(bytes.fromhex(context.id)))
        context.move(ContextState.SUSPENDED)
        if context.table is not None:
            device.pager.suspend(context.table)
        device.dispatcher.pump()
        return await self._changed(context, "suspended")

    async def resume(self, caller: Caller, context_id: str) -> ContextInfo:
        """Let a suspended context be used again; one that is not suspended stays as it is. Raises: NotFound, WrongState."""
        machine = self._machine
        if machine.effects.find(caller, "resume") is not None:
            return self._contexts.info_of(caller, context_id)
        context = machine.contexts.control(caller, context_id)
        check_usable(context)
        if context.state is not ContextState.SUSPENDED:
            self._write(caller, "resume", context)
            return await self._changed(context, "resumed")
        self._write(caller, "resume", context, Resume(bytes.fromhex(context.id)))
        context.move(ContextState.IDLE)
        if context.table is not None:
            machine.devices.of(context).pager.resume(context.table)
        return await self._changed(context, "resumed")

    async def set(self, caller: Caller, args: SetArgs) -> ContextInfo:
        """Change niceness, class, labels, length limit or pin. Raises: NotFound, InvalidArgument, OutOfRange, QuotaExceeded."""
        machine = self._machine
        if machine.effects.find(caller, "set") is not None:
            return self._contexts.info_of(caller, args.context_id)
        context = machine.contexts.control(caller, args.context_id)
        labels = {key: value for key, value in {**context.labels, **args.labels}.items() if value}
        machine.bounds.check_labels(labels)
        max_tokens = None
        if args.nice is not None:
            check_nice(args.nice)
        if args.max_tokens is not None:
            max_tokens = self._contexts.check_max_tokens(args.max_tokens, machine.models.get(context.model))
        pinned = None if args.is_pinned is None else context.num_tokens if args.is_pinned else 0
        if pinned:
            machine.devices.of(context).pins.check(context, pinned)
        change = Set(bytes.fromhex(context.id), args.nice, args.priority, dict(args.labels), max_tokens, pinned)
        self._write(caller, "set", context, change)
        context.nice = context.nice if args.nice is None else args.nice
        context.priority = args.priority or context.priority
        context.max_tokens = context.max_tokens if max_tokens is None else max_tokens
        context.labels = labels
        if pinned is not None:
            machine.devices.of(context).pins.put(context, pinned)
        request = machine.requests.get(context.active_request)
        if request is not None:
            machine.scheduler.reorder(request)
        return await self._changed(context, "set")

    async def grant(self, caller: Caller, context_id: str, grant: Grant) -> ContextInfo:
        """Give somebody else access. Raises: NotFound, InvalidArgument, PermissionDenied."""
        if self._machine.effects.find(caller, "grant") is not None:
            return self._contexts.info_of(caller, context_id)
        context = self._own(caller, context_id)
        if not grant.grantee.startswith(("principal:", "tenant:")) or not grant.access:
            raise InvalidArgument("grant", 'name a grantee such as "principal:ann" or "tenant:lab/group", and what it may do.')
        self._write(caller, "grant", context, records.Grant(bytes.fromhex(context.id), grant))
        context.grants[grant.grantee] = grant
        return await self._changed(context, "granted")

    async def revoke(self, caller: Caller, context_id: str, grantee: str) -> ContextInfo:
        """Take access away again. Raises: NotFound, PermissionDenied."""
        if self._machine.effects.find(caller, "revoke") is not None:
            return self._contexts.info_of(caller, context_id)
        context = self._own(caller, context_id)
        self._write(caller, "revoke", context, Revoke(bytes.fromhex(context.id), grantee))
        context.grants.pop(grantee, None)
        return await self._changed(context, "revoked")

    # ------------------------------------------------------------------------------------------------------------------------ inside

    def _own(self, caller: Caller, context_id: str) -> Context:
        """A context whose grants the caller may change: its own, or any for an admin."""
        context = self._machine.contexts.get(caller, context_id, Access.WRITE)
        if context.owner != caller.principal.name and not caller.principal.is_admin:
            raise PermissionDenied("Only the owner of a context, or an admin, changes who else may use it.")
        return context

    def _write(self, caller: Caller, verb: str, context: Context, *changes: Record) -> None:
        """Journal changes together with the call that made them; a call that changes nothing is remembered too."""
        batch = [*changes, *self._machine.effects.record(caller, verb)]
        if batch:
            self._contexts.write(context, batch)

    async def _changed(self, context: Context, change: str) -> ContextInfo:
        await self._contexts.sync(context)
        self._machine.events.publish(ContextChanged(context.id, context.tenant, change))
        return self._contexts.info(context)


def _check_idle(context: Context) -> None:
    check_usable(context)
    if context.state is not ContextState.IDLE:
        raise WrongState(
            f"The context is {context.state.value}; this needs an idle one.", facts={"context": context.id, "state": context.state.value}
        )
