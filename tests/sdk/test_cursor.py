"""Where a stream stands. Invariants are numbered in `kerneld_client.cursor`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld_client import calls
from kerneld_client.cursor import Cursor
from kerneld_client.errors import DataLoss, Unavailable
from kerneld_client.pb import syscalls_pb2 as pb

ID = "a" * 32
START = 7


def cursor_of_infer() -> Cursor:
    """A cursor that has seen nothing."""
    return Cursor(ID, calls.infer(ID, "hi", {"request_id": "key-1"}))


def started(offset: int = START) -> pb.InferEvent:
    return pb.InferEvent(started=pb.Started(request="r1", offset=offset, input_tokens=3))


def delta(first: int, last: int) -> pb.InferEvent:
    """Tokens of the half-open range [first, last)."""
    text = "".join(f"<{position}>" for position in range(first, last))
    return pb.InferEvent(delta=pb.Delta(offset=first, tokens=range(first, last), text=text))


def finished() -> pb.InferEvent:
    return pb.InferEvent(finished=pb.Finished(reason=pb.FINISH_REASON_STOP, usage=pb.RequestUsage(output_tokens=4)))


@given(st.lists(st.integers(1, 5), max_size=20), st.data())
def test_any_cutting_of_a_stream_gives_the_same_whole(sizes: list[int], data: Any) -> None:
    """Invariants 1 and 2: connections break anywhere, and old deltas may come again."""
    cursor = cursor_of_infer()
    cursor.take(started())
    position = START
    seen: list[int] = []
    for size in sizes:
        if seen and data.draw(st.booleans()):
            assert cursor.take(delta(START, position)) is None  # invariant 1: an old one again
        if data.draw(st.booleans()):
            request = cursor.call().request
            assert isinstance(request, pb.AttachRequest)
            assert request.offset == position  # invariant 2
        taken = cursor.take(delta(position, position + size))
        assert taken is not None
        seen += taken.tokens
        position += size
    cursor.take(finished())
    assert cursor.is_done
    result = cursor.result()
    assert list(result.tokens) == seen == list(range(START, position))
    assert result.text == "".join(f"<{i}>" for i in range(START, position))


def test_until_it_began_the_same_infer_is_sent_again() -> None:
    cursor = cursor_of_infer()
    assert cursor.call() is cursor.call()
    request = cursor.call().request
    assert isinstance(request, pb.InferRequest)
    assert request.request_id == "key-1"


def test_once_it_began_it_attaches_even_before_the_first_token() -> None:
    cursor = cursor_of_infer()
    cursor.take(started())
    assert cursor.call().request == pb.AttachRequest(context_id=ID, offset=START)


def test_a_gap_is_an_error() -> None:
    cursor = cursor_of_infer()
    cursor.take(started())
    with pytest.raises(DataLoss, match="from offset 7 to 9"):
        cursor.take(delta(9, 10))


def test_a_delta_that_overlaps_is_an_error_because_its_text_cannot_be_cut() -> None:
    cursor = cursor_of_infer()
    cursor.take(started())
    cursor.take(delta(7, 9))
    with pytest.raises(DataLoss):
        cursor.take(delta(8, 11))


def test_text_may_come_without_tokens() -> None:
    cursor = cursor_of_infer()
    cursor.take(started())
    taken = cursor.take(pb.InferEvent(delta=pb.Delta(offset=START, text="the rest")))
    assert taken is not None
    assert (taken.text, cursor.next_offset) == ("the rest", START)


def test_an_attach_begins_where_it_was_told_whatever_started_says() -> None:
    cursor = Cursor(ID, calls.attach(ID, 9), 9)
    cursor.take(started(7))
    assert cursor.next_offset == 9


def test_without_an_end_there_is_no_result() -> None:
    cursor = cursor_of_infer()
    cursor.take(started())
    with pytest.raises(Unavailable):
        cursor.result()


def test_an_event_that_this_client_does_not_know_is_passed_over() -> None:
    cursor = cursor_of_infer()
    assert cursor.take(pb.InferEvent()) is None
    assert not cursor.has_begun
