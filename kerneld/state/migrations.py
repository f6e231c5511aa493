"""Schema versions. They only go forward: an older kerneld refuses a newer database, and touches nothing in it.

A new database is made from `kerneld.state.tables` at the newest version. An older one is brought there step by step, all steps in one
transaction. A test keeps version 1 as it was and checks that it ends up the same as a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Table, func, insert, inspect, select, text

from kerneld.errors import WrongState
from kerneld.failpoints import hit
from kerneld.state.tables import metadata, models, schema_versions, sharing_groups
from kerneld.state.usagetables import decayed, usage_clock, usage_hours

Migration = Callable[[Connection], None]


def made_anew(table: Table) -> Migration:
    """The step that brings a small table to its newest form: its rows are read and put back, and new columns take their defaults."""

    def step(connection: Connection) -> None:
        rows = [dict(row) for row in connection.execute(text(f"SELECT * FROM {table.name}")).mappings()]
        table.drop(connection)
        table.create(connection)
        if rows:
            connection.execute(insert(table), rows)

    return step


def made(*tables: Table) -> Migration:
    """The step that adds tables."""

    def step(connection: Connection) -> None:
        for table in tables:
            table.create(connection)

    return step


# MIGRATIONS[i] brings a database from version i + 1 to version i + 2. A released one is never changed.
MIGRATIONS: tuple[Migration, ...] = (
    made_anew(models),
    made(sharing_groups),
    made(usage_hours, decayed, usage_clock),
    made_anew(models),
    made_anew(models),
)


def migrate(connection: Connection, now: float, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the database to the newest version, within the caller's transaction. Return the version that it had, 0 for none.

    Raises: WrongState, if it is newer than this code, or is another program's; then nothing was changed.
    """
    newest = 1 + len(migrations)
    found = schema_version(connection)
    if found > newest:
        raise WrongState(
            f"The database has schema version {found}, this kerneld knows up to {newest}. Install the one that wrote it, or a later one.",
            reason="SCHEMA_NEWER",
            facts={"found": str(found), "known": str(newest)},
        )
    if found == 0:
        metadata.create_all(connection)
    for step in migrations[found - 1 :] if found else ():
        step(connection)
    for version in range(found + 1, newest + 1):
        connection.execute(insert(schema_versions).values(version=version, applied_at=now))
    hit("store.migrate.before_commit")
    return found


def schema_version(connection: Connection) -> int:
    """Return the version of a database, 0 if it is empty. Raises: WrongState, if it holds something else."""
    names = inspect(connection).get_table_names()
    if not names:
        return 0
    if schema_versions.name not in names:
        raise WrongState(f"The database is not kerneld's: it has the tables {', '.join(sorted(names))}.", reason="SCHEMA_UNKNOWN")
    version: int = connection.execute(select(func.max(schema_versions.c.version))).scalar() or 0
    return version
