"""Rates: a minute's worth at once, refilled evenly, and the exact time to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.bucket import RateBucket


def test_a_minutes_worth_may_come_at_once_and_the_next_waits_its_time() -> None:
    bucket = RateBucket(60, now=0.0)
    for _ in range(60):
        bucket.take(1, now=0.0)

    assert bucket.wait_s(1, now=0.0) == 1.0
    assert bucket.wait_s(1, now=0.75) == pytest.approx(0.25)
    assert bucket.wait_s(1, now=1.0) == 0.0


def test_it_never_holds_more_than_a_minutes_worth() -> None:
    bucket = RateBucket(60, now=0.0)
    bucket.take(60, now=1000.0)

    assert bucket.wait_s(1, now=1000.0) == 1.0


def test_a_debt_is_paid_off_by_later_refills() -> None:
    bucket = RateBucket(60, now=0.0)
    bucket.take(90, now=0.0)

    assert bucket.wait_s(1, now=0.0) == 31.0


def test_more_than_the_bucket_holds_needs_a_full_one() -> None:
    bucket = RateBucket(60, now=0.0)
    bucket.take(30, now=0.0)

    assert bucket.wait_s(1000, now=0.0) == 30.0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = RateBucket(60, now=100.0)
    bucket.take(60, now=100.0)

    assert bucket.wait_s(1, now=50.0) == 1.0


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(1, 50), st.floats(0, 30)), max_size=30))
def test_waiting_as_told_is_enough_and_no_longer_than_needed(per_minute: int, takes: list[tuple[int, float]]) -> None:
    bucket, now = RateBucket(per_minute, now=0.0), 0.0
    for amount, pause in takes:
        now += pause
        wait_s = bucket.wait_s(amount, now)
        if wait_s > 1e-6:
            assert bucket.wait_s(amount, now + 0.9 * wait_s) > 0
        now += wait_s + 1e-9
        assert bucket.wait_s(amount, now) < 1e-6
        bucket.take(amount, now)
