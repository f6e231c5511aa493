"""Dispatcher: the only loop of the device. It sends plans, and hears what came of them.

                     enqueue                              submit (MAX_FLIGHTS outstanding at most)
    kernel verbs  ------------>  scheduler  -- next --> composer ------------------------------>  device
         ^                          ^                     |  ^                                      |
         |                          +------ requeue ------+  +------------ on_step ----------------+
         +------ output log <---- delivery <--------------------------- (journal first)

`pump` is the loop's turn: called whenever something may have become possible (an arrival, a step, room, a device), it sends as many
plans as it may. It never waits, and it is not re-entered.

Invariants
1. At most MAX_FLIGHTS plans are outstanding; they end in order, and `pager.commit` or `pager.abort` settles each of them once.
2. Pages make room for weights only while a plan on its way wants the pages of all seated rows, or nobody is seated.
3. A request leaves its row before it ends or waits again; what the device still says of that row is not heard.
4. An error that nobody expected in a turn costs the device, never a request: everything is rebuilt as after a worker's death.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from drivers.client import Device
from drivers.contract import Plan, RowRun, StepResult
from drivers.wire import NO_STEP, PlanFailed
from kerneld.calls import FinishReason
from kerneld.composer import Composed, Composer
from kerneld.deadline import StepDeadline
from kerneld.delivery import Delivery
from kerneld.request import Request
from kerneld.rows import Flight, Row
from kerneld.weights.rooms import Rooms, RoomWanted
from memory.page import Move, Tier
from memory.pager import Pager

logger = logging.getLogger(__name__)

MAX_FLIGHTS = 2


class Dispatcher:
    """Runs the requests of one device."""

    def __init__(self, pager: Pager, composer: Composer, delivery: Delivery, deadline: StepDeadline) -> None:
        self._pager = pager
        self.composer = composer
        self._seats = composer.seats
        self._delivery = delivery
        self.deadline = deadline
        self._device: Device | None = None
        self._boot_generation = self._abort_count = self._seq = 0
        self._flights: deque[Flight] = deque()
        self._told: set[int] = set()  # row slots that the device has seated, by the plans that have ended
        self._rooms = Rooms(pager)
        self._landing: asyncio.Future[None] | None = None
        self._landed_seq, self._is_pumping, self.is_held_up = 0, False, False  # held up: slabs that were given back are on their way
        self.on_crash: Callable[[str], None] = lambda _reason: None
        self.on_model_failed: Callable[[int, str], None] = lambda _model_id, _reason: None
        self.on_progress: Callable[[int, int, float], None] = lambda _prefill, _output, _compute_s: None
        self.on_result: Callable[[Flight, int, bool, StepResult], None] = lambda _flight, _step_idx, _is_last, _result: None
        self.on_landed: Callable[[Flight], None] = lambda _flight: None
        self.on_corrupt: Callable[[Sequence[Move], Sequence[Row]], None] = lambda _moves, _rows: None

    @property
    def is_idle(self) -> bool:
        """Whether no plan is on its way."""
        return not self._flights

    @property
    def _last_on_way(self) -> int:
        """Number of the last plan on its way, 0 if there is none."""
        return self._flights[-1].seq if self._flights else 0

    # --------------------------------------------------------------------------------------------------------- the device comes and goes

    def attach(self, device: Device, boot_generation: int) -> None:
        """Run on this device from now on."""
        self._device, self._boot_generation, self._abort_count = device, boot_generation, 0
        self.deadline.on_hung = device.kill
        device.attach(self)

    def on_lost(self, reason: str) -> None:
        """The device is gone: every plan is void, every running request waits again, and the pages on the device are lost."""
        self._device = None
        aboard = {part.row.request.id for flight in self._flights for part in flight.parts.values()}
        rows = self._void_flights()
        self._pager.lose_device()
        for row in rows:
            if row.request.id in aboard:
                self._delivery.note_crash(row.request)
        self._told.clear()
        self._seats.reset()
        self._rooms.give_up()
        self.on_crash(reason)

    def on_plan_failed(self, failed: PlanFailed) -> None:
        """Pages of the host tier were corrupt: forget those, void what is on its way, and seat everybody again."""
        with self._surviving():
            flight = next(flight for flight in self._flights if flight.seq == failed.plan_seq)
            bad = tuple(flight.moves[idx] for idx in failed.bad_move_idxs)
            self.on_corrupt(bad, self._seats.rows)
            self._void_flights()
            self._abort_count = failed.abort_count
            self._pager.corrupt(bad)
            self._seats.reset(told=self._told)
        self.pump()

    def _void_flights(self) -> list[Row]:
        """No plan on its way counts any more; everybody who ran is to be seated again, first of all. Returns the rows that ran."""
        self.deadline.stop()
        if self._flights:
            self._pager.abort(self._flights[0].seq)
        self._rooms.put_back([flight.room for flight in self._flights if flight.room is not None])
        self._flights.clear()
        self._tell_landing()
        rows = self._seats.rows
        for row in rows:
            self.unseat(row.request)
            self._delivery.requeue(row.request)
        self.composer.open_line()
        return rows

    # ------------------------------------------------------------------------------------------------------------- what the verbs call

    def unseat(self, request: Request) -> None:
        """Take a request off its row, if it has one; the caller then ends it or lets it wait. A long quantum is cut for it."""
        if self.composer.unseat(request) is not None:
            self._cut()

    def arrived(self) -> None:
        """Somebody waits: running quanta are cut short, and the plan behind gives way to one with somebody new in it."""
        self._cut(has_newcomer=len(self._flights) == MAX_FLIGHTS and self.composer.can_seat())
        self.pump()

    def room_made(self) -> None:
        """Pages or slabs were given up: whoever did not fit may fit now."""
        self.composer.open_line(self._last_on_way)
        self.pump()

    def make_room(self, sizes: tuple[int, ...], tier: Tier) -> asyncio.Future[None]:
        """Evict idle pages until weights of these sizes can be placed in a tier. The future raises OutOfFrames if that is not possible."""
        future = self._rooms.want(sizes, tier)
        self.pump()
        return future

    async def flush(self) -> None:
        """Wait until a plan that is composed from now on has ended, with the page copies that wait now; or until there is nothing to do."""
        wanted = self._seq + 1
        self.pump()
        while self._flights and self._landed_seq < wanted:
            if self._landing is None:
                self._landing = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._landing)

    def end(self, request: Request, reason: FinishReason, detail: str = "") -> None:
        """End a request wherever it is: running or waiting."""
        self.unseat(request)
        self._delivery.settle(request, reason, detail)
        self.room_made()

    def _cut(self, *, has_newcomer: bool = False) -> None:
        if self._device is None:
            return
        for flight in self._flights:
            if not flight.is_cut and (flight.num_steps > 1 or (has_newcomer and flight is not self._flights[0])):
                flight.is_cut = True
                self._device.cut(flight.seq, NO_STEP)

    # ------------------------------------------------------------------------------------------------------------------------ the loop

    def pump(self) -> None:
        """Send as many plans as possible."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            with self._surviving():
                while self._device is not None and not self.is_held_up and len(self._flights) < MAX_FLIGHTS and self._send_one():
                    pass
        finally:
            self._is_pumping = False

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """A turn of the loop (invariant 4)."""
        try:
            yield
        except Exception:
            logger.exception("a turn of the device's loop failed; its worker is replaced")
            if self._device is not None:
                self._device.kill("The front lost track of its plans.")

    def _send_one(self) -> bool:
        """Compose and send one plan. Returns False if there is nothing to do."""
        is_safe = not len(self._seats) or any(flight.room is None for flight in self._flights)
        if is_safe and self._rooms.is_next(self._landed_seq):
            return self._send_room()
        composed = self.composer.compose(self._seq + 1, self._last_on_way)
        if composed is None:
            return False
        self._submit(composed)
        return True

    def _submit(self, composed: Composed, room: RoomWanted | None = None) -> None:
        assert self._device is not None
        pages, clears, parts = composed
        starts, patches = self.composer.tell_rows()
        num_steps = max((part.num_samples for part in parts), default=1) or 1 if parts else 0
        plan = Plan(
            boot_generation=self._boot_generation,
            seq=pages.seq,
            abort_count=self._abort_count,
            zeros=pages.zeros,
            moves=pages.moves,
            late_zeros=pages.late_zeros,
            clears=clears,
            starts=starts,
            patches=patches,
            runs=tuple(RowRun(part.row.slot, part.num_first) for part in parts),
            num_steps=num_steps,
        )
        self._seq = pages.seq
        flight = Flight(pages.seq, num_steps, {part.row.slot: part for part in parts}, pages.moves, clears)
        flight.starts, flight.room, flight.evictions = tuple(start.slot for start in starts), room, pages.evictions
        self._flights.append(flight)
        for part in parts:
            part.depart()
        if len(self._flights) == 1:
            self._await(flight)
        self._seats.sent()
        self._device.submit(plan)

    def _send_room(self) -> bool:
        """Send a plan that only evicts (invariant 2)."""
        planned = self._rooms.plan(self._seq + 1, self._last_on_way)
        if planned is not None:
            self._submit(Composed(planned.pages, self._seats.take_clears(), []), planned.room)
        return True

    # ------------------------------------------------------------------------------------------------------------------ what comes back

    def on_step(self, plan_seq: int, step_idx: int, is_last: bool, result: StepResult) -> None:
        """A step is done: tokens go to the journal, then to their readers; rows that ended leave."""
        with self._surviving():
            flight = self._flights[0]
            assert flight.seq == plan_seq, "plans end in order"
            self.on_result(flight, step_idx, is_last, result)
            if step_idx != NO_STEP:
                self._advance(flight, step_idx, result)
                for row, reason, detail in self._delivery.deliver(flight, result):
                    self.unseat(row.request)
                    self._delivery.settle(row.request, reason, detail)
                    self.composer.row_ended(self._last_on_way)
            if is_last:
                self._land(flight)
            for model_id, failure in result.failed_models.items():  # not tried again; their rows have ended
                self.on_model_failed(model_id, failure)
        self.pump()

    def _advance(self, flight: Flight, step_idx: int, result: StepResult) -> None:
        self.deadline.step_done(result.num_tokens, result.compute_s)
        sampled = [item for item in result.rows if item.tokens]
        num_sampled, num_rejected = sum(len(item.tokens) for item in sampled), sum(item.num_rejected for item in sampled)
        # A row that samples for the first time has computed the last token of its input; any other one computed a token that it sampled.
        num_first = sum(flight.parts[item.slot].row.request.first_token_at is None for item in sampled)
        self.on_progress(result.num_tokens - num_rejected - num_sampled + num_first, num_sampled, result.compute_s)
        for item in result.rows:
            if not item.error:
                flight.parts[item.slot].step(step_idx, len(item.tokens))

    def _land(self, flight: Flight) -> None:
        """A plan has ended: its page moves are true."""
        self._flights.popleft()
        for part in flight.parts.values():
            part.arrive()
        self._told = (self._told - set(flight.clears)) | set(flight.starts)
        self._pager.commit(flight.seq)
        self._landed_seq = flight.seq
        self.composer.landed(flight.seq)
        self.on_landed(flight)
        self._tell_landing()
        if flight.room is not None and not flight.room.future.done():
            flight.room.future.set_result(None)
        if self._flights:
            self._await(self._flights[0])
        else:
            self.deadline.stop()

    def _await(self, flight: Flight) -> None:
        """A plan begins to run."""
        self.deadline.start(sum(part.num_computed for part in flight.parts.values()))

    def _tell_landing(self) -> None:
        if self._landing is not None and not self._landing.done():
            self._landing.set_result(None)
        self._landing = None
