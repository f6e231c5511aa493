"""System calls that compute.

A stream pulls: while a write waits for a slow reader, tokens queue in the kernel, and the next pull takes all of them as one delta.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from kerneld.calls import Caller
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import answers, convert
from syscalls.streams import closing
from syscalls.verbs import InferVerbs


class Inference:
    """Service `kerneld.v1.Inference`."""

    def __init__(self, kernel: InferVerbs) -> None:
        self._kernel = kernel

    async def Infer(self, request: pb.InferRequest, caller: Caller) -> AsyncIterator[pb.InferEvent]:
        """Append input, generate, and stream what comes."""
        async with closing(self._kernel.infer(caller, convert.infer_args(request))) as events:
            async for event in events:
                yield answers.stream_event(event)

    async def Attach(self, request: pb.AttachRequest, caller: Caller) -> AsyncIterator[pb.InferEvent]:
        """Continue a stream from an offset."""
        async with closing(self._kernel.attach(caller, request.context_id, request.offset)) as events:
            async for event in events:
                yield answers.stream_event(event)

    async def Cancel(self, request: pb.CancelRequest, caller: Caller) -> pb.CancelResponse:
        """End the request in flight."""
        return pb.CancelResponse(was_active=await self._kernel.cancel(caller, request.context_id))

    async def Score(self, request: pb.ScoreRequest, caller: Caller) -> pb.ScoreResponse:
        """Give the log-probabilities of a continuation."""
        return answers.score(await self._kernel.score(caller, convert.score_args(request)))
