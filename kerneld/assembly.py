"""Assembly: makes the parts of one daemon and wires them; what one part has to tell another goes through here.

`kerneld.daemon` starts and stops what is made here; `kerneld.machine` is the list of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from drivers.contract import StepResult
from kerneld.admission import Admission, Demand
from kerneld.bounds import Bounds
from kerneld.checkpoint import ImageStore
from kerneld.composer import Composer
from kerneld.config import Config, KerneldConfig
from kerneld.contexts import ContextTable
from kerneld.deadline import StepDeadline
from kerneld.delivery import Delivery
from kerneld.disk.pagefile import PageFile
from kerneld.disk.tier import DiskTier
from kerneld.disk_reserve import DiskReserve
from kerneld.dispatcher import Dispatcher
from kerneld.effects import Effects
from kerneld.eventbus import EventBus
from kerneld.fairshare import FairShare
from kerneld.inventory import missing_bytes
from kerneld.lodging import Lodging
from kerneld.machine import Machine
from kerneld.metrics import Metrics
from kerneld.models import ModelTable
from kerneld.pagereports import PageReports
from kerneld.policy import SchedulerPolicy
from kerneld.remedies import Needer, remedies_of
from kerneld.renderer import TemplateRenderer
from kerneld.request import Request
from kerneld.rows import Flight
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.security.identity import Authenticator
from kerneld.security.principals import LocalUsers, SystemAccounts
from kerneld.state.directory import StateDirectory
from kerneld.state.journal import Journal
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow
from kerneld.supervisor import Supervisor, WorkerCommand
from kerneld.tenants import TenantTable
from kerneld.throughput import Throughput
from kerneld.weights.residency import Residency
from memory.errors import OutOfFrames, OverLimit
from memory.pager import Pager


class Assembly:
    """Puts one daemon together."""

    _machine: Machine

    def __init__(self, config: Config, clock: Callable[[], float], lodging: Lodging, metrics: Metrics, stop: Callable[[], None]) -> None:
        """`clock` gives Unix seconds; `stop` is called when somebody wants the daemon to end."""
        self._config = config
        self._clock = clock
        self._lodging = lodging
        self._metrics = metrics
        self._stop = stop

    def build(self, directory: StateDirectory, store: Store, journal: Journal, page_file: PageFile | None, boot_generation: int) -> Machine:
        """Make all parts, and let them know each other."""
        config, clock = self._config, self._clock
        kernel, memory = config.kerneld, config.memory
        events = EventBus(clock)
        policy = _policy_of(kernel)
        scheduler = Scheduler(FairShare(policy.slices_us, policy.share_cap_us, policy.held_cap_us), policy)
        pager, tenants, models = Pager(memory), TenantTable(), ModelTable(str(root) for root in kernel.model_roots)
        admission = Admission(scheduler.waiting, scheduler.running, kernel.max_queued, kernel.max_contexts)
        seating = Seating(pager, models, tenants, events)
        throughput = Throughput(time.monotonic)
        delivery = Delivery(journal, scheduler, seating, events, clock)
        deadline = StepDeadline(kernel.step_deadline_floor_s, kernel.step_deadline_factor)
        users = LocalUsers(os.geteuid(), kernel.users, SystemAccounts())
        machine = Machine(
            config=config,
            clock=clock,
            boot_generation=boot_generation,
            started_at=clock(),
            store=store,
            journal=journal,
            disk=DiskReserve(directory.path, kernel.disk_reserve_bytes),
            effects=Effects(clock),
            images=ImageStore(directory.images),
            events=events,
            authenticator=Authenticator(store, users, login_lifetime_s=kernel.login_lifetime_s),
            admission=admission,
            bounds=Bounds(kernel),
            tenants=tenants,
            models=models,
            contexts=ContextTable(models, admission.contexts, clock),
            host=None,
            disk_tier=None
            if page_file is None
            else DiskTier(page_file, pager, scheduler, events, DiskReserve(page_file.path.parent, kernel.disk_reserve_bytes)),
            pager=pager,
            scheduler=scheduler,
            seating=seating,
            delivery=delivery,
            dispatcher=Dispatcher(pager, Composer(pager, scheduler, seating, delivery, kernel.max_rows), delivery, deadline),
            residency=Residency(memory, models, pager, events, boot_generation),
            supervisor=Supervisor(self._worker_command(), self._lodging),
            renderer=TemplateRenderer(),
            throughput=throughput,
            stop=self._stop,
        )
        self._machine = machine
        self._lodging.furnish(machine)
        self._connect(machine)
        return machine

    def _connect(self, machine: Machine) -> None:
        """Let parts tell each other what concerns them."""
        self._reports = PageReports(machine.events)
        machine.events.subscribe(self._metrics.on_event)
        machine.events.subscribe(machine.starts.on_event)
        machine.dispatcher.composer.advise = self._advise
        machine.delivery.on_finished = self._request_finished
        machine.delivery.on_unsynced = machine.dispatcher.end
        machine.authenticator.on_tenant_seen = self._tenant_seen
        machine.admission.next_start_s = machine.starts.next_s
        machine.delivery.books.others += [machine.admission, machine.residency.debts]
        machine.dispatcher.on_result = self._result_heard
        machine.seating.meter.on_settled = machine.scheduler.system.had_back
        machine.dispatcher.on_landed = self._landed
        machine.dispatcher.on_corrupt = self._reports.corrupt
        if machine.disk_tier is not None:
            machine.disk_tier.returns.on_wait = machine.seating.meter.fetching
            machine.disk_tier.on_return = machine.dispatcher.arrived
            machine.dispatcher.composer.waits.append(machine.disk_tier.returns.must_wait)

    def _advise(self, shortage: OutOfFrames | OverLimit, request: Request) -> None:
        """Say what would help a request that does not fit alone."""
        more_bytes = missing_bytes(self._machine, request.context, request.num_remaining)
        shortage.advise(remedies_of(self._machine, shortage, Needer.of(request.context, more_bytes)))

    def _worker_command(self) -> WorkerCommand:
        kernel = self._config.kerneld
        kernel.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        return WorkerCommand(
            device=f"{self._config.drivers.use}0",
            driver=self._config.drivers.use,
            socket=kernel.worker_socket,
            runtime_dir=kernel.runtime_dir,
            orphan_grace_s=kernel.worker_orphan_grace_s,
            spawn=kernel.start_workers,
            log_level=kernel.log_level,
            log_json=kernel.log_json,
        )

    # ---------------------------------------------------------------------------------------------------------- what parts are told of

    def _request_finished(self, request: Request) -> None:
        machine, context = self._machine, request.context
        machine.forget_request(request)
        machine.endings.note(request, machine.clock())
        machine.residency.turns.note_used(context.models)
        if machine.disk_tier is not None:
            machine.disk_tier.returns.forget(request)
        if request.reserved_bytes:
            machine.journal.release(request.reserved_bytes)
        machine.admission.take_tokens(request.tenant, request.num_generated)
        if request.defer_until:  # it never ran
            machine.admission.give_back(request.tenant, Demand(request.num_input))
        machine.usage.ended(request)
        if not request.is_scoring and machine.contexts.find(context.id) is not None:
            machine.last_logs.keep(request)

    def _result_heard(self, flight: Flight, step_idx: int, is_last: bool, result: StepResult) -> None:
        self._machine.scheduler.sizer.costs.heard(flight, step_idx, is_last, result)
        self._machine.seating.meter.heard(flight, step_idx, is_last, result)
        self._machine.usage.heard(flight, step_idx, result)

    def _landed(self, flight: Flight) -> None:
        self._reports.landed(flight)
        if self._machine.disk_tier is not None:
            self._machine.disk_tier.reclaimer.turn()

    def _tenant_seen(self, tenant: TenantRow) -> None:
        if tenant.path not in self._machine.tenants:
            self._machine.know_tenant(tenant)


def _policy_of(kernel: KerneldConfig) -> SchedulerPolicy:
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
