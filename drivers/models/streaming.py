"""Layers that do not stay: weights larger than the device, on their way through a few slots of its arena.

A model of n streamed segments and k slots goes round in *turns*; turn t brings segment t mod n into slot t mod k, so that the end of one
forward pass runs into the beginning of the next:

    turn       0    1    2    3    4    5    6          n = 3, k = 2
    segment    a    b    c    a    b    c    a
    slot       0    1    0    1    0    1    0
                         ^finished      ^filled <= finished + k

A thread fills slots ahead of the forward pass, which waits for its turn, computes, and finishes it by asking for the next layer.

Invariants
1. Turn t is filled only when turn t - k has finished: a slot is not written while a layer reads it.
2. A turn is read only when it was filled.
3. A pass begins at a multiple of n. One that was broken off finishes its turns unread.
4. After an error nothing is filled any more, and whoever waits, or comes to wait, is told.
5. After `close` nothing is written any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from drivers.errors import DriverError, StreamBroken

# Brings streamed segment `idx` into a slot and answers its bytes; calls the third argument between pieces, which may raise.
Fill = Callable[[int, int, Callable[[], None]], int]


class StreamClosed(Exception):
    """The stream was closed while a slot was being filled."""


class SegmentStream:
    """The turns of one model, and the thread that fills them."""

    def __init__(self, num_segments: int, num_slots: int, fill: Fill) -> None:
        """Begin to fill. Raises: ValueError, if there is nothing to stream or nowhere to."""
        if num_segments < 1 or num_slots < 1:
            raise ValueError(f"{num_segments} segments through {num_slots} slots")
        self.num_segments = num_segments
        self.num_slots = num_slots
        self._fill = fill
        self._changed = threading.Condition()
        self._finished = 0  # turns before it are done with
        self._filled = 0  # turns before it were filled, or skipped
        self._is_closing = False
        self._is_over = False
        self._failure = "The thread that reads them has ended; see the worker's log."
        self.bytes_filled = 0
        self.fill_s = 0.0  # seconds that filling took, whether anybody waited or not
        self.wait_s = 0.0  # seconds that forward passes waited for a turn
        # A daemon thread: a worker that has to go does not wait for a disk.
        self._thread = threading.Thread(target=self._work, name="stream", daemon=True)
        self._thread.start()

    @property
    def rate(self) -> float:
        """Bytes per second at which slots were filled so far; 0 before the first."""
        return self.bytes_filled / self.fill_s if self.fill_s else 0.0

    def begin(self) -> int:
        """Begin a pass; answers its first turn (invariant 3)."""
        with self._changed:
            self._finished = -(-self._finished // self.num_segments) * self.num_segments
            self._changed.notify_all()
            return self._finished

    def wait(self, turn: int) -> int:
        """Wait until a turn is filled; answers the slot, which stays as it is until the turn is finished.

        Raises: StreamBroken, if it never will be.
        """
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._filled > turn or self._is_over)
            if self._filled <= turn:  # invariant 4
                raise StreamBroken(self._failure)
        self.wait_s += time.perf_counter() - began
        return turn % self.num_slots

    def finish(self, turn: int) -> None:
        """The layer that read a turn has finished; its slot may be filled again."""
        with self._changed:
            self._finished = turn + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop filling, and wait until nothing is written any more (invariant 5). Safe to call twice."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()

    # ------------------------------------------------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while (turn := self._next_turn()) is not None:
                    self._fill_turn(turn)
        except StreamClosed:
            pass
        except OSError as error:
            self._failure = f"{error.strerror or error}."
        except DriverError as error:
            self._failure = str(error)
        finally:  # whatever happened, nobody waits for ever
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _next_turn(self) -> int | None:
        """Wait until a turn may be filled; None if the stream is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or max(self._filled, self._finished) < self._finished + self.num_slots)
            return None if self._is_closing else max(self._filled, self._finished)  # invariant 1

    def _fill_turn(self, turn: int) -> None:
        began = time.perf_counter()
        size_bytes = self._fill(turn % self.num_segments, turn % self.num_slots, self._check_open)
        self.bytes_filled += size_bytes
        self.fill_s += time.perf_counter() - began
        with self._changed:
            self._filled = turn + 1
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._is_closing:
            raise StreamClosed
