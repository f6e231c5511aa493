"""The part of the asyncio client that is about tenants, sharing groups and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from kerneld_client import machine_calls, usage_calls, values
from kerneld_client.aio_wire import AioWire
from kerneld_client.call import Call, Page
from kerneld_client.usage_values import ShareRecord, UsageRecord

T = TypeVar("T")


class Tenancy:
    """The calls on tenants, sharing groups and tokens."""

    def __init__(self, wire: AioWire) -> None:
        self._wire = wire

    async def add_tenant(self, path: str, *, weight: int = 1, limits: values.Limits | None = None) -> values.TenantInfo:
        """Make a tenant."""
        return await self._wire.invoke(machine_calls.add_tenant(path, weight, limits))

    async def set_tenant(
        self, path: str, *, weight: int | None = None, limits: values.Limits | None = None, revision: str = ""
    ) -> values.TenantInfo:
        """Change a tenant's weight, or all its limits at once; `changes` of the answer say which hold already.

        With the `revision` that one saw, nothing is changed that somebody else changed meanwhile: Conflict.
        """
        return await self._wire.invoke(machine_calls.set_tenant(path, weight, limits, revision))

    async def tenants(self) -> list[values.TenantInfo]:
        """Show the tenants."""
        return await self._all(machine_calls.tenants)

    async def remove_tenant(self, path: str, *, force: bool = False) -> int:
        """Remove a tenant; with force its contexts too. Says how many were freed."""
        return await self._wire.invoke(machine_calls.remove_tenant(path, force))

    async def add_sharing_group(self, name: str, members: Sequence[str] = ()) -> values.SharingGroup:
        """Make a group of tenants whose contexts may compute equal beginnings once: those that `alloc` puts into it."""
        return await self._wire.invoke(machine_calls.add_sharing_group(name, members))

    async def set_sharing_group(self, name: str, members: Sequence[str]) -> values.SharingGroup:
        """Say who the members are from now on; contexts that live in the group stay in it."""
        return await self._wire.invoke(machine_calls.set_sharing_group(name, members))

    async def sharing_groups(self) -> list[values.SharingGroup]:
        """Show the sharing groups that one's tenant may opt into; admins see all."""
        return await self._all(machine_calls.sharing_groups)

    async def remove_sharing_group(self, name: str) -> None:
        """Remove a sharing group in which no context lives."""
        await self._wire.invoke(machine_calls.remove_sharing_group(name))

    async def usage(self, tenant: str = "", *, since: float = 0.0, until: float = 0.0, by: str = "total") -> list[UsageRecord]:
        """What a tenant and those beneath it used, or all that one may see: from the hour of `since` on, up to `until` (0: now).

        Times are Unix seconds; `by` is "hour", "day" (of UTC) or "total".
        """
        return await self._all(lambda token: usage_calls.usage(token, tenant, since, until, by))

    async def shares(self) -> list[ShareRecord]:
        """How the machine is shared: weights, what was used of late, and what follows from both."""
        return await self._all(usage_calls.shares)

    async def add_token(self, tenant: str, *, name: str = "", roles: Sequence[str] = ("user",), lifetime_s: float = 0.0) -> values.NewToken:
        """Make an API token; a lifetime of 0 is for ever."""
        return await self._wire.invoke(machine_calls.add_token(tenant, name, roles, lifetime_s))

    async def tokens(self, *, tenant: str = "") -> list[values.TokenInfo]:
        """Show API tokens, without secrets."""
        return await self._all(lambda token: machine_calls.tokens(token, tenant))

    async def remove_token(self, token_id: str) -> None:
        """Make an API token worthless."""
        await self._wire.invoke(machine_calls.remove_token(token_id))

    async def _all(self, page: Callable[[str], Call[Page[T]]]) -> list[T]:
        items: list[T] = []
        token = ""
        while True:
            part = await self._wire.invoke(page(token))
            items += part.items
            token = part.next_page_token
            if not token:
                return items
