"""Dispatcher: the only loop of the device. It seats requests, sends plans, and hears what came of them.

                     enqueue                              submit (MAX_FLIGHTS outstanding at most)
    kernel verbs  ------------>  scheduler  -- pick -->  seats -------------------------------->  device
         ^                          ^                     |  ^                                      |
         |                          +------ requeue ------+  +------------ on_step ----------------+
         +------ output log <---- delivery <--------------------------- (journal first)

`pump` is the loop's turn: called whenever something may have become possible (an arrival, a step, room, a device), it sends as many
plans as it may. It never waits, and it is not re-entered.

Invariants
1. At most MAX_FLIGHTS plans are outstanding; they end in order, and `pager.commit` or `pager.abort` settles each of them once.
2. Every plan wants the pages of every seated row, so no page that the device's tables name is ever moved away under them.
3. A request leaves its row before it ends or waits again; what the device still says of that row is not heard.
4. While the line is stopped (the next request did not fit) nobody is seated until pages were given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from drivers.client import Device
from drivers.contract import FramePatch, Plan, RowRun, RowStart, StepResult
from drivers.wire import NO_STEP, PlanFailed
from kerneld.calls import FinishReason
from kerneld.deadline import StepDeadline
from kerneld.delivery import Delivery
from kerneld.request import Request
from kerneld.rows import Flight, Part, Row
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.seats import Seats
from memory.errors import OutOfFrames, OverLimit
from memory.page import PagePlan
from memory.pager import Pager

logger = logging.getLogger(__name__)

MAX_FLIGHTS = 2


@dataclass(slots=True, eq=False)
class _Room:
    """Somebody waits for slabs."""

    sizes: tuple[int, ...]
    future: asyncio.Future[None]


class Dispatcher:
    """Runs the requests of one device."""

    def __init__(
        self, pager: Pager, scheduler: Scheduler, seating: Seating, delivery: Delivery, deadline: StepDeadline, max_rows: int
    ) -> None:
        self._pager = pager
        self._scheduler = scheduler
        self._seating = seating
        self._delivery = delivery
        self._deadline = deadline
        self._seats = Seats(max_rows)
        self._device: Device | None = None
        self._boot_generation = 0
        self._abort_count = 0
        self._seq = 0
        self._flights: deque[Flight] = deque()
        self._told: set[int] = set()  # row slots that the device has seated, by the plans that have ended
        self._rooms: deque[_Room] = deque()
        self._is_line_stopped = False
        self._is_pumping = False
        self._landing: asyncio.Future[None] | None = None
        self.landed_seq = 0
        self.on_crash: Callable[[str], None] = lambda _reason: None
        self.on_progress: Callable[[int, int, float], None] = lambda _prefill, _output, _compute_s: None

    @property
    def num_running(self) -> int:
        """Requests in row slots."""
        return len(self._seats)

    @property
    def is_idle(self) -> bool:
        """Whether no plan is on its way."""
        return not self._flights

    @property
    def last_seq(self) -> int:
        """Number of the plan that was sent last."""
        return self._seq

    def next_landing(self) -> asyncio.Future[None] | None:
        """A future that is done when the next plan has ended, or is void; None if none is on its way."""
        if not self._flights:
            return None
        if self._landing is None:
            self._landing = asyncio.get_running_loop().create_future()
        return self._landing

    # --------------------------------------------------------------------------------------------------------- the device comes and goes

    def attach(self, device: Device, boot_generation: int) -> None:
        """Run on this device from now on."""
        self._device, self._boot_generation, self._abort_count = device, boot_generation, 0
        self._deadline.on_hung = device.kill
        device.attach(self)

    def on_lost(self, reason: str) -> None:
        """The device is gone: every plan is void, every running request waits again, and the pages on the device are lost."""
        self._device = None
        self._deadline.stop()
        aboard = {part.row.request.id for flight in self._flights for part in flight.parts.values()}
        rows = self._void_flights()
        self._pager.lose_device()
        for row in rows:
            if row.request.id in aboard:
                self._delivery.note_crash(row.request)
        self._told.clear()
        self._seats.reset()
        for room in self._rooms:
            room.future.cancel()
        self._rooms.clear()
        self.on_crash(reason)

    def on_plan_failed(self, failed: PlanFailed) -> None:
        """Pages of the host tier were corrupt: forget those, void what is on its way, and seat everybody again."""
        flight = next(flight for flight in self._flights if flight.seq == failed.plan_seq)
        bad = tuple(flight.moves[idx] for idx in failed.bad_move_idxs)
        logger.warning("corrupt pages are recomputed", extra={"plan": failed.plan_seq, "num_pages": len(bad)})
        self._void_flights()
        self._abort_count = failed.abort_count
        self._pager.corrupt(bad)
        self._seats.reset(told=self._told)
        self.pump()

    def _void_flights(self) -> list[Row]:
        """No plan on its way counts any more; everybody who ran waits again. Returns the rows that ran."""
        if self._flights:
            self._pager.abort(self._flights[0].seq)
        self._flights.clear()
        self._tell_landing()
        rows = self._seats.rows
        for row in rows:
            self.unseat(row.request)
            self._delivery.requeue(row.request)
        self._is_line_stopped = False
        return rows

    # ------------------------------------------------------------------------------------------------------------- what the verbs call

    def unseat(self, request: Request) -> None:
        """Take a request off its row, if it has one; the caller then ends it or lets it wait. A long quantum is cut for it."""
        row = self._seats.of(request)
        if row is None:
            return
        request.context.kv_valid = min(row.position, request.context.num_tokens)
        self._seats.leave(row)
        self._cut()

    def arrived(self) -> None:
        """Somebody waits: running quanta are cut short, so that nobody waits longer than a step."""
        self._cut()
        self.pump()

    def room_made(self) -> None:
        """Pages or slabs were given up: whoever did not fit may fit now."""
        self._is_line_stopped = False
        self.pump()

    def make_room(self, sizes: tuple[int, ...]) -> asyncio.Future[None]:
        """Evict idle pages until weights of these sizes can be placed. The future raises OutOfFrames if that is not possible."""
        room = _Room(sizes, asyncio.get_running_loop().create_future())
        self._rooms.append(room)
        self.pump()
        return room.future

    def _cut(self) -> None:
        if self._device is None:
            return
        for flight in self._flights:
            if flight.num_steps > 1 and not flight.is_cut:
                flight.is_cut = True
                self._device.cut(flight.seq, NO_STEP)

    # ------------------------------------------------------------------------------------------------------------------------ the loop

    def pump(self) -> None:
        """Send as many plans as possible."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while self._device is not None and len(self._flights) < MAX_FLIGHTS and self._send_one():
                pass
        finally:
            self._is_pumping = False

    def _send_one(self) -> bool:
        """Compose and send one plan. Returns False if there is nothing to do."""
        if self._rooms:
            return not self._flights and self._send_room()
        clears = self._seats.take_clears()
        self._seat_candidates()
        pages, parts = self._plan_pages()
        if not (clears or parts or pages.moves or pages.zeros or pages.late_zeros):
            self._pager.abort(pages.seq)
            return False
        self._submit(pages, clears, parts)
        return True

    def _seat_candidates(self) -> None:
        """Seat who is next, while there are slots and the line is not stopped."""
        while self._seats.has_free and not self._is_line_stopped:
            request = self._scheduler.next_candidate()
            if request is None:
                return
            row = self._seating.seat(request, self._seats.next_slot())
            self._seats.seat(row)
            self._delivery.admitted(request, row.position)

    def _plan_pages(self) -> tuple[PagePlan, list[Part]]:
        """Choose the steps of the next plan and find the pages for them, sending rows back until they fit."""
        while True:
            parts = self._choose_steps()
            computed = {part.row.request.id: part.num_computed for part in parts}
            wants = [row.want(computed.get(row.request.id, 0)) for row in self._seats.rows]
            try:
                return self._pager.plan(self._seq + 1, wants), parts
            except (OutOfFrames, OverLimit) as shortage:
                self._give_way(shortage)

    def _choose_steps(self) -> list[Part]:
        needs = [(row, need) for row in self._seats.rows if (need := row.need()) is not None]
        if not needs:
            return []
        shape = self._scheduler.plan_step([need for _row, need in needs])
        row_of = {row.request.id: row for row, _need in needs}
        return [row_of[share.request.id].part(share.num_tokens, shape.num_steps) for share in shape.shares]

    def _give_way(self, shortage: OutOfFrames | OverLimit) -> None:
        """Somebody has to leave its row: the newest that the device does not know yet, else the scheduler's victim."""
        rows = self._seats.rows
        unknown = [row for row in rows if not row.is_told]
        if unknown:
            candidate = unknown[-1].request
            self._send_back(candidate, is_preempted=False)
            self._is_line_stopped = True
            victim = self._scheduler.victim([row.request for row in rows if row.is_told], candidate)
            if victim is not None:
                self._send_back(victim, is_preempted=True)
                self._is_line_stopped = False
            return
        victim = self._scheduler.victim([row.request for row in rows])
        if victim is not None:
            self._send_back(victim, is_preempted=True)
            return
        logger.error("a request that was admitted does not fit alone", extra={"request": rows[0].request.id, "shortage": str(shortage)})
        self.end(rows[0].request, FinishReason.ERROR, str(shortage))

    def _send_back(self, request: Request, *, is_preempted: bool) -> None:
        self.unseat(request)
        self._delivery.requeue(request, is_preempted=is_preempted)

    def end(self, request: Request, reason: FinishReason, detail: str = "") -> None:
        """End a request wherever it is: running or waiting."""
        self.unseat(request)
        self._delivery.settle(request, reason, detail)
        self.room_made()

    # ------------------------------------------------------------------------------------------------------------------ out and back

    def _submit(self, pages: PagePlan, clears: tuple[int, ...], parts: list[Part]) -> None:
        assert self._device is not None
        starts, patches = self._tell_rows()
        num_steps = max((part.num_samples for part in parts), default=1) or 1 if parts else 0
        plan = Plan(
            boot_generation=self._boot_generation,
            seq=pages.seq,
            abort_count=self._abort_count,
            zeros=pages.zeros,
            moves=pages.moves,
            late_zeros=pages.late_zeros,
            clears=clears,
            starts=tuple(starts),
            patches=tuple(patches),
            runs=tuple(RowRun(part.row.slot, part.num_first) for part in parts),
            num_steps=num_steps,
        )
        self._seq = pages.seq
        flight = Flight(pages.seq, num_steps, {part.row.slot: part for part in parts}, pages.moves, clears)
        flight.starts = tuple(start.slot for start in starts)
        self._flights.append(flight)
        for part in parts:
            part.depart()
        if len(self._flights) == 1:
            self._deadline.start(sum(part.num_computed for part in parts))
        self._device.submit(plan)

    def _tell_rows(self) -> tuple[list[RowStart], list[FramePatch]]:
        starts: list[RowStart] = []
        patches: list[FramePatch] = []
        for row in self._seats.rows:
            if row.is_told:
                patches.extend(row.patches(self._pager.page_tokens))
            else:
                starts.append(row.start(self._seating.model_id(row.request)))
        return starts, patches

    def _send_room(self) -> bool:
        """A plan that only evicts; it runs alone."""
        assert self._device is not None
        room = self._rooms.popleft()
        try:
            pages = self._pager.plan_room(self._seq + 1, room.sizes)
        except OutOfFrames as shortage:
            if not room.future.done():
                room.future.set_exception(shortage)
            return True
        self._submit(pages, self._seats.take_clears(), [])
        self._flights[-1].room = room.future
        return True

    def on_step(self, plan_seq: int, step_idx: int, is_last: bool, result: StepResult) -> None:
        """A step is done: tokens go to the journal, then to their readers; rows that ended leave."""
        flight = self._flights[0]
        assert flight.seq == plan_seq, "plans end in order"
        if step_idx != NO_STEP:
            self._advance(flight, step_idx, result)
            for row, reason, detail in self._delivery.deliver(flight, result):
                self.unseat(row.request)
                self._delivery.settle(row.request, reason, detail)
                self._is_line_stopped = False
        if is_last:
            self._land(flight)
        self.pump()

    def _advance(self, flight: Flight, step_idx: int, result: StepResult) -> None:
        self._deadline.step_done(result.num_tokens, result.compute_s)
        num_sampled = sum(len(item.tokens) for item in result.rows)
        self.on_progress(result.num_tokens - num_sampled, num_sampled, result.compute_s)
        for item in result.rows:
            flight.parts[item.slot].step(step_idx, len(item.tokens))

    def _land(self, flight: Flight) -> None:
        """A plan has ended: its page moves are true."""
        self._flights.popleft()
        for part in flight.parts.values():
            part.arrive()
        self._told = (self._told - set(flight.clears)) | set(flight.starts)
        self._pager.commit(flight.seq)
        self.landed_seq = flight.seq
        self._tell_landing()
        if flight.room is not None and not flight.room.done():
            flight.room.set_result(None)
        if self._flights:
            self._deadline.start(sum(part.num_computed for part in self._flights[0].parts.values()))
        else:
            self._deadline.stop()

    def _tell_landing(self) -> None:
        if self._landing is not None and not self._landing.done():
            self._landing.set_result(None)
        self._landing = None
