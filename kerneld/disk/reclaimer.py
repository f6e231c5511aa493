"""Reclaimer: keeps the host tier between its watermarks, in the background, so that a page fault seldom waits for room there.

It asks the pager what should leave for the disk and hands it to the mover: at full rate when the device idles, a little at a time while
rows run. It is given a turn when plans land, when transfers have settled, and on a timer tick. Where nothing is short, copies go to disk
ahead of need, in small portions, so that what is due next does not stand behind them for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kerneld.disk.mover import DiskMover
from memory.pager import Pager

TURN_S = 0.02  # between two turns: asking costs a look at all tables
REST_S = 0.1  # after one in which nothing could go
BUSY_BYTES = 8 << 20  # that leave in one turn while rows run
IDLE_BYTES = 64 << 20
SMALLEST_BYTES = 4 << 20  # that a turn is worth: a page of a large model has half of it
AHEAD_BYTES = 8 << 20  # that are copied in one turn ahead of need: one job of the mover
AHEAD_REST_S = 0.4  # between two such turns while rows run: 20 MiB/s, some percent of one core


class Reclaimer:
    """Spills pages that nobody needs soon."""

    def __init__(
        self, pager: Pager, mover: DiskMover, has_room: Callable[[int], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`has_room` says whether so many bytes may be written, with the journal's reserve left alone."""
        self._pager = pager
        self._has_room = has_room
        self._mover = mover
        self._clock = clock
        self._next_turn = 0.0
        self._next_ahead = 0.0

    def turn(self) -> None:
        """Let pages go to disk if some should, and it is time."""
        if self._clock() >= self._next_turn:
            self.now()

    def now(self) -> None:
        """Let pages go to disk if some should."""
        mover = self._mover
        self._next_turn = self._clock() + TURN_S
        room = self._room()
        if mover.is_paused() or mover.num_spills or not room:
            mover.pump()
            return
        transfers = self._pager.spill(room, min(self._ahead_bytes(), room))
        if not transfers:
            self._next_turn += REST_S
        elif mover.is_busy():
            self._next_ahead = self._clock() + AHEAD_REST_S
        mover.send(transfers)

    def has_room(self) -> bool:
        """Whether the file system has room for one more turn, however small, beside the reserve."""
        return self._room() > 0

    def _room(self) -> int:
        """Bytes that may leave in this turn: fewer where the file system is nearly full."""
        size = BUSY_BYTES if self._mover.is_busy() else IDLE_BYTES
        while size > SMALLEST_BYTES and not self._has_room(size):
            size //= 2
        return size if self._has_room(size) else 0

    def _ahead_bytes(self) -> int:
        """What may be copied ahead of need now."""
        return AHEAD_BYTES if not self._mover.is_busy() or self._clock() >= self._next_ahead else 0
