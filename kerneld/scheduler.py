"""The scheduler: who is next, what the next quantum looks like, and who has to give way.

It decides and keeps queues and accounts; it moves no page and starts no work (that is the dispatcher's). It never looks at a clock.

    enqueue            admit                    finish
    ------> waiting ----------> running -------------->          waiting: in line, at the front, parked, without its model, deferred;
              ^ |  ^               |                                      the places are those of `kerneld.waiting`
              | |  '---------------'  preempt, interrupt
    unpark, model | v park, model
      is resident   | is not resident
         out of the line

Invariants
1. `next_candidate` is the first request of the tenant that `FairShare.pick` names, or one in its stead whose KV is at hand
   (`kerneld.locality`). The dispatcher admits it or nobody: one that does not fit stops the line, so that a large request is not passed by
   small ones for ever. One that is out of the line stops nobody.
2. A request's input is charged at its first admission, with the output that its tenant's last requests lead one to expect; tokens beyond
   that are charged as they come; what was expected and did not come is given back at the end, and all if nothing was computed after all.
3. A tenant at its limit of running requests, or of memory, is closed in the accounts: it neither stops the line nor is served.
4. A request that is to be tried alone is admitted only when nothing runs, and nothing is admitted while it runs.
5. Who lost its row through no decision has it again before anybody else is picked, in the order of admission, and nobody pays for it; so
   has one that was admitted and for which there was no room. One that is to be tried alone waits in line.

Every call costs O(log n) of what waits, none walks all requests, but places in a queue, a change of a model's residency, and looks ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec

from kerneld.accounts import Accounts
from kerneld.calls import FinishReason
from kerneld.closures import Closures
from kerneld.commonbooks import Common
from kerneld.courtesy import Courtesy
from kerneld.errors import WrongState
from kerneld.expiry import Expired, Expiry
from kerneld.fairshare import FairShare
from kerneld.locality import Locality
from kerneld.lookahead import line
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.stepsize import StepSizer
from kerneld.quanta import Quanta
from kerneld.request import Place, Request, RequestState
from kerneld.step import RowNeed, StepShape
from kerneld.tally import Tally
from kerneld.victims import Victims
from kerneld.waiting import Waiting, class_rank


class Scheduler:
    """Queues and accounts of all tenants on one device, and the decisions that follow from them."""

    def __init__(self, shares: FairShare, policy: SchedulerPolicy | None = None, common: Common | None = None) -> None:
        common = common or Common(shares)
        self.shares, self.policy = shares, policy or SchedulerPolicy()
        self.charging = common.charging
        self.sizer = StepSizer(common.costs, self.policy)
        self._quanta = Quanta(self.sizer)
        self._waiting = Waiting(shares, Tally(common.waiting))
        self.waiting = self._waiting.tally  # wherever they wait
        self.queue = self._waiting.queue  # the line of a tenant
        self.running = Tally(common.running)
        self._closures, self._expiry = Closures(shares, common.closures), Expiry()
        self._victims = Victims(shares, self.charging, self._waiting, self.running, self.policy, spent=common.spent)
        self.locality = Locality(shares, self._waiting, self.running, self.charging, self.policy.locality_lag_us)
        self._courtesy = Courtesy(shares, self._waiting, self.running, self.locality, self.policy.courtesy_us)
        self.system = common.system
        self.system_us = self.system.us  # device time that no tenant pays, by cause
        self.standings = partial(shares.standings, with_own=True)  # for displays
        self._turns = itertools.count(1)
        self._num_alone = 0  # running requests that tolerate no company

    # ------------------------------------------------------------------------------------------------------------ coming and going

    def enqueue(self, request: Request) -> None:
        """A new request begins to wait. Its tenant must be known to the accounts."""
        self._expiry.add(request)
        self._wait(request)

    def recover(self, request: Request, is_running: bool) -> None:
        """An unfinished request of before a restart; to be called in the order in which running ones ran. Those go on before all others."""
        if is_running:
            request.turn, request.is_interrupted = next(self._turns), True
            self._closures.admitted(request.tenant)
        if request.is_charged:
            request.admitted_at = request.arrival  # it was seated once
        self.enqueue(request)

    def admit(self, request: Request, num_cached: int) -> int:
        """The request runs from now on; `num_cached` leading tokens of its context need no computing. Returns what it was charged."""
        if request.place is Place.DEFERRED:
            self._waiting.join(request)  # nobody else is there: its tenant wakes up as if it came now
        if request.place is Place.LINE:
            self.locality.admitted(request)
        self._waiting.remove(request)
        if not request.is_interrupted:
            request.turn, request.num_since_admission = next(self._turns), 0
            self._closures.admitted(request.tenant)
        request.is_interrupted = False
        request.state = RequestState.RUNNING
        self.running.add(request.tenant)
        self._num_alone += request.is_alone
        return self._victims.spent(self.charging.admission(request, num_cached))

    def preempt(self, request: Request) -> None:
        """A running request waits again, at its old place in line, because others need what it has. It is not charged for it."""
        self._stop_running(request)
        self._closures.left(request.tenant)
        self._wait(request)

    def interrupt(self, request: Request) -> None:
        """A running request lost its row through no decision, or there was no room for it after all (invariant 5)."""
        self._stop_running(request)
        request.is_interrupted = not request.is_alone
        if request.is_alone:
            self._closures.left(request.tenant)
        self._wait(request)

    def reorder(self, request: Request) -> None:
        """The class or niceness of a request changed; it takes the place that it has by them now."""
        request.rank = class_rank(request)
        if request.ticket:
            self._waiting.move(request)

    def park(self, request: Request) -> None:
        """A waiting request needs something that is on its way: it is in nobody's way until `unpark`, and keeps its place."""
        self._waiting.park(request)

    def unpark(self, request: Request) -> None:
        """What a request was parked for is there, or will not come: it is in the line again. One that is not parked stays where it is."""
        if request.is_parked:
            self._waiting.unpark(request)

    def defer(self, request: Request, until: float) -> None:
        """A waiting request is above a soft limit: it waits beside the line until then (Unix seconds), or until nobody else is there."""
        request.defer_until = until
        self.reorder(request)

    def undefer(self, now: float) -> bool:
        """Let deferred requests join the line whose time has come. Returns whether there were any."""
        return self._waiting.undefer(now)

    def finish(self, request: Request, reason: FinishReason = FinishReason.STOP) -> int:
        """The request has ended, wherever it was. Returns what is given back of the charges."""
        is_untouched = request.is_charged and request.is_interrupted and not (request.admitted_at or request.num_generated)
        if request.state is RequestState.RUNNING or request.is_interrupted:
            self._closures.left(request.tenant)
        if request.state is RequestState.RUNNING:
            self._stop_running(request)
        elif request.ticket:
            self._waiting.remove(request)
        request.state = RequestState.FINISHED
        self._expiry.ended(request)
        return self._victims.spent(self.charging.withdraw(request) if is_untouched else self.charging.end(request, reason))

    def suspect(self, request: Request) -> None:
        """A request may be what kills workers: it is to be tried alone."""
        request.is_alone = True
        if request.is_interrupted:
            request.is_interrupted = False
            self._closures.left(request.tenant)
        self.reorder(request)

    def acquit(self, request: Request) -> None:
        """A running request that was to be tried alone is harmless: others may run beside it again."""
        self._num_alone -= request.is_alone
        request.is_alone = False

    def charge_output(self, request: Request, num_tokens: int) -> int:
        """The request generated tokens. Returns what it was charged, which is nothing as long as they are prepaid."""
        return self.charge_outputs([(request, num_tokens)])

    def charge_outputs(self, generated: Sequence[tuple[Request, int]]) -> int:
        """The same for all tokens of a step: each tenant is charged in one go. Returns what was charged, all together."""
        self._victims.num_steps += 1
        return self._victims.spent(self.charging.outputs(generated))

    def set_resident(self, model: str, is_resident: bool) -> None:
        """A model came or went: what waits for it joins the line, or waits beside it until the model comes back."""
        self._waiting.set_resident(model, is_resident)

    def set_max_running(self, path: str, limit: int) -> None:
        """How many requests of a tenant, and of all below it, may run at once; 0: any number. Raises: NotFound."""
        self._closures.set_max_running(path, limit)
        self.locality.forget()

    def hold_back(self, path: str) -> None:
        """A tenant is at its limit of memory: nothing of it is next until `let_in`. Raises: NotFound."""
        self._closures.hold_back(path)
        self.locality.forget()

    def let_in(self) -> None:
        """Memory was given up: tenants that were held back may be next again."""
        self._closures.let_in()

    def remove_tenant(self, path: str) -> None:
        """Forget a tenant that has no children, and nothing that waits or runs. Raises: NotFound, WrongState."""
        if self.waiting.of(path) or self.running.of(path):
            raise WrongState(f"Tenant {path!r} still has requests.", facts={"tenant": path})
        self.shares.remove(path)
        self.charging.forget(path)
        self._waiting.forget(path)
        self.locality.forget()
        self._closures.forget(path)

    # ----------------------------------------------------------------------------------------------------------- keeping and restoring

    def accounts(self) -> Accounts:
        """All of the books, for `restore`. What waits is not part of them."""
        return msgspec.structs.replace(self.charging.accounts(), shares=self.shares.snapshot())

    def account_changes(self) -> Accounts | None:
        """What changed of the books since the last call; None: nothing."""
        shares, prices = self.shares.changes(), self.charging.changes()
        if not (shares or prices.outputs or prices.tariffs):
            return None
        return Accounts(shares, prices.outputs, prices.tariffs)

    def unkept(self, accounts: Accounts) -> None:
        """Changes that were told could not be written: they count as changed again."""
        self.shares.unkept(accounts.shares)
        self.charging.unkept(accounts)

    def restore(self, accounts: Accounts) -> None:
        """Put the books back, before anything waits; requests that had not ended come by `recover`, and then `settle`."""
        self.shares.restore(accounts.shares)
        self.charging.restore(accounts)

    def settle(self, recovered: Sequence[Request]) -> None:
        """These are all the requests that had not ended: a tenant that waits with none of them has been asleep since."""
        self.shares.settle({request.tenant for request in recovered if not request.is_interrupted})

    # ------------------------------------------------------------------------------------------------------------------- deciding

    @property
    def num_ready(self) -> int:
        """How many wait of whom one is next: those in line, and those that lost a row through no decision."""
        return self._waiting.num_ready

    @property
    def step_budget(self) -> int:
        """Tokens that the last step was allowed to compute; 0: there was none."""
        return self._quanta.last_budget

    @property
    def num_deferred(self) -> int:
        """How many wait behind a soft limit."""
        return self._waiting.num_deferred

    def next_candidate(self) -> Request | None:
        """The request to be admitted next, if it fits; None if nothing may be admitted. Changes nothing (invariants 1, 4 and 5)."""
        if self._num_alone:
            return None
        request = self._waiting.front(self._closures.may_run_on)
        if request is None:
            path = self.shares.pick()
            request = self._waiting.deferred(self._closures.is_open) if path is None else self._courtesy.choose(path)
        return None if request is None or (request.is_alone and self.running.total) else request

    def plan_step(self, rows: Sequence[RowNeed]) -> StepShape:
        """The next quantum of these rows, which are in the order of their admission."""
        return self._quanta.shape(rows, has_waiting=self.num_ready > 0)

    def victim(self, rows: Sequence[Request], candidate: Request | None = None) -> Request | None:
        """The running request that has to give way: for a waiting `candidate`, or for the others that run. See `kerneld.victims`."""
        return self._victims.least_deserving(rows) if candidate is None else self._victims.for_waiting(rows, candidate)

    def urgency(self, model: str) -> tuple[object, ...] | None:
        """How urgent a load is: the least is that of the model whose best waiter would be picked first; None: nobody waits for it."""
        waiting = self._waiting.absent(model)
        return min(((self.shares.place(request.tenant, request.rank), key, request.id) for key, request in waiting), default=None)

    def line(self, limit: int) -> Iterator[Request]:
        """The first of those who wait, in the order in which they would be seated if everything fitted; nothing may change meanwhile."""
        return line(self.shares, self._waiting, self.charging, limit)

    def expired(self, now: float, steady: float | None = None) -> tuple[Expired, ...]:
        """The requests that have run out of time by `now`, each of them once; `steady` is a clock that cannot jump, where there is one."""
        return self._expiry.due(now, steady)

    def queue_position(self, request: Request) -> int:
        """Its place in the line of its own tenant, from 1; 0 if it does not wait there."""
        return self._waiting.position(request)

    # --------------------------------------------------------------------------------------------------------------------- inside

    def _wait(self, request: Request) -> None:
        request.state = RequestState.QUEUED
        self._waiting.add(request)

    def _stop_running(self, request: Request) -> None:
        self.running.remove(request.tenant)
        self._num_alone -= request.is_alone
