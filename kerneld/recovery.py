"""Recovery: what is true after a death, and what is rebuilt from it.

The front died (boot). The journal and the database are the truth:

    tenants  ->  models  ->  contexts  ->  the scheduler's books  ->  unfinished requests  ->  models load again

Requests that ran come first, in the order of their seats, then those that waited, in the order of their admission. The log is the history
of one scheduler up to some moment (`kerneld.bookkeeping`), so the next picks are those that would have followed it.

The worker died. Nothing of the truth was in it: the dispatcher has put its requests back in their queues, pages on the device are lost,
pages in the host tier are not. Models that were resident load again, and every context faults its pages in or recomputes them.

A request's output log is a function of its tokens and stop strings, so it is written again from them, and a reader that comes back finds
the same text at the same offsets (promise 2).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from kerneld.calls import ContextState, Durability, Finished, FinishReason, InferArgs
from kerneld.context import Context
from kerneld.errors import KernelError
from kerneld.events import ContextFailed
from kerneld.machine import Machine
from kerneld.models import file_stamp, hash_files
from kerneld.registering import model_from
from kerneld.request import Request, RequestState
from kerneld.state.contextrecord import ContextRecord
from kerneld.state.journal import RECORD_BYTES, TOKEN_BYTES
from kerneld.state.records import Admit, Finish, Free, Standing
from kerneld.state.replay import EFFECT_LIFETIME_S, LogState
from kerneld.state.tables import ModelRow
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript
from kerneld.verbs.intake import PREFIX_TOKENS

logger = logging.getLogger(__name__)


async def recover(machine: Machine, state: LogState) -> tuple[int, int]:
    """Make the machine what it was when the last front died. Returns the numbers of contexts and of unfinished requests."""
    for tenant in await machine.store.load_tenants():
        machine.know_tenant(tenant)
    for group in await machine.store.load_groups():
        machine.tenants.groups.put(group)
    wanted = await _recover_models(machine)
    machine.effects.restore([*state.effects.values(), *await machine.store.load_effects(machine.clock() - EFFECT_LIFETIME_S)])
    for record in state.contexts.values():
        _recover_context(machine, record)
    machine.scheduler.restore(state.accounts)  # a restart is no amnesty
    machine.admission.restore(state.accounts)
    for device in machine.devices:
        device.residency.debts.restore(state.accounts, machine.tenants.__contains__)
    machine.usage.restore(await machine.store.usage.load())
    requests = _recover_requests(machine, state, wanted)
    await _collect_images(machine)
    machine.is_recovered = True
    for device in machine.devices:
        needed = {name for request in requests if machine.devices.of(request.context) is device for name in request.context.models}
        ahead = {name for name, homes in wanted.items() if device.name in homes} - needed
        for name in [*sorted(needed), *sorted(ahead, key=lambda name: (not machine.models.get(name).is_pinned, name))]:
            device.residency.bring_back(device.models.get(name), is_ahead=name not in needed)
    return len(machine.contexts), len(requests)


async def _collect_images(machine: Machine) -> None:
    """Remove what a checkpoint or a deletion that was cut short left behind."""
    known = {image.id for image in await machine.store.load_images()}
    for image_id in await asyncio.to_thread(machine.images.list_ids):
        if image_id not in known:
            await asyncio.to_thread(machine.images.delete, image_id)
    await asyncio.to_thread(machine.images.collect)


async def _recover_models(machine: Machine) -> dict[str, tuple[str, ...]]:
    """Make registered models known, as far as their files can be read; returns those that are to be loaded again, and on which devices."""
    wanted: dict[str, tuple[str, ...]] = {}
    for row in sorted(await machine.store.load_models(), key=lambda row: bool(row.base)):  # an adapter is of a model that is known
        try:
            weights_hash = await asyncio.to_thread(_current_hash, row)
            base = machine.models.get(row.base) if row.base else None
            model = machine.models.made(await asyncio.to_thread(model_from, row, weights_hash, base))
        except (OSError, KernelError) as error:
            logger.error("a registered model cannot be read any more", extra={"model": row.name, "path": row.path, "error": str(error)})
            continue
        machine.models.add(model)
        if row.want_loaded:
            wanted[model.name] = machine.placer.homes(row.devices)
    return wanted


def _current_hash(row: ModelRow) -> str:
    """The hash of a model's files as they are now; unchanged files are not read again."""
    path = Path(row.path)
    return row.weights_hash if file_stamp(path) == row.file_stamp else hash_files(path)


def _recover_context(machine: Machine, record: ContextRecord) -> None:
    if record.tenant not in machine.tenants:  # it was removed while somebody still began something in it
        machine.journal.append([Free(record.context_id)])
        return
    context = Context(
        id=record.context_id.hex(),
        owner=record.owner,
        tenant=record.tenant,
        model=record.model,
        fingerprint=record.fingerprint,
        seed=record.seed,
        created_at=record.created_at,
        durability=record.durability,
        parent=record.parent.hex(),
        adapter=record.adapter,
        sharing_group=record.sharing_group if record.sharing_group in machine.tenants.groups else "",
        max_tokens=record.max_tokens,
        priority=record.priority,
        nice=record.nice,
        labels=dict(record.labels),
        grants=dict(record.grants),
        tokens=record.tokens,
        last_used_at=record.last_used_at,
        last_request=record.last_request.hex(),
        last_finished=_finished(record.last_finish),
        pinned_tokens=record.pinned_tokens,
    )
    missing = next((name for name in context.models if name not in machine.models), "")
    if record.failure or missing:
        context.move(ContextState.FAILED, record.failure or f"The model {missing!r} is not registered any more.")
        machine.events.publish(ContextFailed(context.id, context.tenant, context.failure))
    else:
        context.move(ContextState.IDLE)
        if record.is_suspended:
            context.move(ContextState.SUSPENDED)
    machine.contexts.add(context)
    last, finished = record.last_admit, context.last_finished
    if context.is_alive and last is not None and finished is not None:
        machine.last_logs.keep_writer(context.id, lambda: _finished_request(machine, context, last, finished))


