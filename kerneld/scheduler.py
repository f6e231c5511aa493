"""The scheduler: who is next, what the next quantum looks like, and who has to give way.

It decides and keeps queues and accounts; it moves no page and starts no work (that is the dispatcher's). It never looks at a clock.

    enqueue            admit                    finish
    ------> waiting ----------> running -------------->          waiting: in the tenant's queue by (class, nice, arrival),
              ^ |  ^               |                                      or parked: its model or its pages are on their way
              | |  '---------------'  preempt
    unpark, model | v park, model
      is resident   | is not resident
            parked

Invariants
1. `next_candidate` is the first request of the tenant that `FairShare.pick` names. The dispatcher admits it or nobody: one that does not
   fit stops the line, so that a large request is not passed by small ones for ever. A parked request stops nobody.
2. A request's input is charged at its first admission, with the output that its tenant's last requests lead one to expect; tokens beyond
   that are charged as they come, and what was expected and did not come is given back at the end.
3. A tenant at its limit of running requests, or of memory, is closed in the accounts: it neither stops the line nor is served.
4. A request that is to be tried alone is admitted only when nothing runs, and nothing is admitted while it runs.

Every call costs O(log n) of what waits, none walks all requests, but `queue_position` and a change of a model's residency.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence

from kerneld.calls import FinishReason
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.charging import Charging
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepsize import StepSizer
from kerneld.request import Request, RequestState
from kerneld.sharenode import SCALE
from kerneld.step import RowNeed, StepShape, longest_quantum, share_budget
from kerneld.tally import Tally, ancestors
from kerneld.tenantqueue import TenantQueue, class_rank


class Scheduler:
    """Queues and accounts of all tenants, and the decisions that follow from them."""

    def __init__(self, shares: FairShare, policy: SchedulerPolicy | None = None) -> None:
        self.shares = shares
        self.policy = policy or SchedulerPolicy()
        self.waiting = Tally()  # parked ones included
        self.running = Tally()
        self.charging = Charging(shares)
        self.sizer = StepSizer(StepCosts(), self.policy)
        self._queues: dict[str, TenantQueue] = {}
        self._parked: dict[str, dict[int, Request]] = {}  # by model, by ticket
        self._resident: set[str] = set()
        self._max_running: dict[str, int] = {}
        self._held_back: set[str] = set()  # tenants that wait for memory of their own
        self._deadlines: list[tuple[float, int, Request]] = []
        self._tickets = itertools.count(1)
        self._num_alone = 0  # running requests that tolerate no company
        self._num_runnable = 0  # waiting and not parked
        self._last_num_steps = 1

    # ------------------------------------------------------------------------------------------------------------ coming and going

    def enqueue(self, request: Request) -> None:
        """A new request begins to wait. Its tenant must be known to the accounts."""
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, next(self._tickets), request))
        self._wait(request)

    def admit(self, request: Request, num_cached: int) -> int:
        """The request runs from now on; `num_cached` leading tokens of its context need no computing. Returns what it was charged."""
        self._leave_queue(request)
        request.state = RequestState.RUNNING
        self.running.add(request.tenant)
        self._num_alone += request.is_alone
        self._close_at_limit(request.tenant)
        return self.charging.admission(request, num_cached)

    def preempt(self, request: Request) -> None:
        """A running request waits again, at its old place; for want of frames, or because its worker is gone. It is not charged for it."""
        self._stop_running(request)
        self._wait(request)

    def reorder(self, request: Request) -> None:
        """The class or niceness of a request changed; it takes the place that it has by them now."""
        if request.ticket:
            self._leave_queue(request)
            self._wait(request)

    def park(self, request: Request) -> None:
        """A waiting request needs something that is on its way: it is in nobody's way until `unpark`, and keeps its place."""
        self.shares.hold(request.tenant)
        self._leave_queue(request)
        request.is_parked = True
        self._wait(request)

    def unpark(self, request: Request) -> None:
        """What a request was parked for is there, or will not come: it is in the line again. One that is not parked stays where it is."""
        if request.is_parked:
            request.is_parked = False
            self.reorder(request)
            self.shares.release(request.tenant)

    def finish(self, request: Request, reason: FinishReason = FinishReason.STOP) -> int:
        """The request has ended, wherever it was. Returns what is given back of the charges."""
        if request.state is RequestState.RUNNING:
            self._stop_running(request)
        elif request.ticket:
            self._leave_queue(request)
        if request.is_parked:
            request.is_parked = False
            self.shares.release(request.tenant)
        request.state = RequestState.FINISHED
        return self.charging.end(request, reason)

    def acquit(self, request: Request) -> None:
        """A running request that was to be tried alone is harmless: others may run beside it again."""
        self._num_alone -= request.is_alone
        request.is_alone = False

    def charge_output(self, request: Request, num_tokens: int) -> int:
        """The request generated tokens. Returns what it was charged, which is nothing as long as they are prepaid."""
        return self.charging.output(request, num_tokens)

    def set_resident(self, model: str, is_resident: bool) -> None:
        """A model came or went: what waits for it joins the line, or is parked until it comes back."""
        if is_resident == (model in self._resident):
            return
        if is_resident:
            moved = list(self._parked.get(model, {}).values())
        else:
            moved = [request for queue in self._queues.values() for request in queue.live() if model in request.context.models]
        for request in moved:
            self._leave_queue(request)
        (self._resident.add if is_resident else self._resident.discard)(model)
        for request in moved:
            self._wait(request)

    def set_max_running(self, path: str, limit: int) -> None:
        """How many requests of a tenant, and of all below it, may run at once; 0: any number. Raises: NotFound."""
        self._max_running[path] = limit
        self.shares.set_open(path, self._has_room(path))

    def hold_back(self, path: str) -> None:
        """A tenant is at its limit of memory: nothing of it is next until `let_in`. Raises: NotFound."""
        self._held_back.add(path)
        self.shares.set_open(path, False)

    def let_in(self) -> None:
        """Memory was given up: tenants that were held back may be next again."""
        held_back, self._held_back = self._held_back, set()
        for path in held_back:
            if path in self.shares:
                self.shares.set_open(path, self._has_room(path))

    def remove_tenant(self, path: str) -> None:
        """Forget a tenant that has no children and nothing waiting. Raises: NotFound, WrongState."""
        self.shares.remove(path)
        self.charging.forget(path)
        for known in (self._queues, self._max_running):
            known.pop(path, None)

    # ------------------------------------------------------------------------------------------------------------------- deciding

    def next_candidate(self) -> Request | None:
        """The request to be admitted next, if it fits; None if nothing may be admitted. Changes nothing (invariants 1 and 4)."""
        if self._num_alone:
            return None
        path = self.shares.pick()
        if path is None:
            return None
        request = self._queues[path].first()
        return None if request.is_alone and self.running.total else request

    def plan_step(self, rows: Sequence[RowNeed]) -> StepShape:
        """The next quantum of these rows, which are in the order of their admission.

        It has one step while somebody waits or a prefill is unfinished, else twice as many as the last one, up to the policy's limits.
        """
        shares = share_budget(rows, self.sizer.budget(rows))
        longest = 1 if self._num_runnable else longest_quantum(rows, shares)
        if longest > 1:
            longest = min(longest, self.sizer.most_steps(rows))
        self._last_num_steps = min(longest, 2 * self._last_num_steps)
        return StepShape(shares, self._last_num_steps)

    def victim(self, running: Iterable[Request], candidate: Request | None = None) -> Request | None:
        """The running request that has to give way: the newest of the most-served tenant, of the laxest class first.

        For a waiting `candidate`, only one that had its minimum service and whose tenant is ahead of the candidate's by more than the
        policy's lag. Without one (rows that run need frames), any will do, those that had their minimum service first; but the only one
        is left alone.
        """
        rows = list(running)
        if candidate is None:
            if len(rows) < 2:
                return None
            served = [row for row in rows if self._is_served(row)]
            return max(served or rows, key=self._dispensability)
        lag = self.policy.preempt_lag_us * SCALE
        ahead = [row for row in rows if self._is_served(row) and self.shares.lag(row.tenant, candidate.tenant) > lag]
        return max(ahead, key=self._dispensability, default=None)

    def expired(self, now: float) -> tuple[Request, ...]:
        """The requests whose deadline passed by `now` and that have not ended; each is told of once."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.is_finished:
                late.append(request)
        return tuple(late)

    def queue_position(self, request: Request) -> int:
        """Its place in the line of its own tenant, from 1; 0 if it does not wait or is parked."""
        if not request.ticket or request.is_parked or self._missing(request):
            return 0
        return 1 + self._queues[request.tenant].live().index(request)

    # --------------------------------------------------------------------------------------------------------------------- inside

    def _wait(self, request: Request) -> None:
        request.state = RequestState.QUEUED
        request.ticket = next(self._tickets)
        self.waiting.add(request.tenant)
        missing = self._missing(request)
        if request.is_parked or missing:
            self._parked.setdefault(missing or request.context.model, {})[request.ticket] = request
            return
        self._queues.setdefault(request.tenant, TenantQueue()).push(request)
        self._num_runnable += 1
        self.shares.enqueue(request.tenant)

    def _leave_queue(self, request: Request) -> None:
        assert request.ticket, "it does not wait"
        ticket, request.ticket = request.ticket, 0
        self.waiting.remove(request.tenant)
        for model in request.context.models:
            parked = self._parked.get(model)
            if parked is not None and parked.pop(ticket, None) is not None:
                if not parked:
                    del self._parked[model]
                return
        self._queues[request.tenant].discard()
        self._num_runnable -= 1
        self.shares.dequeue(request.tenant)

    def _missing(self, request: Request) -> str:
        """The first of a request's model and adapter that is not resident; empty if it lacks nothing."""
        return next((name for name in request.context.models if name not in self._resident), "")

    def _stop_running(self, request: Request) -> None:
        self.running.remove(request.tenant)
        self._num_alone -= request.is_alone
        for path in ancestors(request.tenant):
            if path in self._max_running and path in self.shares:
                self.shares.set_open(path, self._has_room(path))

    def _close_at_limit(self, tenant: str) -> None:
        for path in ancestors(tenant):
            if not self._has_room(path):
                self.shares.set_open(path, False)

    def _has_room(self, path: str) -> bool:
        limit = self._max_running.get(path, 0)
        return path not in self._held_back and (not limit or self.running.of(path) < limit)

    def _is_served(self, request: Request) -> bool:
        return request.num_since_admission >= self.policy.min_service_tokens

    def _dispensability(self, request: Request) -> tuple[tuple[int, ...], int, float, str]:
        return self.shares.counters(request.tenant), class_rank(request), request.arrival, request.id
