"""The gate between the line and the seats: when it opens, and what is waited for."""

from __future__ import annotations

import pytest

from kerneld.gate import Gate
from memory.config import MIB, MemoryConfig
from memory.page import Space
from memory.pager import Pager
from memory.table import PageTable


@pytest.fixture
def table() -> PageTable:
    pager = Pager(MemoryConfig(device_bytes=4 * MIB, host_bytes=4 * MIB))
    pager.open_space(Space(1, 16, 4096, 8192))
    return pager.new_table("lab", (1,))


def test_it_opens_when_the_plan_has_landed_that_it_waits_for() -> None:
    gate = Gate()
    gate.stop()
    gate.open_at(3)

    assert [gate.landed(2), gate.landed(3)] == [False, True]
    assert gate.is_stopped, "whoever is told opens it"


def test_without_a_plan_to_wait_for_no_landing_opens_it() -> None:
    gate = Gate()
    gate.stop()

    assert [gate.landed(1), gate.landed(9)] == [False, False]


def test_those_who_run_are_blocked_until_what_left_has_landed(table: PageTable) -> None:
    gate = Gate()
    gate.last_seq = 2
    gate.left(table)

    is_worth_waiting = gate.block_by_leaving()
    blocked = [gate.is_blocked]
    for seq in (1, 2):
        gate.landed(seq)
        blocked.append(gate.is_blocked)

    assert (is_worth_waiting, blocked, gate.leaving) == (True, [True, True, False], [])


def test_a_row_that_left_when_all_had_landed_holds_nothing(table: PageTable) -> None:
    gate = Gate()
    gate.last_seq = 2
    gate.landed(2)

    gate.left(table)

    assert (gate.leaving, gate.block_by_leaving(), gate.is_blocked) == ([], False, False)


def test_void_plans_hold_nothing_and_block_nobody(table: PageTable) -> None:
    gate = Gate()
    gate.last_seq = 2
    gate.left(table)
    gate.block(2)
    gate.stop()

    gate.clear()
    gate.left(table)

    assert (gate.is_stopped, gate.is_blocked, gate.leaving) == (False, False, [])
