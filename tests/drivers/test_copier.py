"""Copies in pieces: all of them, in order, no more once it ends, and at the pace of steps that run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from drivers.checksum import joined
from drivers.copier import Copier, Piece
from drivers.pacer import QUIET_S, Pacer
from drivers.weight_image import PIECE_BYTES, Copied, copy_segments


class Clock:
    """Time that moves when somebody sleeps, or is told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_checksums_of_pieces_are_joined_to_that_of_all(pieces: list[bytes]) -> None:
    assert joined((crc32c(piece), len(piece)) for piece in pieces) == crc32c(b"".join(pieces))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_pieces_are_finished_in_order_and_told(num_threads: int) -> None:
    finished: list[int] = []
    told: list[int] = []

    def piece(idx: int) -> Piece:
        return Piece(idx + 1, lambda: idx, finished.append)

    Copier(num_threads).run(map(piece, range(20)), told.append)
    assert finished == list(range(20))
    assert told == list(range(1, 21))


def test_nothing_is_moved_after_a_piece_has_failed() -> None:
    moved: list[int] = []

    def pieces() -> Iterator[Piece]:
        for idx in range(50):
            yield Piece(1, lambda idx=idx: moved.append(idx) or idx, fail if idx == 3 else ignore)

    def fail(_moved: int) -> None:
        raise ValueError("the fourth")

    def ignore(_moved: int) -> None:
        return

    with pytest.raises(ValueError, match="the fourth"):
        Copier(2).run(pieces(), lambda _size: None)
    num_moved = len(moved)
    assert num_moved < 50
    assert threading.active_count() == 1 or len(moved) == num_moved


def test_who_follows_may_stop_a_copy() -> None:
    def stop(_size: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Copier(2).run((Piece(1, lambda: 0) for _ in range(10)), stop)


def paced(share: float = 0.25) -> tuple[Pacer, Clock]:
    clock = Clock()
    return Pacer(clock, clock.sleep, share), clock


def test_an_idle_device_makes_nobody_rest() -> None:
    pacer, clock = paced()
    assert not pacer.is_busy
    pacer.rest(1.0)
    assert clock.slept == []


def test_beside_steps_a_copier_works_its_share_of_the_time() -> None:
    pacer, clock = paced(share=0.25)
    with pacer.step():
        assert pacer.is_busy
        pacer.rest(0.01)
    assert clock.slept == pytest.approx([0.03])
    assert pacer.is_busy, "the next step may come at once"
    clock.now += 2 * QUIET_S
    assert not pacer.is_busy


def test_beside_steps_one_piece_is_on_its_way_at_a_time() -> None:
    pacer, _clock = paced()
    at_once: list[int] = []
    lock = threading.Lock()
    running = 0

    def move() -> int:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        with lock:
            running -= 1
        return 0

    with pacer.step():
        Copier(4, pacer).run((Piece(1, move) for _ in range(12)), lambda _size: None)
    assert max(at_once) == 1
    assert len(at_once) == 12


@pytest.mark.parametrize("sizes", [(1,), (100, 5_000), (PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 7)])
def test_segments_arrive_whole_with_their_checksums(sizes: tuple[int, ...]) -> None:
    sources = [os.urandom(size) for size in sizes]
    targets = [bytearray(size) for size in sizes]
    told: list[int] = []
    segments = [Copied(memoryview(source), memoryview(target)) for source, target in zip(sources, targets, strict=True)]
    assert copy_segments(segments, Copier(2), told.append) == tuple(map(crc32c, sources))
    assert [bytes(target) for target in targets] == sources
    assert sum(told) == sum(sizes)
