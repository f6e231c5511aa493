"""Waiting: everybody who waits, and where.

    line       in the queue of its tenant, by (class, nice, arrival), and counted in the shares: picked in the order of the accounts
    front      lost its row through no decision: seated again before anybody else is picked, in the order of admission; not in the shares,
               so that neither a crash nor the want of a page changes anybody's counter
    parked     what it needs is on its way: in nobody's way until then; held in the shares
    absent     its model or its adapter is not on the device; held in the shares
    deferred   above a soft limit until some time: in nobody's way until then

Invariants
1. A request that waits is in exactly one place, `request.place`, counts once in `tally`, and has a ticket; one that does not has none.
2. The shares count the requests of the line and no others, each under its class when it moved last (`counted_rank`), and hold those that
   are parked or absent (`is_held`), but for those that would be at the front or deferred else. Who goes from one place to another is never
   out of the shares between them, so that it is lifted by none of it.
3. Where a request belongs follows from what is known of it alone (`_place_of`): whoever changes that moves it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final

from kerneld.calls import Priority
from kerneld.fairshare import FairShare
from kerneld.request import UNCOUNTED, Place, Request
from kerneld.tally import Tally
from kerneld.ticketqueue import Key, TicketQueue

_RANKS: Final = {Priority.INTERACTIVE: 0, Priority.BATCH: 1, Priority.IDLE: 2}


def class_rank(request: Request) -> int:
    """The place of a request's latency class: a lower one goes first, a higher one gives way first."""
    return _RANKS[request.priority]


