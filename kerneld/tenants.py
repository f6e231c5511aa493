"""TenantTable: the tenants as the live parts know them: their secrets, and what they used. The database is what is durable."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from kerneld.errors import NotFound
from kerneld.groups import GroupTable
from kerneld.security.keys import Purpose, derive
from kerneld.state.tables import TenantRow, UsageRow, limits_json


class TenantTable:
    """All tenants by path, and their accounts of tokens."""

    def __init__(self) -> None:
        self.groups = GroupTable()
        self._rows: dict[str, TenantRow] = {}
        self._prefix_keys: dict[str, bytes] = {}
        self._used_before: dict[str, UsageRow] = {}  # as the database has it
        self._input: Counter[str] = Counter()  # since it was written there
        self._output: Counter[str] = Counter()

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
        """Forget a tenant and its accounts."""
        del self._rows[path], self._prefix_keys[path]
        self._used_before.pop(path, None)
        del self._input[path], self._output[path]
        self.groups.forget_tenant(path)

    def beneath(self, path: str) -> list[TenantRow]:
        """The tenants below one."""
        return [row for row in self if row.path.startswith(path + "/")]

    def prefix_key(self, path: str, sharing_group: str = "") -> bytes:
        """The key under which pages of a sharing domain are named, be it a tenant or a group: none is ever taken for another's."""
        return self.groups.key(sharing_group) if sharing_group else self._prefix_keys[path]

    # ------------------------------------------------------------------------------------------------------------------------ accounts

    def restore_usage(self, used: dict[str, UsageRow]) -> None:
        """Take over what the database has."""
        self._used_before = dict(used)

    def use(self, path: str, input_tokens: int, output_tokens: int) -> None:
        """A request of a tenant ended."""
        self._input[path] += input_tokens
        self._output[path] += output_tokens

    def usage(self, path: str) -> UsageRow:
        """What a tenant has used, ever."""
        before = self._used_before.get(path, UsageRow())
        return UsageRow(before.input_tokens + self._input[path], before.output_tokens + self._output[path], before.service)

    def take_unwritten(self) -> dict[str, UsageRow]:
        """What was used since it was written to the database the last time; from now on it counts as written."""
        paths = (set(self._input) | set(self._output)) & set(self._rows)
        unwritten = {path: UsageRow(self._input[path], self._output[path]) for path in paths if self._input[path] or self._output[path]}
        for path in unwritten:
            self._used_before[path] = self.usage(path)
        self._input.clear()
        self._output.clear()
        return unwritten

    def put_back(self, unwritten: dict[str, UsageRow]) -> None:
        """What was taken could not be written: it counts as not written."""
        for path, used in unwritten.items():
            if path in self._rows:
                before = self._used_before[path]
                left = UsageRow(before.input_tokens - used.input_tokens, before.output_tokens - used.output_tokens, before.service)
                self._used_before[path] = left
                self.use(path, used.input_tokens, used.output_tokens)


def revision_of(row: TenantRow) -> str:
    """What weight and limits of a tenant are, in a word: whoever changes them can say which ones he saw."""
    return hashlib.sha256(f"{row.weight} {limits_json(row.limits)}".encode()).hexdigest()[:16]
