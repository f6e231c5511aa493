"""The store: every durable change of a relation is one method, done in one transaction and on the disk when it returns.

A change that answers a call with a request id takes the call's effects along, in the same transaction. Reads see what is committed.
Errors of all methods, besides their own: DiskFull, Unavailable, WrongState (read-only), DataLoss; then nothing has changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Table, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from kerneld.calls import ImageInfo, Limits
from kerneld.errors import NotFound, WrongState
from kerneld.state.commits import Commits
from kerneld.state.database import Database
from kerneld.state.records import Effect
from kerneld.state.statements import insert_row, key_of, put_principal, put_row, remember
from kerneld.state.tables import (
    GroupRow,
    ModelRow,
    PrincipalRow,
    TenantRow,
    TokenRow,
    api_tokens,
    boots,
    effects,
    group_of,
    images,
    limits_json,
    members_json,
    models,
    principal_of,
    principals,
    sharing_groups,
    tenant_of,
    tenant_values,
    tenants,
    token_of,
    token_values,
)
from kerneld.state.usagestore import UsageStore, forget_tenant

BUSY_TIMEOUT_S = 5.0

Item = TypeVar("Item")
Effects = Iterable[Effect]


class Store:
    """The relations of one state directory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._commits = Commits(database.writer, database.explain)
        self.usage = UsageStore(self._commits, self._read)

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
        """Open, check and migrate a database; blocks. Raises: as `Database.open`."""
        return cls(Database.open(url, clock(), busy_timeout_s))

    async def close(self) -> None:
        """Wait for changes under way and close. Safe to call twice."""
        await self._commits.close()
        self._database.close()

    async def begin_boot(self) -> int:
        """Count a start of the daemon; returns its boot generation, which no other start has or will have."""

        def change(connection: Connection) -> int:
            generation: int = 1 + (connection.execute(select(boots.c.generation)).scalar() or 0)
            put_row(connection, boots, {"id": 1}, {"generation": generation})
            return generation

        return await self._commits.commit(change)

    # ---------------------------------------------------------------------------------------------------------------------------- tenants

    async def load_tenants(self) -> list[TenantRow]:
        """Every tenant, by path."""
        return await self._load(tenants, "path", tenant_of)

    async def add_tenant(self, tenant: TenantRow, made_by: Effects = ()) -> None:
        """Add a tenant. Raises: AlreadyExists."""

        def change(connection: Connection) -> None:
            insert_row(connection, tenants, f"The tenant {tenant.path!r}", tenant_values(tenant))
            remember(connection, made_by)

        await self._commits.commit(change)

    async def set_tenant(self, path: str, weight: int | None, limits: Limits | None, made_by: Effects = ()) -> None:
        """Change a tenant; None leaves a field as it is. Raises: NotFound."""
        values: dict[str, object] = {"weight": weight} if weight is not None else {}
        if limits is not None:
            values["limits"] = limits_json(limits)
        await self._update(tenants, "tenant", path, values, made_by)

    async def remove_tenant(self, path: str, made_by: Effects = ()) -> None:
        """Remove a tenant, with its principals, tokens and accounts. Raises: NotFound; WrongState, if it has images or tenants beneath."""

        def change(connection: Connection) -> None:
            if connection.execute(select(tenants.c.path).where(tenants.c.path.startswith(path + "/", autoescape=True))).first():
                raise WrongState(f"The tenant {path!r} has tenants beneath it.", reason="TENANT_NOT_EMPTY", facts={"tenant": path})
            if connection.execute(select(images.c.id).where(images.c.tenant == path)).first():
                raise WrongState(f"The tenant {path!r} has images.", reason="TENANT_NOT_EMPTY", facts={"tenant": path})
            for row in map(group_of, connection.execute(select(sharing_groups)).all()):
                if path in row.members:
                    members = members_json(tuple(member for member in row.members if member != path))
                    connection.execute(update(sharing_groups).where(sharing_groups.c.name == row.name).values(members=members))
            for table in (api_tokens, principals):
                connection.execute(delete(table).where(table.c.tenant == path))
            forget_tenant(connection, path)
            if not connection.execute(delete(tenants).where(tenants.c.path == path)).rowcount:
                raise NotFound("tenant", path)
            remember(connection, made_by)

        await self._commits.commit(change)

    async def load_groups(self) -> list[GroupRow]:
        """Every sharing group, by name."""
        return await self._load(sharing_groups, "name", group_of)

    async def put_group(self, group: GroupRow, made_by: Effects = ()) -> None:
        """Add a sharing group, or change its members."""
        values = {"members": members_json(group.members), "created_at": group.created_at, "secret": group.secret}

        def change(connection: Connection) -> None:
            put_row(connection, sharing_groups, {"name": group.name}, values)
            remember(connection, made_by)

        await self._commits.commit(change)

    async def remove_group(self, name: str, made_by: Effects = ()) -> None:
        """Remove a sharing group. Raises: NotFound."""
        await self._remove(sharing_groups, "sharing group", name, made_by)

    # -------------------------------------------------------------------------------------------------------------- principals and tokens

    async def load_principals(self) -> list[PrincipalRow]:
        """Everybody who was seen, by name."""
        return await self._load(principals, "name", principal_of)

    async def put_principal(self, principal: PrincipalRow, above: Sequence[TenantRow] = ()) -> None:
        """Add a principal or change it, and first those of the tenants `above` it that are not there."""

        def change(connection: Connection) -> None:
            for tenant in above:
                if connection.execute(select(tenants.c.path).where(tenants.c.path == tenant.path)).first() is None:
                    connection.execute(insert(tenants).values(tenant_values(tenant)))
            put_principal(connection, principal)

        await self._commits.commit(change)

    async def load_tokens(self) -> list[TokenRow]:
        """Every API token, by id."""
        return await self._load(api_tokens, "id", token_of)

    async def add_token(self, token: TokenRow, principal: PrincipalRow, made_by: Effects = ()) -> None:
        """Add an API token and whom it speaks for. Raises: AlreadyExists; NotFound, if there is no such tenant."""

        def change(connection: Connection) -> None:
            if connection.execute(select(tenants.c.path).where(tenants.c.path == token.info.tenant)).first() is None:
                raise NotFound("tenant", token.info.tenant)
            put_principal(connection, principal)
            insert_row(connection, api_tokens, f"The token {token.info.id!r}", token_values(token))
            remember(connection, made_by)

        await self._commits.commit(change)

    async def remove_token(self, token_id: str, made_by: Effects = ()) -> None:
        """Remove an API token. Raises: NotFound."""
        await self._remove(api_tokens, "token", token_id, made_by)

    async def touch_tokens(self, last_used: Mapping[str, float]) -> None:
        """Note when tokens were used last."""

        def change(connection: Connection) -> None:
            for token_id, at in last_used.items():
                connection.execute(update(api_tokens).where(api_tokens.c.id == token_id).values(last_used_at=at))

        await self._commits.commit(change)

    # ----------------------------------------------------------------------------------------------------------------------------- models

    async def load_models(self) -> list[ModelRow]:
        """Every registered model, by name."""
        return await self._load(models, "name", lambda row: ModelRow(**row._mapping))

    async def put_model(self, model: ModelRow, made_by: Effects = ()) -> None:
        """Register a model, or change what is known of it."""
        values = {name: getattr(model, name) for name in ModelRow.__dataclass_fields__ if name != "name"}

        def change(connection: Connection) -> None:
            put_row(connection, models, {"name": model.name}, values)
            remember(connection, made_by)

        await self._commits.commit(change)

    async def set_want_loaded(self, name: str, want_loaded: bool, devices: str = "", made_by: Effects = ()) -> None:
        """Say whether a model comes back by itself after a restart, and where. Raises: NotFound."""

        await self._update(models, "model", name, {"want_loaded": want_loaded, "devices": devices}, made_by)

    async def set_pinned(self, name: str, is_pinned: bool, made_by: Effects = ()) -> None:
        """Say whether a model stays on the device. Raises: NotFound."""
        await self._update(models, "model", name, {"is_pinned": is_pinned}, made_by)

    async def remove_model(self, name: str, made_by: Effects = ()) -> None:
        """Forget a model. Raises: NotFound."""
        await self._remove(models, "model", name, made_by)

    # ----------------------------------------------------------------------------------------------------------------------------- images

    async def load_images(self) -> list[ImageInfo]:
        """Every image, by id."""
        return await self._load(images, "id", lambda row: ImageInfo(**row._mapping))

    async def add_image(self, image: ImageInfo, made_by: Effects = ()) -> None:
        """Add an image whose files are on the disk. Raises: AlreadyExists; NotFound, if its tenant is gone."""
        values = {name: getattr(image, name) for name in ImageInfo.__dataclass_fields__}

        def change(connection: Connection) -> None:
            if connection.execute(select(tenants.c.path).where(tenants.c.path == image.tenant)).first() is None:
                raise NotFound("tenant", image.tenant)
            insert_row(connection, images, f"The image {image.id!r}", values)
            remember(connection, made_by)

        await self._commits.commit(change)

    async def remove_image(self, image_id: str, made_by: Effects = ()) -> None:
        """Forget an image; its files go after this. Raises: NotFound."""
        await self._remove(images, "image", image_id, made_by)

    # --------------------------------------------------------------------------------------------------------------------------- effects

    async def load_effects(self, since: float) -> list[Effect]:
        """The effects of calls made since a time, oldest first."""
        rows = await self._read(
            lambda connection: connection.execute(select(effects).where(effects.c.at >= since).order_by(effects.c.at)).all()
        )
        return [Effect(**row._mapping) for row in rows]

    async def forget_effects(self, before: float) -> None:
        """Drop the effects of calls made before a time."""
        await self._commits.commit(lambda connection: connection.execute(delete(effects).where(effects.c.at < before)).rowcount)

    # ----------------------------------------------------------------------------------------------------------------------------- common

    async def _load(self, table: Table, order: str, item_of: Callable[[Row[Any]], Item]) -> list[Item]:
        rows = await self._read(lambda connection: connection.execute(select(table).order_by(table.c[order])).all())
        return [item_of(row) for row in rows]

    async def _read(self, query: Callable[[Connection], Item]) -> Item:
        def read() -> Item:
            try:
                with self._database.reader.connect() as connection, connection.begin():
                    return query(connection)
            except (DBAPIError, OSError) as error:
                raise self._database.explain(error) from error

        return await asyncio.to_thread(read)

    async def _update(self, table: Table, noun: str, key: str, values: Mapping[str, object], made_by: Effects) -> None:
        is_it = key_of(table) == key

        def change(connection: Connection) -> None:
            if connection.execute(select(key_of(table)).where(is_it)).first() is None:
                raise NotFound(noun, key)
            if values:
                connection.execute(update(table).where(is_it).values(**values))
            remember(connection, made_by)

        await self._commits.commit(change)

    async def _remove(self, table: Table, noun: str, key: str, made_by: Effects) -> None:
        def change(connection: Connection) -> None:
            if not connection.execute(delete(table).where(key_of(table) == key)).rowcount:
                raise NotFound(noun, key)
            remember(connection, made_by)

        await self._commits.commit(change)
