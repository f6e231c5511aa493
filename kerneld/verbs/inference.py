"""The verbs that compute: infer, attach, cancel, score.

A stream is a reader of its request's output log, and nothing more: it may leave and come back. How a request comes in is in
`kerneld.verbs.intake`.
"""

from __future__ import annotations

import asyncio
import secrets
from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from drivers.contract import Sampling
from kerneld.bounds import check_sampling
from kerneld.calls import (
    Access,
    Caller,
    ContextState,
    Delta,
    Durability,
    Finished,
    FinishReason,
    InferArgs,
    Score,
    ScoreArgs,
    Started,
    StreamEvent,
    Usage,
)
from kerneld.context import Context
from kerneld.errors import Conflict, InvalidArgument, KernelError, OutOfRange, WrongState
from kerneld.machine import Machine
from kerneld.request import Request
from kerneld.seating import name_pages
from kerneld.stream import MAX_DELTA_TOKENS, StreamReader
from kerneld.verbs.intake import Intake, check_idle, resolve

DEFAULT_MAX_TOKENS = 256


class InferenceVerbs:
    """Verbs that compute."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._intake = Intake(machine)

    # --------------------------------------------------------------------------------------------------------------------------- infer

    async def infer(self, caller: Caller, args: InferArgs) -> AsyncIterator[StreamEvent]:
        """Append input to a context and generate; the stream tells tokens as they become durable.

        Raises: InvalidArgument, NotFound, WrongState, OutOfRange, QuotaExceeded, DiskFull, Draining; then nothing changed.
        """
        known = self._machine.effects.find(caller, "infer")
        if known is not None:
            async with aclosing(self._answer_again(caller, known)) as again:
                async for event in again:
                    yield event
            return
        with self._machine.effects.under_way(caller):
            request, reader = await self._accept(caller, args)
        try:
            yield Started(request.id, request.output_start, request.num_input)
            async for event in reader:
                yield event
        finally:
            self._leave(request, reader)

    async def _answer_again(self, caller: Caller, known: bytes) -> AsyncGenerator[StreamEvent, None]:
        """The stream of a request that this call began before. Raises: Conflict, if the context has gone on since."""
        context_id, request_id, offset = known[:16].hex(), known[16:32].hex(), int.from_bytes(known[32:], "big")
        context = self._machine.contexts.get(caller, context_id, Access.READ)
        if request_id != (context.active_request or context.last_request):
            raise Conflict("This call was answered before, and its context has gone on since; read the context.", reason="ANSWER_GONE")
        yield Started(request_id, offset, 0)
        async with aclosing(self.attach(caller, context_id, offset)) as events:
            async for event in events:
                yield event

    async def _accept(self, caller: Caller, args: InferArgs) -> tuple[Request, StreamReader]:
        """Take a request in; its first reader is there before anything can wait, so that no grace runs out meanwhile."""
        machine, intake = self._machine, self._intake
        intake.check_open()
        machine.bounds.check_infer(args)
        context = machine.contexts.get(caller, args.context_id, Access.WRITE)
        check_idle(context)
        model = await intake.model_of(context)
        await intake.check_draft(args, model)
        tokens = await intake.tokenize(context, model, args.input)
        check_idle(context)  # somebody else may have begun meanwhile
        if not context.num_tokens and not tokens:
            raise InvalidArgument("input", "the context is empty; give text, tokens or messages to begin with.")
        max_tokens = intake.check_length(context, model, len(tokens), args.max_tokens or DEFAULT_MAX_TOKENS)
        intake.place(context, len(tokens) + max_tokens)
        intake.check_drafter_there(context, args.draft_model)
        intake.check_limits(context, len(tokens))
        request = intake.make(context, args, resolve(args, context, model), tokens, max_tokens)
        intake.journal(caller, request, tokens)
        context.tokens.extend(tokens)
        reader = request.log.open(request.output_start)
        intake.enqueue(request)
        try:
            await self._sync(request)
        except BaseException:
            self._leave(request, reader)
            raise
        return request, reader

    async def _sync(self, request: Request) -> None:
        """Answer only once the request itself is on the disk, where that was asked for. Raises: KernelError; then it has ended."""
        if request.context.durability is not Durability.FSYNC:
            return
        try:
            await self._machine.journal.sync()
        except KernelError as error:
            self._machine.end(request, FinishReason.ERROR, error.message)
            raise

    async def cancel(self, caller: Caller, context_id: str) -> bool:
        """End the request that runs on a context; what it generated stays. Raises: NotFound."""
        machine = self._machine
        known = machine.effects.find(caller, "cancel")
        if known is not None:
            return known == b"\x01"
        context = machine.contexts.control(caller, context_id)
        request = machine.requests.get(context.active_request)
        effects = machine.effects.record(caller, "cancel", b"\x00" if request is None else b"\x01")
        if effects and context.durability is not Durability.NONE:
            machine.journal.append_unreserved(effects)
        machine.effects.keep(effects)
        if request is None:
            return False
        machine.end(request, FinishReason.CANCELLED)
        return True

    # --------------------------------------------------------------------------------------------------------------------------- score

    async def score(self, caller: Caller, args: ScoreArgs) -> Score:
        """Log-probabilities of a continuation of a context, which stays as it is. Raises: as infer."""
        machine, intake = self._machine, self._intake
        intake.check_open()
        sampling = Sampling(temperature=0.0, num_logprobs=args.top)
        check_sampling(sampling)
        machine.bounds.check_input(args.input)
        context = machine.contexts.get(caller, args.context_id, Access.READ)
        model = await intake.model_of(context)
        tokens = await intake.tokenize(context, model, args.input)
        if not context.is_alive:
            raise WrongState(f"The context has failed or was freed meanwhile. {context.failure}".strip())
        if not context.num_tokens and len(tokens) < 2:
            raise InvalidArgument("input", "the first token of a context has no log-probability; score at least two tokens.")
        intake.check_length(context, model, len(tokens), 0)
        copy = self._copy_of(context)
        try:
            intake.place(copy, len(tokens))
            intake.check_limits(copy, len(tokens))
        except BaseException:
            self._drop(copy)
            raise
        copy.tokens.extend(tokens)
        request = intake.make(copy, InferArgs(context.id), sampling, tokens, 0, score_from=max(context.num_tokens, 1))
        await self._compute(request)
        finished = request.log.finished
        if finished is None or finished.reason is not FinishReason.STOP:
            problem = f"{finished.reason.value}. {finished.detail}" if finished is not None else ""
            raise WrongState(f"The score was not computed: {problem}", reason="SCORE_FAILED")
        return Score(tuple(tokens[-len(request.scores) :]), tuple(request.scores))

    async def _compute(self, request: Request) -> None:
        """Run a request that has no other reader than us, and leave nothing of its context behind."""
        copy, reader = request.context, request.log.open(request.output_start)
        copy.move(ContextState.IDLE)
        try:
            self._intake.take(request)
            self._intake.enqueue(request)
            async for _event in reader:
                pass
        finally:
            reader.close()
            self._machine.end(request, FinishReason.CANCELLED, "The caller left.")
            self._drop(copy)

    def _drop(self, copy: Context) -> None:
        """Give the pages of a context back that was made for a score."""
        if copy.table is not None:
            device = self._machine.devices.of(copy)
            device.pager.drop(copy.table)
            device.dispatcher.room_made()

    def _copy_of(self, context: Context) -> Context:
        """A context for scoring: nobody sees it, nothing of it is journaled, it holds the pages of the original."""
        copy = Context(
            id=secrets.token_hex(16),
            owner=context.owner,
            tenant=context.tenant,
            model=context.model,
            sharing_group=context.sharing_group,
            fingerprint=context.fingerprint,
            seed=context.seed,
            created_at=self._machine.clock(),
            durability=Durability.NONE,
            max_tokens=context.max_tokens,
            priority=context.priority,
            nice=context.nice,
        )
        copy.tokens = array("I", context.tokens)
        if context.table is not None and context.chain is not None:
            name_pages(context, context.kv_valid)
            copy.kv_valid = context.kv_valid
            copy.device = context.device
            copy.table = self._machine.devices.of(context).pager.fork(context.table, context.kv_valid)
            copy.chain = context.chain.fork()
        return copy

    # ------------------------------------------------------------------------------------------------------------------ read its output

    async def attach(self, caller: Caller, context_id: str, offset: int) -> AsyncGenerator[StreamEvent, None]:
        """Read on from an offset: what is there already, then what is still to come. Raises: NotFound, OutOfRange."""
        machine = self._machine
        context = machine.contexts.get(caller, context_id, Access.READ)
        if not 0 <= offset <= context.num_tokens:
            raise OutOfRange(f"The context has {context.num_tokens} tokens; there is nothing at {offset} yet.")
        request = machine.requests.get(context.active_request) or machine.last_logs.get(context.id)
        finished = context.last_finished or Finished(FinishReason.STOP, Usage(), "No request ran on this context.")
        past_end = request.output_start if request is not None else context.num_tokens
        reader = request.log.open(max(offset, past_end)) if request is not None else None
        try:
            async for delta in self._past(context, offset, past_end):
                yield delta
            if reader is None:
                yield finished
                return
            async for event in reader:
                yield event
        finally:
            if request is not None and reader is not None:
                self._leave(request, reader)

    def _leave(self, request: Request, reader: StreamReader) -> None:
        """A reader leaves; a request that nobody has read for its grace is cancelled."""
        reader.close()
        if not request.is_finished and request.is_abandoned():
            self._machine.end(request, FinishReason.CANCELLED, "Nobody read the stream any more.")

    async def _past(self, context: Context, offset: int, end: int) -> AsyncIterator[Delta]:
        """What stood in the context before the request's output."""
        models = self._machine.models
        tokenizer = models.get(context.model).tokenizer if context.model in models else None
        for first in range(offset, end, MAX_DELTA_TOKENS):
            tokens = tuple(context.tokens[first : min(first + MAX_DELTA_TOKENS, end)])
            yield Delta(first, tokens, await asyncio.to_thread(tokenizer.decode, tokens) if tokenizer else "")
