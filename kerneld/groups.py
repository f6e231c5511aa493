"""Sharing groups: tenants among whom an administrator lets equal beginnings be computed once.

    a context's sharing domain, fixed when it begins     ""        the tenant itself: nobody else's pages are ever found
                                                         "name"    the group: every context of a member that opted in

The names of pages follow from the domain's secret, so what is not in one domain cannot be found from it. Pages that contexts of several
tenants share are charged to each in equal parts.

Invariants
1. A tenant may opt into a group that names it, or one above it, as a member.
2. A context keeps its domain until it is freed, whoever leaves the group meanwhile; a group with living contexts is not removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kerneld.errors import NotFound
from kerneld.security.keys import Purpose, derive
from kerneld.state.tables import GroupRow
from kerneld.tally import ancestors


class GroupTable:
    """Every sharing group by name."""

    def __init__(self) -> None:
        self._rows: dict[str, GroupRow] = {}
        self._keys: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[GroupRow]:
        return iter([self._rows[name] for name in sorted(self._rows)])

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def get(self, name: str) -> GroupRow:
        """A group. Raises: NotFound."""
        row = self._rows.get(name)
        if row is None:
            raise NotFound("sharing group", name)
        return row

    def put(self, row: GroupRow) -> None:
        """Add a group, or replace what is known of it."""
        self._rows[row.name] = row
        self._keys[row.name] = derive(row.secret, Purpose.PREFIX)

    def remove(self, name: str) -> None:
        """Forget a group."""
        del self._rows[name], self._keys[name]

    def forget_tenant(self, path: str) -> None:
        """A tenant was removed: it is a member of no group."""
        for row in self:
            if path in row.members:
                self.put(replace(row, members=tuple(member for member in row.members if member != path)))

    def key(self, name: str) -> bytes:
        """The key under which the pages of a group are named."""
        return self._keys[name]

    def is_member(self, tenant: str, name: str) -> bool:
        """Whether a tenant may opt into a group (invariant 1)."""
        row = self._rows.get(name)
        return row is not None and any(path in row.members for path in ancestors(tenant))

    def still(self, name: str, tenant: str) -> str:
        """The group itself for a tenant that may opt into it, else that tenant's own domain."""
        return name if self.is_member(tenant, name) else ""

    def check(self, tenant: str, name: str) -> None:
        """Raises: NotFound, unless the tenant may opt into the group; a stranger does not learn whether there is one."""
        if not self.is_member(tenant, name):
            raise NotFound("sharing group", name)
