"""Lookout: how requests stand, for one caller: places in line, who is ahead, and when they start.

It reads live parts and changes nothing. Of what the caller may not see it tells sizes, and no name.
"""

from __future__ import annotations

from typing import Final

from kerneld.calls import Caller, ListArgs, ListPage
from kerneld.contexts import page_of
from kerneld.errors import NotFound
from kerneld.holdings import Outlook
from kerneld.machine import Machine
from kerneld.request import Request, RequestState
from kerneld.security.acl import is_beneath, is_owner, may_see, may_see_everything

HINT: Final = "`kernelctl why` lists those that wait or run; of those that ended, the latest are remembered until the next restart."


class Lookout:
    """Looks at requests for one caller."""

    def __init__(self, machine: Machine, caller: Caller) -> None:
        self._machine = machine
        self._caller = caller

    def find(self, request_id: str) -> Request | Outlook:
        """A request that waits or runs, or how it ended. Raises: NotFound, also where the caller may not know of it."""
        principal, now = self._caller.principal, self._machine.clock()
        request = self._machine.requests.get(request_id)
        if request is not None:
            context = request.context
            if may_see(principal, context.owner, context.tenant, context.grants.values(), now):
                return request
        ending = self._machine.endings.find(request_id)
        if ending is not None and may_see(principal, ending.owner, ending.outlook.tenant, ending.grants, now):
            return ending.outlook
        raise NotFound("request", request_id, HINT)

    def page(self, args: ListArgs) -> ListPage[Outlook]:
        """One page of the requests that wait or run, by id: the caller's own, or everybody's. Raises: InvalidArgument."""
        everybody = args.everybody and may_see_everything(self._caller.principal)
        requests = self._machine.requests

        def is_wanted(outlook: Outlook) -> bool:
            context = requests[outlook.request].context
            is_own = everybody or is_owner(self._caller.principal, context.owner, context.tenant)
            return is_own and (not args.tenant or is_beneath(context.tenant, args.tenant))

        return page_of(sorted(requests), args, lambda request_id: self.outlook(requests[request_id]), is_wanted)

    def outlook(self, request: Request) -> Outlook:
        """How a request that has not ended stands."""
        context, now = request.context, self._machine.clock()
        state = self._state(request)
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
            tenant_position=self._machine.scheduler.queue_position(request),
            deadline=request.deadline or 0.0,
            num_preemptions=request.num_preemptions,
            output_tokens=request.num_generated,
            first_token_s=first_token_s,
        )

    def _state(self, request: Request) -> str:
        if request.state is RequestState.RUNNING:
            return "running"
        models = self._machine.models
        has_models = all(name in models and models.get(name).is_resident for name in request.context.models)
        return "waiting" if has_models and not request.is_parked else "parked"
