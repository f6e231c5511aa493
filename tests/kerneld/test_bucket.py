"""Rates: a period's worth at once, refilled evenly, and the exact time to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.bucket import HOUR_US, MINUTE_US, SECOND_US, RateBucket

takes = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30 * SECOND_US)), max_size=40)


def bucket_of(amount: int, period_us: int = MINUTE_US) -> RateBucket:
    return RateBucket(amount, period_us, 0)


def test_a_minutes_worth_may_come_at_once_and_the_next_waits_its_time() -> None:
    bucket = bucket_of(60)
    for _ in range(60):
        bucket.take(1, 0)

    assert bucket.wait_us(1, 0) == SECOND_US
    assert bucket.wait_us(1, 750_000) == 250_000
    assert bucket.wait_us(1, SECOND_US) == 0


def test_an_hours_worth_is_refilled_in_an_hour() -> None:
    bucket = bucket_of(4, HOUR_US)
    bucket.take(4, 0)

    assert bucket.wait_us(1, 0) == HOUR_US // 4


def test_it_never_holds_more_than_a_periods_worth() -> None:
    bucket = bucket_of(60)
    bucket.take(60, 1000 * SECOND_US)

    assert bucket.wait_us(1, 1000 * SECOND_US) == SECOND_US


def test_a_debt_is_paid_off_by_later_refills() -> None:
    bucket = bucket_of(60)
    bucket.take(90, 0)

    assert bucket.wait_us(1, 0) == 31 * SECOND_US


def test_more_than_the_bucket_holds_needs_a_full_one() -> None:
    bucket = bucket_of(60)
    bucket.take(30, 0)

    assert bucket.wait_us(1000, 0) == 30 * SECOND_US


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = RateBucket(60, MINUTE_US, 100 * SECOND_US)
    bucket.take(60, 100 * SECOND_US)

    assert bucket.wait_us(1, 50 * SECOND_US) == SECOND_US


@pytest.mark.parametrize("num_taken", [0, 7, 60, 150])
def test_the_time_until_it_is_full_is_all_there_is_to_keep(num_taken: int) -> None:
    bucket, again = bucket_of(60), bucket_of(60)
    bucket.take(num_taken, 0)

    again.set_full_in(bucket.full_in_us(0), 0)

    assert [again.wait_us(n, 0) for n in (1, 30, 60)] == [bucket.wait_us(n, 0) for n in (1, 30, 60)]


def test_what_is_given_back_was_never_taken() -> None:
    bucket = bucket_of(60)
    bucket.take(60, 0)
    bucket.give_back(60, 0)
    bucket.give_back(60, 0)

    assert (bucket.wait_us(60, 0), bucket.full_in_us(0)) == (0, 0)


@given(st.integers(1, 1000), takes)
def test_waiting_as_told_is_enough_and_not_a_microsecond_too_long(amount: int, takes: list[tuple[int, int]]) -> None:
    bucket, now_us = bucket_of(amount), 0
    for num_units, pause_us in takes:
        now_us += pause_us
        wait_us = bucket.wait_us(num_units, now_us)
        if wait_us:
            assert bucket.wait_us(num_units, now_us + wait_us - 1) == 1
        now_us += wait_us
        assert bucket.wait_us(num_units, now_us) == 0
        bucket.take(num_units, now_us)


@given(st.integers(50, 1000), takes)
def test_no_stretch_of_time_takes_more_than_its_part_and_a_burst(amount: int, takes: list[tuple[int, int]]) -> None:
    bucket, now_us, taken = bucket_of(amount), 0, [(0, 0)]
    for num_units, pause_us in takes:
        now_us += pause_us
        if not bucket.wait_us(num_units, now_us):
            bucket.take(num_units, now_us)
            taken.append((now_us, num_units))
    for i, (since_us, _) in enumerate(taken):
        for j in range(i, len(taken)):
            total, stretch_us = sum(units for _, units in taken[i : j + 1]), taken[j][0] - since_us
            assert total * MINUTE_US <= amount * (MINUTE_US + stretch_us)
