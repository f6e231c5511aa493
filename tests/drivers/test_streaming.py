"""Streams of segments: turns, epochs, errors; and models that run by them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from drivers.errors import ModelCorrupt, StreamBroken
from drivers.models.streaming import SegmentStream


class Slots:
    """What the slots hold, and every write to one that somebody reads."""

    def __init__(self, num_slots: int) -> None:
        self.held: list[int | None] = [None] * num_slots
        self.reading: set[int] = set()
        self.clashes: list[int] = []
        self.fills: list[int] = []
        self.broken: Exception | None = None
        self.break_at = -1
        self.gate = threading.Event()
        self.gate.set()

    def fill(self, idx: int, slot: int, check: Callable[[], None]) -> int:
        """Write a segment into a slot, or fail as told."""
        self.gate.wait()
        check()
        if slot in self.reading:
            self.clashes.append(slot)
        if len(self.fills) == self.break_at and self.broken is not None:
            raise self.broken
        self.fills.append(idx)
        self.held[slot] = idx
        return 10


@pytest.fixture
def opened() -> Iterator[list[SegmentStream]]:
    """Streams to be closed at the end."""
    streams: list[SegmentStream] = []
    yield streams
    for stream in streams:
        stream.close()


def read_pass(stream: SegmentStream, slots: Slots, num: int | None = None) -> list[int | None]:
    """Go through a pass, or the first `num` turns of it; what the slots held."""
    first = stream.begin()
    seen = []
    for turn in range(first, first + (stream.num_segments if num is None else num)):
        slot = stream.wait(turn)
        slots.reading.add(slot)
        seen.append(slots.held[slot])
        slots.reading.discard(slot)
        stream.finish(turn)
    return seen


@pytest.mark.parametrize(("num_segments", "num_slots"), [(5, 2), (3, 2), (4, 2), (7, 3), (1, 1), (1, 2), (2, 3), (6, 1)])
def test_every_pass_sees_every_segment_in_order(opened: list[SegmentStream], num_segments: int, num_slots: int) -> None:
    slots = Slots(num_slots)
    stream = SegmentStream(num_segments, num_slots, slots.fill)
    opened.append(stream)
    for _ in range(5):
        assert read_pass(stream, slots) == list(range(num_segments))
    assert slots.clashes == []


def test_a_slot_is_not_filled_while_it_is_read(opened: list[SegmentStream]) -> None:
    slots = Slots(2)
    stream = SegmentStream(4, 2, slots.fill)
    opened.append(stream)
    turn = stream.begin()
    slots.reading.add(stream.wait(turn))
    stream.wait(turn + 1)
    assert slots.fills == [0, 1]  # the thread waits: both slots are taken
    slots.reading.clear()
    stream.finish(turn)
    stream.wait(turn + 2)
    assert slots.fills[:3] == [0, 1, 2]
    assert slots.clashes == []


def test_slots_are_filled_ahead_of_the_next_pass(opened: list[SegmentStream]) -> None:
    slots = Slots(2)
    stream = SegmentStream(3, 2, slots.fill)
    opened.append(stream)
    read_pass(stream, slots)
    stream.wait(4)
    assert slots.fills == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("num_read", [0, 1, 2, 3])
def test_a_pass_that_was_broken_off_does_not_shift_the_next(opened: list[SegmentStream], num_read: int) -> None:
    slots = Slots(2)
    stream = SegmentStream(4, 2, slots.fill)
    opened.append(stream)
    read_pass(stream, slots, num_read)
    stream.wait(stream.begin())
    assert read_pass(stream, slots) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (ModelCorrupt("a.safetensors became shorter while it was read."), "became shorter"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_an_error_is_told_to_whoever_waits_and_comes_to_wait(opened: list[SegmentStream], broken: Exception, told: str) -> None:
    slots = Slots(2)
    slots.broken, slots.break_at = broken, 2
    stream = SegmentStream(4, 2, slots.fill)
    opened.append(stream)
    with pytest.raises(StreamBroken, match=told):
        read_pass(stream, slots)
    with pytest.raises(StreamBroken, match=told):
        read_pass(stream, slots)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_thread_hangs_nobody(opened: list[SegmentStream]) -> None:
    slots = Slots(2)
    slots.broken, slots.break_at = ZeroDivisionError(), 1
    stream = SegmentStream(4, 2, slots.fill)
    opened.append(stream)
    with pytest.raises(StreamBroken, match="see the worker's log"):
        read_pass(stream, slots)


def test_close_ends_a_fill_between_two_pieces() -> None:
    slots = Slots(2)
    slots.gate.clear()
    stream = SegmentStream(4, 2, slots.fill)
    closing = threading.Thread(target=stream.close)
    closing.start()
    while not stream._is_closing:  # the test's way to know that `close` has begun
        pass
    slots.gate.set()
    closing.join()
    assert slots.fills == []
    with pytest.raises(StreamBroken):
        stream.wait(0)


def test_the_rate_counts_what_was_filled(opened: list[SegmentStream]) -> None:
    slots = Slots(2)
    stream = SegmentStream(3, 2, slots.fill)
    opened.append(stream)
    read_pass(stream, slots)
    assert stream.bytes_filled % 10 == 0
    assert stream.rate == stream.bytes_filled / stream.fill_s
