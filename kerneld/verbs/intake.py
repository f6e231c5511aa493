"""Intake: from the arguments of a call to a request that waits.

Whoever computes comes in here, in this order: form, right, state, length, room, limits, disk. Only then it is journaled, and from then
on it is a promise that outlives this process.
"""

from __future__ import annotations

import asyncio
import secrets

import msgspec

from drivers.contract import Sampling
from kerneld.admission import Demand
from kerneld.bounds import check_tokens
from kerneld.calls import Caller, ChatInput, ContextState, Durability, InferArgs, InferInput, TextInput, TokenInput
from kerneld.catalog import Registered
from kerneld.context import Context
from kerneld.deviceparts import DeviceParts
from kerneld.errors import Draining, InvalidArgument, NotFound, OutOfRange, QuotaExceeded, WrongState
from kerneld.events import QuotaRefused, RequestArrived, RequestDeferred
from kerneld.machine import Machine
from kerneld.remedies import Needer, remedies_of
from kerneld.request import Place, Request
from kerneld.state.journal import RECORD_BYTES, TOKEN_BYTES
from kerneld.state.records import Admit, pack_tokens
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript
from memory.errors import NeverFits

PREFIX_TOKENS = 8  # of the past that a detokenizer looks at


class Intake:
    """Takes requests in."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def check_open(self) -> None:
        """Whether new requests are taken at all. Raises: Draining."""
        if self._machine.is_draining:
            raise Draining("The daemon is draining and takes no new requests.", retry_after_s=1.0)

    async def model_of(self, context: Context) -> Registered:
        """The context's model, of which drivers have told. Raises: NotFound, WrongState, Unavailable."""
        machine = self._machine
        model = machine.models.get(context.model)
        if machine.models.weights_of(context.models) != context.fingerprint:
            names = " or ".join(map(repr, context.models))
            raise WrongState(f"The files of model {names} have changed since this context began; make a new one.", reason="MODEL_CHANGED")
        await machine.placer.know(context.models, context)
        return model

    async def check_draft(self, args: InferArgs, model: Registered) -> None:
        """Whether the model that is to guess speaks of the same tokens. Raises: InvalidArgument, NotFound."""
        if not args.draft_model:
            return
        if not args.sampling.draft_tokens:
            raise InvalidArgument("sampling.draft_model", "guesses nothing without draft_tokens; 4 is a good number to begin with.")
        drafter = self._machine.models.get(args.draft_model)
        await self._machine.placer.know((drafter.name,))
        drafted, spec = drafter.known.spec, model.known.spec
        assert drafted is not None, "known now"
        assert spec is not None, "inspected before"
        if drafter.base or drafter.name == model.name:
            raise InvalidArgument("sampling.draft_model", f"{drafter.name!r} cannot guess for {model.name!r}; take a smaller model.")
        if drafted.vocab_size != spec.vocab_size:
            raise InvalidArgument(
                "sampling.draft_model",
                f"{drafter.name!r} knows {drafted.vocab_size} tokens and {model.name!r} {spec.vocab_size}; "
                "a model that guesses has the same vocabulary.",
            )

    def check_drafter_there(self, context: Context, name: str) -> None:
        """Whether the model that is to guess is where the context is. Raises: WrongState."""
        device = self._machine.devices.of(context)
        if name and not device.models.get(name).is_resident:
            where, how = device.label or "the device", f" --device {device.label}" if device.label else ""
            raise WrongState(
                f"The model {name!r} is not on {where}; load it first (`kernelctl model load{how}`), and pin it so that it stays.",
                reason="MODEL_NOT_LOADED",
            )

    async def tokenize(self, context: Context, model: Registered, given: InferInput) -> tuple[int, ...]:
        """The tokens of an input. Raises: InvalidArgument."""
        if given is None:
            return ()
        if isinstance(given, TokenInput):
            spec = model.known.spec
            assert spec is not None, "inspected before"
            check_tokens("input.tokens", given.tokens, spec.vocab_size)
            return given.tokens
        if model.tokenizer is None:
            raise InvalidArgument("input", f"the model {model.name!r} has no tokenizer; give token ids.")
        text = given.text if isinstance(given, TextInput) else await self._render(context, model, given)
        opens = isinstance(given, TextInput) and not context.num_tokens
        return tuple(await asyncio.to_thread(model.tokenizer.encode, text, opens))

    async def _render(self, context: Context, model: Registered, given: ChatInput) -> str:
        if model.template is None:
            raise InvalidArgument("input.messages", f"the model {model.name!r} has no chat template; give text.")
        return await self._machine.renderer.render(model.template, given.messages, opens=not context.num_tokens)

    def check_length(self, context: Context, model: Registered, num_input: int, max_tokens: int) -> int:
        """How many tokens may be generated. Raises: OutOfRange, if the input leaves no room."""
        limit = min(context.max_tokens or model.context_limit(), model.context_limit())
        room = limit - context.num_tokens - num_input
        if room < min(max_tokens, 1):
            raise OutOfRange(
                f"The context has {context.num_tokens} tokens and holds {limit}; an input of {num_input} leaves no room to generate.",
                facts={"num_tokens": str(context.num_tokens), "num_input": str(num_input), "max_tokens": str(limit)},
            )
        return min(max_tokens, room)

    def place(self, context: Context, num_more: int) -> None:
        """Choose the device on which the context runs, where all of it fits with so many more tokens. Raises: NeverFits; Unavailable."""

        def staying(device: DeviceParts) -> set[str]:
            return device.models.pinned().union(context.models)

        machine = self._machine
        try:
            machine.placer.place(context, context.num_tokens + num_more, staying)
        except NeverFits as error:
            error.advise(remedies_of(machine.devices.of(context), error, Needer.of(context)))
            raise
        machine.devices.of(context).residency.presence.check()

    def check_limits(self, context: Context, num_input: int) -> None:
        """Whether the tenant may have another request now. Raises: QueueFull, QuotaExceeded."""
        try:
            self._machine.admission.check_request(context.tenant, self._demand(context, num_input))
        except QuotaExceeded as error:
            facts = error.facts
            self._machine.events.publish(QuotaRefused(context.tenant, facts.get("limit", ""), facts.get("holder", "")))
            raise

    def _demand(self, context: Context, num_input: int) -> Demand:
        """What a request takes of its tenant's rates; a load is its own if nobody else has asked for that model."""
        device = self._machine.devices.of(context)
        return Demand(num_input, sum(device.residency.would_load(device.models.get(name), context.tenant) for name in context.models))

    def make(
        self, context: Context, args: InferArgs, sampling: Sampling, tokens: tuple[int, ...], max_tokens: int, *, score_from: int = -1
    ) -> Request:
        """A request that nobody knows of yet; `tokens` are its input."""
        machine, now = self._machine, self._machine.clock()
        start = context.num_tokens + (len(tokens) if score_from < 0 else 0)
        grace_s = machine.config.kerneld.detach_grace_s if args.detach_grace_s is None else args.detach_grace_s
        log = OutputLog(start, machine.clock, is_held=context.durability is Durability.FSYNC)
        tokenizer = machine.models.get(context.model).tokenizer if score_from < 0 else None
        return Request(
            id=secrets.token_hex(16),
            context=context,
            args=args,
            sampling=sampling,
            num_input=len(tokens),
            output_start=start,
            max_tokens=max_tokens,
            arrival=now,
            log=log,
            transcript=Transcript(log, tokenizer, args.stop, (*context.tokens[-PREFIX_TOKENS:], *tokens)[-PREFIX_TOKENS:]),
            deadline=now + args.deadline_s if args.deadline_s else None,
            queue_until=now + args.max_queue_s if args.max_queue_s else None,
            detach_grace_s=grace_s,
            score_from=score_from,
            queued_at=now,
        )

    def take(self, request: Request) -> Demand:
        """Use up what the request takes of its tenant's rates; soft ones hold it back, or the loads that begin for it."""
        machine, context = self._machine, request.context
        demand = self._demand(context, request.num_input)
        held_back = machine.admission.take_request(context.tenant, demand)
        if held_back.request_s:
            machine.scheduler.defer(request, request.arrival + held_back.request_s)
            machine.events.publish(RequestDeferred(request.id, context.tenant, held_back.request_s))
            machine.books.note(request)
            asyncio.get_running_loop().call_later(held_back.request_s, self._join, request.id)
        device = machine.devices.of(context)
        for model in [device.models.get(name) for name in context.models]:
            if device.residency.would_load(model, context.tenant):
                device.residency.hold_back(model, context.tenant, held_back.load_s)
        return demand

    def _join(self, request_id: str) -> None:
        """The rate has room for a request that was held back, whatever the Unix clock was set to meanwhile."""
        scheduler, now = self._machine.scheduler, self._machine.clock()
        request = self._machine.requests.get(request_id)
        if request is not None and request.place is Place.DEFERRED:
            scheduler.defer(request, now)
        if scheduler.undefer(now):
            self._machine.arrived()

    def journal(self, caller: Caller, request: Request, tokens: tuple[int, ...]) -> None:
        """Make the request a promise; what it took of its tenant's rates is in the same write. Raises: DiskFull; then nothing happened."""
        demand = self.take(request)
        try:
            self._journal(caller, request, tokens)
        except BaseException:
            self._machine.admission.give_back(request.tenant, demand)
            self._machine.books.forget(request)
            raise

    def _journal(self, caller: Caller, request: Request, tokens: tuple[int, ...]) -> None:
        context, machine = request.context, self._machine
        answer = bytes.fromhex(context.id) + bytes.fromhex(request.id) + request.output_start.to_bytes(8, "big")
        effects = machine.effects.record(caller, "infer", answer)
        if context.durability is Durability.NONE:
            machine.effects.keep(effects)
            return
        machine.disk.check()
        record = admit_record(request, tokens)
        num_bytes = RECORD_BYTES + len(record.tokens) + sum(len(stop) * 4 for stop in record.stop) + request.max_tokens * TOKEN_BYTES
        machine.journal.reserve(num_bytes)
        try:
            machine.books.append([record, *effects])
        except BaseException:
            machine.journal.release(num_bytes)
            raise
        machine.effects.keep(effects)
        request.reserved_bytes = num_bytes

    def enqueue(self, request: Request) -> None:
        """Let a request wait for its turn, and for its model: a load that failed meanwhile is tried again, and ends it if that fails."""
        machine, context = self._machine, request.context
        device = machine.devices.of(context)
        for name in context.models:
            device.residency.start(device.models.get(name))
        context.move(ContextState.READY)
        context.active_request, context.last_used_at = request.id, request.arrival
        machine.last_logs.forget(context.id)
        machine.know_request(request)
        machine.scheduler.enqueue(request)
        machine.events.publish(_arrived(request))
        device.idle_slabs.wake()
        device.dispatcher.arrived()


