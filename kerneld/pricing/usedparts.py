"""UsedParts: how much of what they ask for requests generate before they stop: the mean part of each tenant, drawn towards everybody's.

A part says more than a length: it carries over from short requests to long ones, and to a tenant of whom nothing is known.
Requests that somebody cancelled say nothing, nor do their deadlines. A restart forgets all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_TENANT_REMEMBERED: Final = 32  # requests, about
_ALL_REMEMBERED: Final = 64
_DRAWN: Final = 5  # requests of a tenant that count as much as everybody's together


@dataclass(slots=True)
class _Mean:
    """A mean that forgets."""

    value: float = 0.0
    count: int = 0

    def note(self, value: float, most: int) -> None:
        self.count = min(self.count + 1, most)
        self.value += (value - self.value) / self.count


class UsedParts:
    """Parts of all tenants."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Mean] = {}
        self._all = _Mean()

    def of(self, tenant: str) -> float:
        """The part of its limit of tokens that a request of this tenant is expected to use; 1 while nothing is known of anybody."""
        if not self._all.count:
            return 1.0
        own = self._tenants.get(tenant)
        if own is None:
            return self._all.value
        return (own.count * own.value + _DRAWN * self._all.value) / (own.count + _DRAWN)

    def ended(self, tenant: str, num_tokens: int, max_tokens: int) -> None:
        """A request stopped by itself, or at its limit."""
        part = num_tokens / max(max_tokens, 1)
        self._all.note(part, _ALL_REMEMBERED)
        self._tenants.setdefault(tenant, _Mean()).note(part, _TENANT_REMEMBERED)

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        self._tenants.pop(tenant, None)
