"""Forecast: how long a tenant's next output will be: the mean of its last ones, so that it can be charged when a request is admitted.

An output that was cut off (its own limit, a cancel, a deadline, an error) says only that it would have been so long at least: it counts
where it is longer than the mean, and else says nothing. So neither requests for one token nor requests that are cancelled after their
first one lower what is expected of the next, and they push no longer output out of what is remembered either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

OUTPUTS_REMEMBERED: Final = 5


class Forecast:
    """The lengths of each tenant's last outputs, and what follows from them."""

    def __init__(self) -> None:
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._changed: set[str] = set()

    def of(self, tenant: str) -> int:
        """Tokens that the next output of a tenant is expected to have; 0 where nothing is known."""
        outputs = self._outputs.get(tenant)
        return sum(outputs) // len(outputs) if outputs else 0

    def ended(self, tenant: str, num_tokens: int, *, is_cut_off: bool) -> None:
        """An output of a tenant ended. One of no tokens says nothing of how long outputs are."""
        if num_tokens <= (self.of(tenant) if is_cut_off else 0):
            return
        self._outputs[tenant] = (*self._outputs.get(tenant, ()), num_tokens)[-OUTPUTS_REMEMBERED:]
        self._changed.add(tenant)

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        if self._outputs.pop(tenant, None) is not None:
            self._changed.add(tenant)

    # ----------------------------------------------------------------------------------------------------------- keeping and restoring

    def snapshot(self) -> dict[str, tuple[int, ...]]:
        """The lengths of the last outputs, by tenant."""
        return dict(self._outputs)

    def changes(self) -> dict[str, tuple[int, ...]]:
        """The part of `snapshot` that changed since the last call; a forgotten tenant has no outputs."""
        changed = {tenant: self._outputs.get(tenant, ()) for tenant in sorted(self._changed)}
        self._changed.clear()
        return changed

    def unkept(self, tenants: Iterable[str]) -> None:
        """Changes could not be written: they count as changed again."""
        self._changed.update(tenants)

    def restore(self, outputs: Mapping[str, tuple[int, ...]]) -> None:
        """Put lengths back, as `snapshot` gave them or all `changes` one over the other."""
        for tenant, lengths in outputs.items():
            if lengths:
                self._outputs[tenant] = tuple(lengths)
            else:
                self._outputs.pop(tenant, None)
