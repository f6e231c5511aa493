"""The daemon: builds the parts, starts them in order, keeps house while they run, and stops them in order.

    start   state directory (locked) -> database -> journal -> parts -> worker listener -> worker -> recovery -> READY
    stop    no new requests -> running ones end, or wait for the next start -> worker -> accounts -> journal -> database -> directory

`cli.serve` puts the system calls on top and owns the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from drivers.listener import WorkerListener
from kerneld.admission import Admission
from kerneld.bounds import Bounds
from kerneld.checkpoint import ImageStore
from kerneld.composer import Composer
from kerneld.config import Config
from kerneld.contexts import ContextTable
from kerneld.deadline import StepDeadline
from kerneld.delivery import Delivery
from kerneld.disk.pagefile import PageFile
from kerneld.disk.tier import DiskTier
from kerneld.disk_reserve import DiskReserve
from kerneld.dispatcher import Dispatcher
from kerneld.effects import Effects
from kerneld.eventbus import EventBus
from kerneld.events import DaemonReady, DaemonStarted, DaemonStopped
from kerneld.fairshare import FairShare
from kerneld.housekeeping import Housekeeping
from kerneld.inventory import missing_bytes
from kerneld.kernel import Kernel
from kerneld.lodging import Lodging
from kerneld.machine import Machine
from kerneld.metrics import Gauges, Metrics
from kerneld.models import ModelTable
from kerneld.pagereports import PageReports
from kerneld.recovery import recover
from kerneld.remedies import Needer, remedies_of
from kerneld.renderer import TemplateRenderer
from kerneld.request import Request
from kerneld.rows import Flight
from kerneld.scheduler import Scheduler, SchedulerPolicy
from kerneld.seating import Seating
from kerneld.security.identity import Authenticator
from kerneld.security.principals import LocalUsers, SystemAccounts
from kerneld.state.directory import StateDirectory
from kerneld.state.journal import Journal
from kerneld.state.replay import LogState
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow
from kerneld.supervisor import Supervisor, WorkerCommand
from kerneld.tenants import TenantTable
from kerneld.throughput import Throughput
from kerneld.verbs.admin import drain_requests
from kerneld.weights.residency import Residency
from memory.errors import OutOfFrames, OverLimit
from memory.page import Tier
from memory.pager import Pager

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
MAX_TOKEN_GAP_S = 10.0  # a longer pause is not between two tokens of anybody


class Daemon:
    """One running kerneld without its system calls. Make it, `start` it, `stop` it; all on one event loop."""

    machine: Machine
    kernel: Kernel

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds: what deadlines and graces are told by."""
        self.config = config
        self._clock = clock
        self.stop_wanted = asyncio.Event()
        self._directory: StateDirectory
        self._listener: WorkerListener
        self._housekeeping: Housekeeping
        self.metrics = Metrics(self._gauges)
        self._lodging = Lodging(config, self.metrics)

    # -------------------------------------------------------------------------------------------------------------------- start, stop

    async def start(self) -> None:
        """Become what the last front was. Raises: KernelError, if the state directory cannot be used; then nothing is left running."""
        async with contextlib.AsyncExitStack() as undo:
            state_dir = self.config.kerneld.state_dir
            self._directory = await asyncio.to_thread(StateDirectory.open, state_dir)
            undo.callback(self._directory.close)
            store = await asyncio.to_thread(Store.open, f"sqlite:///{self._directory.database}")
            undo.push_async_callback(store.close)
            journal = Journal(self._directory.journal, segment_bytes=self.config.kerneld.journal_segment_bytes)
            undo.callback(journal.close)
            state = await asyncio.to_thread(lambda: LogState.fold(journal.replay()))
            page_file = await asyncio.to_thread(self._open_page_file)
            if page_file is not None:
                undo.callback(page_file.close)
            self.machine = self._build(store, journal, page_file, await store.begin_boot())
            self.kernel = Kernel(self.machine)
            self._listener = WorkerListener(self.config.kerneld.worker_socket, self.machine.supervisor)
            self._listener.start()
            undo.push_async_callback(self._listener.close)
            self.machine.supervisor.start()
            undo.push_async_callback(self.machine.supervisor.stop)
            self.machine.events.publish(DaemonStarted(self.machine.boot_generation, VERSION))
            await self.machine.authenticator.load()
            num_contexts, num_requests = await recover(self.machine, state)
            self._lodging.open()
            self._housekeeping = Housekeeping(self.machine)
            self._housekeeping.start()
            self.machine.events.publish(DaemonReady(num_contexts, num_requests))
            undo.pop_all()

    async def stop(self) -> None:
        """End in order: what runs may finish within `drain_timeout_s`; what does not goes on at the next start."""
        machine = self.machine
        if not machine.is_draining:
            await drain_requests(machine, self.config.kerneld.drain_timeout_s)
        async with contextlib.AsyncExitStack() as steps:  # the last one goes first, and one that fails keeps no other from its turn
            steps.callback(self._directory.close)
            if machine.host is not None:
                steps.callback(machine.host.close)
            if machine.disk_tier is not None:
                steps.callback(machine.disk_tier.file.close)
            steps.callback(machine.journal.close)
            steps.push_async_callback(machine.store.close)
            steps.push_async_callback(machine.authenticator.close)
            steps.push_async_callback(machine.renderer.close)
            steps.push_async_callback(machine.delivery.close)
            steps.push_async_callback(self._lodging.close)
            if machine.disk_tier is not None:
                steps.push_async_callback(machine.disk_tier.close)
            steps.callback(machine.residency.detach)
            steps.push_async_callback(machine.supervisor.stop)
            steps.push_async_callback(self._listener.close)
            steps.push_async_callback(self._housekeeping.stop)
        machine.events.publish(DaemonStopped(len(machine.requests)))

    @property
    def audit_folder(self) -> Path:
        """Where the audit log lies."""
        return self._directory.audit

    # ------------------------------------------------------------------------------------------------------------------------- wiring

    def _open_page_file(self) -> PageFile | None:
        kernel, memory = self.config.kerneld, self.config.memory
        num_slabs = memory.page_file_bytes // memory.slab_bytes
        if not num_slabs:
            return None
        path = kernel.page_file or self._directory.path / "pages"
        return PageFile.open(path, num_slabs * memory.slab_bytes, memory.granule_bytes, memory.slab_bytes)

    def _reserve_of(self, page_file: PageFile) -> DiskReserve:
        return DiskReserve(page_file.path.parent, self.config.kerneld.disk_reserve_bytes)

    def _build(self, store: Store, journal: Journal, page_file: PageFile | None, boot_generation: int) -> Machine:
        config, clock = self.config, self._clock
        kernel, memory = config.kerneld, config.memory
        events = EventBus(clock)
        policy = SchedulerPolicy(max_step_tokens=kernel.max_step_tokens, max_steps=kernel.max_steps)
        scheduler = Scheduler(FairShare(), policy)
        pager, tenants, models = Pager(memory), TenantTable(), ModelTable(str(root) for root in kernel.model_roots)
        admission = Admission(scheduler.waiting, kernel.max_queued, kernel.max_contexts)
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
            disk=DiskReserve(self._directory.path, kernel.disk_reserve_bytes),
            effects=Effects(clock),
            images=ImageStore(self._directory.images),
            events=events,
            authenticator=Authenticator(store, users, login_lifetime_s=kernel.login_lifetime_s),
            admission=admission,
            bounds=Bounds(kernel),
            tenants=tenants,
            models=models,
            contexts=ContextTable(models, admission.contexts, clock),
            host=None,
            disk_tier=None if page_file is None else DiskTier(page_file, pager, scheduler, events, self._reserve_of(page_file)),
            pager=pager,
            scheduler=scheduler,
            seating=seating,
            delivery=delivery,
            dispatcher=Dispatcher(pager, Composer(pager, scheduler, seating, delivery, kernel.max_rows), delivery, deadline),
            residency=Residency(memory, models, pager, events, boot_generation),
            supervisor=Supervisor(self._worker_command(), self._lodging),
            renderer=TemplateRenderer(),
            throughput=throughput,
            stop=self.stop_wanted.set,
        )
        self._lodging.furnish(machine)
        self._connect(machine)
        return machine

    def _connect(self, machine: Machine) -> None:
        """Let parts tell each other what concerns them."""
        self._reports = PageReports(machine.events)
        machine.events.subscribe(self.metrics.on_event)
        machine.dispatcher.composer.advise = self._advise
        machine.delivery.on_finished = self._request_finished
        machine.delivery.on_unsynced = machine.dispatcher.end
        machine.authenticator.on_tenant_seen = self._tenant_seen
        machine.dispatcher.on_result = machine.seating.meter.heard
        machine.dispatcher.on_landed = self._landed
        machine.dispatcher.on_corrupt = self._reports.corrupt
        if machine.disk_tier is not None:
            machine.disk_tier.returns.on_wait = machine.seating.meter.fetching
            machine.disk_tier.on_return = machine.dispatcher.arrived
            machine.dispatcher.composer.waits.append(machine.disk_tier.returns.must_wait)

    def _advise(self, shortage: OutOfFrames | OverLimit, request: Request) -> None:
        """Say what would help a request that does not fit alone."""
        more_bytes = missing_bytes(self.machine, request.context, request.num_remaining)
        shortage.advise(remedies_of(self.machine, shortage, Needer.of(request.context, more_bytes)))

    def _worker_command(self) -> WorkerCommand:
        kernel = self.config.kerneld
        kernel.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        return WorkerCommand(
            device=f"{self.config.drivers.use}0",
            driver=self.config.drivers.use,
            socket=kernel.worker_socket,
            runtime_dir=kernel.runtime_dir,
            orphan_grace_s=kernel.worker_orphan_grace_s,
            spawn=kernel.start_workers,
            log_level=kernel.log_level,
            log_json=kernel.log_json,
        )

    # ---------------------------------------------------------------------------------------------------------- what parts are told of

    def _gauges(self) -> Gauges:
        machine = self.machine
        tiers = machine.pager.ledger.snapshot()
        device = next(tier for tier in tiers if tier.tier is Tier.DEVICE)
        kv_bytes = sum(device.kv_bytes.values())
        return Gauges(
            running=machine.scheduler.running.total,
            waiting=machine.scheduler.waiting.total,
            contexts=len(machine.contexts),
            kv_usage=kv_bytes / max(1, kv_bytes + device.free_bytes),
            service={tenant.path: machine.scheduler.shares.service(tenant.path) for tenant in machine.tenants},
            tier_bytes={
                (tier.tier.name.lower(), kind): size
                for tier in tiers
                for kind, size in (("weights", tier.weights_bytes), ("kv", sum(tier.kv_bytes.values())), ("free", tier.free_bytes))
            },
        )

    def _request_finished(self, request: Request) -> None:
        machine, context = self.machine, request.context
        machine.requests.pop(request.id, None)
        machine.residency.turns.note_used(context.models)
        if machine.disk_tier is not None:
            machine.disk_tier.returns.forget(request)
        if request.reserved_bytes:
            machine.journal.release(request.reserved_bytes)
        machine.admission.take_tokens(request.tenant, request.num_generated)
        if request.tenant in machine.tenants:
            machine.tenants.use(request.tenant, request.num_input, request.num_generated)
        if not request.is_scoring and machine.contexts.find(context.id) is not None:
            machine.last_logs[context.id] = request

    def _landed(self, flight: Flight) -> None:
        self._reports.landed(flight)
        if self.machine.disk_tier is not None:
            self.machine.disk_tier.reclaimer.turn()

    def _tenant_seen(self, tenant: TenantRow) -> None:
        if tenant.path not in self.machine.tenants:
            self.machine.know_tenant(tenant)
