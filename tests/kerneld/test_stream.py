"""Readers of an output log: each gets every offset once, in order, then the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.contract import TokenLogprob
from kerneld.calls import Delta, Finished, FinishReason, Usage
from kerneld.errors import OutOfRange
from kerneld.stream import MAX_DELTA_TOKENS, OutputLog, StreamReader

END = Finished(FinishReason.STOP, Usage())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_log(num_tokens: int = 0, start: int = 10) -> OutputLog:
    log = OutputLog(start, Clock())
    for i in range(num_tokens):
        log.append(i, f"<{i}>")
    return log


async def read_all(reader: StreamReader) -> list[Delta | Finished]:
    return [event async for event in reader]


def test_a_reader_gets_what_queued_as_one_delta_then_the_end() -> None:
    log = make_log(3)
    reader = log.open(10)
    log.finish(END)

    events = asyncio.run(read_all(reader))

    assert events == [Delta(10, (0, 1, 2), "<0><1><2>"), END]


def test_a_waiting_reader_wakes_for_each_append() -> None:
    async def scenario() -> list[Delta | Finished]:
        log = make_log()
        reading = asyncio.create_task(read_all(log.open(10)))
        for i in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            log.append(i, str(i))
        await asyncio.sleep(0)
        log.finish(END)
        return await reading

    assert asyncio.run(scenario()) == [Delta(10, (0,), "0"), Delta(11, (1,), "1"), Delta(12, (2,), "2"), END]


def test_a_late_reader_begins_at_its_offset() -> None:
    log = make_log(4)
    log.finish(END)

    events = asyncio.run(read_all(log.open(12)))

    assert events == [Delta(12, (2, 3), "<2><3>"), END]


def test_a_reader_at_the_end_of_a_finished_log_gets_the_end_alone() -> None:
    log = make_log(2)
    log.finish(END)

    assert asyncio.run(read_all(log.open(12))) == [END]


@pytest.mark.parametrize("offset", [9, -1])
def test_an_offset_before_the_output_is_out_of_range(offset: int) -> None:
    with pytest.raises(OutOfRange) as caught:
        make_log(2).open(offset)

    assert caught.value.facts == {"offset": str(offset), "start": "10"}


def test_a_token_that_is_not_there_yet_is_waited_for() -> None:
    log = make_log(2)
    reader = log.open(13)
    for token in (2, 3, 4):
        log.append(token, f"<{token}>")
    log.finish(END)

    assert asyncio.run(read_all(reader)) == [Delta(13, (3, 4), "<3><4>"), END]


def test_a_token_that_never_came_is_not_waited_for_after_the_end() -> None:
    log = make_log(2)
    reader = log.open(13)
    log.finish(END)

    assert asyncio.run(read_all(reader)) == [END]


def test_a_long_log_comes_in_parts() -> None:
    log = make_log(MAX_DELTA_TOKENS + 5)
    log.finish(END)

    events = asyncio.run(read_all(log.open(10)))

    assert [len(event.tokens) for event in events if isinstance(event, Delta)] == [MAX_DELTA_TOKENS, 5]


def test_logprobs_travel_with_their_tokens() -> None:
    log = OutputLog(0, Clock())
    log.append(5, "a", TokenLogprob(-0.5))
    log.append(6, "b", TokenLogprob(-1.5))

    assert log.delta(1).logprobs == (TokenLogprob(-1.5),)


def test_held_tokens_are_seen_once_released() -> None:
    log = OutputLog(0, Clock(), is_held=True)
    log.append(1, "a")
    log.append(2, "b")
    seen = [log.end]

    log.release(1)
    seen.append(log.end)
    log.finish(END)
    seen.append(log.end)

    assert seen == [0, 1, 1]


def test_a_sealed_log_shows_no_more() -> None:
    log = OutputLog(0, Clock(), is_held=True)
    log.append(1, "a")
    log.append(2, "b")
    log.release(1)

    log.seal()
    log.release(2)

    assert log.delta(0).tokens == (1,)


def test_a_delta_has_log_probabilities_for_all_its_tokens_or_none() -> None:
    log = OutputLog(0, Clock())
    log.append(5, "a")
    log.append(6, "b", TokenLogprob(-1.5))

    assert log.delta(0).tokens == (5,)
    assert log.delta(0).logprobs == ()
    assert log.delta(1).logprobs == (TokenLogprob(-1.5),)


def test_closing_ends_a_read_that_waits() -> None:
    async def scenario() -> list[Delta | Finished]:
        reader = make_log().open(10)
        reading = asyncio.create_task(read_all(reader))
        await asyncio.sleep(0)
        reader.close()
        return await reading

    assert asyncio.run(scenario()) == []


def test_a_cancelled_read_leaves_the_reader_usable() -> None:
    async def scenario() -> Delta | Finished:
        log = make_log()
        reader = log.open(10)
        reading = asyncio.create_task(read_all(reader))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        log.append(1, "x")
        return await anext(reader)

    assert asyncio.run(scenario()) == Delta(10, (1,), "x")


def test_the_grace_counts_from_the_last_reader_that_left() -> None:
    clock = Clock()
    log = OutputLog(0, clock)
    first, second = log.open(0), log.open(0)
    clock.now = 5.0

    first.close()
    still_read = log.left_at
    second.close()
    second.close()
    clock.now = 14.9
    early = log.is_abandoned(10.0)
    clock.now = 15.0

    assert (still_read, log.left_at, early, log.is_abandoned(10.0)) == (None, 5.0, False, True)


def test_a_log_that_nobody_opened_counts_from_its_creation() -> None:
    clock = Clock()
    log = OutputLog(0, clock)
    clock.now = 3.0

    assert log.is_abandoned(3.0)
    log.open(0)
    assert not log.is_abandoned(0.0)


Schedule = list[tuple[str, int]]


@given(st.lists(st.tuples(st.sampled_from(["append", "open", "turn", "close"]), st.integers(0, 7)), max_size=60))
def test_every_reader_sees_each_offset_once_in_order(schedule: Schedule) -> None:  # invariants 1 and 2
    async def scenario() -> None:
        log = make_log(start=0)
        reads: list[tuple[int, StreamReader, asyncio.Task[list[Delta | Finished]]]] = []
        actions: dict[str, Callable[[int], None]] = {
            "append": lambda token: log.append(token, str(token)),
            "open": lambda offset: reads.append(_start(log, min(offset, log.end))),
            "turn": lambda _: None,
            "close": lambda i: reads[i % len(reads)][1].close() if reads else None,
        }
        for action, number in schedule:
            actions[action](number)
            if action == "turn":
                await asyncio.sleep(0)
        log.finish(END)
        whole = log.delta(0)
        for offset, reader, task in reads:
            events = await task
            tokens = [token for event in events if isinstance(event, Delta) for token in event.tokens]
            text = "".join(event.text for event in events if isinstance(event, Delta))
            assert tuple(tokens) == whole.tokens[offset : offset + len(tokens)]
            assert text == whole.text[offset : offset + len(tokens)]
            assert reader.offset == offset + len(tokens)
            assert not events or events[-1] != END or reader.offset == log.end

    asyncio.run(scenario())


def _start(log: OutputLog, offset: int) -> tuple[int, StreamReader, asyncio.Task[list[Delta | Finished]]]:
    reader = log.open(offset)
    return offset, reader, asyncio.ensure_future(read_all(reader))
