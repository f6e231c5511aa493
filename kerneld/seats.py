"""Seats: which request sits in which row slot of the device.

    free --seat--> taken --leave--> leaving --take_clears--> free, and in the clears of the next plan that goes out

Invariants
1. A slot is free, taken or leaving, exactly one of them.
2. A slot that the device knows taken is in the clears of a plan before, or of the plan with which, it is seated again.
3. Rows are listed in the order in which they were seated.
"""

from __future__ import annotations

from collections.abc import Iterable

from kerneld.request import Request
from kerneld.rows import Row


class Seats:
    """The row slots of one device."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._leaving: list[int] = []
        self._clears: list[int] = []  # of the next plan
        self._rows: dict[str, Row] = {}  # by request id, in the order of seating

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_free(self) -> bool:
        """Whether another request can be seated."""
        return bool(self._free)

    @property
    def is_full(self) -> bool:
        """Whether nobody can be seated with the next plan, even once those that leave have left."""
        return not self._free and not self._leaving

    @property
    def rows(self) -> list[Row]:
        """All seated rows, oldest first."""
        return list(self._rows.values())

    def of(self, request: Request) -> Row | None:
        """The row of a request, if it is seated."""
        return self._rows.get(request.id)

    def take_clears(self) -> tuple[int, ...]:
        """Slots that the next plan to go out has to clear; those that were leaving are free from now on."""
        self._clears += self._leaving
        self._free.extend(reversed(self._leaving))
        self._leaving = []
        return tuple(self._clears)

    def sent(self) -> None:
        """The plan went out."""
        self._clears = []

    def next_slot(self) -> int:
        """Take a free slot."""
        return self._free.pop()

    def seat(self, row: Row) -> None:
        """A row begins."""
        self._rows[row.request.id] = row
        row.request.slot = row.slot

    def leave(self, row: Row) -> None:
        """A row ends; nothing that the device still says of it is heard."""
        row.is_over = True
        row.request.slot = None
        del self._rows[row.request.id]
        if row.is_told:
            self._leaving.append(row.slot)
        else:
            self._free.append(row.slot)

    def reset(self, told: Iterable[int] = ()) -> None:
        """Everybody has left. The device still has rows in the slots of `told`, and has to clear those."""
        self._rows.clear()
        self._clears = []
        self._leaving = sorted(told)
        self._free = [slot for slot in range(self._num_slots - 1, -1, -1) if slot not in self._leaving]
