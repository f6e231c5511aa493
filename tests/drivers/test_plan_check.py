"""Plans that break the contract are rejected before anything is changed."""

from __future__ import annotations

import pytest

from drivers.contract import FramePatch, Plan, RowRun, RowStart, Sampling
from drivers.errors import PlanRejected
from drivers.plan_check import check_rows
from drivers.rows import GroupLimit, ModelLimit, RowTable

GREEDY = Sampling(temperature=0.0)
MODELS = {1: ModelLimit(vocab_size=100, max_positions=64, groups=(GroupLimit(50), GroupLimit(50, window=16)))}


def start(slot: int = 1, tokens: tuple[int, ...] = (5, 6), position: int = 0, **changes: object) -> RowStart:
    """A row with one page per group, as the model of these tests wants it."""
    fields: dict[str, object] = {"frames": ((3,), (4,)), "sampling": GREEDY, "model_id": 1, **changes}
    return RowStart(slot=slot, position=position, tokens=tokens, **fields)  # type: ignore[arg-type]


@pytest.fixture
def table() -> RowTable:
    """Slot 0 holds a row of two pending tokens and one page per group."""
    rows = RowTable(4, 32, 16)
    rows.apply(Plan(1, 1, starts=(start(slot=0),)))
    return rows


GOOD = {
    "a start that runs": Plan(1, 2, starts=(start(),), runs=(RowRun(1, 2),), num_steps=14),
    "a chunk": Plan(1, 2, runs=(RowRun(0, 1),), num_steps=8),
    "a cleared slot is free again": Plan(1, 2, clears=(0,), starts=(start(slot=0),)),
    "frames that come by patch": Plan(
        1, 2, patches=(FramePatch(0, 0, 1, (8,)), FramePatch(0, 1, 1, (9,))), runs=(RowRun(0, 2),), num_steps=20
    ),
    "pages that left the window": Plan(1, 2, patches=(FramePatch(0, 1, 0, (-1,)),)),
}
BAD = {
    "clear of an empty slot": Plan(1, 2, clears=(1,)),
    "clear twice": Plan(1, 2, clears=(0, 0)),
    "start in a taken slot": Plan(1, 2, starts=(start(slot=0),)),
    "start twice": Plan(1, 2, starts=(start(), start())),
    "slot past the last": Plan(1, 2, starts=(start(slot=4),)),
    "unknown model": Plan(1, 2, starts=(start(model_id=9),)),
    "no tokens": Plan(1, 2, starts=(start(tokens=()),)),
    "token past the vocabulary": Plan(1, 2, starts=(start(tokens=(100,)),)),
    "negative token": Plan(1, 2, starts=(start(tokens=(-1,)),)),
    "negative position": Plan(1, 2, starts=(start(position=-1),)),
    "past the model's end": Plan(1, 2, starts=(start(position=63),)),
    "position without frames": Plan(1, 2, starts=(start(position=17),)),
    "too few page tables": Plan(1, 2, starts=(start(frames=((3,),)),)),
    "frame past the arena": Plan(1, 2, starts=(start(frames=((50,), (4,))),)),
    "no frame in a group that sees everything": Plan(1, 2, starts=(start(frames=((-1,), (4,))),)),
    "patch of an empty slot": Plan(1, 2, patches=(FramePatch(1, 0, 0, (3,)),)),
    "patch that leaves a gap": Plan(1, 2, patches=(FramePatch(0, 0, 2, (3,)),)),
    "patch of an unknown group": Plan(1, 2, patches=(FramePatch(0, 2, 0, (3,)),)),
    "run of an empty slot": Plan(1, 2, runs=(RowRun(1, 1),), num_steps=1),
    "run twice": Plan(1, 2, runs=(RowRun(0, 1), RowRun(0, 1)), num_steps=1),
    "run of a cleared slot": Plan(1, 2, clears=(0,), runs=(RowRun(0, 1),), num_steps=1),
    "more tokens than are pending": Plan(1, 2, runs=(RowRun(0, 3),), num_steps=1),
    "no tokens to run": Plan(1, 2, runs=(RowRun(0, 0),), num_steps=1),
    "runs without steps": Plan(1, 2, runs=(RowRun(0, 1),), num_steps=0),
    "steps past the frames": Plan(1, 2, runs=(RowRun(0, 2),), num_steps=16),
    "more tokens than a step may have": Plan(
        1, 2, starts=(start(tokens=(1,) * 33, frames=((3, 4, 5), (6, 7, 8))),), runs=(RowRun(1, 33),), num_steps=1
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_plan_that_fits_is_let_through(name: str, table: RowTable) -> None:
    check_rows(GOOD[name], table, MODELS)


@pytest.mark.parametrize("name", BAD)
def test_a_plan_that_breaks_the_contract_is_rejected(name: str, table: RowTable) -> None:
    with pytest.raises(PlanRejected):
        check_rows(BAD[name], table, MODELS)
    row = table.row(0)
    assert row is not None
    assert row.pending == [5, 6]


def test_steps_past_the_end_of_the_model_are_rejected(table: RowTable) -> None:
    pages = (tuple(range(1, 6)), tuple(range(11, 16)))
    plan = Plan(1, 2, starts=(start(tokens=(1,) * 30, frames=pages),), runs=(RowRun(1, 30),), num_steps=36)
    with pytest.raises(PlanRejected, match="model ends at 64"):
        check_rows(plan, table, MODELS)


def test_a_run_of_a_row_that_failed_is_let_through_whatever_it_asks(table: RowTable) -> None:
    row = table.row(0)
    assert row is not None
    table.fail(row)
    check_rows(Plan(1, 2, runs=(RowRun(0, 9),), num_steps=99), table, MODELS)
