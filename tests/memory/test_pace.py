"""How much a plan may copy ahead of need."""

from __future__ import annotations

import pytest

from memory.pace import CopyPace

RATE = 1e-9  # seconds per byte


def test_nothing_measured_means_no_bound() -> None:
    pace = CopyPace(share=0.1)

    assert pace.budget(0.0, has_rows=True) is None
    assert pace.budget(RATE, has_rows=True) is None


def test_beside_rows_copies_get_their_share_of_a_step() -> None:
    pace = CopyPace(share=0.1)

    pace.note_plan(0.02, 0.0)

    assert pace.budget(RATE, has_rows=True) == 2_000_000


def test_without_rows_copies_get_a_turn_of_the_device() -> None:
    assert CopyPace(turn_s=0.05).budget(RATE, has_rows=False) == 50_000_000


def test_copies_over_the_share_are_paid_back_by_later_plans() -> None:
    pace = CopyPace(share=0.1)
    pace.note_plan(0.02, 0.005)

    budgets = []
    for _ in range(3):
        budgets.append(pace.budget(RATE, has_rows=True))
        pace.note_plan(0.02, 0.0)

    assert budgets == [0, pytest.approx(1_000_000), 2_000_000]


def test_the_bound_holds_over_any_run_of_plans() -> None:
    pace = CopyPace(share=0.1)
    pace.note_plan(0.01, 0.0)
    copied_s = 0.0
    for _ in range(1000):
        budget = pace.budget(RATE, has_rows=True)
        assert budget is not None
        page_s = 0.0037 if budget > 0 else 0.0  # one page is more than the share of a plan
        copied_s += page_s
        pace.note_plan(0.01, page_s)

    assert copied_s <= 0.1 * 10 + 2 * 0.0037
    assert copied_s >= 0.1 * 10 - 2 * 0.0037
