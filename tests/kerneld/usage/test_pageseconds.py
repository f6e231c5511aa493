"""Page-seconds: pages times the time that passed, split as the ledger splits bytes, whatever the time of day does."""

from __future__ import annotations

from kerneld.usage.pageseconds import PageSeconds
from memory.ledger import Kind, Ledger
from memory.page import Tier


class Clock:
    """Monotonic seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def charge(ledger: Ledger, tier: Tier, holders: dict[str, int], size_bytes: int = 100) -> None:
    ledger.charge_page(tier, holders, next(iter(holders)), size_bytes)


def sampled(pages: PageSeconds) -> dict[tuple[str, Tier], int]:
    return {(held.owner, held.tier): held.page_ms for held in pages.sample()}


def test_pages_count_for_as_long_as_they_were_held() -> None:
    clock, ledger = Clock(), Ledger({Tier.DEVICE: 10_000, Tier.HOST: 10_000, Tier.DISK: 10_000})
    pages = PageSeconds(ledger, clock)
    charge(ledger, Tier.DEVICE, {"ann": 1})
    charge(ledger, Tier.DEVICE, {"ann": 1})
    charge(ledger, Tier.HOST, {"bob": 1})
    clock.now += 1.5
    assert sampled(pages) == {("ann", Tier.DEVICE): 3000, ("bob", Tier.HOST): 1500}
    assert sampled(pages) == {}
    clock.now += 0.25
    assert sampled(pages) == {("ann", Tier.DEVICE): 500, ("bob", Tier.HOST): 250}
    ledger.refund_page(Tier.HOST, {"bob": 1}, "bob", 100)
    clock.now += 1.0
    assert sampled(pages) == {("ann", Tier.DEVICE): 2000}


def test_a_page_that_two_hold_counts_half_for_each() -> None:
    clock, ledger = Clock(), Ledger({Tier.DEVICE: 10_000})
    pages = PageSeconds(ledger, clock)
    charge(ledger, Tier.DEVICE, {"ann": 1, "bob": 1})
    clock.now += 2.0
    assert sampled(pages) == {("ann", Tier.DEVICE): 1000, ("bob", Tier.DEVICE): 1000}


def test_parts_of_milliseconds_are_not_lost() -> None:
    clock, ledger = Clock(), Ledger({Tier.DEVICE: 10_000})
    pages = PageSeconds(ledger, clock)
    charge(ledger, Tier.DEVICE, {"ann": 1})
    total = 0
    for _ in range(1000):
        clock.now += 0.0007
        total += sum(sampled(pages).values())
    assert 699 <= total <= 700


def test_weights_are_no_pages_and_no_time_makes_nothing() -> None:
    clock, ledger = Clock(), Ledger({Tier.DEVICE: 10_000})
    pages = PageSeconds(ledger, clock)
    charge(ledger, Tier.DEVICE, {"ann": 1})
    ledger.charge(Tier.DEVICE, "models", Kind.WEIGHTS, 5000)
    assert sampled(pages) == {}
    clock.now += 1.0
    assert sampled(pages) == {("ann", Tier.DEVICE): 1000}
