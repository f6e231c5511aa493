"""Assembly: makes the parts of one daemon and wires them; what one part has to tell another goes through here.

The parts of each device are made by `kerneld.deviceassembly`. `kerneld.daemon` starts and stops what is made here; `kerneld.machine` is
the list of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from kerneld.admission import Admission, Demand
from kerneld.bookkeeping import Bookkeeping
from kerneld.bounds import Bounds
from kerneld.catalog import Catalog
from kerneld.checkpoint import ImageStore
from kerneld.commonbooks import Common, CommonShares
from kerneld.config import Config
from kerneld.contexts import ContextTable
from kerneld.deviceassembly import DeviceAssembly, Foundation, policy_of
from kerneld.deviceconfig import config_by_device
from kerneld.devices import Devices
from kerneld.disk.pagefile import PageFile
from kerneld.disk_reserve import DiskReserve
from kerneld.effects import Effects
from kerneld.eventbus import EventBus
from kerneld.fairshare import FairShare
from kerneld.lodging import Lodging
from kerneld.machine import Machine
from kerneld.metrics import Metrics
from kerneld.renderer import TemplateRenderer
from kerneld.request import Request
from kerneld.schedulers import Schedulers
from kerneld.security.identity import Authenticator
from kerneld.security.principals import LocalUsers, SystemAccounts
from kerneld.starts import Starts
from kerneld.state.directory import StateDirectory
from kerneld.state.journal import Journal
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow
from kerneld.tenants import TenantTable


class Assembly:
    """Puts one daemon together."""

    _machine: Machine

    def __init__(self, config: Config, clock: Callable[[], float], metrics: Metrics, stop: Callable[[], None]) -> None:
        """`clock` gives Unix seconds; `stop` is called when somebody wants the daemon to end."""
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._stop = stop
        configs = config_by_device(config)
        self._devices = [
            DeviceAssembly(name, name if len(configs) > 1 else "", each, Lodging(each, metrics)) for name, each in configs.items()
        ]

    @property
    def lodgings(self) -> Sequence[Lodging]:
        """The landlords of all workers."""
        return [device.lodging for device in self._devices]

    def build(
        self, directory: StateDirectory, store: Store, journal: Journal, page_files: Mapping[str, PageFile], boot_generation: int
    ) -> Machine:
        """Make all parts, and let them know each other. `page_files` are by device, of those that have a disk tier."""
        config, clock, kernel = self._config, self._clock, self._config.kerneld
        events, requests = EventBus(clock), dict[str, Request]()
        schedulers = self._schedulers()
        tenants = TenantTable()
        models = Catalog({device.name: device.models for device in self._devices})
        admission = Admission(schedulers.waiting, schedulers.running, kernel.max_queued, kernel.max_contexts)
        contexts = ContextTable(models, admission.contexts, clock)
        books = Bookkeeping(journal, schedulers)
        base = Foundation(events, journal, books, self._common, tenants, contexts, requests, boot_generation)
        built = zip(self._devices, schedulers, strict=True)
        devices = Devices(device.build(base, scheduler, page_files.get(device.name)) for device, scheduler in built)
        starts = devices.first.starts
        if len(devices) > 1:
            starts = Starts(schedulers, requests, kernel.max_rows, time.monotonic, is_mine=lambda _request: False)
        users = LocalUsers(os.geteuid(), kernel.users, SystemAccounts())
        self._machine = machine = Machine(
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
            contexts=contexts,
            devices=devices,
            scheduler=schedulers,
            books=books,
            renderer=TemplateRenderer(),
            starts=starts,
            requests=requests,
            stop=self._stop,
        )
        self._connect(machine)
        return machine

    def _schedulers(self) -> Schedulers:
        """A scheduler for each device, over a tree of shares of its own; what is charged, is charged in all of them."""
        policy = policy_of(self._config.kerneld)
        rules = policy.slices_us, policy.share_cap_us, policy.held_cap_us
        twins = [FairShare(*rules) for _ in self._devices[1:]]
        shares: FairShare = FairShare(*rules)
        if twins:
            shares = CommonShares(*rules)
            shares.twins = twins
        self._common = Common(shares)
        trees = [shares, *twins]
        pairs = zip(self._devices, trees, strict=True)
        return Schedulers({device.name: device.scheduler(tree, self._common) for device, tree in pairs}, self._common)

    def _connect(self, machine: Machine) -> None:
        """Let parts tell each other what concerns them."""
        machine.events.subscribe(self._metrics.on_event)
        machine.authenticator.on_tenant_seen = self._tenant_seen
        machine.admission.next_start_s = self._next_start_s
        machine.books.others += [machine.admission, *(device.residency.debts for device in machine.devices)]
        machine.scheduler.charging.surcharge = self._surcharge
        for device, assembly in zip(machine.devices, self._devices, strict=True):
            assembly.connect(machine)
            device.delivery.on_finished = self._request_finished

    # ---------------------------------------------------------------------------------------------------------- what parts are told of

    def _surcharge(self, request: Request, cost_us: int) -> int:
        return self._machine.devices.of(request.context).residency.debts.surcharge(request, cost_us)

    def _next_start_s(self, path: str) -> float | None:
        """When the next one of those starts that wait below a tenant, on whatever device; None: unknown."""
        known = [seconds for device in self._machine.devices if (seconds := device.starts.next_s(path)) is not None]
        return min(known, default=None)

    def _request_finished(self, request: Request) -> None:
        machine, context = self._machine, request.context
        device = machine.devices.of(context)
        machine.forget_request(request)
        machine.endings.note(request, machine.clock())
        device.residency.turns.note_used(context.models)
        if device.disk_tier is not None:
            device.disk_tier.returns.forget(request)
        if request.reserved_bytes:
            machine.journal.release(request.reserved_bytes)
        machine.admission.take_tokens(request.tenant, request.num_generated)
        if request.defer_until:  # it never ran
            machine.admission.give_back(request.tenant, Demand(request.num_input))
        machine.usage.ended(request)
        if not request.is_scoring and machine.contexts.find(context.id) is not None:
            machine.last_logs.keep(request)
        for other in machine.devices:
            if other is not device and other.scheduler.num_ready:  # somebody may have waited for its tenant to have one less running
                other.dispatcher.pump()

    def _tenant_seen(self, tenant: TenantRow) -> None:
        if tenant.path not in self._machine.tenants:
            self._machine.know_tenant(tenant)
