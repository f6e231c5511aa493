"""Running out of time: deadlines, limits of waiting, and clocks that jump."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kerneld.expiry import Expiry
from kerneld.request import Request, RequestState

MakeRequest = Callable[..., Request]
HOUR = 3600.0


def watched(expiry: Expiry, *requests: Request) -> None:
    for request in requests:
        expiry.add(request)


def told(expiry: Expiry, now: float, steady: float | None = None) -> list[str]:
    return [late.request.id for late in expiry.due(now, steady)]


def test_each_is_told_of_once_in_the_order_of_time(make_request: MakeRequest) -> None:
    expiry = Expiry()
    late, early = make_request(deadline=5.0), make_request(deadline=4.0)
    watched(expiry, late, early, make_request(deadline=9.0), make_request())

    assert [told(expiry, 3.9), told(expiry, 5.0), told(expiry, 6.0)] == [[], [early.id, late.id], []]


def test_who_has_ended_is_not_told_of(make_request: MakeRequest) -> None:
    expiry = Expiry()
    request = make_request(deadline=5.0)
    watched(expiry, request)
    request.state = RequestState.FINISHED

    assert told(expiry, 6.0) == []


def test_who_waits_longer_than_it_may_is_told_of_and_why(make_request: MakeRequest) -> None:
    expiry = Expiry()
    request = make_request(deadline=9.0)
    request.queue_until = 5.0
    watched(expiry, request)

    (late,) = expiry.due(5.0)

    assert late.request is request
    assert "never seated" in late.detail


def test_a_limit_of_waiting_ends_with_the_first_seat(make_request: MakeRequest) -> None:
    expiry = Expiry()
    request = make_request()
    request.queue_until, request.admitted_at = 5.0, 4.0
    watched(expiry, request)

    assert told(expiry, 6.0) == []


def test_who_has_two_reasons_is_told_of_once(make_request: MakeRequest) -> None:
    expiry = Expiry()
    request = make_request(deadline=4.0)
    request.queue_until = 5.0
    watched(expiry, request)

    (late,) = expiry.due(6.0)

    assert late.detail == "The deadline passed."


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 100 * 24 * HOUR])
def test_a_clock_that_jumps_ends_nothing_early_and_nothing_late(make_request: MakeRequest, jump: float) -> None:
    expiry = Expiry()
    request = make_request(arrival=1000.0, deadline=1010.0)
    watched(expiry, request)
    expiry.due(1000.0, 50.0)

    jumped = told(expiry, 1001.0 + jump, 51.0)
    before = told(expiry, 1009.9 + jump, 59.9)
    after = told(expiry, 1010.1 + jump, 60.1)

    assert (jumped, before, after) == ([], [], [request.id])


def test_who_came_between_the_jump_and_the_next_look_has_the_new_time_already(make_request: MakeRequest) -> None:
    expiry = Expiry()
    watched(expiry, make_request(arrival=1000.0, deadline=1010.0))
    expiry.due(1000.0, 50.0)
    new = make_request(arrival=1000.1 + HOUR, deadline=1005.0 + HOUR)
    watched(expiry, new)

    jumped = told(expiry, 1000.2 + HOUR, 50.2)

    assert (jumped, told(expiry, 1005.0 + HOUR, 55.0)) == ([], [new.id])


def test_without_a_second_clock_a_jump_back_only_delays(make_request: MakeRequest) -> None:
    expiry = Expiry()
    request = make_request(deadline=1010.0)
    watched(expiry, request)

    assert [told(expiry, 1005.0), told(expiry, 5.0), told(expiry, 1010.0)] == [[], [], [request.id]]


def test_a_slow_loop_is_no_jump(make_request: MakeRequest) -> None:
    expiry = Expiry()
    request = make_request(deadline=1010.0)
    watched(expiry, request)
    expiry.due(1000.0, 50.0)

    assert told(expiry, 1030.0, 80.0) == [request.id]


def test_requests_that_ended_long_before_their_time_are_forgotten(make_request: MakeRequest) -> None:
    expiry = Expiry()
    requests = [make_request(deadline=1e9) for _ in range(1000)]
    watched(expiry, *requests)

    for request in requests:
        request.state = RequestState.FINISHED
        expiry.ended(request)

    assert len(expiry._heap) <= 32


def test_who_came_before_the_jump_and_after_the_last_look_keeps_its_time(make_request: MakeRequest) -> None:
    expiry = Expiry()
    assert told(expiry, 0.0, 0.0) == []
    request = make_request(arrival=1.0, deadline=11.0)
    watched(expiry, request)

    jumped = told(expiry, HOUR + 2.0, 2.0)

    assert (jumped, told(expiry, HOUR + 10.9, 10.9), told(expiry, HOUR + 11.0, 11.0)) == ([], [], [request.id])