def resolve(args: InferArgs, context: Context, model: Registered) -> Sampling:
    """Sampling with its seed, and with the tokens that end the output."""
    spec = model.known.spec
    assert spec is not None, "inspected before"
    ends = () if args.ignore_eos else spec.eos_token_ids
    stops = tuple(dict.fromkeys((*args.sampling.stop_token_ids, *ends)))
    return msgspec.structs.replace(args.sampling, seed=args.sampling.seed if args.has_seed else context.seed, stop_token_ids=stops)


def _arrived(request: Request) -> RequestArrived:
    return RequestArrived(
        request=request.id,
        context=request.context.id,
        tenant=request.tenant,
        input_tokens=request.num_input,
        max_tokens=request.max_tokens,
        priority=request.priority,
        nice=request.context.nice,
        deadline_s=request.deadline - request.arrival if request.deadline is not None else 0.0,
    )


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
        num_input=request.num_input,
        queue_until=request.queue_until or 0.0,
        draft_model=request.args.draft_model,
    )


def check_idle(context: Context) -> None:
    """Whether a request may begin on a context. Raises: WrongState, NotFound."""
    if context.is_active:
        raise WrongState("A request is running on this context; wait for it, cancel it, or fork.", reason="CONTEXT_BUSY")
    if context.state is ContextState.SUSPENDED:
        raise WrongState("The context is suspended; resume it first (`kernelctl ctx resume`).", reason="CONTEXT_SUSPENDED")
    if not context.is_alive:
        raise (
            NotFound("context", context.id)
            if context.state is ContextState.FREED
            else WrongState(f"The context has failed: {context.failure}")
        )
