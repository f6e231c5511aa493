"""LoadDebts: the seconds that loads take are charged to the tenants that are served by them.

    load ends            residency                                          model leaves
    |--- its us: debt ---|--- each charge pays as much again, until paid ---|--- what is left: split by service ---|

Whoever is served first pays first, and never more than twice the price of its work; who comes when the debt is paid pays nothing. What
is left at the end is split among those that were served, by the service that each had; if nobody was, it is the system's.

Invariants
1. What is charged for a load, over all tenants and the system, is its us, exactly: no more, no less, whatever happens on the way.
2. Charges for loads are never given back: a request that is cancelled was served by the load all the same.
3. Loads that no tenant asked for (ahead of need, or to bring back what was there before a death) are the system's.
4. A death changes nothing of what is owed: it is paid on when the model is back, so that a restart changes nobody's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kerneld.accounts import NO_CHANGES, Accounts, LoadAccount
from kerneld.context import priced_as
from kerneld.eventbus import EventBus
from kerneld.events import Event
from kerneld.request import Request
from kerneld.usage.amounts import SYSTEM


@dataclass(frozen=True, slots=True)
class LoadCharged(Event):
    """A load is paid; of what it took, this tenant paid so much."""

    model: str
    tenant: str
    load_us: int


@dataclass(slots=True)
class _Residency:
    """What is owed for one stay of a model on the device."""

    owed_us: int
    served_us: dict[str, int] = field(default_factory=dict)  # by tenant: its charges for work on the model
    paid_us: dict[str, int] = field(default_factory=dict)


class LoadDebts:
    """What is owed for the models that are on the device; of one that is paid it knows nothing any more."""

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self.device = ""  # its name, if there are several: what is owed is written down for it
        self._residencies: dict[str, _Residency] = {}  # by model: those for which something is owed
        self._touched: set[str] = set()  # models whose debt is to be written
        self.charge: Callable[[str, int], None] = lambda _tenant, _us: None  # in the accounts of shares, at the end of a residency
        self.on_charged: Callable[[str, int], None] = lambda _tenant, _us: None  # told of every charge, the system's too
        self.on_payer: Callable[[str], None] = lambda _tenant: None  # told of everybody who pays for a load, once a load

    def begin(self, model: str, load_us: int, *, is_system: bool = False) -> None:
        """A model was loaded. If that is the system's, what was owed for it before is owed still (invariant 4)."""
        if is_system:
            self.on_payer(SYSTEM)
            self.on_charged(SYSTEM, load_us)
            self._events.publish(LoadCharged(model, SYSTEM, load_us))
            return
        self.end(model)
        self._touched.add(model)
        self._residencies[model] = _Residency(load_us)
        if not load_us:
            self.end(model)

    def surcharge(self, request: Request, cost_us: int) -> int:
        """A request is charged for work. Returns what it pays on top for the loads of its model and adapter: as much again at most."""
        if not self._residencies:  # mostly: this is asked for every row of every step
            return 0
        room_us, tenant = cost_us, request.tenant
        for model in request.context.models:
            residency = self._residencies.get(model)
            if residency is None:
                continue
            self._touched.add(model)
            residency.served_us[tenant] = residency.served_us.get(tenant, 0) + cost_us
            part_us = min(room_us, residency.owed_us)
            room_us -= part_us
            residency.owed_us -= part_us
            self._note(residency, tenant, part_us)
            if not residency.owed_us:
                self.end(model)
        return cost_us - room_us

    def end(self, model: str) -> None:
        """A load is paid, or the model left the device: what is still owed is split among those it served."""
        residency = self._residencies.pop(model, None)
        if residency is None:
            return
        self._touched.add(model)
        for tenant, part_us in split(residency.owed_us, residency.served_us).items():
            if tenant != SYSTEM:
                self.charge(tenant, part_us)
            self._note(residency, tenant, part_us)
        for tenant, paid_us in sorted(residency.paid_us.items()):
            self._events.publish(LoadCharged(model, tenant, paid_us))

    def end_all_but(self, models: set[str]) -> None:
        """A worker came in that holds these models and no others: what the one before it held besides is gone."""
        for model in self._residencies.keys() - models:
            self.end(model)

    def forget(self, tenant: str) -> None:
        """A tenant is gone: what it would still have paid falls to the others, or to the system."""
        for model, residency in self._residencies.items():
            if residency.served_us.pop(tenant, None):
                self._touched.add(model)

    def owed_us(self, model: str) -> int:
        """What is still owed for a model that is on the device."""
        residency = self._residencies.get(model)
        return residency.owed_us if residency is not None else 0

    # ----------------------------------------------------------------------------------------------------------- keeping and restoring

    def changes(self) -> Accounts:
        """What changed of what is owed since the last call."""
        if not self._touched:
            return NO_CHANGES
        touched, self._touched = self._touched, set()
        return Accounts(loads={priced_as(model, self.device): self._account(model) for model in touched})

    def unkept(self, accounts: Accounts) -> None:
        """Changes could not be written: they count as changed again."""
        self._touched.update(self._own(accounts))

    def restore(self, accounts: Accounts, is_tenant: Callable[[str], bool]) -> None:
        """Put back what is owed, until a worker says what is still on the device."""
        for model, load in self._own(accounts).items():
            served_us = {tenant: us for tenant, us in load.served_us.items() if is_tenant(tenant)}
            self._residencies[model] = _Residency(load.owed_us, served_us)

    def _own(self, accounts: Accounts) -> dict[str, LoadAccount]:
        """What was written down for this device, by model."""
        split_names = ((*name.partition("@")[::2], load) for name, load in accounts.loads.items())
        return {model: load for model, device, load in split_names if device == self.device}

    def _account(self, model: str) -> LoadAccount:
        residency = self._residencies.get(model)
        if residency is None:
            return LoadAccount(0)
        return LoadAccount(residency.owed_us, dict(residency.served_us))

    def _note(self, residency: _Residency, tenant: str, us: int) -> None:
        if us:
            if tenant not in residency.paid_us:
                self.on_payer(tenant)
            residency.paid_us[tenant] = residency.paid_us.get(tenant, 0) + us
            self.on_charged(tenant, us)


def split(total: int, weights: dict[str, int]) -> dict[str, int]:
    """Split a whole number by weights, exactly: what rounding leaves goes by one to those that it was taken most from, then by name.

    Without any weight it is the system's.
    """
    whole = sum(weights.values())
    if not total or not whole:
        return {SYSTEM: total} if total else {}
    parts = {name: total * weight // whole for name, weight in weights.items()}
    by_rest = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    for name in by_rest[: total - sum(parts.values())]:
        parts[name] += 1
    return parts
