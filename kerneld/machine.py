"""Machine: all live parts of one daemon, wired. Verbs and recovery act on it, `kerneld.daemon` builds it.

It has no behaviour but what concerns several parts at once and belongs to none of them: that a tenant or a request comes or goes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from drivers.hostmem import HostMemory
from kerneld.admission import Admission
from kerneld.bounds import Bounds
from kerneld.calls import Durability, Limits
from kerneld.checkpoint import ImageStore
from kerneld.config import Config
from kerneld.context import Context
from kerneld.contexts import ContextTable
from kerneld.delivery import Delivery
from kerneld.disk.tier import DiskTier
from kerneld.disk_reserve import DiskReserve
from kerneld.dispatcher import Dispatcher
from kerneld.effects import Effects
from kerneld.endings import Endings
from kerneld.eventbus import EventBus
from kerneld.holdings import LimitChange
from kerneld.idleslabs import IdleSlabs
from kerneld.lastlogs import LastLogs
from kerneld.models import ModelTable
from kerneld.pins import Pins
from kerneld.pricing.calibration import Calibration
from kerneld.renderer import TemplateRenderer
from kerneld.request import Place, Request
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.security.acl import is_beneath
from kerneld.security.identity import Authenticator
from kerneld.starts import Starts
from kerneld.state.journal import Journal
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow
from kerneld.supervisor import Supervisor
from kerneld.tenants import TenantTable
from kerneld.throughput import Throughput
from kerneld.tierlimits import TierLimits
from kerneld.usage.book import UsageBook, UsageClocks, UsagePolicy
from kerneld.weights.residency import Residency
from memory.pager import Pager


@dataclass(slots=True, eq=False)
class Machine:
    """The parts of a running daemon."""

    # there from the beginning
    config: Config
    clock: Callable[[], float]  # Unix seconds
    boot_generation: int
    started_at: float
    # durable
    store: Store
    journal: Journal
    disk: DiskReserve
    effects: Effects
    images: ImageStore
    # live
    events: EventBus
    authenticator: Authenticator
    admission: Admission
    bounds: Bounds
    tenants: TenantTable
    models: ModelTable
    contexts: ContextTable
    host: HostMemory | None
    disk_tier: DiskTier | None
    pager: Pager
    scheduler: Scheduler
    seating: Seating
    delivery: Delivery
    dispatcher: Dispatcher
    residency: Residency
    supervisor: Supervisor
    renderer: TemplateRenderer
    throughput: Throughput
    requests: dict[str, Request] = field(default_factory=dict)  # unfinished, by request id
    demand: Counter[str] = field(default_factory=Counter)  # how many of them there are on each model and adapter, by name
    last_logs: LastLogs = field(default_factory=LastLogs)
    endings: Endings = field(default_factory=Endings)
    limits: TierLimits = field(init=False)
    pins: Pins = field(init=False)
    idle_slabs: IdleSlabs = field(init=False)
    starts: Starts = field(init=False)
    usage: UsageBook = field(init=False)
    calibration: Calibration = field(init=False)
    # written by drain and stop
    is_recovered: bool = False
    is_draining: bool = False
    stop: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.limits = TierLimits(self.pager.ledger, self.events.publish)
        self.pins = Pins(self.pager, self.contexts, self.models, self.config.memory.device_bytes)

        self.calibration = Calibration(self.scheduler.sizer.costs, self.scheduler.charging.tariffs, self.events.publish)
        kernel = self.config.kerneld
        policy = UsagePolicy(kernel.usage_half_life_days, kernel.usage_days, kernel.long_term_shares)
        self.usage = UsageBook(policy, UsageClocks(self.clock), self.scheduler.shares, self.pager.ledger, self.scheduler.charging.tariffs)
        self.starts = Starts(self.scheduler, self.requests, self.config.kerneld.max_rows, time.monotonic)
        self.idle_slabs = IdleSlabs(self.pager, self.dispatcher, self.config.memory.idle_return_s, self.clock)

    def num_visible(self, context: Context) -> int:
        """Tokens of a context that may be shown: with durability `fsync`, those that are on the disk."""
        if context.durability is not Durability.FSYNC:
            return context.num_tokens
        request = self.requests.get(context.active_request) or self.last_logs.peek(context.id)
        return context.num_tokens if request is None else request.log.end

    def know_request(self, request: Request) -> None:
        """A request has come in, or is back after a restart."""
        self.requests[request.id] = request
        self.demand.update(request.context.models)

    def forget_request(self, request: Request) -> None:
        """A request has ended."""
        if self.requests.pop(request.id, None) is not None:
            self.demand.subtract(request.context.models)
            for name in request.context.models:
                if not self.demand[name]:
                    del self.demand[name]

    def know_tenant(self, tenant: TenantRow) -> tuple[LimitChange, ...]:
        """Let every part know a tenant, or what changed of it; says what became of limits of memory that changed."""
        old = self.tenants.get(tenant.path).limits if tenant.path in self.tenants else Limits()
        self.tenants.put(tenant)
        self.usage.know(tenant)
        shares, limits = self.scheduler.shares, tenant.limits
        if tenant.path in shares:
            shares.set_weight(tenant.path, tenant.weight)
        else:
            shares.add(tenant.path, tenant.weight)
        self.scheduler.set_max_running(tenant.path, limits.max_running)
        self.admission.set_limits(tenant.path, limits)
        self._hasten(tenant.path)
        self.pager.ledger.set_weight(tenant.path, tenant.weight)
        return self.limits.put(tenant.path, old, limits)

    def _hasten(self, path: str) -> None:
        """Limits of a tenant have changed: requests that soft ones hold back wait no longer than one would that came now."""
        now = self.clock()
        for request in [each for each in self.requests.values() if each.place is Place.DEFERRED and is_beneath(each.tenant, path)]:
            until = now + self.admission.held_back_s(request.tenant)
            if until < request.defer_until:
                self.scheduler.defer(request, until)
                self.delivery.books.note(request)
        if self.scheduler.undefer(now):
            self.dispatcher.arrived()

    def forget_tenant(self, path: str) -> None:
        """A removed tenant leaves no account, and none of its bytes (promise 10)."""
        self.usage.settle()
        self.tenants.remove(path)
        self.usage.forget(path)
        self.admission.remove(path)
        self.residency.debts.forget(path)
        self.endings.forget(path)
        self.scheduler.remove_tenant(path)
        self.limits.remove(path)
        self.pager.sharing.forget_cache(path)
        self.pager.scrub(path)
        self.dispatcher.pump()
