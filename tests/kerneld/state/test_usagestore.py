"""Usage in the database: amounts add up, totals follow, and a removed tenant leaves its hours and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from kerneld.calls import Limits
from kerneld.state.database import sqlite_url
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow, UsageRow
from kerneld.state.usagestore import UsageBatch, UsageKept, UsageQuery
from kerneld.state.usagetables import ClockRow, DecayedRow
from kerneld.usage.amounts import SYSTEM, Amounts, Bucket

HOUR = 3600
LAB = TenantRow("lab", 1, Limits(), 1.5, b"s" * 32)
ANN = replace(LAB, path="lab/ann", created_at=2.5)
EVERYTHING = UsageQuery(0, 1 << 40, 0)
Scenario = Callable[[Store], Coroutine[Any, Any, Any]]


def run(path: Path, scenario: Scenario) -> Any:
    """Open the store in `path` with two tenants, run a scenario on it, close it."""

    async def body() -> Any:
        store = Store.open(sqlite_url(path / "kerneld.db"), clock=lambda: 7.0)
        try:
            if not await store.load_tenants():
                await store.add_tenant(LAB)
                await store.add_tenant(ANN)
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(body())


def batch(amounts: dict[Bucket, Amounts]) -> UsageBatch:
    return UsageBatch(amounts, {}, {})


def test_amounts_add_up_and_the_rest_replaces_what_was_there(tmp_path: Path) -> None:
    bucket = Bucket("lab/ann", 2.5, 10 * HOUR)
    first = UsageBatch(
        {bucket: Amounts(1, 2, 3, 4, 5, 6)}, {"lab/ann": UsageRow(2, 4, 6)}, {"lab": DecayedRow(6.0, 1.0)}, ClockRow(1.0, 9.0)
    )
    second = UsageBatch(
        {bucket: Amounts(1, 1, service_us=-9)}, {"lab/ann": UsageRow(3, 4, 5)}, {"lab": DecayedRow(5.5, 2.0)}, ClockRow(2.0, 10.0)
    )

    async def fill(store: Store) -> None:
        await store.usage.write(first)
        await store.usage.write(second)

    async def look(store: Store) -> tuple[UsageKept, dict[Bucket, Amounts]]:
        return await store.usage.load(), await store.usage.read(EVERYTHING)

    run(tmp_path, fill)
    kept, found = run(tmp_path, look)
    assert kept == UsageKept({"lab/ann": UsageRow(3, 4, 5)}, {"lab": DecayedRow(5.5, 2.0)}, ClockRow(2.0, 10.0))
    assert found == {Bucket("lab/ann", 2.5, 0): Amounts(2, 3, 3, 4, 5, -3)}


def test_a_new_database_knows_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, lambda store: store.usage.load()) == UsageKept()
    assert run(tmp_path, lambda store: store.usage.read(EVERYTHING)) == {}


def test_what_is_written_late_of_a_removed_tenant_is_its_hours_alone(tmp_path: Path) -> None:
    used = {Bucket("lab/ann", 2.5, HOUR): Amounts(requests=1)}
    late = UsageBatch(
        used, {"lab/ann": UsageRow(1, 1, 1)}, {node: DecayedRow(1.0, 0.0) for node in ("lab/ann", "lab/ann/.", "lab", "lab/.")}
    )

    async def scenario(store: Store) -> tuple[UsageKept, dict[Bucket, Amounts], bool]:
        await store.usage.write(late)
        await store.remove_tenant("lab/ann")
        await store.usage.write(late)
        return await store.usage.load(), await store.usage.read(EVERYTHING), await store.usage.has_history("lab/ann")

    kept, found, has_history = run(tmp_path, scenario)
    assert (dict(kept.totals), set(kept.decayed)) == ({}, {"lab", "lab/."})
    assert found == {Bucket("lab/ann", 2.5, 0): Amounts(requests=2)}
    assert has_history


def test_a_query_finds_what_it_asks_for_in_order_and_no_more(tmp_path: Path) -> None:
    buckets = [
        Bucket("lab", 1.5, 30 * HOUR),
        Bucket("lab/ann", 2.5, 29 * HOUR),
        Bucket("lab/ann", 2.5, 30 * HOUR),
        Bucket("lab/ann", 0.5, 30 * HOUR),  # of an earlier one of its name
        Bucket("lab_", 1.5, 30 * HOUR),
        Bucket(SYSTEM, 0.0, 30 * HOUR),
    ]

    async def find(store: Store, **asked: Any) -> list[tuple[str, float, int, int]]:
        found = await store.usage.read(replace(EVERYTHING, **asked))
        return [(*bucket, amounts.requests) for bucket, amounts in found.items()]

    async def scenario(store: Store) -> None:
        await store.usage.write(batch({bucket: Amounts(requests=1) for bucket in buckets}))
        days = [("lab/ann", 2.5, 24 * HOUR, 2), ("lab_", 1.5, 24 * HOUR, 1)]
        assert await find(store, viewer="lab/ann") == [("lab", 1.5, 0, 1), ("lab/ann", 2.5, 0, 2)]
        assert await find(store, viewer="lab") == [("lab", 1.5, 0, 1), ("lab/ann", 2.5, 0, 2)]
        assert await find(store, viewer="lab_") == []  # it is not there any more
        assert await find(store, tenant="lab/ann") == [("lab/ann", 0.5, 0, 1), ("lab/ann", 2.5, 0, 2)]
        assert await find(store, tenant=SYSTEM) == [(SYSTEM, 0.0, 0, 1)]
        assert await find(store, span_s=HOUR, viewer="lab", limit=2) == [("lab/ann", 2.5, 29 * HOUR, 1), ("lab", 1.5, 30 * HOUR, 1)]
        assert await find(store, span_s=24 * HOUR, after=Bucket("lab/ann", 0.5, 24 * HOUR)) == days
        assert await find(store, since=30 * HOUR, until=31 * HOUR, tenant="lab/ann") == [
            ("lab/ann", 0.5, 30 * HOUR, 1),
            ("lab/ann", 2.5, 30 * HOUR, 1),
        ]
        assert await find(store, until=29 * HOUR) == []

    run(tmp_path, scenario)


def test_hours_before_one_are_forgotten(tmp_path: Path) -> None:
    async def scenario(store: Store) -> list[int]:
        await store.usage.write(batch({Bucket("lab", 1.5, hour * HOUR): Amounts(requests=1) for hour in range(5)}))
        await store.usage.forget(3 * HOUR)
        return [bucket.hour // HOUR for bucket in await store.usage.read(replace(EVERYTHING, span_s=HOUR))]

    assert run(tmp_path, scenario) == [3, 4]


def test_totals_of_an_older_schema_are_kept(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "kerneld.db") as connection:
        connection.executescript((Path(__file__).parent / "schema_1.sql").read_text())
        connection.execute("INSERT INTO usage VALUES ('lab/ann', 11, 22, 33)")
        connection.commit()
    assert run(tmp_path, lambda store: store.usage.load()) == UsageKept({"lab/ann": UsageRow(11, 22, 33)})
