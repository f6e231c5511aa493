"""Which tenants have series of their own: the busiest, and they stay put."""

from __future__ import annotations

from kerneld.tenantlabels import OTHER, TenantLabels


def test_places_go_to_the_first_that_something_happens_to() -> None:
    labels = TenantLabels(2)
    assert [labels.label(tenant) for tenant in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]


def test_of_a_thousand_tenants_the_busiest_have_the_places() -> None:
    labels = TenantLabels(8)
    served = {f"t{idx:03d}": 1000 + idx for idx in range(1000)} | {f"busy{idx}": 1_000_000 for idx in range(8)}
    for tenant in sorted(served):
        labels.label(tenant)

    labels.rank(served)
    labels.rank(served)

    assert [tenant for tenant in served if tenant in labels] == [f"busy{idx}" for idx in range(8)]


def test_a_place_is_lost_to_a_clearly_busier_tenant_only() -> None:
    dropped: list[str] = []
    labels = TenantLabels(1, dropped.append)
    labels.label("a")
    labels.rank({"a": 1000})

    labels.rank({"a": 1000, "b": 3000})
    assert dropped == []
    labels.rank({"a": 1000, "b": 9000})

    assert dropped == ["a"]
    assert (labels.label("a"), labels.label("b")) == (OTHER, "b")


def test_idle_tenants_take_no_place_and_are_forgotten() -> None:
    labels = TenantLabels(2)
    labels.rank({f"t{idx}": 0 for idx in range(10)})
    assert "t0" not in labels
    labels.rank({"a": 1})
    for _ in range(1000):
        labels.rank({})
    labels.rank({"b": 10, "c": 10})
    assert ("b" in labels, "c" in labels, "a" in labels) == (True, True, False)


def test_a_tenant_that_is_gone_leaves_its_place() -> None:
    labels = TenantLabels(1)
    labels.label("a")
    labels.drop("a")
    labels.drop("a")
    assert labels.label("b") == "b"
