"""Decayed usage: the service charged to every node of the tree of tenants, half of which is forgotten in each half-life.

    value(now) = value(then) * 2 ** -((now - then) / half_life)          computed when somebody asks or charges, not before

A node counts what was charged to it and to everybody below. What a tenant asked for itself, not its children, stands under its hidden
child, as in `kerneld.fairshare`. The share of a removed tenant in those above it stays until it has decayed: to leave and come back is
no amnesty for the group.

Time is that of a `UsageClock`. All nodes decay alike, so ratios of siblings do not depend on it between two charges: what a wrong clock
can do is to forget the past too soon, and that is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from kerneld.sharenode import OWN
from kerneld.state.usagetables import ClockRow, DecayedRow

logger = logging.getLogger(__name__)

DAY_S: Final = 86_400.0
MOST_JUMP_S: Final = DAY_S


class UsageClock:
    """Seconds that have passed as far as usage is concerned: never backward, and a day at most between two looks."""

    def __init__(self, clock: Callable[[], float], kept: ClockRow | None = None) -> None:
        """`clock` gives Unix seconds; `kept` is the state that an earlier clock left."""
        self._clock = clock
        self._wall_s = kept.wall_s if kept is not None else clock()
        self._passed_s = kept.passed_s if kept is not None else 0.0
        self._trusted_from_s = 0.0

    def now(self) -> float:
        """Seconds since the first clock of this state was started."""
        wall_s = self._clock()
        step_s = wall_s - self._wall_s
        if step_s > MOST_JUMP_S:
            logger.warning("the clock went forward by more than a day; a day counts", extra={"jump_s": round(step_s)})
        self._wall_s = wall_s
        self._passed_s += min(max(step_s, 0.0), MOST_JUMP_S)
        if step_s > MOST_JUMP_S:
            self._trusted_from_s = self._passed_s + DAY_S
        return self._passed_s

    @property
    def is_trusted(self) -> bool:
        """Whether there was no jump for a day: what is deleted by the time of day is deleted for good."""
        return self.now() >= self._trusted_from_s

    def kept(self) -> ClockRow:
        """What a later clock needs to go on from here."""
        return ClockRow(self._passed_s, self._wall_s)


class DecayedUsage:
    """What the nodes of the tree have used, the more recent the more it counts. In microseconds of device time."""

    def __init__(self, clock: UsageClock, half_life_s: float) -> None:
        self._clock = clock
        self._half_life_s = half_life_s
        self._rows: dict[str, DecayedRow] = {}
        self._changed: set[str] = set()

    def restore(self, clock: UsageClock, rows: Mapping[str, DecayedRow]) -> None:
        """Go on from what the database has; its times are those of `clock`."""
        self._clock, self._rows = clock, dict(rows)

    def charge(self, path: str, service_us: int) -> None:
        """A tenant was charged, or given back where it is negative: nobody has used less than nothing."""
        now = self._clock.now()
        for node in _lineage(path):
            self._rows[node] = DecayedRow(max(self._value(node, now) + service_us, 0.0), now)
            self._changed.add(node)

    def value_us(self, node: str) -> float:
        """What a node has used by now; that of a tenant's own requests stands under `own_node`."""
        return self._value(node, self._clock.now())

    def forget(self, path: str) -> None:
        """A tenant was removed; the nodes above it keep what it used."""
        for node in (path, own_node(path)):
            self._rows.pop(node, None)
            self._changed.discard(node)

    def take_changed(self) -> tuple[dict[str, DecayedRow], ClockRow]:
        """The nodes that changed since the last call, and the clock that their times are of."""
        changed = {node: self._rows[node] for node in self._changed}
        self._changed.clear()
        self._clock.now()
        return changed, self._clock.kept()

    def put_back(self, changed: Mapping[str, DecayedRow]) -> None:
        """What was taken could not be written: it counts as changed."""
        self._changed |= changed.keys() & self._rows.keys()

    def _value(self, node: str, now: float) -> float:
        row = self._rows.get(node)
        return row.value_us * 2.0 ** -((now - row.at) / self._half_life_s) if row is not None else 0.0


def own_node(path: str) -> str:
    """The node of what a tenant asks for itself."""
    return f"{path}/{OWN}"


def _lineage(path: str) -> tuple[str, ...]:
    parts = path.split("/")
    return (own_node(path), *("/".join(parts[:depth]) for depth in range(len(parts), 0, -1)))
