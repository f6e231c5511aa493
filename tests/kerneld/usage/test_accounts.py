"""Accounts of usage: nothing is lost between memory and database, and a tenant is never taken for another of its name."""

from __future__ import annotations

import random

from kerneld.calls import Usage
from kerneld.state.tables import UsageRow
from kerneld.usage.accounts import UsageAccounts
from kerneld.usage.amounts import SYSTEM, Amounts, Bucket, hour_of

HOUR = 3600.0


class Clock:
    """Unix seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 100 * HOUR + 1

    def __call__(self) -> float:
        return self.now


def accounts_of(*paths: str) -> tuple[UsageAccounts, Clock]:
    clock = Clock()
    accounts = UsageAccounts(clock)
    for path in paths:
        accounts.know(path, 5.0)
    return accounts, clock


def request(tokens_in: int, tokens_out: int, cached: int = 0) -> Usage:
    return Usage(input_tokens=tokens_in, cached_tokens=cached, output_tokens=tokens_out)


def test_every_hour_has_its_own_amounts() -> None:
    accounts, clock = accounts_of("lab")
    accounts.note_request("lab", request(10, 4, cached=2))
    clock.now += HOUR
    accounts.note_request("lab", request(1, 1))
    accounts.of("lab").device_us += 7
    assert accounts.unwritten() == {
        Bucket("lab", 5.0, 360_000): Amounts(requests=1, input_tokens=10, cached_tokens=2, output_tokens=4),
        Bucket("lab", 5.0, 363_600): Amounts(requests=1, input_tokens=1, output_tokens=1, device_us=7),
    }
    assert accounts.totals("lab") == UsageRow(11, 5, 0)


def test_a_clock_that_goes_back_loses_nothing() -> None:
    accounts, clock = accounts_of("lab")
    accounts.note_request("lab", request(10, 4))
    clock.now -= 5000 * HOUR
    accounts.note_request("lab", request(10, 4))
    assert accounts.totals("lab") == UsageRow(20, 8, 0)
    assert hour_of(-1.5) == -3600
    assert len(accounts.unwritten()) == 2


def test_what_was_put_back_is_taken_again_with_what_came_meanwhile() -> None:
    accounts, _clock = accounts_of("lab")
    accounts.note_request("lab", request(10, 4))
    accounts.note_service("lab", 100)
    taken, totals = accounts.take()
    assert totals == {"lab": UsageRow(10, 4, 100)}
    accounts.note_request("lab", request(5, 1))
    accounts.put_back(taken)
    assert accounts.totals("lab") == UsageRow(15, 5, 100)
    again, totals = accounts.take()
    assert list(again.values()) == [Amounts(requests=2, input_tokens=15, output_tokens=5, service_us=100)]
    assert totals == {"lab": UsageRow(15, 5, 100)}
    assert accounts.take() == ({}, {})


def test_what_is_of_no_living_tenant_is_the_systems() -> None:
    accounts, _clock = accounts_of()
    accounts.of("gone").device_us += 3
    assert accounts.unwritten() == {Bucket(SYSTEM, 0.0, 360_000): Amounts(device_us=3)}
    assert accounts.take()[1] == {}


def test_a_new_tenant_of_a_removed_ones_name_begins_at_zero_and_the_old_ones_hours_are_still_written() -> None:
    accounts, _clock = accounts_of("lab")
    accounts.restore({"lab": UsageRow(1000, 1000, 50), "other": UsageRow(1, 1, 1)})
    accounts.note_request("lab", request(10, 4))
    accounts.forget("lab")
    accounts.know("lab", 9.0)
    accounts.note_request("lab", request(1, 2))
    assert accounts.totals("lab") == UsageRow(1, 2, 0)
    taken, totals = accounts.take()
    assert {bucket.born: amounts.input_tokens for bucket, amounts in taken.items()} == {5.0: 10, 9.0: 1}
    assert totals == {"lab": UsageRow(1, 2, 0)}
    accounts.put_back(taken)
    assert accounts.totals("lab") == UsageRow(1, 2, 0)


def test_service_is_what_the_account_gained_refunds_too() -> None:
    accounts, _clock = accounts_of("lab")
    accounts.restore({"lab": UsageRow(0, 0, 40)})
    accounts.begin_service("lab", 100)  # 60 were journaled and not written
    assert [accounts.note_service("lab", service) for service in (100, 100, 90, 95)] == [60, 0, -10, 5]
    assert next(iter(accounts.unwritten().values())).service_us == 55


def test_an_account_that_lost_its_past_counts_from_what_it_shows() -> None:
    accounts, _clock = accounts_of("lab")
    accounts.restore({"lab": UsageRow(0, 0, 100)})
    accounts.begin_service("lab", 30)
    assert accounts.note_service("lab", 35) == 5


def test_whatever_fails_to_be_written_nothing_is_lost_or_counted_twice() -> None:
    rng = random.Random(4)
    accounts, clock = accounts_of("a", "b")
    database: dict[Bucket, Amounts] = {}
    used = {"a": 0, "b": 0}
    for _ in range(2000):
        clock.now += rng.choice([0.0, 700.0])
        path = rng.choice("ab")
        amount = rng.randrange(9)
        accounts.note_request(path, request(amount, 0))
        used[path] += amount
        if rng.random() < 0.2:
            taken, _totals = accounts.take()
            if rng.random() < 0.5:
                accounts.put_back(taken)
            else:
                for bucket, amounts in taken.items():
                    database.setdefault(bucket, Amounts()).add(amounts)
        assert accounts.totals(path).input_tokens == used[path]
    for bucket, amounts in accounts.take()[0].items():
        database.setdefault(bucket, Amounts()).add(amounts)
    assert {path: sum(amounts.input_tokens for bucket, amounts in database.items() if bucket.tenant == path) for path in used} == used
