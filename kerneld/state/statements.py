"""The statements that the store's changes are made of. Each runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, insert, update
from sqlalchemy.exc import IntegrityError

from kerneld.errors import AlreadyExists
from kerneld.state.records import Effect
from kerneld.state.replay import EFFECT_LIFETIME_S
from kerneld.state.tables import PrincipalRow, effects, principals, roles_json


def key_of(table: Table) -> Column[Any]:
    """Return the column that names a row."""
    return next(iter(table.primary_key))


def put_row(connection: Connection, table: Table, key: dict[str, object], values: Mapping[str, object]) -> None:
    """Update the row with this key, or insert it. There is one writer, so nobody comes between."""
    matches = [table.c[name] == value for name, value in key.items()]
    if not connection.execute(update(table).where(*matches).values(**values)).rowcount:
        connection.execute(insert(table).values(**key, **values))


def insert_row(connection: Connection, table: Table, what: str, values: Mapping[str, object]) -> None:
    """Insert a row; `what` names it in the error. Raises: AlreadyExists; then only this statement is undone."""
    try:
        with connection.begin_nested():
            connection.execute(insert(table).values(**values))
    except IntegrityError as error:
        raise AlreadyExists(f"{what} is already there.") from error


def remember(connection: Connection, made_by: Iterable[Effect]) -> None:
    """Insert the effects of the call that makes the change, over expired ones of the same request id. Raises: AlreadyExists."""
    for effect in made_by:
        is_same = (effects.c.principal == effect.principal) & (effects.c.request_id == effect.request_id)
        connection.execute(delete(effects).where(is_same, effects.c.at <= effect.at - EFFECT_LIFETIME_S))
        values = {name: getattr(effect, name) for name in Effect.__struct_fields__}
        insert_row(connection, effects, f"The request id {effect.request_id!r}", values)


def put_principal(connection: Connection, principal: PrincipalRow) -> None:
    """Insert a principal, or change it."""
    values = {"tenant": principal.tenant, "roles": roles_json(principal.roles), "is_local": principal.is_local}
    put_row(connection, principals, {"name": principal.name}, values)
