"""Counts up the tree of tenants."""

from __future__ import annotations

from kerneld.tally import Tally, ancestors


def test_ancestors_come_longest_first() -> None:
    assert (list(ancestors("a/b/c")), list(ancestors(""))) == (["a/b/c", "a/b", "a"], [])


def test_what_a_tenant_has_counts_for_everybody_above() -> None:
    tally = Tally()
    for path in ("a/b", "a/b", "a/c", "a", "d"):
        tally.add(path)
    tally.remove("a/b")

    assert ({path: tally.of(path) for path in ("a", "a/b", "a/c", "d", "none")}, tally.total) == (
        {"a": 3, "a/b": 1, "a/c": 1, "d": 1, "none": 0},
        4,
    )
