"""A world: the daemon's own parts, put together under virtual time, and the requests of a workload sent to them.

    Job --arrive--> Admission --> Scheduler --> Composer --> Dispatcher --plan--> SimDevice
         rejected <----'                            Delivery <------------step------'
                                                       '--> what became of it: a Record

Pager, scheduler, admission, seating, composer, dispatcher and delivery are those of the daemon; only the device, the clock and the journal
are not. FCFS is the same scheduler with every request under one tenant, `EVERYONE`: one queue, in the order of arrival. Limits of tenants
on rates hold there too, those on what waits or runs have nobody to hold for.

A request has a context of its own, which is freed when it ends. Its tokens are those of nobody else, so nothing is shared.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Final

from drivers.contract import KvGroupSpec, ModelSpec, Sampling, StepResult
from drivers.sim import SimDevice
from kerneld.admission import Admission, Demand
from kerneld.calls import ContextState, Durability, FinishReason, InferArgs, Limits, ModelState, Priority
from kerneld.composer import Composer
from kerneld.context import Context
from kerneld.deadline import StepDeadline
from kerneld.delivery import Delivery
from kerneld.dispatcher import Dispatcher
from kerneld.errors import QuotaExceeded
from kerneld.eventbus import EventBus
from kerneld.fairshare import FairShare
from kerneld.meter import Meter
from kerneld.models import Model, ModelTable
from kerneld.policy import SchedulerPolicy
from kerneld.request import Request
from kerneld.rows import Flight
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.simulation.journal import NoJournal
from kerneld.simulation.loop import VirtualLoop
from kerneld.simulation.records import Outcome, Record
from kerneld.simulation.workload import Job, TenantLoad, Workload
from kerneld.state.tables import TenantRow
from kerneld.stream import OutputLog
from kerneld.tenants import TenantTable
from kerneld.tierlimits import TierLimits
from kerneld.transcript import Transcript
from kerneld.weights.identities import Identities
from memory.config import MemoryConfig
from memory.costs import Costs
from memory.errors import NeverFits
from memory.pager import Pager

EVERYONE: Final = "everyone"
MODEL: Final = "sim"
STOP_TOKEN: Final = 2
_GRANULE: Final = 4096
_FIRST_TOKEN: Final = 3  # of inputs; those below mean something to the device
_MAX_SLAB_PAGES: Final = 64
_TICK_S: Final = 0.25  # as `kerneld.housekeeping`
_DEADLINE_S: Final = 1e9  # of a step: a simulated one never hangs


class Scheduling(Enum):
    """Who is next."""

    FCFS = "fcfs"  # first come, first served
    HVTC = "hvtc"  # fair shares: hierarchical virtual token counters


def make_scheduler(policy: SchedulerPolicy) -> Scheduler:
    """The scheduler of the daemon."""
    return Scheduler(FairShare(policy.slices_us, policy.share_cap_us, policy.held_cap_us), policy)


class World:
    """One run of a workload under one scheduling."""

    def __init__(
        self, workload: Workload, scheduling: Scheduling, scheduler_of: Callable[[SchedulerPolicy], Scheduler] = make_scheduler
    ) -> None:
        self.loop = VirtualLoop()
        self.scheduling = scheduling
        self._workload = workload
        clock = self.loop.time
        device, spec = workload.device, workload.scheduler
        memory = memory_of(workload)
        events = EventBus(clock)
        self.scheduler = scheduler_of(replace(spec.policy, max_step_tokens=device.max_step_tokens))
        self.pager = Pager(memory, costs=Costs(clock))
        models, tenants = ModelTable(()), TenantTable()
        self.admission = Admission(self.scheduler.waiting, self.scheduler.running, spec.max_queued, spec.max_queued, clock)
        seating = Seating(self.pager, models, tenants, events)
        self._seating = seating
        seating.meter = Meter(self.pager.costs, clock)
        self._delivery = Delivery(NoJournal(), self.scheduler, seating, events, clock)
        self._delivery.on_finished = self._finished
        composer = Composer(self.pager, self.scheduler, seating, self._delivery, device.max_rows)
        self.dispatcher = Dispatcher(self.pager, composer, self._delivery, StepDeadline(_DEADLINE_S, 1.0))
        self.dispatcher.on_result = self._heard
        seating.meter.on_settled = self.scheduler.system.had_back
        self.model = self._add_model(models, memory)
        self._add_tenants(tenants)
        frame_bytes = {space.space_id: space.device_frame_bytes for space in self.model.spaces}
        self.device = SimDevice(self.loop, device.costs, frame_bytes, device.copy_bytes_per_s)
        self.dispatcher.attach(self.device, 1)
        self.requests: dict[str, tuple[Job, Request]] = {}  # that wait or run
        self.records: list[Record] = []
        self._num_requests = 0

    def run(self, jobs: tuple[Job, ...]) -> list[Record]:
        """Send the jobs, run until the workload's end, and say what became of each, in the order of arrival."""
        for job in jobs:
            self.loop.call_at(job.arrival_s, self._arrive, job)
        self._keep_house()
        self.loop.run(self._workload.duration_s)
        for job, request in self.requests.values():
            self._record(job, request, Outcome.WAITING if request.first_token_at is None else Outcome.CUT)
        self.loop.close()
        self.records.sort(key=lambda record: record.number)
        return self.records

    # ------------------------------------------------------------------------------------------------------------- coming and going

    def _arrive(self, job: Job) -> None:
        self._num_requests += 1
        try:
            self.admission.check_request(job.tenant, Demand(job.num_input))
            self.pager.fits(self.model.space_ids, job.num_input + job.max_tokens, self._payer(job))
        except (QuotaExceeded, NeverFits):
            self.records.append(self._blank(job, self._num_requests, Outcome.REJECTED))
            return
        held_back = self.admission.take_request(job.tenant, Demand(job.num_input))
        request = self._request(job)
        if held_back.request_s:
            request.defer_until = self.loop.time() + held_back.request_s
        request.context.move(ContextState.READY)
        request.context.active_request = request.id
        self.requests[request.id] = job, request
        self.scheduler.enqueue(request)
        self.dispatcher.arrived()

    def _heard(self, flight: Flight, step_idx: int, is_last: bool, result: StepResult) -> None:
        self._seating.meter.heard(flight, step_idx, is_last, result)
        self.scheduler.sizer.costs.heard(flight, step_idx, is_last, result)

    def _keep_house(self) -> None:
        """What the daemon's housekeeping does for requests."""
        now = self.loop.time()
        for request, detail in self.scheduler.expired(now, now):
            self.dispatcher.end(request, FinishReason.DEADLINE, detail)
        if self.scheduler.undefer(now):
            self.dispatcher.arrived()
        self.loop.call_later(_TICK_S, self._keep_house)

    def _finished(self, request: Request) -> None:
        job, _request = self.requests.pop(request.id)
        is_late = request.context.last_finished is not None and request.context.last_finished.reason is FinishReason.DEADLINE
        self._record(job, request, Outcome.EXPIRED if is_late else Outcome.FINISHED)
        self.admission.take_tokens(job.tenant, request.num_generated)
        if request.context.table is not None:
            self.pager.drop(request.context.table)

    def _request(self, job: Job) -> Request:
        now, number = self.loop.time(), self._num_requests
        is_fair = self.scheduling is Scheduling.HVTC
        context = Context(
            id=f"{number:032x}",
            owner=job.tenant,
            tenant=self._payer(job),
            model=MODEL,
            fingerprint="",
            seed=number,
            created_at=now,
            durability=Durability.NONE,
            priority=job.priority if is_fair else Priority.INTERACTIVE,
            nice=job.nice if is_fair else 0,
            tokens=array("I", [_FIRST_TOKEN + number]) * job.num_input,
            state=ContextState.IDLE,
        )
        log = OutputLog(job.num_input, self.loop.time)
        stops = (STOP_TOKEN,) if job.num_output < job.max_tokens else ()
        return Request(
            id=context.id,
            context=context,
            args=InferArgs(context.id),
            sampling=Sampling(seed=job.num_input + job.num_output - 1, stop_token_ids=stops),
            num_input=job.num_input,
            output_start=job.num_input,
            max_tokens=job.max_tokens,
            arrival=now,
            log=log,
            transcript=Transcript(log, None),
            deadline=now + job.deadline_s if job.deadline_s else None,
            queued_at=now,
        )

    def _payer(self, job: Job) -> str:
        return job.tenant if self.scheduling is Scheduling.HVTC else EVERYONE

    # ----------------------------------------------------------------------------------------------------------------------- records

    def _record(self, job: Job, request: Request, outcome: Outcome) -> None:
        blank = self._blank(job, int(request.id, 16), outcome)
        if outcome is Outcome.WAITING:
            self.records.append(blank)
            return
        first_token_s = None if request.first_token_at is None else round(request.first_token_at, 6)
        finish_s = round(self.loop.time(), 6)
        self.records.append(replace(blank, first_token_s=first_token_s, finish_s=finish_s, output_tokens=request.num_generated))

    def _blank(self, job: Job, number: int, outcome: Outcome) -> Record:
        """The record of a request that got no token."""
        return Record(
            number=number,
            tenant=job.tenant,
            scheduler=self.scheduling.value,
            arrival_s=job.arrival_s,
            input_tokens=job.num_input,
            wanted_tokens=job.num_output,
            outcome=outcome,
        )

    # ---------------------------------------------------------------------------------------------------------------------- the parts

    def _add_model(self, models: ModelTable, memory: MemoryConfig) -> Model:
        device = self._workload.device
        group = KvGroupSpec(num_layers=1, frame_bytes=device.page_bytes)
        spec = ModelSpec("sim", "float32", _FIRST_TOKEN, device.context_tokens, 0, (), (group,), None, (), "sim")
        model = Model(MODEL, "", device.context_tokens, "", "sim", "", None, None, state=ModelState.RESIDENT, spec=spec)
        Identities(memory, self.pager, 1).give(model, spec)
        models.add(model)
        self.pager.costs.know_model(MODEL, model.space_ids, device.costs.token_s)
        self.scheduler.sizer.costs.know(MODEL, device.costs.token_s)
        self.scheduler.charging.tariffs.put(MODEL, self._workload.scheduler.tariff)
        self.scheduler.set_resident(MODEL, True)
        return model

    def _add_tenants(self, tenants: TenantTable) -> None:
        limits = TierLimits({"": self.pager.ledger}, lambda _event: None)
        for load in self._workload.tenants:
            self.admission.set_limits(load.path, load.limits)
        known = self._workload.tenants if self.scheduling is Scheduling.HVTC else (TenantLoad(EVERYONE),)
        for load in known:
            tenants.put(TenantRow(load.path, load.weight, load.limits, 0.0, load.path.encode().ljust(32, b".")))
            self.scheduler.shares.add(load.path, load.weight)
            self.scheduler.set_max_running(load.path, load.limits.max_running)
            self.pager.ledger.set_weight(load.path, load.weight)
            limits.put(load.path, Limits(), load.limits)


def memory_of(workload: Workload) -> MemoryConfig:
    """The tiers of a workload's device, to the page."""
    device = workload.device
    slab_pages = next(count for count in range(_MAX_SLAB_PAGES, 0, -1) if device.pages % count == 0)
    host_slab_pages = slab_pages - 1 if slab_pages > 1 else 0  # a host frame is larger by its header
    num_host_slabs = -(-device.host_pages // host_slab_pages) if device.host_pages and host_slab_pages else 0
    return MemoryConfig(
        device_bytes=device.pages * device.page_bytes,
        host_bytes=num_host_slabs * slab_pages * device.page_bytes,
        page_tokens=device.page_tokens,
        slab_bytes=slab_pages * device.page_bytes,
        granule_bytes=_GRANULE,
        write_behind=False,
    )
