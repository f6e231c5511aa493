"""The ledger against sums made anew."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.errors import GuaranteeConflict, Holder, PagingError
from memory.ledger import Kind, Ledger, lineage, shares
from memory.page import Tier

OWNERS = ("lab", "lab/ann", "lab/ann/bot", "lab/bob", "guest")
TOTALS = {Tier.DEVICE: 1000, Tier.HOST: 500}


def ledger() -> Ledger:
    return Ledger(TOTALS)


@given(st.lists(st.tuples(st.sampled_from(OWNERS), st.sampled_from((Kind.KV, Kind.WEIGHTS)), st.integers(1, 50)), max_size=40))
def test_charges_add_up_along_the_tree(charges: list[tuple[str, Kind, int]]) -> None:
    book = ledger()
    for owner, kind, size in charges:
        book.charge(Tier.DEVICE, owner, kind, size)

    for name in OWNERS:
        below = sum(size for owner, _kind, size in charges if name in lineage(owner))
        assert book.used(name, Tier.DEVICE) == below  # invariant 2
    assert book.kind_bytes(Tier.DEVICE, Kind.KV) == sum(size for _owner, kind, size in charges if kind is Kind.KV)  # invariant 1

    for owner, kind, size in charges:
        book.refund(Tier.DEVICE, owner, kind, size)
    assert book.holders(Tier.DEVICE) == ()


@given(st.integers(1, 10_000), st.integers(1, 60))
def test_shares_of_a_page_add_up_to_the_page(size_bytes: int, num_holders: int) -> None:
    oldest, each = shares(size_bytes, num_holders)

    assert oldest + each * (num_holders - 1) == size_bytes
    assert 0 <= oldest - each < num_holders


def test_a_shared_page_is_charged_to_its_holders_and_the_remainder_to_the_oldest() -> None:
    book = ledger()

    book.charge_page(Tier.HOST, {"lab/ann": 1, "lab/bob": 1, "guest": 1}, "lab/ann", 100)

    assert book.snapshot()[1].kv_bytes == {"lab/ann": 34, "lab/bob": 33, "guest": 33}
    assert book.used("lab", Tier.HOST) == 67


def test_nobody_is_refunded_more_than_they_hold() -> None:
    book = ledger()
    book.charge(Tier.DEVICE, "lab", Kind.KV, 10)

    with pytest.raises(PagingError):
        book.refund(Tier.DEVICE, "lab", Kind.KV, 11)
    assert book.used("lab", Tier.DEVICE) == 10


def test_a_limit_counts_everybody_below_it() -> None:
    book = ledger()
    book.set_limit("lab", Tier.DEVICE, 0, 100)
    book.charge(Tier.DEVICE, "lab/bob", Kind.KV, 60)

    assert book.exceeded("lab/ann", Tier.DEVICE, 40) is None
    assert book.exceeded("lab/ann", Tier.DEVICE, 41) == "lab"
    assert book.exceeded("guest", Tier.DEVICE, 41) is None


def test_the_nearest_limit_is_named() -> None:
    book = ledger()
    book.set_limit("lab", Tier.DEVICE, 0, 10)
    book.set_limit("lab/ann", Tier.DEVICE, 0, 5)

    assert book.exceeded("lab/ann", Tier.DEVICE, 20) == "lab/ann"


def test_a_limit_of_zero_is_none() -> None:
    book = ledger()
    book.set_limit("lab", Tier.DEVICE, 0, 5)

    book.set_limit("lab", Tier.DEVICE, 0, 0)

    assert book.exceeded("lab", Tier.DEVICE, 10_000) is None


def test_a_guarantee_is_no_larger_than_its_limit() -> None:
    with pytest.raises(ValueError, match="guarantee"):
        ledger().set_limit("lab", Tier.DEVICE, 11, 10)  # invariant 3


def test_a_guarantee_holds_against_others_and_not_against_kin() -> None:
    book = ledger()
    book.set_limit("lab", Tier.DEVICE, 50, 0)
    book.charge(Tier.DEVICE, "lab/ann", Kind.KV, 60)

    assert book.is_guaranteed("lab/ann", "guest", Tier.DEVICE, 20)
    assert not book.is_guaranteed("lab/ann", "guest", Tier.DEVICE, 10)
    assert not book.is_guaranteed("lab/ann", "lab/bob", Tier.DEVICE, 20)


def test_holders_come_largest_first() -> None:
    book = ledger()
    book.charge(Tier.DEVICE, "guest", Kind.KV, 5)
    book.charge(Tier.DEVICE, "models", Kind.WEIGHTS, 50)
    book.charge(Tier.DEVICE, "guest", Kind.ADAPTER, 3)

    assert book.holders(Tier.DEVICE) == (Holder("models", 50), Holder("guest", 8))
    assert book.snapshot()[0].free_bytes == 1000 - 58


def test_guarantees_add_up_along_the_tree_and_to_no_more_than_the_tier() -> None:
    book = ledger()
    book.set_limit("lab", Tier.DEVICE, 300, 0)
    book.set_limit("lab/ann", Tier.DEVICE, 200, 0)
    assert book.promised(Tier.DEVICE) == 300, "what is promised to ann is a part of what is promised to her lab"

    book.check_limit("lab/bob", Tier.DEVICE, 500, 0)
    book.set_limit("lab/bob", Tier.DEVICE, 500, 0)
    assert book.promised(Tier.DEVICE) == 700

    book.check_limit("guest", Tier.DEVICE, 300, 0)
    with pytest.raises(GuaranteeConflict) as caught:
        book.check_limit("guest", Tier.DEVICE, 301, 0)
    assert (caught.value.sum_bytes, caught.value.most_bytes, caught.value.within) == (1001, 1000, "")
    assert caught.value.holders == (Holder("lab/bob", 500), Holder("guest", 301), Holder("lab", 300), Holder("lab/ann", 200))


def test_a_guarantee_does_not_pass_the_limits_above_it_nor_a_limit_the_guarantees_below() -> None:
    book = ledger()
    book.set_limit("lab", Tier.DEVICE, 0, 100)
    with pytest.raises(GuaranteeConflict) as caught:
        book.check_limit("lab/ann", Tier.DEVICE, 101, 0)
    assert caught.value.within == "lab"

    book.set_limit("lab/ann", Tier.DEVICE, 80, 0)
    with pytest.raises(GuaranteeConflict):
        book.check_limit("lab", Tier.DEVICE, 0, 79)
    with pytest.raises(ValueError, match="guarantee"):
        book.check_limit("lab", Tier.DEVICE, 10, 9)


def test_whoever_uses_more_than_its_limit_is_known_from_then_on_until_it_does_not() -> None:
    book = ledger()
    book.charge(Tier.DEVICE, "lab/ann", Kind.KV, 60)
    book.set_limit("lab", Tier.DEVICE, 0, 50)
    assert book.in_excess(Tier.DEVICE) == ("lab",)

    book.refund(Tier.DEVICE, "lab/ann", Kind.KV, 10)
    assert book.in_excess(Tier.DEVICE) == ()
    book.charge(Tier.DEVICE, "lab/bob", Kind.WEIGHTS, 1)
    assert book.in_excess(Tier.DEVICE) == ("lab",)
    book.set_limit("lab", Tier.DEVICE, 0, 0)
    assert book.in_excess(Tier.DEVICE) == ()


def test_standing_is_excess_first_then_borrowing_per_weight() -> None:
    book = ledger()
    for owner, used in (("a", 100), ("b", 100), ("c", 30)):
        book.charge(Tier.DEVICE, owner, Kind.KV, used)
    book.set_limit("b", Tier.DEVICE, 80, 0)
    book.set_limit("c", Tier.DEVICE, 0, 29)
    book.set_weight("a", 4)

    ranked = sorted(("a", "b", "c"), key=lambda owner: book.standing(owner, Tier.DEVICE), reverse=True)

    assert ranked == ["c", "a", "b"]  # over its limit; 100 / 4; 100 - 80
    book.set_weight("a", 0)
    assert book.weight("a") == 1
    with pytest.raises(ValueError, match="weight"):
        book.set_weight("a", -1)


def test_accounts_name_holders_the_promised_and_all_above_them() -> None:
    book = ledger()
    book.set_limit("guest", Tier.DEVICE, 5, 20)
    book.charge(Tier.DEVICE, "lab/ann", Kind.KV, 30)
    book.charge(Tier.DEVICE, "guest", Kind.ADAPTER, 25)

    found = {account.owner: account for account in book.accounts(Tier.DEVICE)}

    assert list(found) == ["guest", "lab", "lab/ann"]
    assert (found["guest"].kinds, found["guest"].borrowed_bytes, found["guest"].excess_bytes) == ({Kind.ADAPTER: 25}, 20, 5)
    assert (found["lab"].kinds, found["lab"].used_bytes) == ({}, 30)


CHANGES = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.sampled_from(OWNERS), st.sampled_from((Tier.DEVICE, Tier.HOST, Tier.DISK)), st.integers(1, 97)),
    max_size=60,
)


@given(CHANGES, st.randoms(use_true_random=False))
def test_shared_pages_come_and_go_without_a_byte_of_drift(pages: list[tuple[str, str, Tier, int]], draw: random.Random) -> None:
    book = ledger()
    charged: list[tuple[Tier, dict[str, int], str, int]] = []
    for oldest, other, tier, size in pages:
        holders = {oldest: draw.randint(1, 3)}
        holders[other] = holders.get(other, 0) + draw.randint(1, 3)
        book.charge_page(tier, holders, oldest, size)
        charged.append((tier, holders, oldest, size))
        if draw.random() < 0.4:
            book.refund_page(*charged.pop(draw.randrange(len(charged))))
        for each in Tier:
            assert book.kind_bytes(each, Kind.KV) == sum(size for tier, _holders, _oldest, size in charged if tier is each)
    while charged:
        book.refund_page(*charged.pop())
    assert not any(book.accounts(tier) for tier in Tier)
