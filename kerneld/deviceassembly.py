"""Makes the parts of one device and wires them; what concerns all devices is wired in `kerneld.assembly`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from drivers import registry
from drivers.config import DriversConfig
from drivers.contract import StepResult
from kerneld.bookkeeping import Bookkeeping
from kerneld.commonbooks import Common
from kerneld.composer import Composer
from kerneld.config import Config, KerneldConfig
from kerneld.contexts import ContextTable
from kerneld.deadline import StepDeadline
from kerneld.delivery import Delivery
from kerneld.deviceparts import DeviceParts
from kerneld.disk.pagefile import PageFile
from kerneld.disk.tier import DiskTier
from kerneld.disk_reserve import DiskReserve
from kerneld.dispatcher import Dispatcher
from kerneld.eventbus import EventBus
from kerneld.fairshare import FairShare
from kerneld.idleslabs import IdleSlabs
from kerneld.inventory import missing_bytes
from kerneld.lodging import Lodging
from kerneld.machine import Machine
from kerneld.models import ModelTable
from kerneld.pagereports import PageReports
from kerneld.policy import SchedulerPolicy
from kerneld.remedies import Needer, remedies_of
from kerneld.request import Request
from kerneld.rows import Flight
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.starts import Starts
from kerneld.state.journal import Journal
from kerneld.supervisor import Supervisor, WorkerCommand, WorkerState
from kerneld.tenants import TenantTable
from kerneld.throughput import Throughput
from kerneld.weights.presence import Absence
from kerneld.weights.residency import Residency
from memory.errors import OutOfFrames, OverLimit
from memory.pager import Pager

_STATES = {  # of a worker that is not there, and of which nothing bad is known
    WorkerState.STARTING: "It is being started.",
    WorkerState.RUNNING: "It is being made ready.",
    WorkerState.BACKOFF: "It is started again in a moment.",
    WorkerState.STOPPED: "It was stopped.",
}
_AWAITED = "It has not come in; it is not this daemon that starts it (kerneld.start_workers)."


@dataclass(frozen=True, slots=True)
class Foundation:
    """What the parts of every device stand on."""

    events: EventBus
    journal: Journal
    books: Bookkeeping
    common: Common
    tenants: TenantTable
    contexts: ContextTable
    requests: Mapping[str, Request]
    boot_generation: int


class DeviceAssembly:
    """Puts one device together."""

    _machine: Machine
    _parts: DeviceParts

    def __init__(self, name: str, label: str, config: Config, lodging: Lodging) -> None:
        """`label` is empty for the only device; `config` is as it holds for this one."""
        self.name = name
        self.label = label
        self._config = config
        self.lodging = lodging
        self.models = ModelTable(str(root) for root in config.kerneld.model_roots)
        self._policy = policy_of(config.kerneld)

    def scheduler(self, shares: FairShare, common: Common) -> Scheduler:
        """The scheduler of this device, over accounts of its own."""
        return Scheduler(shares, self._policy, common)

    def build(self, base: Foundation, scheduler: Scheduler, page_file: PageFile | None) -> DeviceParts:
        """Make all parts."""
        kernel, memory, events = self._config.kerneld, self._config.memory, base.events
        pager = Pager(memory)
        seating = Seating(pager, self.models, base.tenants, events)
        delivery = Delivery(base.journal, scheduler, seating, events, events.clock, books=base.books)
        deadline = StepDeadline(kernel.step_deadline_floor_s, kernel.step_deadline_factor)
        dispatcher = Dispatcher(pager, Composer(pager, scheduler, seating, delivery, kernel.max_rows), delivery, deadline)
        disk_tier = None
        if page_file is not None:
            disk_tier = DiskTier(page_file, pager, scheduler, events, DiskReserve(page_file.path.parent, kernel.disk_reserve_bytes))
        self._parts = DeviceParts(
            name=self.name,
            label=self.label,
            config=self._config,
            contexts=base.contexts,
            models=self.models,
            pager=pager,
            scheduler=scheduler,
            seating=seating,
            delivery=delivery,
            dispatcher=dispatcher,
            residency=Residency(memory, self.models, pager, events, base.boot_generation),
            supervisor=Supervisor(self._worker_command(), self.lodging),
            disk_tier=disk_tier,
            throughput=Throughput(time.monotonic),
            starts=Starts(scheduler, base.requests, kernel.max_rows, time.monotonic, self._is_mine),
            idle_slabs=IdleSlabs(pager, dispatcher, memory.idle_return_s, events.clock),
        )
        self._parts.residency.debts.device = self.label
        return self._parts

    def connect(self, machine: Machine) -> None:
        """Let the parts tell each other, and those of the machine, what concerns them."""
        self._machine, parts = machine, self._parts
        self._reports = PageReports(machine.events)
        self.lodging.furnish(machine, parts)
        machine.events.subscribe(parts.starts.on_event)
        parts.residency.presence.absence = self._absence
        parts.supervisor.problems.on_change = parts.residency.presence.news
        parts.dispatcher.composer.advise = self._advise
        parts.delivery.on_unsynced = parts.dispatcher.end
        parts.dispatcher.on_result = self._result_heard
        parts.seating.meter.on_settled = machine.scheduler.system.had_back
        parts.dispatcher.on_landed = self._landed
        parts.dispatcher.on_corrupt = self._reports.corrupt
        if parts.disk_tier is not None:
            parts.disk_tier.returns.on_wait = parts.seating.meter.fetching
            parts.disk_tier.on_return = parts.dispatcher.arrived
            parts.dispatcher.composer.waits.append(parts.disk_tier.returns.must_wait)

    def _is_mine(self, request: Request) -> bool:
        return request.context.device == self.label

    def _worker_command(self) -> WorkerCommand:
        kernel = self._config.kerneld
        kernel.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        return WorkerCommand(
            device=self.name,
            driver=self._config.drivers.use,
            socket=kernel.worker_socket,
            runtime_dir=kernel.runtime_dir,
            orphan_grace_s=kernel.worker_orphan_grace_s,
            check_limit_s=check_limit_s(self._config.drivers),
            spawn=kernel.start_workers,
            log_level=kernel.log_level,
            log_json=kernel.log_json,
        )

    # ---------------------------------------------------------------------------------------------------------- what parts are told of

    def _absence(self) -> Absence:
        worker = self._parts.supervisor
        state = _STATES[worker.state] if worker.command.spawn or worker.state is WorkerState.RUNNING else _AWAITED
        return Absence(self.name, worker.problems.last or state, worker.problems.is_final)

    def _advise(self, shortage: OutOfFrames | OverLimit, request: Request) -> None:
        """Say what would help a request that does not fit alone."""
        more_bytes = missing_bytes(self._parts, request.context, request.num_remaining)
        shortage.advise(remedies_of(self._parts, shortage, Needer.of(request.context, more_bytes)))

    def _result_heard(self, flight: Flight, step_idx: int, is_last: bool, result: StepResult) -> None:
        self._parts.scheduler.sizer.costs.heard(flight, step_idx, is_last, result)
        self._parts.seating.meter.heard(flight, step_idx, is_last, result)
        self._machine.usage.heard(flight, step_idx, result)
        for model in [each for each in self.models if each.model_id in result.workspace] if result.workspace else ():
            self._parts.residency.placement.note_workspace(model, result.workspace[model.model_id])

    def _landed(self, flight: Flight) -> None:
        self._reports.landed(flight)
        if self._parts.disk_tier is not None:
            self._parts.disk_tier.reclaimer.turn()


def check_limit_s(drivers: DriversConfig) -> float:
    """How long the driver may take to prove itself: none that is built in has to, and none where they are trusted."""
    is_outside = registry.entry_point_of(drivers.use) is not None
    return drivers.check_limit_s if is_outside and not drivers.trust else 0.0


def policy_of(kernel: KerneldConfig) -> SchedulerPolicy:
    """What the configuration says of scheduling."""
    return SchedulerPolicy(
        max_step_tokens=kernel.max_step_tokens,
        max_steps=kernel.max_steps,
        min_service_tokens=kernel.min_service_tokens,
        preempt_lag_us=round(kernel.preempt_lag_s * 1e6),
        courtesy_us=round(kernel.courtesy_s * 1e6),
        locality_lag_us=round(kernel.locality_lag_s * 1e6),
        gap_factor=kernel.token_gap_factor,
        token_gap_s=kernel.token_gap_s,
        growth_share=kernel.growth_share,
    )
