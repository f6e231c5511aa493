"""The tree of shares at one moment."""

from __future__ import annotations

import pytest

from kerneld.fairshare import FairShare
from kerneld.sharemap import ShareMap, parting, tenant_of


@pytest.fixture
def shares() -> FairShare:
    shares = FairShare()
    shares.add("lab", 1)
    shares.add("lab/ann", 3)
    shares.add("lab/bob", 1)
    shares.add("solo", 2)
    for tenant in ("lab/ann", "lab/bob", "lab", "solo"):
        shares.enqueue(tenant)
    return shares


def test_siblings_are_those_on_the_same_level_with_something_to_run(shares: FairShare) -> None:
    shares.dequeue("lab/bob")
    found = ShareMap(shares.standings(with_own=True))

    assert [node.path for node in found.siblings("lab/ann")] == ["lab/."]
    assert [node.path for node in found.siblings("lab")] == ["solo"]
    assert [node.path for node in found.lineage("lab")] == ["lab/.", "lab"]


def test_lags_of_siblings_add_up_to_nothing(shares: FairShare) -> None:
    shares.charge("lab/ann", 9000)
    shares.charge("lab/bob", 1000)
    shares.charge("solo", 50_000)

    lags = ShareMap(shares.standings(with_own=True)).lags_us()

    assert lags["lab"] + lags["solo"] == pytest.approx(0)
    assert lags["lab/ann"] + lags["lab/bob"] + lags["lab/."] == pytest.approx(0)
    assert lags["lab/."] == pytest.approx(2000)  # a fifth of 10,000 us is its due, and it had nothing
    assert lags["solo"] == pytest.approx(-10_000)  # two thirds of 60,000 us are its due


@pytest.mark.parametrize(
    ("tenant", "other", "node"),
    [
        ("lab/ann", "lab/bob", "lab/ann"),
        ("lab/ann", "solo", "lab"),
        ("lab", "lab/ann", "lab/."),
        ("lab/ann", "lab", "lab/ann"),
        ("a", "a", ""),
    ],
)
def test_ways_part_where_the_paths_do(tenant: str, other: str, node: str) -> None:
    assert parting(tenant, other) == node


def test_a_hidden_node_stands_for_its_tenant() -> None:
    assert (tenant_of("lab/."), tenant_of("lab/ann")) == ("lab", "lab/ann")


def test_an_empty_tree_has_no_lags() -> None:
    assert ShareMap(FairShare().standings(with_own=True)).lags_us() == {}
