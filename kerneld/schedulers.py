"""Schedulers: those of all devices as one: where a request belongs, what holds for all of them, and the durable form of their accounts.

Each device has a line and a tree of shares of its own; a request waits and runs where its context is (`Context.device`). Charges go to all
trees (`kerneld.commonbooks`), so counters are global, and who is next is decided by device.

Accounts of the first device are kept under the paths of tenants, those of others behind a mark, so that a daemon of one device reads and
writes what it always did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import msgspec

from kerneld.accounts import Accounts, ShareAccount
from kerneld.commonbooks import Common
from kerneld.errors import WrongState
from kerneld.expiry import Expired
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.standings import Standing

_MARK: Final = "\x1f"  # between the name of a device and a path; in no path


class Schedulers:
    """All schedulers of a machine, by the name of their device; the first one's tree stands for all where service is asked for."""

    def __init__(self, schedulers: Mapping[str, Scheduler], common: Common) -> None:
        self._schedulers = dict(schedulers)
        self._first = next(iter(self._schedulers.values()))
        self.shares, self.charging, self.costs = common.shares, common.charging, common.costs
        self.waiting, self.running = common.waiting, common.running
        self.system, self.system_us = common.system, common.system.us

    def __iter__(self) -> Iterator[Scheduler]:
        return iter(self._schedulers.values())

    def of(self, request: Request) -> Scheduler:
        """The scheduler of the device on which a request waits or runs."""
        return self._schedulers.get(request.context.device, self._first)

    # ------------------------------------------------------------------------------------------------------------- one request

    def enqueue(self, request: Request) -> None:
        """A new request begins to wait."""
        self.of(request).enqueue(request)

    def recover(self, request: Request, is_running: bool) -> None:
        """An unfinished request of before a restart is back."""
        self.of(request).recover(request, is_running)

    def reorder(self, request: Request) -> None:
        """The class or niceness of a request changed."""
        self.of(request).reorder(request)

    def defer(self, request: Request, until: float) -> None:
        """A waiting request is above a soft limit until then."""
        self.of(request).defer(request, until)

    def queue_position(self, request: Request) -> int:
        """Its place in the line of its own tenant, from 1; 0 if it does not wait there."""
        return self.of(request).queue_position(request)

    # ------------------------------------------------------------------------------------------------------------- all devices

    @property
    def num_ready(self) -> int:
        """How many wait in line."""
        return sum(each.num_ready for each in self)

    @property
    def num_deferred(self) -> int:
        """How many wait behind a soft limit."""
        return sum(each.num_deferred for each in self)

    @property
    def step_budget(self) -> int:
        """Tokens that the last steps were allowed to compute, one of each device."""
        return sum(each.step_budget for each in self)

    def undefer(self, now: float) -> bool:
        """Let deferred requests join the line whose time has come. Returns whether there were any."""
        return sum(each.undefer(now) for each in self) > 0

    def expired(self, now: float, steady: float | None = None) -> tuple[Expired, ...]:
        """The requests that have run out of time by `now`, each of them once."""
        return tuple(chain.from_iterable(each.expired(now, steady) for each in self))

    def set_max_running(self, path: str, limit: int) -> None:
        """How many requests of a tenant, and of all below it, may run at once, on all devices together; 0: any number."""
        for each in self:
            each.set_max_running(path, limit)

    def remove_tenant(self, path: str) -> None:
        """Forget a tenant that has no children, and nothing that waits or runs. Raises: NotFound, WrongState."""
        if self.waiting.of(path) or self.running.of(path):
            raise WrongState(f"Tenant {path!r} still has requests.", facts={"tenant": path})
        for each in self:
            each.remove_tenant(path)

    def standings(self) -> list[Standing]:
        """How every tenant stands: its counter and lag on the first device, and what waits for any of them."""
        if len(self._schedulers) == 1:
            return self._first.standings()
        found: dict[str, Standing] = {}
        for standing in chain.from_iterable(each.standings() for each in self):
            known = found.get(standing.path)
            found[standing.path] = standing if known is None else _added(known, standing)
        return list(found.values())

    def line(self, limit: int) -> Iterator[Request]:
        """Those who wait, in the order in which they would be seated, one device after the other."""
        return chain.from_iterable(each.line(limit) for each in self)

    # ----------------------------------------------------------------------------------------------------------- keeping and restoring

    def accounts(self) -> Accounts:
        """All of the books, for `restore`."""
        shares = chain.from_iterable(_marked(name, each.shares.snapshot()) for name, each in self._named())
        return msgspec.structs.replace(self.charging.accounts(), shares=tuple(shares))

    def account_changes(self) -> Accounts | None:
        """What changed of the books since the last call; None: nothing."""
        prices = self.charging.changes()
        shares = tuple(chain.from_iterable(_marked(name, each.shares.changes()) for name, each in self._named()))
        if not (shares or prices.outputs or prices.tariffs):
            return None
        return Accounts(shares, prices.outputs, prices.tariffs)

    def unkept(self, accounts: Accounts) -> None:
        """Changes that were told could not be written: they count as changed again."""
        for name, each in self._named():
            each.shares.unkept(_of_device(name, accounts.shares))
        self.charging.unkept(accounts)

    def restore(self, accounts: Accounts) -> None:
        """Put the books back, before anything waits. A device of which nothing was kept begins with the accounts of the first one."""
        for name, each in self._named():
            each.shares.restore(_of_device(name, accounts.shares) or _of_device("", accounts.shares))
        self.charging.restore(accounts)

    def settle(self, recovered: Sequence[Request]) -> None:
        """These are all the requests that had not ended."""
        for each in self:
            each.settle([request for request in recovered if self.of(request) is each])

    def _named(self) -> Iterator[tuple[str, Scheduler]]:
        """The schedulers with the names under which their accounts are kept; that of the first is empty."""
        return (("" if each is self._first else name, each) for name, each in self._schedulers.items())


def _marked(name: str, accounts: Iterable[ShareAccount]) -> Iterable[ShareAccount]:
    if not name:
        return accounts
    return [msgspec.structs.replace(account, path=f"{name}{_MARK}{account.path}") for account in accounts]


def _of_device(name: str, accounts: Iterable[ShareAccount]) -> tuple[ShareAccount, ...]:
    """The accounts that were kept under the name of a device, by their own paths."""
    if not name:
        return tuple(account for account in accounts if _MARK not in account.path)
    prefix = name + _MARK
    mine = (account for account in accounts if account.path.startswith(prefix))
    return tuple(msgspec.structs.replace(account, path=account.path.removeprefix(prefix)) for account in mine)


def _added(one: Standing, other: Standing) -> Standing:
    """A tenant on two devices: as it stands on the first of them that it waits for."""
    base = one if one.is_active or not other.is_active else other
    num_waiting = one.num_waiting + other.num_waiting
    return Standing(
        path=one.path,
        weight=one.weight,
        factor_milli=one.factor_milli,
        counter_us=base.counter_us,
        lag_us=base.lag_us,
        service_us=one.service_us,
        is_active=base.is_active,
        num_waiting=num_waiting,
    )
