"""Schedulers of several devices with common accounts: charges go everywhere, lines are by device."""

from __future__ import annotations

import random

import pytest

from kerneld.accounts import Accounts
from kerneld.commonbooks import Common, CommonShares
from kerneld.errors import WrongState
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.scheduler import Scheduler
from kerneld.schedulers import Schedulers
from tests.kerneld.fairness_rig import Device, Job, make_shares

TENANTS = {"a": 1, "b": 2, "c": 3}


class Pair:
    """Two devices of the fairness rig with common accounts."""

    def __init__(self) -> None:
        self.shares, twin = CommonShares(), FairShare()
        self.shares.twins = [twin]
        make_shares(TENANTS, self.shares)
        policy, common = SchedulerPolicy(courtesy_us=0), Common(self.shares)
        self.devices = [Device(tree, scheduler=Scheduler(tree, policy, common)) for tree in (self.shares, twin)]
        self.all = Schedulers({name: device.scheduler for name, device in zip("xy", self.devices, strict=True)}, common)

    def step(self) -> None:
        for device in self.devices:
            device.step()


def job(draw: random.Random, tenant: str) -> Job:
    num_output = draw.randint(1, 30)
    return Job(tenant, draw.randint(1, 60), num_output, num_output + draw.randint(0, 30))


def counters(shares: FairShare) -> dict[str, int]:
    return {account.path: account.counter for account in shares.snapshot()}


@pytest.mark.parametrize("seed", range(5))
def test_a_device_whose_tenants_work_nowhere_else_is_as_if_it_were_alone(seed: int) -> None:
    draw, pair = random.Random(seed), Pair()
    alone = Device(make_shares(TENANTS))
    for _ in range(120):
        if draw.random() < 0.6:
            one = job(draw, draw.choice(list(TENANTS)))
            pair.devices[0].arrive(one)
            alone.arrive(one)
        pair.step()
        alone.step()
        assert counters(pair.shares) == counters(alone.shares)
    assert [request.id for request in pair.devices[0].running] == [request.id for request in alone.running]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_charged_on_any_device_is_in_all_accounts(seed: int) -> None:
    draw, pair = random.Random(seed), Pair()
    for _ in range(150):
        pair.devices[draw.randint(0, 1)].arrive(job(draw, draw.choice(list(TENANTS))))
        pair.step()
        one, other = (device.shares for device in pair.devices)
        assert {path: one.service(path) for path in TENANTS} == {path: other.service(path) for path in TENANTS}
    assert all(one.service(path) for path in TENANTS)


def test_who_has_another_device_for_himself_goes_later_where_others_wait() -> None:
    pair = Pair()
    for _ in range(40):
        pair.devices[0].arrive(Job("a", 10, 20, 20))
        pair.devices[0].arrive(Job("b", 10, 20, 20))
        pair.devices[1].arrive(Job("a", 10, 20, 20))
    for _ in range(65):
        pair.step()
    first = [request.tenant for request in pair.devices[0].running]
    assert first.count("b") == len(first), "b has nothing but this device"
    assert {request.tenant for request in pair.devices[1].running} == {"a"}


def test_a_tenant_with_requests_on_any_device_cannot_be_removed() -> None:
    pair = Pair()
    pair.devices[1].arrive(Job("a", 1, 1, 1))
    with pytest.raises(WrongState):
        pair.all.remove_tenant("a")
    assert all("a" in device.shares for device in pair.devices)
    pair.all.remove_tenant("b")
    assert not any("b" in device.shares for device in pair.devices)


def test_books_of_all_devices_come_back_and_a_new_device_begins_as_the_first() -> None:
    draw, pair = random.Random(3), Pair()
    for _ in range(60):
        pair.devices[draw.randint(0, 1)].arrive(job(draw, draw.choice(list(TENANTS))))
        pair.step()
    kept = pair.all.accounts()

    again = Pair()
    again.all.restore(kept)
    assert [counters(device.shares) for device in again.devices] == [counters(device.shares) for device in pair.devices]

    fresh = Pair()
    fresh.all.restore(Accounts(tuple(account for account in kept.shares if "\x1f" not in account.path)))
    assert counters(fresh.devices[1].shares) == counters(pair.devices[0].shares)


def test_changes_that_were_not_written_are_told_again() -> None:
    pair = Pair()
    pair.devices[1].arrive(Job("a", 5, 5, 5))
    pair.step()
    told = pair.all.account_changes()
    assert told is not None
    assert {account.path.partition("\x1f")[0] for account in told.shares if "\x1f" in account.path} == {"y"}
    assert pair.all.account_changes() is None
    pair.all.unkept(told)
    again = pair.all.account_changes()
    assert again is not None
    assert {account.path for account in again.shares} == {account.path for account in told.shares}


def test_running_requests_count_on_all_devices() -> None:
    pair = Pair()
    pair.all.set_max_running("a", 1)
    pair.devices[0].arrive(Job("a", 5, 9, 9))
    pair.devices[1].arrive(Job("a", 5, 9, 9))
    pair.step()
    assert [len(device.running) for device in pair.devices] == [1, 0]
    for _ in range(12):
        pair.step()
    assert [len(device.running) for device in pair.devices] == [0, 1]
    assert pair.all.running.of("a") == 1
