"""The store: what is durable, what fails together, what is refused at boot."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kerneld.calls import ImageInfo, Limits, Role, TokenInfo
from kerneld.errors import AlreadyExists, DataLoss, KernelError, NotFound, Unavailable, WrongState
from kerneld.state.database import sqlite_url
from kerneld.state.migrations import MIGRATIONS, migrate
from kerneld.state.records import Effect
from kerneld.state.store import Store
from kerneld.state.tables import ModelRow, PrincipalRow, TenantRow, TokenRow

ANN = TenantRow("lab/ann", 2, Limits(max_contexts=5), 1.0, b"s" * 32)
TOKEN = TokenRow(TokenInfo("t1", "lab/ann", "robot", frozenset({Role.USER, Role.VIEWER}), 1.0, 2.0), b"h" * 32)
ROBOT = PrincipalRow("robot", "lab/ann", frozenset({Role.USER}), is_local=False)
MODEL = ModelRow("m", "/models/m", 1024, "", "w", "f", "stamp", True, "ann")
IMAGE = ImageInfo("i1", "c1", "m", "ann", "lab/ann", 10, 1, 4096, 3.0, "first")
EFFECT = Effect("ann", "key", "AddTenant", b"d", b"a", 5.0)

Scenario = Callable[[Store], Coroutine[Any, Any, Any]]


def run(path: Path, scenario: Scenario) -> Any:
    """Open the store in `path`, run a scenario on it, close it."""

    async def body() -> Any:
        store = Store.open(sqlite_url(path / "kerneld.db"), clock=lambda: 7.0, busy_timeout_s=0.05)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(body())


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    async def fill(store: Store) -> None:
        await store.add_tenant(ANN, [EFFECT])
        await store.add_token(TOKEN, ROBOT)
        await store.put_model(MODEL)
        await store.add_image(IMAGE)

    async def look(store: Store) -> list[object]:
        return [
            await store.load_tenants(),
            await store.load_tokens(),
            await store.load_principals(),
            await store.load_models(),
            await store.load_images(),
            await store.load_effects(since=5.0),
        ]

    run(tmp_path, fill)
    assert run(tmp_path, look) == [[ANN], [TOKEN], [ROBOT], [MODEL], [IMAGE], [EFFECT]]


def test_changes_change_and_removals_remove(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await store.add_tenant(ANN)
        await store.set_tenant("lab/ann", 9, None)
        await store.put_model(MODEL)
        await store.set_want_loaded("m", False)
        await store.add_token(TOKEN, ROBOT)
        await store.touch_tokens({"t1": 99.0})
        assert await store.load_tenants() == [replace(ANN, weight=9)]
        assert await store.load_models() == [replace(MODEL, want_loaded=False)]
        assert (await store.load_tokens())[0].info.last_used_at == 99.0
        await store.remove_model("m")
        await store.remove_tenant("lab/ann")
        left = [await store.load_models(), await store.load_tenants(), await store.load_tokens(), await store.load_principals()]
        assert left == [[], [], [], []]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.set_tenant("nobody", 1, None),
        lambda store: store.remove_tenant("nobody"),
        lambda store: store.remove_token("none"),
        lambda store: store.remove_model("none"),
        lambda store: store.set_want_loaded("none", True),
        lambda store: store.remove_image("none"),
        lambda store: store.add_token(TOKEN, ROBOT),
    ],
)
def test_what_is_not_there_is_not_found(tmp_path: Path, change: Scenario) -> None:
    with pytest.raises(NotFound):
        run(tmp_path, change)


def test_a_tenant_with_images_or_tenants_beneath_stays(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await store.add_tenant(replace(ANN, path="lab"))
        await store.add_tenant(ANN)
        await store.add_image(IMAGE)
        for path in ("lab", "lab/ann"):
            with pytest.raises(WrongState):
                await store.remove_tenant(path)

    run(tmp_path, scenario)


def test_a_change_that_fails_takes_its_effect_with_it_and_nobody_elses(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await store.add_tenant(ANN)
        results = await asyncio.gather(
            store.add_tenant(replace(ANN, path="a")),
            store.add_tenant(ANN, [EFFECT]),
            store.add_tenant(replace(ANN, path="b")),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), AlreadyExists, type(None)]
        assert [tenant.path for tenant in await store.load_tenants()] == ["a", "b", "lab/ann"]
        assert await store.load_effects(since=0.0) == []

    run(tmp_path, scenario)


def test_a_request_id_is_free_again_after_a_day(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        later = msgspec.structs.replace(EFFECT, at=EFFECT.at + 24 * 3600.0)
        await store.add_tenant(ANN, [EFFECT])
        with pytest.raises(AlreadyExists):
            await store.set_tenant("lab/ann", 3, None, [msgspec.structs.replace(later, at=later.at - 1)])
        await store.set_tenant("lab/ann", 4, None, [later])
        assert await store.load_tenants() == [replace(ANN, weight=4)]
        assert await store.load_effects(since=0.0) == [later]

    run(tmp_path, scenario)


def test_many_callers_share_transactions(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await asyncio.gather(*(store.add_tenant(replace(ANN, path=f"t{number}")) for number in range(200)))
        assert len(await store.load_tenants()) == 200
        assert store._commits._number < 50

    run(tmp_path, scenario)


def test_a_cancelled_caller_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        leaving = asyncio.create_task(store.add_tenant(ANN))
        await asyncio.sleep(0)
        leaving.cancel()
        await store.add_tenant(replace(ANN, path="b"))
        assert [tenant.path for tenant in await store.load_tenants()] == ["b", "lab/ann"]

    run(tmp_path, scenario)


def test_every_boot_has_its_own_generation(tmp_path: Path) -> None:
    generations = [run(tmp_path, lambda store: store.begin_boot()) for _ in range(3)]
    assert generations == [1, 2, 3]


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    async def scenario(store: Store) -> set[int]:
        await store.add_tenant(ANN)
        return {path.stat().st_mode & 0o777 for path in tmp_path.glob("kerneld.db*")}

    assert run(tmp_path, scenario) == {0o600}


# ------------------------------------------------------------------------------------------------------------------------- refused at boot


def refusal(path: Path) -> KernelError:
    """Return what opening the store in `path` raises."""
    with pytest.raises(KernelError) as caught:
        run(path, lambda store: store.load_tenants())
    return caught.value


def test_a_corrupt_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(tmp_path, lambda store: store.add_tenant(ANN))
    database = tmp_path / "kerneld.db"
    content = bytearray(database.read_bytes())
    content[4096 * 2 : 4096 * 6] = bytes(4096 * 4)
    database.write_bytes(content)
    assert isinstance(refusal(tmp_path), DataLoss)
    assert database.read_bytes() == content


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kerneld.db").write_bytes(b"not a database" * 100)
    assert isinstance(refusal(tmp_path), DataLoss)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "kerneld.db").execute("CREATE TABLE theirs (x)")
    assert refusal(tmp_path).reason == "SCHEMA_UNKNOWN"


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    run(tmp_path, lambda store: store.load_tenants())
    with sqlite3.connect(tmp_path / "kerneld.db") as connection:
        connection.execute("INSERT INTO schema_versions VALUES (99, 0)")
    assert refusal(tmp_path).reason == "SCHEMA_NEWER"


def test_a_database_that_somebody_holds_is_unavailable(tmp_path: Path) -> None:
    run(tmp_path, lambda store: store.load_tenants())
    holder = sqlite3.connect(tmp_path / "kerneld.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    error = refusal(tmp_path)
    holder.close()
    assert isinstance(error, Unavailable)
    assert error.reason == "DATABASE_LOCKED"


def test_a_change_waits_for_another_writer_no_longer_than_the_timeout(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        holder = sqlite3.connect(tmp_path / "kerneld.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await store.add_tenant(ANN)
        holder.execute("ROLLBACK")
        holder.close()
        await store.add_tenant(ANN)

    run(tmp_path, scenario)


# ------------------------------------------------------------------------------------------------------------------------------ migrations


def schema(path: Path) -> list[tuple[str, ...]]:
    """Return the schema as SQLite keeps it."""
    with sqlite3.connect(path) as connection:
        return sorted(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())


def test_version_1_ends_up_like_a_new_database(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    with sqlite3.connect(old / "kerneld.db") as connection:
        connection.executescript((Path(__file__).parent / "schema_1.sql").read_text())
        connection.execute("INSERT INTO models VALUES ('m', '/models/m', 1024, '', 'w', 'f', 'stamp', 1, 'ann')")
        connection.commit()
    assert run(old, lambda store: store.load_tenants()) == [ANN]
    assert run(old, lambda store: store.load_models()) == [MODEL]
    run(new, lambda store: store.load_tenants())
    assert schema(old / "kerneld.db") == schema(new / "kerneld.db")


def test_migrations_run_once_in_order_and_together(tmp_path: Path) -> None:
    run(tmp_path, lambda store: store.load_tenants())
    steps: list[int] = []
    newest = 1 + len(MIGRATIONS)
    migrations = [*MIGRATIONS, lambda _: steps.append(2), lambda _: steps.append(3)]

    async def scenario(store: Store) -> list[int]:
        found = []
        for _ in range(2):
            with store._database.writer.connect() as connection, connection.begin():
                found.append(migrate(connection, 1.0, migrations))
        return found

    assert run(tmp_path, scenario) == [newest, newest + 2]
    assert steps == [2, 3]
