"""The part of the store that keeps usage: what was used since the last time is added in one transaction, with the totals that follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, insert, literal, or_, select, true, update

from kerneld.failpoints import hit
from kerneld.state.commits import Commits
from kerneld.state.statements import put_row
from kerneld.state.tables import UsageRow, tenants, usage
from kerneld.state.usagetables import ClockRow, DecayedRow, decayed, usage_clock, usage_hours
from kerneld.usage.amounts import AMOUNTS, Amounts, Bucket

FIRST: Final = Bucket("", -1.0, -1)


@dataclass(frozen=True, slots=True)
class UsageBatch:
    """What one transaction writes: amounts are added, the rest replaces what is there."""

    amounts: Mapping[Bucket, Amounts]
    totals: Mapping[str, UsageRow]
    decayed: Mapping[str, DecayedRow]
    clock: ClockRow | None = None

    def __bool__(self) -> bool:
        return bool(self.amounts or self.decayed)


@dataclass(frozen=True, slots=True)
class UsageKept:
    """What a start needs to know of earlier usage."""

    totals: Mapping[str, UsageRow] = field(default_factory=dict)
    decayed: Mapping[str, DecayedRow] = field(default_factory=dict)
    clock: ClockRow | None = None


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which amounts, added up by tenant and span: of hours in [since, until), both the beginnings of hours."""

    since: int
    until: int
    span_s: int  # 0: one span for all of the time
    tenant: str = ""  # it and those beneath it; empty: all
    viewer: str | None = None  # living tenants above, at and beneath this one only; None: all, removed ones and the system too
    after: Bucket = FIRST  # the last one that was shown: spans in order, then tenants
    limit: int = 1000

    def span_of(self, hour: int) -> int:
        """The beginning of the span that an hour belongs to."""
        return hour - hour % self.span_s if self.span_s else self.since


class _Read(Protocol):
    """Runs a query in a transaction of its own, off the loop."""

    def __call__(self, query: Callable[[Connection], Any]) -> Awaitable[Any]: ...


class UsageStore:
    """Usage as the database has it. Errors of all methods are those of the store."""

    def __init__(self, commits: Commits, read: _Read) -> None:
        self._commits = commits
        self._read = read

    async def load(self) -> UsageKept:
        """Totals of living tenants, what nodes have used with a half-life, and the clock that counts it."""

        def query(connection: Connection) -> UsageKept:
            totals = {row.tenant: UsageRow(row.input_tokens, row.output_tokens, row.service) for row in connection.execute(select(usage))}
            nodes = {row.node: DecayedRow(row.value_us, row.at) for row in connection.execute(select(decayed))}
            clock = connection.execute(select(usage_clock)).first()
            return UsageKept(totals, nodes, ClockRow(clock.passed_s, clock.wall_s) if clock else None)

        kept: UsageKept = await self._read(query)
        return kept

    async def write(self, batch: UsageBatch) -> None:
        """Write what was used. Totals and nodes of tenants that are gone are left out; their hours are kept."""

        def change(connection: Connection) -> None:
            for bucket, amounts in batch.amounts.items():
                _add_amounts(connection, bucket, amounts)
            hit("usage.write.between")
            living = {row.path for row in connection.execute(select(tenants.c.path))}
            for path in batch.totals.keys() & living:
                total = batch.totals[path]
                values = {"input_tokens": total.input_tokens, "output_tokens": total.output_tokens, "service": total.service}
                put_row(connection, usage, {"tenant": path}, values)
            for node, row in batch.decayed.items():
                if node.removesuffix("/.") in living:
                    put_row(connection, decayed, {"node": node}, {"value_us": row.value_us, "at": row.at})
            if batch.clock is not None:
                put_row(connection, usage_clock, {"id": 1}, {"passed_s": batch.clock.passed_s, "wall_s": batch.clock.wall_s})

        await self._commits.commit(change)

    async def read(self, query: UsageQuery) -> dict[Bucket, Amounts]:
        """The first amounts that a query asks for, in order; `hour` of a bucket is the beginning of its span."""

        def run(connection: Connection) -> dict[Bucket, Amounts]:
            rows = connection.execute(_statement(query)).all()
            return {Bucket(row[0], row[1], row[2]): Amounts(*map(int, row[3:])) for row in rows}

        found: dict[Bucket, Amounts] = await self._read(run)
        return found

    async def has_history(self, tenant: str) -> bool:
        """Whether anything is kept of a tenant of that name or beneath it, removed ones too."""
        statement = select(usage_hours.c.tenant).where(_at_or_beneath(tenant)).limit(1)
        found: bool = await self._read(lambda connection: connection.execute(statement).first() is not None)
        return found

    async def forget(self, before_hour: int) -> None:
        """Drop the amounts of hours before one."""
        statement = delete(usage_hours).where(usage_hours.c.hour < before_hour)
        await self._commits.commit(lambda connection: connection.execute(statement).rowcount)


def forget_tenant(connection: Connection, path: str) -> None:
    """A tenant is removed: a later one of its name begins at zero. Its hours stay until they are too old."""
    connection.execute(delete(usage).where(usage.c.tenant == path))
    connection.execute(delete(decayed).where(decayed.c.node.in_([path, f"{path}/."])))


def _add_amounts(connection: Connection, bucket: Bucket, amounts: Amounts) -> None:
    columns = usage_hours.c
    is_it = (columns.tenant == bucket.tenant, columns.born == bucket.born, columns.hour == bucket.hour)
    more = {name: getattr(amounts, name) for name in AMOUNTS}
    added = update(usage_hours).where(*is_it).values({name: columns[name] + value for name, value in more.items() if value})
    if not connection.execute(added).rowcount:
        connection.execute(insert(usage_hours).values(**bucket._asdict(), **more))


def _statement(query: UsageQuery) -> Select[Any]:
    columns, after = usage_hours.c, query.after
    span: ColumnElement[int] = columns.hour - columns.hour % query.span_s if query.span_s else literal(query.since)
    is_later = or_(
        span > after.hour,
        and_(span == after.hour, columns.tenant > after.tenant),
        and_(span == after.hour, columns.tenant == after.tenant, columns.born > after.born),
    )
    key = (columns.tenant, columns.born, span.label("span"))
    return (
        select(*key, *(func.sum(columns[name]) for name in AMOUNTS))
        .where(columns.hour >= query.since, columns.hour < query.until, is_later)
        .where(_at_or_beneath(query.tenant), _seen_by(query.viewer))
        .group_by(*key[:2], "span")
        .order_by("span", *key[:2])
        .limit(query.limit)
    )


def _at_or_beneath(tenant: str) -> ColumnElement[bool]:
    if not tenant:
        return true()
    column = usage_hours.c.tenant
    return or_(column == tenant, column.startswith(tenant + "/", autoescape=True))


def _seen_by(viewer: str | None) -> ColumnElement[bool]:
    """Who is neither an operator nor an administrator sees living tenants on his own way through the tree."""
    if viewer is None:
        return true()
    parts = viewer.split("/")
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
    is_living = select(tenants.c.path).where(tenants.c.path == usage_hours.c.tenant, tenants.c.created_at == usage_hours.c.born).exists()
    return and_(is_living, or_(usage_hours.c.tenant.in_(above), _at_or_beneath(viewer)))
