"""The verbs of the administrator: tenants, tokens, drain, top, events."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from kerneld.calls import (
    Caller,
    Drained,
    EventRecord,
    FinishReason,
    Limits,
    ListArgs,
    ListPage,
    NewToken,
    Role,
    TenantInfo,
    TokenInfo,
    TopFrame,
)
from kerneld.contexts import page_of
from kerneld.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, WrongState
from kerneld.events import DaemonDraining, TenantChanged, TokenAdded, TokenRemoved
from kerneld.fairshare import MAX_WEIGHT
from kerneld.holdings import LimitChange, Outcome
from kerneld.inventory import holdings_of
from kerneld.limitmodes import check_modes
from kerneld.machine import Machine
from kerneld.security.acl import may_see_tenant
from kerneld.security.identity import TokenArgs
from kerneld.security.keys import new_secret
from kerneld.state.records import Effect
from kerneld.state.tables import TenantRow
from kerneld.tenants import revision_of
from kerneld.topframe import frame_of, tenant_info
from kerneld.verbs.contexts import ContextVerbs
from memory.page import Tier

TENANT_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._@-]{0,63}){0,7}")
MIN_INTERVAL_S = 0.1


class AdminVerbs:
    """Verbs on tenants, tokens and the daemon itself."""

    def __init__(self, machine: Machine, contexts: ContextVerbs) -> None:
        self._machine = machine
        self._contexts = contexts

    # ------------------------------------------------------------------------------------------------------------------------- tenants

    async def add_tenant(self, caller: Caller, path: str, weight: int, limits: Limits) -> TenantInfo:
        """Add a tenant, and those above it that are not there yet. Raises: InvalidArgument, AlreadyExists, DiskFull."""
        machine = self._machine
        if machine.effects.find(caller, "add_tenant") is not None:
            return tenant_info(machine, machine.tenants.get(path))
        if not TENANT_PATH.fullmatch(path):
            raise InvalidArgument("path", 'use names like "lab/group/person": letters, digits, ".", "_", "@" and "-", at most 8 levels.')
        _check_weight(weight)
        if path in machine.tenants:
            raise AlreadyExists(f"There is a tenant {path!r} already; change it with set.")
        check_modes(limits)
        machine.limits.check(path, limits)
        names = path.split("/")
        row = TenantRow(path, weight, limits, machine.clock(), new_secret())
        with machine.effects.done_by(caller, "add_tenant") as effects:
            for depth in range(1, len(names)):
                above = "/".join(names[:depth])
                if above not in machine.tenants:
                    await self._add(TenantRow(above, 1, Limits(), machine.clock(), new_secret()), [])
            await self._add(row, effects)
        return tenant_info(machine, row)

    async def _add(self, row: TenantRow, effects: list[Effect]) -> None:
        await self._machine.store.add_tenant(row, effects)
        self._machine.know_tenant(row)
        self._machine.events.publish(TenantChanged(row.path, "added"))

    async def set_tenant(self, caller: Caller, path: str, weight: int | None, limits: Limits | None, revision: str = "") -> TenantInfo:
        """Change weight or limits. The answer says of each limit whether it holds already, or waits for pages to be reclaimed.

        Raises: NotFound, InvalidArgument; WrongState, if a guarantee cannot be kept; Conflict, if `revision` is not that of the tenant.
        """
        machine = self._machine
        old = machine.tenants.get(path)
        if machine.effects.find(caller, "set_tenant") is not None:
            return tenant_info(machine, old)
        if revision and revision != revision_of(old):
            problem = f"conflict: the tenant {path!r} was changed since revision {revision}; look at it again."
            facts = {"outcome": "conflict", "tenant": path, "revision": revision_of(old)}
            raise Conflict(problem, reason="STALE_REVISION", facts=facts)
        if weight is not None:
            _check_weight(weight)
        if limits is not None:
            check_modes(limits)
            machine.limits.check(path, limits)
        with machine.effects.done_by(caller, "set_tenant") as effects:
            await machine.store.set_tenant(path, weight, limits, effects)
        old = machine.tenants.get(path)  # somebody else may have changed or removed it meanwhile
        row = replace(old, weight=old.weight if weight is None else weight, limits=old.limits if limits is None else limits)
        changes = machine.know_tenant(row)
        machine.events.publish(TenantChanged(path, "set"))
        for device in machine.devices:
            device.dispatcher.room_made()
        machine.limits.look()
        return replace(tenant_info(machine, row), changes=tuple(self._awaited(path, change) for change in changes))

    def _awaited(self, path: str, change: LimitChange) -> LimitChange:
        """A change as it stands after a first reclaim."""
        machine, tier = self._machine, Tier[change.tier.upper()]
        awaited = machine.limits.awaited_bytes(path, tier, change.after) if change.outcome is Outcome.DEFERRED else 0
        if not awaited:
            return replace(change, outcome=Outcome.APPLIED, awaited_bytes=0)
        holdings = (holding for device in machine.devices for holding in holdings_of(device, tier, path))
        return replace(change, awaited_bytes=awaited, awaited_from=tuple(holdings))

    def list_tenants(self, caller: Caller, args: ListArgs) -> ListPage[TenantInfo]:
        """The tenants that the caller may see. Raises: InvalidArgument."""
        machine = self._machine
        paths = [row.path for row in machine.tenants if may_see_tenant(caller.principal, row.path)]
        return page_of(paths, args, lambda path: tenant_info(machine, machine.tenants.get(path)), lambda _info: True)

    async def remove_tenant(self, caller: Caller, path: str, force: bool) -> int:
        """Remove a tenant, with its tokens; with `force` its contexts and images too. Its frames are zeroed at once.

        Returns how many contexts were freed. Raises: NotFound; WrongState, if something of it lives.
        """
        machine = self._machine
        known = machine.effects.find(caller, "remove_tenant")
        if known is not None:
            return int.from_bytes(known, "big")
        machine.tenants.get(path)
        if machine.tenants.beneath(path):
            raise WrongState(f"The tenant {path!r} has tenants beneath it; remove those first.", reason="TENANT_NOT_EMPTY")
        images = [image for image in await machine.store.load_images() if image.tenant == path]
        num_contexts = len(machine.contexts.of_tenant(path))
        if (num_contexts or images) and not force:
            problem = f"Tenant {path!r} has {num_contexts} contexts and {len(images)} images; use force (`kernelctl tenant rm --force`)."
            raise WrongState(problem, reason="TENANT_NOT_EMPTY")
        with machine.effects.done_by(caller, "remove_tenant", num_contexts.to_bytes(8, "big")) as effects:
            self._end_all(path)
            for image in images:
                await machine.store.remove_image(image.id)
                await asyncio.to_thread(machine.images.delete, image.id)
            await machine.store.remove_tenant(path, effects)
        machine.authenticator.forget_tenant(path)
        self._end_all(path)  # what began meanwhile
        machine.forget_tenant(path)
        machine.events.publish(TenantChanged(path, "removed"))
        return num_contexts

    def _end_all(self, path: str) -> None:
        """End every context of a tenant, and every request that has none."""
        machine = self._machine
        for context in machine.contexts.of_tenant(path):
            self._contexts.end(context, [])
        for request in [request for request in machine.requests.values() if request.tenant == path]:
            machine.end(request, FinishReason.CANCELLED, "The tenant was removed.")

    # -------------------------------------------------------------------------------------------------------------------------- tokens

    async def add_token(self, caller: Caller, tenant: str, name: str, roles: frozenset[Role], lifetime_s: float) -> NewToken:
        """Issue an API token for somebody of a tenant; its secret is shown once, and not again to the same call.

        Raises: NotFound, PermissionDenied, InvalidArgument; Conflict, if this call was answered before.
        """
        machine = self._machine
        if machine.effects.find(caller, "add_token") is not None:
            raise Conflict("This call issued a token already, and its secret is not kept; remove it and add another.", reason="SECRET_GONE")
        machine.tenants.get(tenant)
        args = TokenArgs(tenant, name or f"token-{secrets.token_hex(4)}", roles, lifetime_s)
        with machine.effects.done_by(caller, "add_token") as effects:
            token = await machine.authenticator.add_token(caller.principal, args, effects)
        machine.events.publish(TokenAdded(token.info.id, tenant))
        return token

    async def list_tokens(self, caller: Caller, args: ListArgs) -> ListPage[TokenInfo]:
        """The API tokens of the tenants that the caller may see. Raises: InvalidArgument."""
        tokens = {token.id: token for token in self._machine.authenticator.list_tokens(args)}
        return page_of(
            sorted(tokens), args, lambda token_id: tokens[token_id], lambda token: may_see_tenant(caller.principal, token.tenant)
        )

    async def remove_token(self, caller: Caller, token_id: str) -> None:
        """Revoke an API token at once. Raises: NotFound."""
        machine = self._machine
        if machine.effects.find(caller, "remove_token") is not None:
            return
        known = machine.authenticator.token(token_id)
        if not may_see_tenant(caller.principal, known.tenant):
            raise NotFound("token", token_id)
        with machine.effects.done_by(caller, "remove_token") as effects:
            await machine.authenticator.remove_token(token_id, effects)
        machine.events.publish(TokenRemoved(token_id, known.tenant))

    # ----------------------------------------------------------------------------------------------------------------------- the daemon

    async def drain(self, caller: Caller, timeout_s: float) -> Drained:
        """Refuse new requests, wait for those that run, then stop the daemon; what is left goes on at the next start."""
        machine = self._machine
        before = len(machine.requests)
        await drain_requests(machine, timeout_s or machine.config.kerneld.drain_timeout_s)
        left = len(machine.requests)
        asyncio.get_running_loop().call_later(0.1, machine.stop)
        return Drained(before - left, left)

    async def top(self, caller: Caller, interval_s: float, count: int) -> AsyncIterator[TopFrame]:
        """The machine, again and again; others' tenants only for those who may see them."""
        shown = 0
        while not count or shown < count:
            yield frame_of(self._machine, caller)
            shown += 1
            if count and shown >= count:
                return
            await asyncio.sleep(max(interval_s or 1.0, MIN_INTERVAL_S))

    async def events(self, caller: Caller, follow: bool, since: int) -> AsyncIterator[EventRecord]:
        """What happened since a sequence number, and with `follow` what happens from now on."""
        async for record in self._machine.events.follow(since, follow):
            yield record

    # --------------------------------------------------------------------------------------------------------------------------- inside


async def drain_requests(machine: Machine, timeout_s: float) -> None:
    """Take no new requests, and wait until those that there are have ended, or the time is over."""
    machine.is_draining = True
    machine.events.publish(DaemonDraining(machine.scheduler.running.total, machine.scheduler.waiting.total))
    deadline = time.monotonic() + timeout_s
    while machine.requests and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


def _check_weight(weight: int) -> None:
    if not 1 <= weight <= MAX_WEIGHT:
        problem = f"use 1 to {MAX_WEIGHT}; it is {weight}. Who is to get only what others leave uses contexts of the class idle."
        raise InvalidArgument("weight", problem)
