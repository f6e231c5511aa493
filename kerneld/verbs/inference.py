"""The verbs that compute: infer, attach, cancel, score.

An infer is accepted in this order: form, right, state, length, room, limits, disk; only then is it journaled, and from then on it is a
promise that outlives this process. Its stream is a reader of the request's output log, and nothing more: it may leave and come back.
"""

from __future__ import annotations

import asyncio
import secrets
from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec

from drivers.contract import Sampling
from kerneld.bounds import check_tokens
from kerneld.calls import (
    Access,
    Caller,
    ChatInput,
    ContextState,
    Delta,
    Durability,
    Finished,
    FinishReason,
    InferArgs,
    InferInput,
    Score,
    ScoreArgs,
    Started,
    StreamEvent,
    TextInput,
    TokenInput,
    Usage,
)
from kerneld.context import Context
from kerneld.errors import Draining, InvalidArgument, NotFound, OutOfRange, QuotaExceeded, WrongState
from kerneld.events import QuotaRefused, RequestArrived
from kerneld.machine import Machine
from kerneld.models import Model
from kerneld.request import Request
from kerneld.seating import name_pages
from kerneld.state.journal import RECORD_BYTES, TOKEN_BYTES
from kerneld.state.records import Admit, pack_tokens
from kerneld.stream import MAX_DELTA_TOKENS, OutputLog
from kerneld.transcript import Transcript

DEFAULT_MAX_TOKENS = 256
PREFIX_TOKENS = 8  # of the past that a detokenizer looks at