class Waiting:
    """The places where requests wait, and the way in and out of them."""

    def __init__(self, shares: FairShare, tally: Tally | None = None) -> None:
        self.tally = tally or Tally()  # wherever they wait
        self.num_ready = 0  # in line or at the front
        self.num_changes = 0  # of any place
        self._shares = shares
        self._tickets = itertools.count(1)
        self._resident: set[str] = set()
        self._queues: dict[str, TicketQueue] = {}  # the line, by tenant
        self._front = TicketQueue()
        self._deferred = TicketQueue()
        self._deferred_of: dict[str, TicketQueue] = {}  # the same, by tenant
        self._absent: dict[str, dict[str, TicketQueue]] = {}  # by model, by tenant

    # -------------------------------------------------------------------------------------------------------------- in and out

    def add(self, request: Request) -> None:
        """A request begins to wait, at the place where it belongs now."""
        self.tally.add(request.tenant)
        self._enter(request)
        self._tell_shares(request)

    def remove(self, request: Request) -> None:
        """A request waits no more."""
        self._leave(request)
        self.tally.remove(request.tenant)
        request.is_parked = False
        self._tell_shares(request)

    def move(self, request: Request) -> None:
        """What is known of a waiting request has changed: it goes where it belongs now."""
        self._leave(request)
        self._enter(request)
        self._tell_shares(request)

    def park(self, request: Request) -> None:
        """A request waits beside the line for something that is on its way."""
        request.is_parked = True
        self.move(request)

    def unpark(self, request: Request) -> None:
        """What a parked request waited for is there, or will not come."""
        request.is_parked = False
        self.move(request)

    def set_resident(self, model: str, is_resident: bool) -> None:
        """A model came or went: what waits for it goes to its old place, or aside until it is back. Walks what waits, if it went."""
        if is_resident == (model in self._resident):
            return
        if is_resident:
            self._resident.add(model)
            moved = [request for queue in self._absent.get(model, {}).values() for request in queue.live()]
        else:
            self._resident.discard(model)
            queues = (*self._queues.values(), self._front, self._deferred)
            moved = [request for queue in queues for request in queue.live() if model in request.context.models]
        # In an order that a restart does not change: it decides who is lifted to whom.
        for request in sorted(moved, key=lambda request: (request.arrival, request.id)):
            self.move(request)

    def undefer(self, now: float) -> bool:
        """Let those join the line whose time has come. Returns whether there were any."""
        has_any = False
        while self._deferred and self._deferred.first_key()[0] <= now:
            self.join(self._deferred.first())
            has_any = True
        return has_any

    def join(self, request: Request) -> None:
        """A deferred request is deferred no longer."""
        request.defer_until = 0.0
        self.move(request)

    def forget(self, tenant: str) -> None:
        """A tenant is gone, and nothing of it waits."""
        self._queues.pop(tenant, None)

    # -------------------------------------------------------------------------------------------------------------- who is where

    @property
    def num_deferred(self) -> int:
        """How many wait behind a soft limit."""
        return len(self._deferred)

    def queue(self, tenant: str) -> TicketQueue:
        """The line of a tenant."""
        return self._queues.get(tenant) or TicketQueue()

    def front(self, is_open: Callable[[str], bool]) -> Request | None:
        """The first of those at the front whose tenant is open."""
        return _first(self._front, is_open)

    def deferred(self, is_open: Callable[[str], bool]) -> Request | None:
        """Of the deferred requests whose tenant is open, the one whose time comes first. Looks at one of each tenant."""
        firsts = [(queue.first_key(), queue.first()) for tenant, queue in self._deferred_of.items() if is_open(tenant)]
        return min(firsts, key=_place)[1] if firsts else None

    def ahead(self) -> Iterator[Request]:
        """Those at the front, in order."""
        return (request for _key, request in self._front.ahead())

    def absent(self, model: str) -> Iterator[tuple[Key, Request]]:
        """The first request of every tenant that waits for a model, with its place in the queue of its tenant."""
        return ((queue.first_key(), queue.first()) for queue in self._absent.get(model, {}).values())

    def position(self, request: Request) -> int:
        """Its place in the line of its own tenant, or at the front, from 1; 0 if it is in neither. Walks that queue."""
        if request.place is Place.LINE:
            return 1 + self._queues[request.tenant].live().index(request)
        return 1 + self._front.live().index(request) if request.place is Place.FRONT else 0

    # -------------------------------------------------------------------------------------------------------------- inside

    def _place_of(self, request: Request) -> Place:
        if request.is_parked:
            return Place.PARKED
        if request.missing:
            return Place.ABSENT
        if request.defer_until > 0:
            return Place.DEFERRED
        return Place.FRONT if request.is_interrupted and not request.is_alone else Place.LINE

    def _enter(self, request: Request) -> None:
        request.ticket = next(self._tickets)
        self.num_changes += 1
        request.missing = next((name for name in request.context.models if name not in self._resident), "")
        request.place = place = self._place_of(request)
        request.rank = class_rank(request)
        if place is Place.LINE:
            self._queues.setdefault(request.tenant, TicketQueue()).push(_line_key(request), request)
            self.num_ready += 1
        elif place is Place.FRONT:
            self._front.push((request.turn,), request)
            self.num_ready += 1
        elif place is Place.DEFERRED:
            for queue in (self._deferred, self._deferred_of.setdefault(request.tenant, TicketQueue())):
                queue.push((request.defer_until, request.arrival), request)
        elif place is Place.ABSENT:
            self._absent.setdefault(request.missing, {}).setdefault(request.tenant, TicketQueue()).push(_line_key(request), request)

    def _leave(self, request: Request) -> None:
        assert request.ticket, "it does not wait"
        place, request.place, request.ticket = request.place, Place.NOWHERE, 0
        self.num_changes += 1
        if place is Place.LINE:
            self._queues[request.tenant].discard()
            self.num_ready -= 1
        elif place is Place.FRONT:
            self._front.discard()
            self.num_ready -= 1
        elif place is Place.DEFERRED:
            self._leave_deferred(request.tenant)
        elif place is Place.ABSENT:
            self._leave_absent(request)

    def _tell_shares(self, request: Request) -> None:
        """Make invariant 2 true again of a request that has moved: it comes before it goes."""
        shares, tenant = self._shares, request.tenant
        rank, counted_rank = request.rank if request.place is Place.LINE else UNCOUNTED, request.counted_rank
        is_held, was_held = _is_held(request), request.is_held
        request.counted_rank, request.is_held = rank, is_held
        if is_held and not was_held:
            shares.hold(tenant)
        if rank != counted_rank:
            if rank != UNCOUNTED:
                shares.enqueue(tenant, rank)
            if counted_rank != UNCOUNTED:
                shares.dequeue(tenant, counted_rank)
        if was_held and not is_held:
            shares.release(tenant)

    def _leave_deferred(self, tenant: str) -> None:
        self._deferred.discard()
        self._deferred_of[tenant].discard()
        if not self._deferred_of[tenant]:
            del self._deferred_of[tenant]

    def _leave_absent(self, request: Request) -> None:
        tenants = self._absent[request.missing]
        tenants[request.tenant].discard()
        if not tenants[request.tenant]:
            del tenants[request.tenant]
        if not tenants:
            del self._absent[request.missing]


def _is_held(request: Request) -> bool:
    return request.place in (Place.PARKED, Place.ABSENT) and not (request.is_interrupted or request.defer_until)


def _line_key(request: Request) -> Key:
    return class_rank(request), request.context.nice, request.arrival


def _place(found: tuple[Key, Request]) -> tuple[Key, int]:
    return found[0], found[1].ticket


def _first(queue: TicketQueue, is_open: Callable[[str], bool]) -> Request | None:
    return next((request for _key, request in queue.ahead() if is_open(request.tenant)), None) if queue else None
