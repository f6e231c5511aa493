"""Limits of tenants, changed while the machine runs."""

from __future__ import annotations

import pytest

from kerneld.calls import Limits
from kerneld.errors import InvalidArgument, WrongState
from kerneld.events import Event
from kerneld.holdings import Outcome
from kerneld.tierlimits import LimitApplied, LimitDeferred, TierLimits
from memory.ledger import Kind, Ledger
from memory.page import Tier


class Book:
    """Limits over a ledger of three small tiers, and what they told."""

    def __init__(self) -> None:
        self.ledger = Ledger({Tier.DEVICE: 1000, Tier.HOST: 500, Tier.DISK: 2000})
        self.events: list[Event] = []
        self.limits = TierLimits({"": self.ledger}, self.events.append)


def test_a_limit_holds_at_once_where_use_is_within_it() -> None:
    book = Book()

    changes = book.limits.put("lab", Limits(), Limits(device_bytes=100, disk_guarantee_bytes=7))

    assert [(change.field, change.before, change.after, change.outcome) for change in changes] == [
        ("device_bytes", 0, 100, Outcome.APPLIED),
        ("disk_guarantee_bytes", 0, 7, Outcome.APPLIED),
    ]
    assert book.ledger.limit("lab", Tier.DISK).guarantee_bytes == 7
    assert book.events == []


def test_a_limit_below_use_is_deferred_and_told_of_once_when_it_has_taken_hold() -> None:
    book = Book()
    book.ledger.charge(Tier.HOST, "lab/ann", Kind.KV, 60)

    (change,) = book.limits.put("lab", Limits(), Limits(host_bytes=50))
    assert (change.outcome, change.awaited_bytes) == (Outcome.DEFERRED, 10)
    book.limits.look()
    book.ledger.refund(Tier.HOST, "lab/ann", Kind.KV, 10)
    book.limits.look()
    book.limits.look()

    assert book.events == [LimitDeferred("lab", "host", 50, 10), LimitApplied("lab", "host", 50)]
    assert not book.limits.is_waiting


def test_a_deferred_limit_that_is_lifted_is_not_told_of() -> None:
    book = Book()
    book.ledger.charge(Tier.HOST, "lab", Kind.KV, 60)
    book.limits.put("lab", Limits(), Limits(host_bytes=50))

    book.limits.put("lab", Limits(host_bytes=50), Limits(host_bytes=0))
    book.limits.look()

    assert [type(event) for event in book.events] == [LimitDeferred]


def test_what_conflicts_is_refused_whole() -> None:
    book = Book()
    book.limits.put("lab", Limits(), Limits(device_guarantee_bytes=600))

    with pytest.raises(WrongState) as sum_too_large:
        book.limits.check("guest", Limits(device_guarantee_bytes=401, host_bytes=1))
    with pytest.raises(InvalidArgument) as own_limit:
        book.limits.check("guest", Limits(host_guarantee_bytes=11, host_bytes=10))

    assert sum_too_large.value.facts["holders"] == '{"lab": 600, "guest": 401}'
    assert "would add up to 1001 B, more than what the device tier has, 1000 B" in str(sum_too_large.value)
    assert own_limit.value.field == "limits.host_guarantee_bytes"
    assert book.ledger.limit("guest", Tier.HOST).limit_bytes == 0


def test_a_removed_tenant_leaves_no_limit() -> None:
    book = Book()
    book.ledger.set_weight("lab", 3)
    book.limits.put("lab", Limits(), Limits(device_bytes=9, host_guarantee_bytes=5))

    book.limits.remove("lab")

    assert book.ledger.promised(Tier.HOST) == 0
    assert book.ledger.weight("lab") == 1
