"""HeldLoads: loads that a soft `loads_per_hour` holds back, and for whom.

Whoever asks for such a model without being held back, or an operator, lets it go at once. A tenant that asks again for what it is held
back from already has asked once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Held:
    """A load that waits for its time."""

    until: float
    most_s: float  # from now on, whatever a clock that goes back says
    tenants: set[str] = field(default_factory=set)


class HeldLoads:
    """Loads that wait for their time, by the name of the model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[str, _Held] = {}

    def hold(self, name: str, tenant: str, seconds: float) -> None:
        """A tenant asks for a model, and is held back for so many seconds (0: not at all). Of several times the earliest counts."""
        if seconds <= 0:
            self.release(name)
            return
        until = self._clock() + seconds
        held = self._held.setdefault(name, _Held(until, seconds))
        held.until, held.most_s = min(held.until, until), min(held.most_s, seconds)
        held.tenants.add(tenant)

    def release(self, name: str) -> None:
        """The load may begin, or is not wanted any more."""
        self._held.pop(name, None)

    def seconds_left(self, name: str) -> float:
        """Seconds for which a load is still held back; 0: it is not."""
        held = self._held.get(name)
        if held is None:
            return 0.0
        held.most_s = min(held.most_s, max(held.until - self._clock(), 0.0))
        held.until = min(held.until, self._clock() + held.most_s)
        return held.most_s

    def holds_others(self, name: str, tenant: str) -> bool:
        """Whether a load is held back, and not for this tenant yet."""
        return self.seconds_left(name) > 0 and tenant not in self._held[name].tenants
