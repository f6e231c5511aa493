"""Composer: who sits on the device in the next plan, which steps they get, and which pages that takes.

    seat who is next --> choose steps --> find pages --> Composed          where `headroom` says that there is room for it
                              ^                |
                              '-- give way <---' shortage

Who gives way when there are too few frames, or a tenant is at its limit (then only those of that tenant are asked):

    the newer half of the      they wait at the front, and are seated one by one with the next plans
    newcomers
    the only newcomer          it waits at the front. The line stops behind it, or its tenant is held back, until something was given up;
                               somebody whose tenant is far ahead of it is preempted for it
    nobody, for now            while plans are on their way: what they pin and what left with them comes free when they land
    the scheduler's victim     of those who run
    weights that nobody uses   the last one waits until they have left
    the last one               it does not fit alone, and ends with an error that names the holders

Where all row slots are taken, somebody whose tenant is far ahead of who is next is preempted for it in the same way.

Invariants
1. A composed plan wants the pages of every seated row, so no page that the device's tables name is ever moved away under them.
2. While the line is stopped nobody is seated. It opens again when somebody left or gave something up, and when the plans have landed that
   were on their way then: only then their frames are free.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from drivers.contract import FramePatch, RowStart
from kerneld.calls import FinishReason
from kerneld.delivery import Delivery
from kerneld.gate import Gate
from kerneld.headroom import Headroom
from kerneld.prefixes import Prefixes
from kerneld.request import Request
from kerneld.rows import Part, Row
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.seats import Seats
from kerneld.shortage import Shortage, cause_of, concerns
from memory.errors import OutOfFrames, OverLimit
from memory.page import PagePlan
from memory.pager import Pager

logger = logging.getLogger(__name__)


class Composed(NamedTuple):
    """What a plan consists of."""

    pages: PagePlan
    clears: tuple[int, ...]  # row slots
    parts: list[Part]


class Composer:
    """Composes the plans of one device."""

    def __init__(self, pager: Pager, scheduler: Scheduler, seating: Seating, delivery: Delivery, max_rows: int) -> None:
        self.seats = Seats(max_rows)
        self._pager, self._scheduler, self._seating, self._delivery = pager, scheduler, seating, delivery
        self._max_rows = max_rows
        self._most_newcomers = max_rows  # of the next plan; one after a shortage
        self._gate = Gate()
        self._has_preempted = False  # for a waiting one: once in a plan
        self.num_attempts = 0  # plans asked of the pager
        self.on_misfit: Callable[[Request, FinishReason, str], None] = delivery.settle
        self.relieve: Callable[[Request], bool] = lambda _request: False  # has idle weights leave for pages; says whether any will
        self.advise: Callable[[OutOfFrames | OverLimit, Request], None] = lambda _shortage, _request: None  # says what would help
        self.prefixes = Prefixes(pager, scheduler, seating)
        self.headroom = Headroom(pager, scheduler.charging.parts, scheduler.policy.growth_share)
        # Asked of who is next, in this order; who has to wait for something has left the line then.
        self.waits: list[Callable[[Request], bool]] = [self.prefixes.must_wait]

    # ------------------------------------------------------------------------------------------------------------- the line

    def open_line(self, last_seq: int = 0) -> None:
        """Something was given up: who did not fit may fit now, or once plan `last_seq` has landed (0: none is on its way)."""
        if last_seq:
            self._gate.open()
            self._gate.open_at(last_seq)
        else:
            self._gate.clear()
        self._scheduler.let_in()

    def row_ended(self, last_seq: int) -> None:
        """A row has ended: what it had is free once plan `last_seq` has landed (0: none is on its way)."""
        if last_seq:
            self._gate.open_at(last_seq)
        else:
            self.open_line()

    def landed(self, seq: int) -> None:
        """A plan has landed (invariant 2)."""
        if self._gate.landed(seq) or not len(self.seats):
            self._gate.open()
            self._scheduler.let_in()

    def unseat(self, request: Request) -> Row | None:
        """Take a request off its row; the caller then ends it or lets it wait. Returns the row, if it had one."""
        row = self.seats.of(request)
        if row is not None:
            if row.is_told:
                request.context.kv_valid = min(row.position, request.context.num_tokens)
                self._gate.left(row.table)
            self.seats.leave(row)
            self.prefixes.left(request)
        return row

    # --------------------------------------------------------------------------------------------------------------- compose

    def compose(self, seq: int, last_on_way: int) -> Composed | None:
        """Plan `seq`, of which the pager knows from now on; None if there is nothing to do, or nothing that can be done now.

        `last_on_way` is the number of the last plan that is on its way, 0 if there is none.
        """
        if self._gate.is_blocked:
            return None
        self._has_preempted = False
        self._free_a_row()
        clears = self.seats.take_clears()
        num_newcomers = self._seat_candidates()
        found = self._find_pages(seq, last_on_way)
        if found is None:
            return None
        pages, parts = found
        if num_newcomers and sum(not row.is_told for row in self.seats.rows) == num_newcomers:
            self._most_newcomers = min(2 * self._most_newcomers, self._max_rows)
        if not (clears or parts or pages.moves or pages.zeros or pages.late_zeros):
            self._pager.abort(pages.seq)
            is_waited_for = not (len(self.seats) or self._gate.is_stopped) and self._scheduler.next_candidate() is not None
            return self.compose(seq, last_on_way) if is_waited_for else None  # who sat did not fit, and somebody waited for it
        self._gate.last_seq = pages.seq
        return Composed(pages, clears, parts)

    def tell_rows(self) -> tuple[tuple[RowStart, ...], tuple[FramePatch, ...]]:
        """What the device has to hear of the rows with the plan that was composed last."""
        starts: list[RowStart] = []
        patches: list[FramePatch] = []
        for row in self.seats.rows:
            if row.is_told:
                patches.extend(row.patches(self._pager.page_tokens))
                continue
            starts.append(row.start(*self._seating.model_ids(row.request)))
            self._seating.started(row)
            self._delivery.started(row.request)
        return tuple(starts), tuple(patches)

    def can_seat(self) -> bool:
        """Whether a plan that is composed now could have somebody new in it, as far as slots go."""
        candidate = None if self._gate.is_stopped else self._scheduler.next_candidate()
        return candidate is not None and (self.seats.has_free or self._victim_for(candidate) is not None)

    def _free_a_row(self) -> None:
        """Where all slots are taken, take one from somebody whose tenant is far ahead of who is next."""
        if self._gate.is_stopped or not self.seats.is_full:
            return
        candidate = self._scheduler.next_candidate()
        victim = None if candidate is None else self._victim_for(candidate)
        if candidate is not None and victim is not None and not self._must_wait(candidate):
            self._has_preempted = True
            self._preempt(victim, "rows")

    def _victim_for(self, candidate: Request) -> Request | None:
        return self._scheduler.victim([row.request for row in self.seats.rows], candidate)

    def _seat_candidates(self) -> int:
        """Seat who is next, while there are slots and the line is not stopped. Returns how many were seated."""
        self.headroom.begin()
        num_seated = 0
        while self.seats.has_free and not self._gate.is_stopped and num_seated < self._most_newcomers:
            request = self._scheduler.next_candidate()
            if request is None:
                break
            if self._must_wait(request):
                continue
            if self._is_crowded(request):
                break
            row = self._seating.seat(request, self.seats.next_slot())
            self.seats.seat(row)
            self.prefixes.seated(row)
            self._delivery.seated(request, row.position)
            num_seated += 1
        return num_seated

    def _is_crowded(self, candidate: Request) -> bool:
        """Whether those who run will need the frames of who is next: the line stops, unless somebody who is far ahead of it gives way."""
        while not self.headroom.has_room(self.seats.rows, candidate):
            if not self._takes_row(candidate, self.seats.rows, "frames"):
                if not candidate.defer_until:  # which is in nobody's way: whoever comes may fit
                    self._gate.stop()
                return True
        return False

    def _must_wait(self, request: Request) -> bool:
        return any(must_wait(request) for must_wait in self.waits)

    def _find_pages(self, seq: int, last_on_way: int) -> tuple[PagePlan, list[Part]] | None:
        """Choose the steps of the plan and find the pages for them, sending rows back until they fit; None if it is better to wait."""
        while True:
            parts = self._choose_steps()
            computed = {part.row.request.id: part.num_computed for part in parts}
            wants = [row.want(computed.get(row.request.id, 0)) for row in self.seats.rows]
            shortage: OutOfFrames | OverLimit | None = None
            if len(wants) < 2 or not self._pager.room.is_short(wants, self._gate.leaving):
                self.num_attempts += 1
                try:
                    return self._pager.plan(seq, wants), parts
                except (OutOfFrames, OverLimit) as found:
                    shortage = found
            if not self._give_way(shortage, last_on_way):
                return None

    def _choose_steps(self) -> list[Part]:
        needs = [(row, need) for row in self.seats.rows if (need := row.need()) is not None]
        if not needs:
            return []
        shape = self._scheduler.plan_step([need for _row, need in needs])
        row_of = {row.request.id: row for row, _need in needs}
        return [row_of[share.request.id].part(share.num_tokens, shape.num_steps) for share in shape.shares]

    # -------------------------------------------------------------------------------------------------------------- shortage

    def _give_way(self, shortage: Shortage, last_on_way: int) -> bool:
        """Let somebody leave its row. Returns whether it is worth trying again at once."""
        rows = [row for row in self.seats.rows if concerns(shortage, row)]
        is_last = len(rows) == 1 and not last_on_way
        newcomers = [row.request for row in rows if not row.is_told]
        if newcomers and not is_last:
            self._most_newcomers = 1
            if len(newcomers) > 1:
                for newcomer in reversed(newcomers[len(newcomers) // 2 :]):
                    self._turn_back(newcomer)
            else:
                self._wait_for_room(newcomers[0], rows, shortage, last_on_way)
            return True
        if last_on_way and self._gate.block_by_leaving():
            return False
        victim = self._scheduler.victim([row.request for row in rows])
        if victim is not None:
            self._preempt(victim, cause_of(shortage))
            self._stop_line(shortage)
            self._gate.block(last_on_way)
            return not last_on_way
        if last_on_way:
            self._gate.block(last_on_way)
            return False
        assert shortage is not None, "the pager was asked about the last one"
        if isinstance(shortage, OutOfFrames) and self.relieve(rows[0].request):
            if rows[0].is_told:
                self._preempt(rows[0].request, cause_of(shortage))
            else:
                self._turn_back(rows[0].request)
            self._stop_line(shortage)
            return True
        self.advise(shortage, rows[0].request)
        logger.warning("a request that was admitted does not fit alone", extra={"request": rows[0].request.id, "shortage": str(shortage)})
        self.unseat(rows[0].request)
        self.on_misfit(rows[0].request, FinishReason.ERROR, str(shortage))
        self.open_line()
        return True

    def _turn_back(self, newcomer: Request) -> None:
        self.unseat(newcomer)
        self._delivery.turn_back(newcomer)

    def _wait_for_room(self, newcomer: Request, rows: list[Row], shortage: Shortage, last_on_way: int) -> None:
        """A newcomer is next, and does not fit: the line stops, and somebody who is far ahead of it gives way."""
        self._turn_back(newcomer)
        self._gate.open_at(last_on_way)
        self._stop_line(shortage)
        if self._takes_row(newcomer, rows, cause_of(shortage)) and not last_on_way:
            self.open_line()

    def _takes_row(self, candidate: Request, rows: list[Row], cause: str) -> bool:
        """Preempt somebody of these who is far ahead of a waiting request. Returns whether somebody was."""
        victim = None if self._has_preempted else self._scheduler.victim([row.request for row in rows if row.is_told], candidate)
        if victim is not None:
            self._has_preempted = True
            self._preempt(victim, cause)
        return victim is not None

    def _stop_line(self, shortage: Shortage) -> None:
        if isinstance(shortage, OverLimit):
            self._scheduler.hold_back(shortage.owner)
        else:
            self._gate.stop()

    def _preempt(self, victim: Request, cause: str) -> None:
        self.unseat(victim)
        self._delivery.preempted(victim, cause)
