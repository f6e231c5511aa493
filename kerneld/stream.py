"""The output of one request, and the readers who follow it.

A log holds, for each output token that readers may see, the text which that token completed and its log-probability. A reader is a
cursor into the log. It takes all that has queued since its last turn, so deltas coalesce behind a slow connection by themselves, there
is no timer, and a slow reader costs nothing but its cursor.

    log      | t0 | t1 | t2 | t3 | t4 |           t5 is appended when it is durable and its text is settled
    reader A                          ^ waits
    reader B      ^ gets t1..t4 in one delta

Invariants
1. What stands at an offset never changes: entries are appended, none is edited or removed.
2. A reader gets every offset from where it began to the end once, in order, then `Finished`.
3. `left_at` is the moment when the last reader left, and None while there is one; a log that nobody opened yet counts from its creation.

All of it happens on the event-loop thread.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from typing import Final

from drivers.contract import TokenLogprob
from kerneld.calls import Delta, Finished
from kerneld.errors import OutOfRange

# A late reader of a long log gets it in parts, so that no message grows without bound.
MAX_DELTA_TOKENS: Final = 1024


class OutputLog:
    """Output tokens of one request, as readers see them."""

    __slots__ = (
        "_clock",
        "_first_logprob",
        "_is_held",
        "_is_sealed",
        "_logprobs",
        "_num_shown",
        "_pieces",
        "_readers",
        "_tokens",
        "finished",
        "left_at",
        "start",
    )

    def __init__(self, start: int, clock: Callable[[], float], is_held: bool = False) -> None:
        """`is_held`: readers see an entry only once it was released (durability `fsync`: once it is on the disk)."""
        self.start = start  # position of the first output token in the context
        self.finished: Finished | None = None
        self.left_at: float | None = clock()
        self._clock = clock
        self._is_held = is_held
        self._is_sealed = False
        self._num_shown = 0
        self._tokens: array[int] = array("I")
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []  # one per token from `_first_logprob` on, or none at all
        self._first_logprob = 0  # tokens that were written again after a restart have none
        self._readers: set[StreamReader] = set()

    @property
    def end(self) -> int:
        """The offset after the last token that readers may see."""
        return self.start + self._num_shown

    @property
    def num_written(self) -> int:
        """How many tokens were appended, held ones included."""
        return len(self._tokens)

    @property
    def num_readers(self) -> int:
        """How many readers follow it."""
        return len(self._readers)

    def append(self, token: int, piece: str, logprob: TokenLogprob | None = None) -> None:
        """Show one more token, which is durable, with the text that it completed."""
        self._tokens.append(token)
        self._pieces.append(piece)
        if logprob is not None:
            if not self._logprobs:
                self._first_logprob = len(self._tokens) - 1
            self._logprobs.append(logprob)
        if not self._is_held:
            self.release(len(self._tokens))

    def release(self, num_tokens: int) -> None:
        """Let readers see the first `num_tokens` tokens."""
        if not self._is_sealed:
            self._num_shown = max(self._num_shown, num_tokens)
            self._wake()

    def seal(self) -> None:
        """Show no more: what is held did not become durable."""
        self._is_sealed = True

    def finish(self, finished: Finished) -> None:
        """Say how it ended; nothing is appended afterwards. What is held must have been released before."""
        assert self.finished is None, "a request finishes once"
        if not self._is_held:
            self._num_shown = len(self._tokens)
        self.finished = finished
        self._wake()

    def open(self, offset: int) -> StreamReader:
        """A reader that begins at `offset`, at the first output token or after it; one that is not there yet is waited for.

        Raises: OutOfRange.
        """
        if offset < self.start:
            raise OutOfRange(
                f"The output of this request begins at {self.start}; offset {offset} is before it.",
                facts={"offset": str(offset), "start": str(self.start)},
            )
        reader = StreamReader(self, offset)
        self._readers.add(reader)
        self.left_at = None
        return reader

    def delta(self, offset: int) -> Delta:
        """What stands from `offset` on, as one delta of at most `MAX_DELTA_TOKENS`, all of which have log-probabilities, or none."""
        first = offset - self.start
        last = min(first + MAX_DELTA_TOKENS, self._num_shown)
        if self._logprobs and first < self._first_logprob:
            last = min(last, self._first_logprob)
        return Delta(
            offset=offset,
            tokens=tuple(self._tokens[first:last]),
            text="".join(self._pieces[first:last]),
            logprobs=tuple(self._logprobs[max(first - self._first_logprob, 0) : max(last - self._first_logprob, 0)]),
        )

    def leave(self, reader: StreamReader) -> None:
        """Forget a reader; called by its `close`."""
        self._readers.discard(reader)
        if not self._readers:
            self.left_at = self._clock()

    def is_abandoned(self, grace_s: float) -> bool:
        """Whether nobody has read for `grace_s`."""
        return self.left_at is not None and self._clock() - self.left_at >= grace_s

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()


class StreamReader:
    """One reader of an output log: an async iterator of deltas that ends with `Finished`. One task reads it."""

    __slots__ = ("_is_closed", "_is_done", "_log", "_offset", "_waiting")

    def __init__(self, log: OutputLog, offset: int) -> None:
        self._log = log
        self._offset = offset
        self._waiting: asyncio.Future[None] | None = None
        self._is_done = False
        self._is_closed = False

    @property
    def offset(self) -> int:
        """The position of the next token that it will get."""
        return self._offset

    def __aiter__(self) -> StreamReader:
        return self

    async def __anext__(self) -> Delta | Finished:
        """All that has queued, or the end; waits while there is neither. A closed reader, and one that saw the end, stops."""
        while not self._is_done and not self._is_closed:
            event = self._take()
            if event is not None:
                return event
            await self._wait()
        raise StopAsyncIteration

    def _take(self) -> Delta | Finished | None:
        if self._offset < self._log.end:
            delta = self._log.delta(self._offset)
            self._offset += len(delta.tokens)
            return delta
        if self._log.finished is not None:
            self._is_done = True
        return self._log.finished

    async def _wait(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def wake(self) -> None:
        """There is something new; called by the log."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Leave; a read that waits ends. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self.wake()
        self._log.leave(self)