class InferenceVerbs:
    """Verbs that compute."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def infer(self, caller: Caller, args: InferArgs) -> AsyncIterator[StreamEvent]:
        """Append input to a context and generate; the stream tells tokens as they become durable.

        Raises: InvalidArgument, NotFound, WrongState, OutOfRange, QuotaExceeded, DiskFull, Draining; then nothing changed.
        """
        known = self._machine.effects.find(caller, "infer")
        if known is not None:
            offset = int.from_bytes(known[32:], "big")
            yield Started(known[16:32].hex(), offset, 0)
            async with aclosing(self.attach(caller, known[:16].hex(), offset)) as events:
                async for event in events:
                    yield event
            return
        with self._machine.effects.under_way(caller):
            request = await self._accept(caller, args)
        started = Started(request.id, request.output_start, request.num_input)
        async with aclosing(self._follow(request, request.output_start, started)) as events:
            async for event in events:
                yield event

    async def attach(self, caller: Caller, context_id: str, offset: int) -> AsyncGenerator[StreamEvent, None]:
        """Read on from an offset: what is there already, then what is still to come. Raises: NotFound, OutOfRange."""
        machine = self._machine
        context = machine.contexts.get(caller, context_id, Access.READ)
        if offset > context.num_tokens:
            raise OutOfRange(f"The context has {context.num_tokens} tokens; there is nothing at {offset} yet.")
        request = machine.requests.get(context.active_request) or machine.last_logs.get(context.id)
        past_end = request.output_start if request is not None else context.num_tokens
        async for delta in self._past(context, offset, past_end):
            yield delta
        if request is None:
            yield context.last_finished or Finished(FinishReason.STOP, Usage(), "No request ran on this context.")
            return
        async with aclosing(self._follow(request, max(offset, past_end))) as events:
            async for event in events:
                yield event

    async def cancel(self, caller: Caller, context_id: str) -> bool:
        """End the request that runs on a context; what it generated stays. Raises: NotFound."""
        machine = self._machine
        context = machine.contexts.control(caller, context_id)
        request = machine.requests.get(context.active_request)
        if request is None:
            return False
        machine.dispatcher.end(request, FinishReason.CANCELLED)
        return True

    async def score(self, caller: Caller, args: ScoreArgs) -> Score:
        """Log-probabilities of a continuation of a context, which stays as it is. Raises: as infer."""
        machine = self._machine
        context = machine.contexts.get(caller, args.context_id, Access.READ)
        model = await self._model_of(context)
        machine.bounds.check_input(args.input)
        tokens = await self._tokenize(context, model, args.input)
        if not context.num_tokens and len(tokens) < 2:
            raise InvalidArgument("input", "the first token of a context has no log-probability; score at least two tokens.")
        self._check_length(context, model, len(tokens), 0)
        copy = self._copy_of(context)
        copy.tokens.extend(tokens)
        sampling = Sampling(temperature=0.0, num_logprobs=args.top)
        request = self._make(copy, InferArgs(context.id), sampling, len(tokens), 0, score_from=max(context.num_tokens, 1))
        machine.admission.check_request(context.tenant, len(tokens))
        copy.move(ContextState.IDLE)
        self._enqueue(request)
        try:
            async for _event in self._follow(request, request.output_start):
                pass
        finally:
            if copy.table is not None:
                machine.pager.drop(copy.table)
        self._raise_failure(request)
        return Score(tuple(tokens[-len(request.scores) :]), tuple(request.scores))

    # ---------------------------------------------------------------------------------------------------------------- accept a request

    async def _accept(self, caller: Caller, args: InferArgs) -> Request:
        machine = self._machine
        if machine.is_draining:
            raise Draining("The daemon is draining and takes no new requests.", retry_after_s=1.0)
        machine.bounds.check_infer(args)
        context = machine.contexts.get(caller, args.context_id, Access.WRITE)
        _check_idle(context)
        model = await self._model_of(context)
        tokens = await self._tokenize(context, model, args.input)
        _check_idle(context)  # somebody else may have begun meanwhile
        if not context.num_tokens and not tokens:
            raise InvalidArgument("input", "the context is empty; give text, tokens or messages to begin with.")
        max_tokens = self._check_length(context, model, len(tokens), args.max_tokens or DEFAULT_MAX_TOKENS)
        if model.spaces:  # else its first load is on its way; what cannot be placed then ends with an error that says so
            machine.pager.fits(model.space_ids, context.num_tokens + len(tokens) + max_tokens, context.tenant)
        self._check_limits(context, len(tokens))
        request = self._make(context, args, _resolve(args, context, model), len(tokens), max_tokens)
        self._journal(caller, request, tokens)
        context.tokens.extend(tokens)
        self._enqueue(request)
        if context.durability is Durability.FSYNC:
            await machine.journal.sync()
        return request

    async def _model_of(self, context: Context) -> Model:
        """The context's model with what the driver says of it, on its way to the device. Raises: NotFound, WrongState, Unavailable."""
        machine = self._machine
        model = machine.models.get(context.model)
        if model.weights_hash != context.fingerprint:
            raise WrongState(
                f"The files of model {model.name!r} have changed since this context began; make a new one.", reason="MODEL_CHANGED"
            )
        await machine.residency.inspect(model)
        machine.residency.start(model)
        return model

    async def _tokenize(self, context: Context, model: Model, given: InferInput) -> tuple[int, ...]:
        if given is None:
            return ()
        if isinstance(given, TokenInput):
            assert model.spec is not None, "inspected before"
            check_tokens("input.tokens", given.tokens, model.spec.vocab_size)
            return given.tokens
        if model.tokenizer is None:
            raise InvalidArgument("input", f"the model {model.name!r} has no tokenizer; give token ids.")
        text = given.text if isinstance(given, TextInput) else await self._render(context, model, given)
        opens = isinstance(given, TextInput) and not context.num_tokens
        return tuple(await asyncio.to_thread(model.tokenizer.encode, text, opens))

    async def _render(self, context: Context, model: Model, given: ChatInput) -> str:
        if model.template is None:
            raise InvalidArgument("input.messages", f"the model {model.name!r} has no chat template; give text.")
        return await self._machine.renderer.render(model.template, given.messages, opens=not context.num_tokens)

    def _check_length(self, context: Context, model: Model, num_input: int, max_tokens: int) -> int:
        """How many tokens may be generated. Raises: OutOfRange, if the input leaves no room."""
        limit = min(context.max_tokens or model.context_limit(), model.context_limit())
        room = limit - context.num_tokens - num_input
        if room < min(max_tokens, 1):
            raise OutOfRange(
                f"The context has {context.num_tokens} tokens and holds {limit}; an input of {num_input} leaves no room to generate.",
                facts={"num_tokens": str(context.num_tokens), "num_input": str(num_input), "max_tokens": str(limit)},
            )
        return min(max_tokens, room)

    def _check_limits(self, context: Context, num_input: int) -> None:
        try:
            self._machine.admission.check_request(context.tenant, num_input)
        except QuotaExceeded as error:
            facts = error.facts
            self._machine.events.publish(QuotaRefused(context.tenant, facts.get("limit", ""), facts.get("holder", "")))
            raise

    def _make(
        self, context: Context, args: InferArgs, sampling: Sampling, num_input: int, max_tokens: int, score_from: int = -1
    ) -> Request:
        machine, now = self._machine, self._machine.clock()
        start = context.num_tokens + (num_input if score_from < 0 else 0)
        grace_s = machine.config.kerneld.detach_grace_s if args.detach_grace_s is None else args.detach_grace_s
        log = OutputLog(start, machine.clock, is_held=context.durability is Durability.FSYNC)
        tokenizer = machine.models.get(context.model).tokenizer if score_from < 0 else None
        return Request(
            id=secrets.token_hex(16),
            context=context,
            args=args,
            sampling=sampling,
            num_input=num_input,
            output_start=start,
            max_tokens=max_tokens,
            arrival=now,
            log=log,
            transcript=Transcript(log, tokenizer, args.stop, context.tokens[-PREFIX_TOKENS:].tolist()),
            deadline=now + args.deadline_s if args.deadline_s else None,
            detach_grace_s=grace_s,
            score_from=score_from,
            queued_at=now,
        )

    def _journal(self, caller: Caller, request: Request, tokens: tuple[int, ...]) -> None:
        """Make the request a promise. Raises: DiskFull; then nothing happened."""
        context, journal = request.context, self._machine.journal
        answer = bytes.fromhex(context.id) + bytes.fromhex(request.id) + request.output_start.to_bytes(8, "big")
        effects = self._machine.effects.record(caller, "infer", answer)
        if context.durability is Durability.NONE:
            self._machine.effects.keep(effects)
            return
        self._machine.disk.check()
        record = admit_record(request, tokens)
        num_bytes = RECORD_BYTES + len(record.tokens) + sum(len(stop) * 4 for stop in record.stop) + request.max_tokens * TOKEN_BYTES
        journal.reserve(num_bytes)
        try:
            journal.append([record, *effects])
        except BaseException:
            journal.release(num_bytes)
            raise
        self._machine.effects.keep(effects)
        request.reserved_bytes = num_bytes

    def _enqueue(self, request: Request) -> None:
        machine, context = self._machine, request.context
        machine.admission.take_request(context.tenant, request.num_input)
        context.move(ContextState.READY)
        context.active_request, context.last_used_at = request.id, request.arrival
        machine.last_logs.pop(context.id, None)
        machine.requests[request.id] = request
        machine.events.publish(RequestArrived(request.id, context.id, context.tenant, request.num_input))
        machine.scheduler.enqueue(request)
        machine.dispatcher.arrived()

    def _copy_of(self, context: Context) -> Context:
        """A context for scoring: nobody sees it, nothing of it is journaled, it holds the pages of the original."""
        copy = Context(
            id=secrets.token_hex(16),
            owner=context.owner,
            tenant=context.tenant,
            model=context.model,
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
            copy.table = self._machine.pager.fork(context.table, context.kv_valid)
            copy.chain = context.chain.fork()
        return copy

    # ------------------------------------------------------------------------------------------------------------------ read its output

    async def _follow(self, request: Request, offset: int, first: Started | None = None) -> AsyncGenerator[StreamEvent, None]:
        reader = request.log.open(offset)
        try:
            if first is not None:
                yield first
            async for event in reader:
                yield event
        finally:
            reader.close()
            self.end_if_abandoned(request)

    def end_if_abandoned(self, request: Request) -> None:
        """Cancel a request that nobody has read for its grace."""
        if not request.is_finished and request.is_abandoned():
            self._machine.dispatcher.end(request, FinishReason.CANCELLED, "Nobody read the stream any more.")

    async def _past(self, context: Context, offset: int, end: int) -> AsyncIterator[Delta]:
        """What stood in the context before the request's output."""
        tokenizer = self._machine.models.get(context.model).tokenizer
        for first in range(offset, end, MAX_DELTA_TOKENS):
            tokens = tuple(context.tokens[first : min(first + MAX_DELTA_TOKENS, end)])
            yield Delta(first, tokens, await asyncio.to_thread(tokenizer.decode, tokens) if tokenizer else "")

    def _raise_failure(self, request: Request) -> None:
        finished = request.log.finished
        if finished is not None and finished.reason is not FinishReason.STOP:
            raise WrongState(f"The score was not computed: {finished.reason.value}. {finished.detail}", reason="SCORE_FAILED")


def _resolve(args: InferArgs, context: Context, model: Model) -> Sampling:
    """Sampling with its seed, and with the tokens that end the output."""
    assert model.spec is not None, "inspected before"
    ends = () if args.ignore_eos else model.spec.eos_token_ids
    stops = tuple(dict.fromkeys((*args.sampling.stop_token_ids, *ends)))
    return msgspec.structs.replace(args.sampling, seed=args.sampling.seed if args.has_seed else context.seed, stop_token_ids=stops)


def admit_record(request: Request, tokens: tuple[int, ...]) -> Admit:
    """How a request stands in the journal."""
    return Admit(
        context_id=bytes.fromhex(request.context.id),
        request=bytes.fromhex(request.id),
        tokens=pack_tokens(tokens),
        sampling=request.sampling,
        stop=request.args.stop,
        max_tokens=request.max_tokens,
        ignore_eos=request.args.ignore_eos,
        deadline_at=request.deadline or 0.0,
        arrived_at=request.arrival,
        output_start=request.output_start,
        detach_grace_s=request.detach_grace_s,
    )


def _check_idle(context: Context) -> None:
    if context.is_active:
        raise WrongState("A request is running on this context; wait for it, cancel it, or fork.", reason="CONTEXT_BUSY")
    if context.state is ContextState.SUSPENDED:
        raise WrongState("The context is suspended; resume it first.", reason="CONTEXT_SUSPENDED")
    if not context.is_alive:
        raise (
            NotFound("context", context.id)
            if context.state is ContextState.FREED
            else WrongState(f"The context has failed: {context.failure}")
        )
