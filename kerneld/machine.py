"""Machine: all live parts of one daemon, wired. Verbs and recovery act on it, `kerneld.daemon` builds it.

What belongs to one device is in `devices`. The machine has no behaviour but what concerns several parts at once and belongs to none of
them: that a tenant or a request comes or goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kerneld.admission import Admission
from kerneld.bookkeeping import Bookkeeping
from kerneld.bounds import Bounds
from kerneld.calls import Durability, FinishReason, Limits
from kerneld.catalog import Catalog
from kerneld.checkpoint import ImageStore
from kerneld.config import Config
from kerneld.context import Context
from kerneld.contexts import ContextTable
from kerneld.devices import Devices
from kerneld.disk_reserve import DiskReserve
from kerneld.effects import Effects
from kerneld.endings import Endings
from kerneld.eventbus import EventBus
from kerneld.holdings import LimitChange
from kerneld.lastlogs import LastLogs
from kerneld.placing import Placer
from kerneld.pricing.calibration import Calibration
from kerneld.renderer import TemplateRenderer
from kerneld.request import Place, Request
from kerneld.schedulers import Schedulers
from kerneld.security.acl import is_beneath
from kerneld.security.identity import Authenticator
from kerneld.starts import Starts
from kerneld.state.journal import Journal
from kerneld.state.store import Store
from kerneld.state.tables import TenantRow
from kerneld.tenants import TenantTable
from kerneld.tierlimits import TierLimits
from kerneld.usage.book import UsageBook, UsageClocks, UsagePolicy


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
    models: Catalog
    contexts: ContextTable
    devices: Devices
    scheduler: Schedulers
    books: Bookkeeping
    renderer: TemplateRenderer
    starts: Starts  # of all devices together: who was served how much, and who waits
    requests: dict[str, Request]  # unfinished, by request id
    last_logs: LastLogs = field(default_factory=LastLogs)
    endings: Endings = field(default_factory=Endings)
    limits: TierLimits = field(init=False)
    placer: Placer = field(init=False)
    usage: UsageBook = field(init=False)
    calibration: Calibration = field(init=False)
    # written by drain and stop
    is_recovered: bool = False
    is_draining: bool = False
    stop: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        ledgers = {device.label: device.pager.ledger for device in self.devices}
        self.limits = TierLimits(ledgers, self.events.publish)
        self.placer = Placer(self.devices, self.models, self.scheduler.costs)
        self.calibration = Calibration(self.scheduler.costs, self.scheduler.charging.tariffs, self.events.publish)
        kernel = self.config.kerneld
        policy = UsagePolicy(kernel.usage_half_life_days, kernel.usage_days, kernel.long_term_shares)
        clocks, tariffs = UsageClocks(self.clock), self.scheduler.charging.tariffs
        self.usage = UsageBook(policy, clocks, self.scheduler.shares, tuple(ledgers.values()), tariffs)

    def num_visible(self, context: Context) -> int:
        """Tokens of a context that may be shown: with durability `fsync`, those that are on the disk."""
        if context.durability is not Durability.FSYNC:
            return context.num_tokens
        request = self.requests.get(context.active_request) or self.last_logs.peek(context.id)
        return context.num_tokens if request is None else request.log.end

    def know_request(self, request: Request) -> None:
        """A request has come in, or is back after a restart."""
        self.requests[request.id] = request
        self.devices.of(request.context).demand.update(request.context.models)

    def forget_request(self, request: Request) -> None:
        """A request has ended."""
        if self.requests.pop(request.id, None) is not None:
            demand = self.devices.of(request.context).demand
            demand.subtract(request.context.models)
            for name in request.context.models:
                if not demand[name]:
                    del demand[name]

    def end(self, request: Request, reason: FinishReason, detail: str = "") -> None:
        """End a request wherever it is: running or waiting."""
        self.devices.of(request.context).dispatcher.end(request, reason, detail)

    def starts_of(self, request: Request) -> Starts:
        """Who says when a request starts."""
        return self.devices.of(request.context).starts

    def arrived(self) -> None:
        """Requests have joined the line, of whatever device."""
        for device in self.devices:
            device.dispatcher.arrived()

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
        for device in self.devices:
            device.pager.ledger.set_weight(tenant.path, tenant.weight)
        return self.limits.put(tenant.path, old, limits)

    def _hasten(self, path: str) -> None:
        """Limits of a tenant have changed: requests that soft ones hold back wait no longer than one would that came now."""
        now = self.clock()
        for request in [each for each in self.requests.values() if each.place is Place.DEFERRED and is_beneath(each.tenant, path)]:
            until = now + self.admission.held_back_s(request.tenant)
            if until < request.defer_until:
                self.scheduler.defer(request, until)
                self.books.note(request)
        if self.scheduler.undefer(now):
            self.arrived()

    def forget_tenant(self, path: str) -> None:
        """A removed tenant leaves no account, and none of its bytes (promise 10)."""
        self.usage.settle()
        self.tenants.remove(path)
        self.usage.forget(path)
        self.admission.remove(path)
        for device in self.devices:
            device.residency.debts.forget(path)
        self.endings.forget(path)
        self.scheduler.remove_tenant(path)
        self.limits.remove(path)
        for device in self.devices:
            device.pager.sharing.forget_cache(path)
            device.pager.scrub(path)
            device.dispatcher.pump()