def _finished(finish: Finish | None) -> Finished | None:
    return None if finish is None else Finished(finish.reason, finish.usage, finish.detail)


def _recover_requests(machine: Machine, state: LogState, wanted: Mapping[str, tuple[str, ...]]) -> list[Request]:
    """Let unfinished requests stand with the scheduler as they stood. Returns them.

    One whose last token was journaled, and its end was not, ends when all the others are in the accounts again: it may have kept somebody
    at a limit, who wakes up among them.
    """
    unfinished: list[Request] = []
    over: list[tuple[Request, FinishReason, str]] = []
    for context_id, standing in standings_of(state):
        context, admit = machine.contexts.find(context_id.hex()), state.contexts[context_id].active
        if context is None or admit is None:
            continue
        machine.placer.recovered(context, wanted.get(context.model, ()))
        request = _request_of(machine, context, admit)
        stand_again(request, standing)
        reason, detail = _begin_again(machine, request)
        machine.scheduler.recover(request, standing is not None and standing.is_running)
        if reason is not None:
            over.append((request, reason, detail))
            continue
        _reserve_again(machine, request)
        unfinished.append(request)
    machine.scheduler.settle(unfinished)
    machine.scheduler.undefer(machine.clock())
    for request, reason, detail in over:
        machine.devices.of(request.context).delivery.settle(request, reason, detail)
    return unfinished


def standings_of(state: LogState) -> list[tuple[bytes, Standing | None]]:
    """The contexts with an unfinished request, and how it stood: those that ran, in the order of their seats, then those that waited, in
    the order of their admission; None: nothing had become of it yet.
    """
    standings = {standing.context_id: standing for standing in state.standings}
    ran = [context_id for context_id, standing in standings.items() if standing.is_running]
    return [(context_id, standings.get(context_id)) for context_id in dict.fromkeys((*ran, *state.active))]


def stand_again(request: Request, standing: Standing | None) -> None:
    """Let an unfinished request have paid for what it had paid for."""
    if standing is None:
        return
    request.defer_until = standing.defer_until
    request.num_since_admission = standing.num_served
    if standing.is_charged:
        request.is_charged, request.tariff = True, standing.tariff
        request.num_cached, request.num_prepaid, request.num_charged = standing.num_cached, standing.num_prepaid, request.num_generated


def _begin_again(machine: Machine, request: Request) -> tuple[FinishReason | None, str]:
    """Make a request its context's active one, with the output that it had; says how it ended, if it has."""
    context = request.context
    context.active_request = request.id
    machine.know_request(request)
    if not context.is_alive:
        return FinishReason.ERROR, context.failure
    context.move(ContextState.READY)
    reason = _write_again(request)
    request.log.release(request.log.num_written)  # the disk had them
    return reason, ""


def _finished_request(machine: Machine, context: Context, admit: Admit, finished: Finished) -> Request:
    """A request that finished before this daemon began, with the output that its readers saw."""
    request = _request_of(machine, context, admit)
    _write_again(request)
    request.transcript.close()
    request.log.release(request.log.num_written)
    request.log.finish(finished)
    request.state = RequestState.FINISHED
    return request


def _reserve_again(machine: Machine, request: Request) -> None:
    """Take room in the journal for what is still to come. On a disk that is full now, the request goes on as long as there is some."""
    num_bytes = RECORD_BYTES + request.num_remaining * TOKEN_BYTES
    try:
        machine.journal.reserve(num_bytes)
    except KernelError as error:
        logger.warning("no room for the rest of a request", extra={"request": request.id, "error": error.message})
        return
    request.reserved_bytes = num_bytes


def _request_of(machine: Machine, context: Context, admit: Admit) -> Request:
    log = OutputLog(admit.output_start, machine.clock, is_held=context.durability is Durability.FSYNC)
    tokenizer = machine.models.get(context.model).tokenizer if context.is_alive else None
    past = context.tokens[max(admit.output_start - PREFIX_TOKENS, 0) : admit.output_start].tolist()
    args = InferArgs(context.id, None, admit.max_tokens, admit.sampling, True, admit.stop, admit.ignore_eos, draft_model=admit.draft_model)
    return Request(
        id=admit.request.hex(),
        context=context,
        args=args,
        sampling=admit.sampling,
        num_input=admit.num_input,
        output_start=admit.output_start,
        max_tokens=admit.max_tokens,
        arrival=admit.arrived_at,
        log=log,
        transcript=Transcript(log, tokenizer, admit.stop, past),
        deadline=admit.deadline_at or None,
        detach_grace_s=admit.detach_grace_s,
        queue_until=admit.queue_until or None,
        queued_at=machine.clock(),
    )


def _write_again(request: Request) -> FinishReason | None:
    """Write the output log again from the journaled tokens; says how the request ended if its end was not journaled any more."""
    for token in request.context.tokens[request.output_start :]:
        if token in request.sampling.stop_token_ids:
            request.transcript.push_end(token)
            return FinishReason.STOP
        if request.transcript.push(token):
            return FinishReason.STOP
    return request.length_reason()
