"""Checks in slices while a daemon goes on in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memory.config import MemoryConfig
from memory.page import Space
from memory.pager import Pager, Want
from memory.table import PageTable

PT = 4
SLAB = 64


def pager_with_tables(num_tables: int) -> tuple[Pager, list[PageTable]]:
    """A pager with tables of two full pages each, not named yet."""
    pager = Pager(MemoryConfig(4 * SLAB, 4 * SLAB, 0, PT, SLAB, 16, write_behind=False))
    pager.open_space(Space(1, PT, 16, 32))
    tables = [pager.new_table("lab/ann", (1,)) for _ in range(num_tables)]
    pager.plan(1, [Want(table, 0, 2 * PT) for table in tables])
    pager.commit(1)
    return pager, tables


def is_whole_after(pager: Pager, num_slices: int, change: Callable[[], object]) -> bool:
    """What a round says in which something happens behind its first slices."""
    steps = pager.integrity_steps()
    for _ in range(num_slices):
        next(steps)
    change()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return bool(end.value)


def test_contexts_come_go_and_are_used_between_two_slices() -> None:
    pager, (first, _second, _third) = pager_with_tables(3)
    empty = pager.new_table("lab/bob", (1,))

    assert is_whole_after(pager, 1, lambda: pager.new_table("lab/bob", (1,)))
    assert is_whole_after(pager, 1, lambda: pager.resume(first))
    assert is_whole_after(pager, 1, lambda: pager.drop(empty))


@pytest.mark.parametrize("num_slices", range(1, 12))
def test_a_round_ends_when_a_space_is_opened_or_pages_are_named(num_slices: int) -> None:
    pager, tables = pager_with_tables(3)

    assert not is_whole_after(pager, num_slices, lambda: pager.open_space(Space(2, PT, 32, 64)))
    assert not is_whole_after(pager, num_slices, lambda: pager.fill(tables[0], PT, [b"a" * 16]))
    assert not is_whole_after(pager, num_slices, lambda: pager.fill(tables[0], 2 * PT, [b"a" * 16, b"b" * 16]))
