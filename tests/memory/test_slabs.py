"""The arena: slabs lent one by one and in runs."""

from __future__ import annotations

import tracemalloc

import pytest

from memory.errors import PagingError
from memory.slabs import CLEAN, STRANGER, Arena


def arena() -> Arena:
    return Arena(6, 64, 16)


def test_single_slabs_come_from_the_low_end_and_runs_from_the_high_end() -> None:
    slabs = arena()

    assert [slabs.lend(), slabs.lend(), slabs.lend_run(2), slabs.lend_run(3)] == [0, 1, 4, None]
    assert slabs.num_free == 2


def test_a_slab_given_back_is_lent_again_with_the_residue_it_came_with() -> None:
    slabs = arena()
    slab = slabs.lend()
    assert slab == 0

    slabs.give_back(slab, frozenset({"lab"}))

    assert slabs.residues() == [(0, frozenset({"lab"}))]
    assert slabs.lend() == 0
    assert slabs.residue(0) == frozenset({"lab"})


def test_a_slab_cannot_be_given_back_twice() -> None:
    slabs = arena()
    slabs.claim(3)
    slabs.give_back(3, CLEAN)

    with pytest.raises(PagingError):
        slabs.give_back(3, CLEAN)  # invariant 1


def test_a_lent_slab_cannot_be_claimed() -> None:
    slabs = arena()
    slabs.claim(3)

    with pytest.raises(PagingError):
        slabs.claim(3)


def test_reserved_slabs_are_kept_for_runs() -> None:
    slabs = arena()
    slabs.reserve({0, 1})

    assert [slabs.lend() for _ in range(5)] == [2, 3, 4, 5, None]
    assert slabs.lend_run(2) == 0


def test_slabs_that_are_not_reserved_any_more_are_lent() -> None:
    slabs = Arena(2, 64, 16)
    slabs.reserve({0, 1})
    assert slabs.lend() is None

    slabs.unreserve()

    assert slabs.lend() == 0


def test_a_reset_arena_is_free_and_zero() -> None:
    slabs = arena()
    slabs.claim(2)
    slabs.give_back(2, frozenset({"lab"}))
    slabs.claim(5)

    slabs.reset()

    assert slabs.num_free == 6
    assert slabs.residues() == []


def test_slabs_are_whole_granules() -> None:
    with pytest.raises(ValueError, match="whole granules"):
        Arena(1, 100, 16)


def test_slabs_that_are_away_are_nobodys_until_they_come_back() -> None:
    slabs = arena()
    assert slabs.lend() == 0

    slabs.reserve({1, 2})

    assert slabs.send_away() == (3, 4, 5)

    slabs.unreserve()
    assert (slabs.num_free, slabs.num_away) == (2, 3)
    assert [slabs.lend(), slabs.lend(), slabs.lend(), slabs.lend_run(1)] == [1, 2, None, None]
    with pytest.raises(PagingError):
        slabs.claim(4)
    with pytest.raises(PagingError):
        slabs.give_back(4, CLEAN)  # invariant 1
    slabs.come_back((3, 5))
    assert (slabs.num_free, slabs.num_away) == (2, 1)
    assert slabs.residue(3) == STRANGER  # invariant 2
    with pytest.raises(PagingError):
        slabs.come_back((3,))
    slabs.reset()
    assert (slabs.num_free, slabs.num_away) == (6, 0)


def test_runs_that_come_and_go_leave_nothing_in_the_books() -> None:
    """Models that take turns: what is kept of free slabs does not grow with the number of turns."""
    slabs = Arena(64, 64, 16)
    tracemalloc.start()
    try:
        for _ in range(2000):
            first = slabs.lend_run(64)
            assert first == 0
            for slab in range(64):
                slabs.give_back(slab, CLEAN)
        held_bytes, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held_bytes < 100_000
    assert [slabs.lend() for _ in range(65)] == [*range(64), None]
