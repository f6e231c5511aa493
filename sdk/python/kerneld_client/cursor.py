"""Where a stream stands: what has come, what is wanted next. Both clients drive one of these; it does no I/O itself.

    OPENING  --Started or Delta-->  FLOWING  --Finished-->  DONE
       | Infer (again), same request_id |  Attach(next_offset)        what is sent when the connection has to be made (again)

Invariants
1. Deltas are contiguous: each begins at `next_offset`. A delta that was seen before is dropped; a gap is an error, never silent.
2. What is sent to make the connection again can be sent any number of times.
3. DONE is final, and only Finished leads there.
"""

from __future__ import annotations

from kerneld_client import calls, reading, values
from kerneld_client.call import Call
from kerneld_client.errors import DataLoss, Unavailable
from kerneld_client.pb import syscalls_pb2 as pb


class Cursor:
    """One reader's position in one context's stream."""

    def __init__(self, context_id: str, first: Call[pb.InferEvent], offset: int | None = None) -> None:
        self.context_id = context_id
        self.request = ""
        self.next_offset = offset  # None while nobody has said
        self.input_tokens = 0
        self.has_begun = offset is not None
        self.is_done = False
        self._first = first
        self._start = offset
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._logprobs: list[values.Logprob] = []
        self._finished: pb.Finished | None = None

    def call(self) -> Call[pb.InferEvent]:
        """What to send. Invariant 2."""
        if not self.has_begun or self.next_offset is None:
            return self._first
        return calls.attach(self.context_id, self.next_offset)

    def take(self, event: pb.InferEvent) -> values.Delta | None:
        """Note one event, and give what of it the reader has not seen. Raises: DataLoss, at a gap."""
        kind = event.WhichOneof("event")
        if kind == "delta":
            return self._take_delta(event.delta)
        if kind == "started":
            self._begin(event.started.offset)
            self.request = event.started.request or self.request
            self.input_tokens = event.started.input_tokens or self.input_tokens
        elif kind == "finished":
            self._finished = event.finished
            self.is_done = True
        return None

    def _begin(self, offset: int) -> None:
        self.has_begun = True
        if self.next_offset is None:
            self.next_offset = self._start = offset

    def _take_delta(self, message: pb.Delta) -> values.Delta | None:
        self._begin(message.offset)
        delta = reading.delta(message)
        if delta.tokens and delta.end <= (self.next_offset or 0):
            return None
        if delta.offset != self.next_offset:  # invariant 1
            raise DataLoss(
                f"The stream of context {self.context_id} went from offset {self.next_offset} to {delta.offset}.", reason="STREAM_GAP"
            )
        self.next_offset = delta.end
        self._tokens += delta.tokens
        self._pieces.append(delta.text)
        self._logprobs += delta.logprobs
        return delta

    def result(self) -> values.Result:
        """All that came. Raises: Unavailable, if the stream was closed before its end."""
        if self._finished is None:
            raise Unavailable("The stream was closed before it ended; attach to the context to read on.", reason="STREAM_CLOSED")
        return values.Result(
            offset=self._start or 0,
            tokens=tuple(self._tokens),
            text="".join(self._pieces),
            logprobs=tuple(self._logprobs),
            finish_reason=reading.finish_reason(self._finished.reason),
            usage=reading.usage(self._finished.usage),
            request=self.request,
            detail=self._finished.detail,
        )
