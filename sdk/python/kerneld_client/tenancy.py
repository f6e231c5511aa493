"""The part of the blocking client that is about tenants, sharing groups and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from kerneld_client import machine_calls, usage_calls, values
from kerneld_client.call import Call, Page
from kerneld_client.usage_values import ShareRecord, UsageRecord
from kerneld_client.wire import Wire

T = TypeVar("T")


class Tenancy:
    """The calls on tenants, sharing groups and tokens."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def add_tenant(self, path: str, *, weight: int = 1, limits: values.Limits | None = None) -> values.TenantInfo:
        """Make a tenant."""
        return self._wire.invoke(machine_calls.add_tenant(path, weight, limits))

    def set_tenant(
        self, path: str, *, weight: int | None = None, limits: values.Limits | None = None, revision: str = ""
    ) -> values.TenantInfo:
        """Change a tenant's weight, or all its limits at once; `changes` of the answer say which hold already.

        With the `revision` that one saw, nothing is changed that somebody else changed meanwhile: Conflict.
        """
        return self._wire.invoke(machine_calls.set_tenant(path, weight, limits, revision))

    def tenants(self) -> list[values.TenantInfo]:
        """Show the tenants."""
        return self._all(machine_calls.tenants)

    def remove_tenant(self, path: str, *, force: bool = False) -> int:
        """Remove a tenant; with force its contexts too. Says how many were freed."""
        return self._wire.invoke(machine_calls.remove_tenant(path, force))

    def add_sharing_group(self, name: str, members: Sequence[str] = ()) -> values.SharingGroup:
        """Make a group of tenants whose contexts may compute equal beginnings once: those that `alloc` puts into it."""
        return self._wire.invoke(machine_calls.add_sharing_group(name, members))

    def set_sharing_group(self, name: str, members: Sequence[str]) -> values.SharingGroup:
        """Say who the members are from now on; contexts that live in the group stay in it."""
        return self._wire.invoke(machine_calls.set_sharing_group(name, members))

    def sharing_groups(self) -> list[values.SharingGroup]:
        """Show the sharing groups that one's tenant may opt into; admins see all."""
        return self._all(machine_calls.sharing_groups)

    def remove_sharing_group(self, name: str) -> None:
        """Remove a sharing group in which no context lives."""
        self._wire.invoke(machine_calls.remove_sharing_group(name))

    def usage(self, tenant: str = "", *, since: float = 0.0, until: float = 0.0, by: str = "total") -> list[UsageRecord]:
        """What a tenant and those beneath it used, or all that one may see: from the hour of `since` on, up to `until` (0: now).

        Times are Unix seconds; `by` is "hour", "day" (of UTC) or "total".
        """
        return self._all(lambda token: usage_calls.usage(token, tenant, since, until, by))

    def shares(self) -> list[ShareRecord]:
        """How the machine is shared: weights, what was used of late, and what follows from both."""
        return self._all(usage_calls.shares)

    def add_token(self, tenant: str, *, name: str = "", roles: Sequence[str] = ("user",), lifetime_s: float = 0.0) -> values.NewToken:
        """Make an API token; a lifetime of 0 is for ever."""
        return self._wire.invoke(machine_calls.add_token(tenant, name, roles, lifetime_s))

    def tokens(self, *, tenant: str = "") -> list[values.TokenInfo]:
        """Show API tokens, without secrets."""
        return self._all(lambda token: machine_calls.tokens(token, tenant))

    def remove_token(self, token_id: str) -> None:
        """Make an API token worthless."""
        self._wire.invoke(machine_calls.remove_token(token_id))

    def _all(self, page: Callable[[str], Call[Page[T]]]) -> list[T]:
        items: list[T] = []
        token = ""
        while True:
            part = self._wire.invoke(page(token))
            items += part.items
            token = part.next_page_token
            if not token:
                return items
