"""Delivery: what becomes of a request's life and output, in the order that keeps the promises: journal first, then readers.

    step result --> accounts --> journal, and what changed of the books with it --> context.tokens --> transcript --> output log --> readers
                                                                                                                  |
                               durability `fsync`: the log shows its new end only after the next sync ------------+

Every change of a request's state passes here, so the scheduler's queues, the context's state, the journal and the readers agree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from drivers.contract import RowResult, StepResult, TokenLogprob
from kerneld.bookkeeping import Bookkeeping
from kerneld.calls import ContextState, Durability, Finished, FinishReason
from kerneld.errors import KernelError
from kerneld.eventbus import EventBus
from kerneld.events import FirstTokenSampled, RequestAdmitted, RequestFinished, RequestPreempted, RequestQuarantined
from kerneld.request import Request
from kerneld.rows import Flight, Row
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.state.journal import Journal
from kerneld.state.records import Finish, Tokens, pack_tokens
from kerneld.sync_gate import SyncGate

logger = logging.getLogger(__name__)

CRASHES_BEFORE_ALONE = 2
CRASHES_BEFORE_QUARANTINE = 3


class Ending(NamedTuple):
    """A row that has to leave, and why."""

    row: Row
    reason: FinishReason
    detail: str = ""


class Delivery:
    """Moves requests through their lives."""

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        seating: Seating,
        events: EventBus,
        clock: Callable[[], float],
        *,
        books: Bookkeeping | None = None,
    ) -> None:
        """`books`: those of a machine, where there is more than this scheduler."""
        self.books = books or Bookkeeping(journal, scheduler)
        self._scheduler = scheduler
        self._seating = seating
        self._events = events
        self._clock = clock
        self._gate = SyncGate(journal)
        self.on_finished: Callable[[Request], None] = lambda _request: None
        self.on_unsynced: Callable[[Request, FinishReason, str], None] = self.settle

    async def close(self) -> None:
        """Wait for what waits for the disk."""
        await self._gate.close()

    # ------------------------------------------------------------------------------------------------------------------- running or not

    def seated(self, request: Request, num_cached: int) -> None:
        """A request got a row, if there are pages for it."""
        if not request.is_charged:
            request.num_cached = min(num_cached, request.output_start)
        if not request.is_interrupted:
            self.books.note(request)
        self._scheduler.admit(request, num_cached)
        if request.context.state is ContextState.BLOCKED:
            request.context.move(ContextState.READY)
        request.context.move(ContextState.RUNNING)

    def turn_back(self, request: Request) -> None:
        """There were no pages for it: it waits on, before anybody who is picked later."""
        self._scheduler.interrupt(request)
        request.context.move(ContextState.BLOCKED)

    def started(self, request: Request) -> None:
        """The plan that seats a request goes out: it waits no more."""
        now = self._clock()
        request.queue_s += now - request.queued_at
        request.admitted_at = now
        request.scores.clear()  # a row that scores begins at its first token again
        self._events.publish(RequestAdmitted(request.id, request.tenant, request.queue_s, request.num_cached))

    def requeue(self, request: Request) -> None:
        """A request lost its row with its worker, or with a page that did not hold: it has it again before anybody else is picked."""
        request.queued_at = self._clock()
        request.lost_row_for = "worker"
        self.turn_back(request)

    def preempted(self, request: Request, cause: str) -> None:
        """A request gave its row up for others, and waits again at its old place."""
        request.queued_at = self._clock()
        request.num_preemptions += 1
        request.num_since_admission = 0
        request.lost_row_for = cause
        self._scheduler.preempt(request)
        self.books.note(request)
        request.context.move(ContextState.BLOCKED)
        self._events.publish(RequestPreempted(request.id, request.tenant, cause))

    def note_crash(self, request: Request) -> None:
        """A request was aboard a worker that died: after the second time it is tried alone, after the third it is quarantined."""
        request.num_crashes += 1
        if request.num_crashes >= CRASHES_BEFORE_QUARANTINE:
            self._events.publish(RequestQuarantined(request.id, request.context.id, request.tenant, request.num_crashes))
            self.settle(request, FinishReason.ERROR, "Quarantined: the request was aboard every one of three workers that died.")
        elif request.num_crashes == CRASHES_BEFORE_ALONE:
            self._scheduler.suspect(request)

    # ------------------------------------------------------------------------------------------------------------------- output

    def deliver(self, flight: Flight, result: StepResult) -> list[Ending]:
        """Make the tokens of a step durable, show them, and say which rows have ended."""
        rows = ((flight.parts[item.slot].row, item) for item in result.rows)
        heard = [(row, item if len(item.tokens) < 2 else _until_stop(row, item)) for row, item in rows if not row.is_over]
        self._charge(heard)
        unwritten = self._write(heard)
        lost = {id(ending.row) for ending in unwritten}
        heard = [(row, item) for row, item in heard if id(row) not in lost]
        for row, item in heard:
            context = row.request.context
            context.tokens.extend(item.tokens)
            self._seating.note_valid(context, min(row.position, context.num_tokens))
        return unwritten + [ending for row, item in heard for ending in self._show(row, item, result.compute_s)]

    def _charge(self, heard: list[tuple[Row, RowResult]]) -> None:
        """Charge what the step generated, so that it goes to the journal together with the tokens."""
        generated = [(row.request, len(item.tokens)) for row, item in heard if item.tokens and not item.error and row.score_from < 0]
        for request, num_tokens in generated:
            request.num_since_admission += num_tokens
        self._scheduler.charge_outputs(generated)
        for row, item in heard:
            if item.num_drafted:
                row.request.num_drafted += item.num_drafted
                row.request.num_draft_kept += item.num_drafted - item.num_rejected
                self._scheduler.charging.drafts(row.request, item.num_rejected)

    def _write(self, heard: list[tuple[Row, RowResult]]) -> list[Ending]:
        """Journal the tokens of a step, all rows in one record. Where that fails nobody has seen them, and nobody will: those rows end."""
        rows = [(row, item) for row, item in heard if item.tokens and row.request.context.durability is not Durability.NONE]
        if not rows:
            return []
        try:
            self.books.append([Tokens(tuple((bytes.fromhex(row.request.context.id), pack_tokens(item.tokens)) for row, item in rows))])
        except KernelError as error:
            logger.error("tokens could not be journaled; their requests end", extra={"num_requests": len(rows), "error": error.message})
            return [Ending(row, FinishReason.ERROR, error.message) for row, _item in rows]
        return []

    def _show(self, row: Row, item: RowResult, compute_s: float) -> Iterator[Ending]:
        request = row.request
        request.compute_s += compute_s
        if item.error:
            yield Ending(row, FinishReason.ERROR, item.error)
            return
        if row.score_from >= 0:
            request.scores.extend(item.logprobs)
            if row.position >= row.total:
                yield Ending(row, FinishReason.STOP)
            return
        if not item.tokens:
            return
        self._acquit(request)
        reason = self._transcribe(request, item)
        if request.first_token_at is None:
            request.first_token_at = self._clock()
            self._events.publish(FirstTokenSampled(request.id, request.tenant, request.first_token_at - request.arrival))
        if request.context.durability is Durability.FSYNC:
            self._show_after_sync(request)
        if reason is not None:
            yield Ending(row, reason)

    def _acquit(self, request: Request) -> None:
        """A request that was tried alone and lives is not what killed the workers."""
        if request.is_alone:
            request.num_crashes = 0
            self._scheduler.acquit(request)

    def _transcribe(self, request: Request, item: RowResult) -> FinishReason | None:
        logprobs: tuple[TokenLogprob | None, ...] = item.logprobs or (None,) * len(item.tokens)
        for token, logprob in zip(item.tokens, logprobs, strict=True):
            if item.is_stopped and token == item.tokens[-1]:
                request.transcript.push_end(token, logprob)
                return FinishReason.STOP
            if request.transcript.push(token, logprob):
                return FinishReason.STOP
        return request.length_reason()

    # ------------------------------------------------------------------------------------------------------------------- the end

    def settle(self, request: Request, reason: FinishReason, detail: str = "") -> None:
        """End a request that has no row (any more): accounts, journal, context, readers, in this order."""
        if request.is_finished:
            return
        context, now = request.context, self._clock()
        if request.ticket:
            request.queue_s += now - request.queued_at
        self._scheduler.finish(request, reason)
        self.books.forget(request)
        usage = request.usage()
        finished = context.last_finished = Finished(reason, usage, detail)
        self._write_end(request, finished, now)
        if context.is_active:
            context.move(ContextState.IDLE)
        context.active_request, context.last_request, context.last_used_at = "", request.id, now
        request.transcript.close()
        if context.durability is Durability.FSYNC:
            self._show_after_sync(request, finished)
        else:
            request.log.finish(finished)
        self._events.publish(
            RequestFinished(
                request=request.id,
                context=context.id,
                tenant=request.tenant,
                reason=reason,
                input_tokens=usage.input_tokens,
                cached_tokens=usage.cached_tokens,
                output_tokens=usage.output_tokens,
                queue_s=usage.queue_s,
                total_s=now - request.arrival,
            )
        )
        self.on_finished(request)

    def _write_end(self, request: Request, finished: Finished, now: float) -> None:
        """Journal the end of a request. If that cannot be, it ends all the same; a restart before the disk is well would let it go on."""
        context = request.context
        if context.durability is Durability.NONE:
            return
        end = Finish(bytes.fromhex(context.id), bytes.fromhex(request.id), finished.reason, finished.usage, finished.detail, now)
        if not self.books.append_or_owe(end):
            logger.error("the end of a request could not be journaled yet", extra={"request": request.id})

    def _show_after_sync(self, request: Request, finished: Finished | None = None) -> None:
        """Show what is written of a request, and its end, once the disk has it; if that fails, it ends without showing more."""
        log, num_tokens = request.log, request.log.num_written

        def show() -> None:
            log.release(num_tokens)
            if finished is not None:
                log.finish(finished)

        def give_up(error: KernelError) -> None:
            log.seal()
            if finished is not None:
                log.finish(Finished(FinishReason.ERROR, finished.usage, error.message))
            elif not request.is_finished:
                self.on_unsynced(request, FinishReason.ERROR, error.message)

        self._gate.after_sync(show, give_up)


def _until_stop(row: Row, item: RowResult) -> RowResult:
    """What a step sampled, without the tokens that follow a stop string: they are never journaled."""
    num_kept = row.request.transcript.num_kept(item.tokens)
    if num_kept == len(item.tokens):
        return item
    return msgspec.structs.replace(item, tokens=item.tokens[:num_kept], logprobs=item.logprobs[:num_kept], is_stopped=False)
