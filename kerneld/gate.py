"""The gate between the line and the seats: whether somebody may be seated, and what plans on their way hold that nobody sits for any more.

    open --stop--> stopped --(something was given up, and the plans that were on their way then have landed)--> open

Those who run may be blocked as well: they need frames that come free when a plan has landed, and until then no plan need be tried.
"""

from __future__ import annotations

from memory.table import PageTable


class Gate:
    """The gate of one device."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.last_seq = 0  # of the last plan that was composed
        self._landed_seq = 0
        self._opens_at = 0  # > 0: it opens when this plan has landed
        self._blocked_by = 0  # > 0: those who run find no frames before this plan has landed
        self._leaving: list[tuple[int, PageTable]] = []  # of rows that left: plans on their way name them until this one has landed

    @property
    def is_blocked(self) -> bool:
        """Whether no plan need be tried before another one has landed."""
        return self._blocked_by > 0

    @property
    def leaving(self) -> list[PageTable]:
        """Tables of rows that left, whose pages are free once the plans on their way have landed."""
        return [table for _seq, table in self._leaving]

    def open(self) -> None:
        """Something was given up."""
        self.is_stopped = False
        self._opens_at = self._blocked_by = 0

    def open_at(self, seq: int) -> None:
        """Let it open when a plan has landed; 0: only when something was given up."""
        self._opens_at = seq

    def stop(self) -> None:
        """Nobody is seated for now."""
        self.is_stopped = True

    def block(self, seq: int) -> None:
        """Those who run need what comes free when a plan has landed; 0: none is on its way."""
        self._blocked_by = seq

    def block_by_leaving(self) -> bool:
        """Wait for what rows that left still hold. Returns whether there is anything."""
        if self._leaving:
            self._blocked_by = self._leaving[-1][0]
        return bool(self._leaving)

    def left(self, table: PageTable) -> None:
        """A row left, which plans on their way may name."""
        if self.last_seq > self._landed_seq:
            self._leaving.append((self.last_seq, table))

    def landed(self, seq: int) -> bool:
        """A plan has landed. Returns whether the gate is to be opened for it."""
        self._landed_seq = seq
        self._leaving = [(last_seq, table) for last_seq, table in self._leaving if last_seq > seq]
        if seq >= self._blocked_by:
            self._blocked_by = 0
        return 0 < self._opens_at <= seq

    def clear(self) -> None:
        """No plan is on its way any more: nothing is held by one, and nothing need be waited for."""
        self._landed_seq = self.last_seq
        self._leaving.clear()
        self.open()
