"""ServiceWindow: who was served how much during the last minute, and how evenly.

    | 5 s | 5 s | ... | 5 s | the slot that is being filled |          a slot: service at its beginning, and who had work all through it

Jain's index (sum x)^2 / (n sum x^2) is taken over siblings that had something to run all through the window, of x = service / weight; it
is 1 when all got the same for their weights and 1/n when one got everything. There is one for every group of siblings, and the machine's
is the least of them; where nobody competes it is 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

WINDOW_S: Final = 60.0
SLOT_S: Final = 5.0
RECENT_S: Final = 10.0


class Account(Protocol):
    """What is read of a node of the tree of shares."""

    @property
    def path(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def factor_milli(self) -> int: ...
    @property
    def service_us(self) -> int: ...
    @property
    def is_active(self) -> bool: ...


@dataclass(slots=True)
class _Slot:
    begins: float
    service_us: Mapping[str, int]
    active: set[str]  # that had something to run whenever one looked


class ServiceWindow:
    """Looked at once a second or so; whoever looks says when."""

    def __init__(self, window_s: float = WINDOW_S, slot_s: float = SLOT_S) -> None:
        self._window_s = window_s
        self._slot_s = slot_s
        self._slots: deque[_Slot] = deque()
        self._now = 0.0
        self._service_us: Mapping[str, int] = {}
        self._weights: Mapping[str, int] = {}

    def note(self, now: float, accounts: Iterable[Account]) -> None:
        """The accounts at a moment, on a clock that never goes back."""
        found = list(accounts)
        active = {each.path for each in found if each.is_active}
        self._now = now
        self._service_us = {each.path: each.service_us for each in found}
        self._weights = {each.path: each.weight * each.factor_milli for each in found}
        if not self._slots or now - self._slots[-1].begins >= self._slot_s:
            self._slots.append(_Slot(now, self._service_us, active))
        else:
            self._slots[-1].active &= active
        while len(self._slots) > 1 and now - self._slots[1].begins >= self._window_s:
            self._slots.popleft()

    def recent_us(self) -> tuple[dict[str, int], float]:
        """What was charged during the last ten seconds or so, by path, and how many seconds those were. Refunds are taken off."""
        since = next((slot for slot in reversed(self._slots) if self._now - slot.begins >= RECENT_S), None)
        since = since or (self._slots[0] if self._slots else None)
        if since is None or self._now <= since.begins:
            return {}, 0.0
        return self._served(since), self._now - since.begins

    def jain(self) -> float:
        """The index of the machine."""
        return min(self.indices().values(), default=1.0)

    def indices(self) -> dict[str, float]:
        """Jain's index by the path of the parent, of those whose children compete."""
        if not self._slots or self._now - self._slots[0].begins < self._slot_s:
            return {}
        competing = set.intersection(*(slot.active for slot in self._slots))
        served = self._served(self._slots[0])
        groups: dict[str, list[float]] = {}
        for path in competing & self._weights.keys():
            groups.setdefault(path.rpartition("/")[0], []).append(served.get(path, 0) / self._weights[path])
        return {parent: jain_index(parts) for parent, parts in groups.items() if len(parts) > 1}

    def _served(self, since: _Slot) -> dict[str, int]:
        return {path: us - since.service_us.get(path, 0) for path, us in self._service_us.items()}


def jain_index(parts: Iterable[float]) -> float:
    """How evenly something was given: 1 for all the same, 1/n if one has everything, 1 where nothing was given."""
    given = [max(part, 0.0) for part in parts]
    squares = sum(part * part for part in given)
    return sum(given) ** 2 / (len(given) * squares) if squares else 1.0
