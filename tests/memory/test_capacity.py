"""What there is on the device at most, and what a plan needs at least."""

from __future__ import annotations

import pytest

from memory.config import MemoryConfig
from memory.page import Space
from memory.pager import Pager, Want
from memory.table import PageTable

SLAB, FRAME, PAGE_TOKENS = 4096, 256, 4
PAGES = 4 * SLAB // FRAME  # of the device


@pytest.fixture
def pager() -> Pager:
    made = Pager(MemoryConfig(device_bytes=4 * SLAB, host_bytes=16 * SLAB, page_tokens=PAGE_TOKENS, slab_bytes=SLAB, granule_bytes=FRAME))
    made.open_space(Space(1, PAGE_TOKENS, FRAME, FRAME))
    return made


def want(pager: Pager, num_pages: int, owner: str = "lab") -> Want:
    return Want(pager.new_table(owner, (1,)), 0, num_pages * PAGE_TOKENS)


def grown(pager: Pager, num_pages: int, seq: int) -> PageTable:
    wanted = want(pager, num_pages)
    pager.plan(seq, [wanted])
    return wanted.table


@pytest.mark.parametrize(("num_pages", "is_short"), [(PAGES, False), (PAGES + 1, True)])
def test_more_pages_than_there_are_frames_surely_find_none(pager: Pager, num_pages: int, is_short: bool) -> None:
    assert pager.room.is_short([want(pager, num_pages - 1), want(pager, 1)], []) is is_short


def test_pages_of_idle_tables_are_in_nobodys_way(pager: Pager) -> None:
    grown(pager, PAGES, 1)
    pager.commit(1)

    assert not pager.room.is_short([want(pager, PAGES)], [])


def test_what_plans_on_their_way_still_name_is_not_to_be_had(pager: Pager) -> None:
    leaving = grown(pager, 10, 1)

    short = [pager.room.is_short([want(pager, PAGES - num_pages)], [leaving]) for num_pages in (10, 9)]

    assert short == [False, True]


def test_a_table_that_is_wanted_again_counts_once(pager: Pager) -> None:
    table = grown(pager, 10, 1)

    assert not pager.room.is_short([Want(table, 0, PAGES * PAGE_TOKENS)], [table])


def test_pages_that_several_hold_are_not_counted(pager: Pager) -> None:
    parent = grown(pager, PAGES // 2, 1)
    pager.commit(1)
    children = [pager.fork(parent, PAGES // 2 * PAGE_TOKENS) for _ in range(9)]

    assert not pager.room.is_short([Want(child, PAGES // 2 * PAGE_TOKENS, PAGES // 2 * PAGE_TOKENS) for child in children], [])


def test_a_table_of_a_model_that_has_left_keeps_nothing(pager: Pager) -> None:
    table = grown(pager, 10, 1)
    pager.abort(1)
    pager.close_space(1)
    pager.open_space(Space(2, PAGE_TOKENS, FRAME, FRAME))

    assert not pager.room.is_short([Want(pager.new_table("lab", (2,)), 0, PAGES * PAGE_TOKENS)], [table])
