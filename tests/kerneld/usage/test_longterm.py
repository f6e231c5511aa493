"""The long-term factor: exact where it is bounded, 1 where nobody is owed anything, and level by level."""

from __future__ import annotations

import pytest

from kerneld.usage.decay import DAY_S, DecayedUsage, UsageClock
from kerneld.usage.longterm import LEAST_MILLI, MOST_MILLI, ONE_MILLI, WARM_UP_US, factors

HOUR_US = 3_600_000_000


def test_equal_users_stay_at_one() -> None:
    assert factors({"a": 1, "b": 1}, {"a": 5e9, "b": 5e9}) == {"a": 1000, "b": 1000}
    assert factors({"a": 3, "b": 1}, {"a": 6e9, "b": 2e9}) == {"a": 1000, "b": 1000}


def test_it_is_the_root_of_share_over_use() -> None:
    assert factors({"a": 1, "b": 1}, {"a": 8e9, "b": 2e9}) == {"a": 791, "b": 1581}


def test_it_is_clamped_exactly() -> None:
    others = {f"t{idx}": 1 for idx in range(31)}
    found = factors({"hog": 1} | others, {"hog": 1e12} | dict.fromkeys(others, 0.0))
    assert found["hog"] == LEAST_MILLI
    assert {found[path] for path in others} == {MOST_MILLI}
    assert factors({"a": 1, "b": 15}, {"a": 1e12, "b": 0.0})["a"] == LEAST_MILLI  # share over use is a sixteenth: just so
    assert factors({"a": 1, "b": 14}, {"a": 1e12, "b": 0.0})["a"] == 258
    assert factors({"a": 15, "b": 1}, {"a": 1e12, "b": 62.5e9})["b"] == pytest.approx(1031)
    assert factors({"a": 1, "b": 1}, {"a": 31e9, "b": 1e9})["b"] == MOST_MILLI  # half over a thirty-second is sixteen


@pytest.mark.parametrize("used", [{}, {"a": 0.0, "b": 0.0}, {"a": WARM_UP_US - 1, "b": 0.5}])
def test_who_has_no_past_worth_balancing_stays_at_one(used: dict[str, float]) -> None:
    assert factors({"a": 1, "b": 1}, used) == {"a": ONE_MILLI, "b": ONE_MILLI}


def test_an_only_child_and_no_child_are_no_case() -> None:
    assert factors({"a": 7}, {"a": 9e12}) == {"a": ONE_MILLI}
    assert factors({}, {}) == {}


def test_tiny_use_beside_huge_use_does_not_overflow() -> None:
    assert factors({"a": 1, "b": 10_000}, {"a": 1e-300, "b": 1e18}) == {"a": MOST_MILLI, "b": ONE_MILLI}


def test_who_hogged_for_a_week_gets_a_quarter_and_recovers_with_the_half_life() -> None:
    now = 1e9
    clock = UsageClock(lambda: now)
    decayed = DecayedUsage(clock, 7 * DAY_S)
    names = [f"t{idx}" for idx in range(20)]
    weights = dict.fromkeys(names, 1)
    for _ in range(7 * 24):
        now += 3600.0
        decayed.charge("t0", HOUR_US)
    at_first = factors(weights, {name: decayed.value_us(name) for name in names})
    hog = []
    for _ in range(12):  # weeks in which the others share the machine, and the hog is away
        for _ in range(7):
            now += DAY_S
            for name in names[1:]:
                decayed.charge(name, 24 * HOUR_US // 19)
        hog.append(factors(weights, {name: decayed.value_us(name) for name in names})["t0"])
    assert at_first["t0"] == LEAST_MILLI
    assert at_first["t1"] == MOST_MILLI
    assert hog == sorted(hog)
    assert hog[0] < 400  # a half-life later its week is still a third of all that counts
    assert hog[3] > 900
    assert hog[-1] == MOST_MILLI
