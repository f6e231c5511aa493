"""Decayed usage: halves in every half-life, rolls up the tree, and no clock does it harm."""

from __future__ import annotations

import logging

import pytest

from kerneld.state.usagetables import ClockRow
from kerneld.usage.decay import DAY_S, DecayedUsage, UsageClock, own_node

WEEK_S = 7 * DAY_S


class Clock:
    """Unix seconds, as a test sets them."""

    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def pass_days(clock: Clock, usage: UsageClock, days: int) -> None:
    """Let time pass as it does: looked at every day."""
    for _ in range(days):
        clock.now += DAY_S
        usage.now()


def test_half_is_forgotten_in_a_half_life() -> None:
    clock = Clock()
    time = UsageClock(clock)
    decayed = DecayedUsage(time, WEEK_S)
    decayed.charge("lab", 1000)
    pass_days(clock, time, 7)
    assert decayed.value_us("lab") == pytest.approx(500.0)
    decayed.charge("lab", 500)
    pass_days(clock, time, 14)
    assert decayed.value_us("lab") == pytest.approx(250.0)


def test_what_a_tenant_used_counts_for_all_above_it_and_its_own_apart() -> None:
    decayed = DecayedUsage(UsageClock(Clock()), WEEK_S)
    decayed.charge("lab/ml/ann", 100)
    decayed.charge("lab/ml", 10)
    values = {node: decayed.value_us(node) for node in ("lab", "lab/ml", "lab/ml/ann", own_node("lab/ml"), own_node("lab"), "bob")}
    assert values == {"lab": 110, "lab/ml": 110, "lab/ml/ann": 100, "lab/ml/.": 10, "lab/.": 0, "bob": 0}


def test_nobody_has_used_less_than_nothing() -> None:
    decayed = DecayedUsage(UsageClock(Clock()), WEEK_S)
    decayed.charge("lab", 100)
    decayed.charge("lab", -300)
    assert decayed.value_us("lab") == 0.0


def test_a_removed_tenant_leaves_what_it_used_to_those_above_it() -> None:
    decayed = DecayedUsage(UsageClock(Clock()), WEEK_S)
    decayed.charge("lab/ann", 100)
    decayed.take_changed()
    decayed.charge("lab/ann", 1)
    decayed.forget("lab/ann")
    assert (decayed.value_us("lab/ann"), decayed.value_us("lab")) == (0.0, 101.0)
    assert set(decayed.take_changed()[0]) == {"lab"}


def test_a_clock_that_goes_back_changes_nothing() -> None:
    clock = Clock()
    time = UsageClock(clock)
    decayed = DecayedUsage(time, WEEK_S)
    decayed.charge("lab", 1000)
    clock.now -= 400 * DAY_S
    assert decayed.value_us("lab") == 1000.0
    decayed.charge("lab", 1000)
    pass_days(clock, time, 7)
    assert decayed.value_us("lab") == pytest.approx(1000.0)


def test_a_jump_of_more_than_a_day_is_logged_and_counts_as_a_day(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    decayed = DecayedUsage(UsageClock(clock), DAY_S)
    decayed.charge("lab", 1000)
    clock.now += 1000 * DAY_S
    with caplog.at_level(logging.WARNING):
        assert decayed.value_us("lab") == pytest.approx(500.0)
        assert decayed.value_us("lab") == pytest.approx(500.0)
    assert [record.message for record in caplog.records] == ["the clock went forward by more than a day; a day counts"]


def test_it_goes_on_after_a_restart_where_it_was() -> None:
    clock = Clock()
    before = DecayedUsage(UsageClock(clock), WEEK_S)
    before.charge("lab/ann", 1000)
    clock.now += DAY_S / 2
    rows, kept = before.take_changed()
    clock.now += DAY_S / 2
    after = DecayedUsage(UsageClock(clock), WEEK_S)
    after.restore(UsageClock(clock, kept), rows)
    assert after.value_us("lab/ann") == pytest.approx(before.value_us("lab/ann"))
    assert kept == ClockRow(DAY_S / 2, 1e9 + DAY_S / 2)


def test_only_what_changed_is_taken_and_what_was_put_back_is_taken_again() -> None:
    decayed = DecayedUsage(UsageClock(Clock()), WEEK_S)
    decayed.charge("ann", 1)
    first, _clock = decayed.take_changed()
    assert set(first) == {"ann", "ann/."}
    assert decayed.take_changed()[0] == {}
    decayed.put_back(first)
    decayed.charge("bob", 1)
    assert set(decayed.take_changed()[0]) == {"ann", "ann/.", "bob", "bob/."}
