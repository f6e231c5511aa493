"""The line: models that do not fit, and which of them is next.

    overdue    waited for `max_wait_s`: the oldest first, before everybody else, so that nobody is overtaken for ever
    wanted     requests wait for it: a load inherits the place of its best waiter, as the scheduler would pick it
    ahead      nobody waits for it: somebody loads it by hand; in the order in which they came

Invariants
1. The place is looked up whenever it matters, and never kept: who comes, goes or is served in between changes it.
2. A model that has to try again keeps the time since which it waits, until it is on the device or has given up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kerneld.models import Model

# Comparable with others of its kind, the least is first; None: nobody waits.
Urgency = Callable[[str], tuple[object, ...] | None]


@dataclass(slots=True, eq=False)
class Waiter:
    """A model in the line."""

    model: Model
    since: float


class Line:
    """Who waits for room."""

    def __init__(self, clock: Callable[[], float], max_wait_s: float) -> None:
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._waiting: list[Waiter] = []
        self._since: dict[str, float] = {}  # by name (invariant 2)
        self.urgency: Urgency = lambda _name: None
        self.is_wanted: Callable[[Model], bool] = lambda _model: False  # whether requests are on a model, parked ones too

    def join(self, model: Model) -> Waiter:
        """Wait for room."""
        now = self._clock()
        since = self._since[model.name] = min(self._since.get(model.name, now), now)
        waiter = Waiter(model, since)
        self._waiting.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Room was made, or nobody hopes for it any more."""
        self._waiting.remove(waiter)

    def forget(self, model: Model) -> None:
        """A model is on the device, or has given up."""
        self._since.pop(model.name, None)

    def first(self) -> Waiter:
        """Who is next. Somebody has to wait."""
        now = self._clock()
        for waiter in self._waiting:
            waiter.since = min(waiter.since, now)  # after a clock that went back it waits for the bound once more at most
        wanted = [waiter for waiter in self._waiting if self.is_wanted(waiter.model)]
        overdue = [waiter for waiter in wanted if now - waiter.since >= self._max_wait_s]
        if overdue:
            return min(overdue, key=lambda waiter: waiter.since)
        if len(wanted) == 1:  # mostly: an urgency is that of the best of all who wait for the model
            return wanted[0]
        urgencies = [self.urgency(waiter.model.name) for waiter in wanted]
        urgent = [(urgency, idx) for idx, urgency in enumerate(urgencies) if urgency is not None]
        return wanted[min(urgent)[1]] if urgent else (wanted or self._waiting)[0]
