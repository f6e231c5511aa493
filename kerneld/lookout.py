"""Lookout: how requests stand, for one caller: places in line, who is ahead, and when they start.

It reads live parts and changes nothing. Of what the caller may not see it tells sizes, and no name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from kerneld.calls import Caller, ListArgs, ListPage
from kerneld.contexts import page_of
from kerneld.errors import NotFound
from kerneld.holdings import Contender, Outlook
from kerneld.machine import Machine
from kerneld.request import Place, Request
from kerneld.scheduler import Scheduler
from kerneld.security.acl import is_beneath, is_owner, may_see, may_see_everything, may_see_tenant
from kerneld.sharemap import parting, tenant_of
from kerneld.standings import Standing
from kerneld.starts import MOST_AHEAD, Starts

HINT: Final = "`kernelctl why` lists those that wait or run; of those that ended, the latest are remembered until the next restart."
OTHERS: Final = "others"
MOST_OTHERS: Final = 8
_STATES: Final = {Place.PARKED: "parked", Place.ABSENT: "parked", Place.DEFERRED: "deferred"}


class Lookout:
    """Looks at requests for one caller."""

    def __init__(self, machine: Machine, caller: Caller) -> None:
        self._machine = machine
        self._caller = caller
        self._queues: dict[tuple[Scheduler, str], dict[str, int]] = {}  # places in the lines of tenants, by request id
        self._drawn: dict[Starts, Mapping[str, int]] = {}

    def _places(self, request: Request) -> Mapping[str, int]:
        """Places in the whole line of a request's device, by request id and in order."""
        starts = self._machine.starts_of(request)
        if starts not in self._drawn:
            self._drawn[starts] = starts.places()
        return self._drawn[starts]

    def find(self, request_id: str) -> Request | Outlook:
        """A request that waits or runs, or how it ended: of one that ended, the beginning of its id will do, if it is of no other.

        Raises: NotFound, also where the caller may not know of it.
        """
        principal, now = self._caller.principal, self._machine.clock()
        request = self._machine.requests.get(request_id)
        if request is not None:
            context = request.context
            if may_see(principal, context.owner, context.tenant, context.grants.values(), now):
                return request
        ended = [
            ending.outlook
            for ending in self._machine.endings.beginning(request_id)
            if may_see(principal, ending.owner, ending.outlook.tenant, ending.grants, now)
        ]
        if len(ended) == 1:
            return ended[0]
        raise NotFound("request", request_id, HINT)

    def page(self, args: ListArgs) -> ListPage[Outlook]:
        """One page of the requests that wait or run, by id: the caller's own, or everybody's. Raises: InvalidArgument."""
        everybody = args.everybody and may_see_everything(self._caller.principal)

        def is_wanted(request: Request) -> bool:
            context = request.context
            is_own = everybody or is_owner(self._caller.principal, context.owner, context.tenant)
            return is_own and (not args.tenant or is_beneath(context.tenant, args.tenant))

        # Only what is shown is looked at closely: who lists his own requests does not pay for those of all others.
        shown = page_of(sorted(self._machine.requests), args, self._machine.requests.__getitem__, is_wanted)
        return ListPage(tuple(self._brief(request) for request in shown.items), shown.next_page_token)

    def outlook(self, request: Request) -> Outlook:
        """How a request that has not ended stands, and who is ahead of it."""
        return replace(self._brief(request), contenders=self._contenders(request))

    def _brief(self, request: Request) -> Outlook:
        context, now = request.context, self._machine.clock()
        state = _STATES.get(request.place, "waiting") if request.ticket else "running"
        place, starts = self._queue_position(request), self._machine.starts_of(request)
        position, is_far = self._position(request)
        first_token_s = None if request.first_token_at is None else request.first_token_at - request.arrival
        return Outlook(
            request=request.id,
            context_id=context.id,
            tenant=context.tenant,
            model=context.model,
            state=state,
            priority=context.priority.value,
            nice=context.nice,
            arrived_at=request.arrival,
            queue_s=request.queue_s + (0.0 if state == "running" else now - request.queued_at),
            position=position,
            is_position_least=is_far,
            tenant_position=place,
            estimate=starts.estimate(request, place) if request.ticket else starts.estimator.estimate(0.0),
            deferred_until=request.defer_until if request.place is Place.DEFERRED else 0.0,
            deadline=request.deadline or 0.0,
            queue_until=request.queue_until or 0.0,
            num_preemptions=request.num_preemptions,
            output_tokens=request.num_generated,
            first_token_s=first_token_s,
        )

    def _queue_position(self, request: Request) -> int:
        """Its place in the line of its tenant, from 1; 0 if it is in none."""
        tenant, scheduler = request.tenant, self._machine.scheduler.of(request)
        if request.place is not Place.LINE:
            return scheduler.queue_position(request)
        if (scheduler, tenant) not in self._queues:
            self._queues[scheduler, tenant] = {each.id: idx for idx, each in enumerate(scheduler.queue(tenant).live(), start=1)}
        return self._queues[scheduler, tenant][request.id]

    def _position(self, request: Request) -> tuple[int, bool]:
        """Its place among all that wait in line, from 1, 0 if it is in no line; and whether that is only how far one looked."""
        if request.place not in (Place.LINE, Place.FRONT):
            return 0, False
        places = self._places(request)
        found = places.get(request.id, 0)
        return (found, False) if found or len(places) < MOST_AHEAD else (MOST_AHEAD + 1, True)

    def _contenders(self, request: Request) -> tuple[Contender, ...]:
        """The tenants on the level where its way parts from that of whoever is next, the least served first."""
        shares = self._machine.starts_of(request).map()
        first = next((request_id for request_id in self._places(request) if request_id in self._machine.requests), "")
        own = parting(request.tenant, self._machine.requests[first].tenant) if first else ""
        if not own:  # the next one is of the same tenant, or nobody is: then those at the top show how the tenant stands
            own = next((node.path for node in reversed(list(shares.lineage(request.tenant))) if shares.siblings(node.path)), "")
        if own not in shares.nodes:
            return ()
        others = sorted(shares.siblings(own), key=lambda node: (node.lag_us, node.path))[:MOST_OTHERS]
        return tuple(self._contender(node, node.path == own) for node in sorted([shares.nodes[own], *others], key=lambda node: node.lag_us))

    def _contender(self, node: Standing, is_own: bool) -> Contender:
        tenant = tenant_of(node.path)
        return Contender(
            tenant=tenant if may_see_tenant(self._caller.principal, tenant) else OTHERS,
            is_own=is_own,
            weight=node.weight,
            factor_milli=node.factor_milli,
            lag_us=node.lag_us,
            service_us=node.service_us,
            num_waiting=node.num_waiting,
            num_running=self._machine.scheduler.running.of(tenant),
        )
