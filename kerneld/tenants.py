"""TenantTable: the tenants as the live parts know them: and their secrets. The database is what is durable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from kerneld.errors import NotFound
from kerneld.groups import GroupTable
from kerneld.security.keys import Purpose, derive
from kerneld.state.tables import TenantRow, limits_json


class TenantTable:
    """All tenants by path."""

    def __init__(self) -> None:
        self.groups = GroupTable()
        self._rows: dict[str, TenantRow] = {}
        self._prefix_keys: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[TenantRow]:
        return iter([self._rows[path] for path in sorted(self._rows)])

    def __contains__(self, path: str) -> bool:
        return path in self._rows

    def get(self, path: str) -> TenantRow:
        """A tenant. Raises: NotFound."""
        row = self._rows.get(path)
        if row is None:
            raise NotFound("tenant", path)
        return row

    def put(self, row: TenantRow) -> None:
        """Add a tenant, or replace what is known of it."""
        self._rows[row.path] = row
        self._prefix_keys[row.path] = derive(row.secret, Purpose.PREFIX)

    def remove(self, path: str) -> None:
        """Forget a tenant."""
        del self._rows[path], self._prefix_keys[path]
        self.groups.forget_tenant(path)

    def beneath(self, path: str) -> list[TenantRow]:
        """The tenants below one."""
        return [row for row in self if row.path.startswith(path + "/")]

    def prefix_key(self, path: str, sharing_group: str = "") -> bytes:
        """The key under which pages of a sharing domain are named, be it a tenant or a group: none is ever taken for another's."""
        return self.groups.key(sharing_group) if sharing_group else self._prefix_keys[path]


def revision_of(row: TenantRow) -> str:
    """What weight and limits of a tenant are, in a word: whoever changes them can say which ones he saw."""
    return hashlib.sha256(f"{row.weight} {limits_json(row.limits)}".encode()).hexdigest()[:16]
