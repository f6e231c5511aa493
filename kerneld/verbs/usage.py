"""The verbs on usage: what tenants used, and how the machine is shared."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kerneld.calls import Caller, ListArgs, ListPage
from kerneld.contexts import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, page_of
from kerneld.errors import InvalidArgument, NotFound
from kerneld.machine import Machine
from kerneld.security.acl import may_see_everything, may_see_tenant
from kerneld.state.tables import TenantRow
from kerneld.state.usagestore import FIRST, UsageQuery
from kerneld.usage.amounts import AMOUNTS, HOUR_S, SYSTEM, Amounts, Bucket, hour_of
from kerneld.usage.report import ShareRecord, Span, UsageArgs, UsageRecord

_LATEST_S = 1e11  # the latest time that a call may name
_SPAN_S = {Span.HOUR: HOUR_S, Span.DAY: 24 * HOUR_S, Span.TOTAL: 0}


class UsageVerbs:
    """Reads the accounts of usage, and the tree of shares."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def usage(self, caller: Caller, args: UsageArgs) -> ListPage[UsageRecord]:
        """What tenants used, span by span: of living ones that the caller may see; of removed ones and the system for operators.

        Raises: InvalidArgument; NotFound, if there is no such tenant, or it is not the caller's to know.
        """
        machine = self._machine
        await self._check_tenant(caller, args.tenant)
        size = _page_size(args.page_size)
        query = UsageQuery(
            since=hour_of(args.since),
            until=hour_of(math.ceil((args.until or machine.clock()) / HOUR_S) * HOUR_S),
            span_s=_SPAN_S[args.span],
            tenant=args.tenant,
            viewer=None if may_see_everything(caller.principal) else caller.principal.tenant,
            after=_bucket_of(args.page_token),
            limit=size + 1,
        )
        found = await machine.usage.read(machine.store.usage, query)
        records = tuple(self._record(bucket, amounts) for bucket, amounts in found[:size])
        return ListPage(records, _token_of(found[size - 1][0]) if len(found) > size else "")

    def shares(self, caller: Caller, args: ListArgs) -> ListPage[ShareRecord]:
        """The tree of shares, as far as the caller may see it. Raises: InvalidArgument."""
        machine = self._machine
        machine.usage.settle()
        paths = [row.path for row in machine.tenants if may_see_tenant(caller.principal, row.path)]
        levels: dict[str, _Level] = {}
        return page_of(paths, args, lambda path: self._share(machine.tenants.get(path), levels), lambda _record: True)

    # ------------------------------------------------------------------------------------------------------------------------ inside

    async def _check_tenant(self, caller: Caller, tenant: str) -> None:
        if not tenant:
            return
        machine, sees_all = self._machine, may_see_everything(caller.principal)
        is_there = tenant in machine.tenants and may_see_tenant(caller.principal, tenant)
        if not is_there and not (sees_all and (tenant == SYSTEM or await machine.usage.has_history(machine.store.usage, tenant))):
            raise NotFound("tenant", tenant)

    def _record(self, bucket: Bucket, amounts: Amounts) -> UsageRecord:
        is_living = bucket.tenant == SYSTEM or self._machine.usage.accounts.born(bucket.tenant) == bucket.born
        return UsageRecord(bucket.tenant, float(bucket.hour), not is_living, *(getattr(amounts, name) for name in AMOUNTS))

    def _share(self, tenant: TenantRow, levels: dict[str, _Level]) -> ShareRecord:
        machine, path = self._machine, tenant.path
        for node in _way_to(path):
            if _parent(node) not in levels:
                levels[_parent(node)] = self._level(_parent(node))
        way = [(node, levels[_parent(node)]) for node in _way_to(path)]
        level = levels[_parent(path)]
        return ShareRecord(
            tenant=path,
            weight=tenant.weight,
            share=level.share(path),
            machine_share=math.prod(each.share(node) for node, each in way),
            used_share=level.used_share(path),
            decayed_us=round(level.used_us[path]),
            factor_milli=level.factors[path],
            effective_share=level.effective_share(path),
            effective_machine_share=math.prod(each.effective_share(node) for node, each in way),
            service_us=max(machine.scheduler.shares.service(path), 0),
            num_waiting=machine.scheduler.waiting.of(path),
            num_running=machine.scheduler.running.of(path),
        )

    def _level(self, parent: str) -> _Level:
        usage, shares = self._machine.usage, self._machine.scheduler.shares
        used_us = usage.used_us(parent)
        weights = usage.weights(parent, used_us)
        factors = {path: shares.factor(path) for path in weights}
        all_effective = sum(weight * factors[path] for path, weight in weights.items())
        return _Level(weights, factors, used_us, sum(weights.values()), all_effective, sum(used_us.values()))


@dataclass(frozen=True, slots=True)
class _Level:
    """Siblings: what is known of each, and of all together."""

    weights: dict[str, int]
    factors: dict[str, int]
    used_us: dict[str, float]
    all_weights: int
    all_effective: int  # weights times factors
    all_used_us: float

    def share(self, path: str) -> float:
        """Of what is their parent's, by weights."""
        return self.weights[path] / self.all_weights

    def effective_share(self, path: str) -> float:
        """The same, by weights times factors."""
        return self.weights[path] * self.factors[path] / self.all_effective

    def used_share(self, path: str) -> float:
        """Of what they used together; 0 where they used nothing."""
        return self.used_us[path] / self.all_used_us if self.all_used_us else 0.0


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _way_to(path: str) -> list[str]:
    """A tenant and those above it, from the root."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _page_size(size: int) -> int:
    if not 0 <= size <= MAX_PAGE_SIZE:
        raise InvalidArgument("page_size", f"use 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}.")
    return size or DEFAULT_PAGE_SIZE


def _token_of(last: Bucket) -> str:
    return f"{last.hour} {last.born!r} {last.tenant}"


def _bucket_of(token: str) -> Bucket:
    """The last record that was shown. Raises: InvalidArgument."""
    if not token:
        return FIRST
    parts = token.split(" ", 2)
    try:
        last = Bucket(parts[2], float(parts[1]), int(parts[0]))
        if not 0 <= last.hour <= _LATEST_S:
            raise ValueError("no hour")
    except (IndexError, ValueError):
        raise InvalidArgument("page_token", "must be what next_page_token was.") from None
    return last
