"""Copies weights in pieces: on several threads while the device idles, one piece after the other, with rests, while it runs steps.

A piece has two halves. `move` runs in any thread and touches only its own bytes: a read from a file, a copy that leaves Python's lock.
`finish` runs in the thread that asked, in order, when `move` is done: what needs the device's libraries, or may raise.

    side thread    submit submit submit |finish|submit |finish|...       at most WINDOW pieces per thread are on their way
    pool           move   move   move
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from drivers.pacer import Pacer

WINDOW = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a copy."""

    size_bytes: int  # that count as progress
    move: Callable[[], int]  # answers a checksum, or anything else that `finish` wants
    finish: Callable[[int], None] = lambda _moved: None
    source: tuple[str, int] = ("", 0)  # file and byte that it is read from: disks like them in order


class Copier:
    """Copies beside the steps of one device. One copy at a time."""

    def __init__(self, num_threads: int = 1, pacer: Pacer | None = None) -> None:
        self.pacer = pacer or Pacer()
        self._num_threads = num_threads

    def run(self, pieces: Iterable[Piece], done: Callable[[int], None]) -> None:
        """Copy, and tell the size of each piece when it is done, in order. When this returns or raises nothing is written any more.

        Raises: what the halves of a piece raise, or `done`.
        """
        waiting = iter(pieces)
        on_way: deque[tuple[Piece, Future[int]]] = deque()
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="copy") as pool:
            try:
                while (piece := self._next(waiting, on_way, pool)) is not None:
                    done(piece.size_bytes)
            finally:
                for _piece, moved in on_way:
                    moved.cancel()

    def _next(self, waiting: Iterator[Piece], on_way: deque[tuple[Piece, Future[int]]], pool: ThreadPoolExecutor) -> Piece | None:
        """Finish one more piece; None if there is none."""
        room = 0 if self.pacer.is_busy else WINDOW * self._num_threads - len(on_way)
        for piece in itertools.islice(waiting, room):
            on_way.append((piece, pool.submit(piece.move)))
        if on_way:
            piece, moved = on_way.popleft()
            piece.finish(moved.result())
            return piece
        alone = next(waiting, None)
        if alone is not None:
            self._one(alone)
        return alone

    def _one(self, piece: Piece) -> None:
        """A piece beside running steps."""
        began = time.perf_counter()
        piece.finish(piece.move())
        self.pacer.rest(time.perf_counter() - began)
