"""Which tenants have series of their own in the metrics; all others share the label "other".

A place is taken by the first thing that happens to a tenant, while there are places; idle tenants take none. Once a minute the busiest
without a place take those of tenants that were clearly less busy, so that a label stays put where two are about as busy.

Invariants
1. At most `limit` tenants have a place.
2. A tenant that loses its place leaves no series behind: `on_dropped` is told. What happens to it later counts as "other".
3. "other" never counts anything twice: a tenant that gets a place begins at zero there, and what it had before stays in "other".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

OTHER: Final = "other"
MAX_TENANTS: Final = 64
# A tenant takes another's place when it was busier than that one by this factor.
CLEARLY: Final = 2.0
# Of what a tenant was served, half counts no more after so many calls of `rank`.
HALF_LIFE_RANKS: Final = 30
_KEPT: Final = math.exp2(-1 / HALF_LIFE_RANKS)
_FORGOTTEN_US: Final = 1.0


class TenantLabels:
    """The places of the busiest tenants."""

    def __init__(self, limit: int = MAX_TENANTS, on_dropped: Callable[[str], None] = lambda _tenant: None) -> None:
        self._limit = limit
        self._on_dropped = on_dropped
        self._own: set[str] = set()
        self._busy_us: dict[str, float] = {}  # service, fading

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._own

    def label(self, tenant: str) -> str:
        """The tenant if it has a place or gets one now, else "other"."""
        if tenant in self._own:
            return tenant
        if len(self._own) >= self._limit:
            return OTHER
        self._own.add(tenant)
        return tenant

    def rank(self, served_us: Mapping[str, int]) -> None:
        """Let the busiest have the places: `served_us` is what tenants were served since the last call."""
        busy = {tenant: us * _KEPT for tenant, us in self._busy_us.items() if us * _KEPT >= _FORGOTTEN_US}
        for tenant, us in served_us.items():
            if us > 0:
                busy[tenant] = busy.get(tenant, 0.0) + us
        self._busy_us = busy
        outside = sorted((tenant for tenant in busy if tenant not in self._own), key=lambda tenant: (-busy[tenant], tenant))
        inside = sorted(self._own, key=lambda tenant: (busy.get(tenant, 0.0), tenant))
        for tenant in outside:
            if len(self._own) < self._limit:
                self._own.add(tenant)
                continue
            if not inside or busy[tenant] <= CLEARLY * busy.get(inside[0], 0.0):
                return
            self.drop(inside.pop(0))
            self._own.add(tenant)

    def drop(self, tenant: str) -> None:
        """A tenant loses its place, or is gone."""
        if tenant in self._own:
            self._own.discard(tenant)
            self._on_dropped(tenant)
