"""A queue that requests may leave from anywhere: order, and what the dead cost."""

from __future__ import annotations

import random
from collections.abc import Callable

from kerneld.request import Request
from kerneld.ticketqueue import TicketQueue

MakeRequest = Callable[..., Request]


def push(queue: TicketQueue, request: Request, ticket: int, *key: float) -> Request:
    request.ticket = ticket
    queue.push(key, request)
    return request


def leave(queue: TicketQueue, request: Request) -> None:
    request.ticket = 0
    queue.discard()


def test_requests_come_by_key_and_equal_ones_as_they_came(make_request: MakeRequest) -> None:
    queue = TicketQueue()
    second = push(queue, make_request(), 1, 5.0)
    third = push(queue, make_request(), 2, 5.0)
    first = push(queue, make_request(), 3, 1.0)

    assert queue.live() == [first, second, third]
    assert (queue.first(), queue.first_key()) == (first, (1.0,))


def test_whoever_left_is_nowhere(make_request: MakeRequest) -> None:
    queue = TicketQueue()
    first, second, third = (push(queue, make_request(), ticket, float(ticket)) for ticket in (1, 2, 3))

    leave(queue, first)
    leave(queue, second)

    assert (queue.first(), len(queue), queue.live(), [request for _key, request in queue.ahead()]) == (third, 1, [third], [third])


def test_looking_ahead_gives_the_order_of_the_queue_and_changes_nothing(make_request: MakeRequest) -> None:
    queue, draw = TicketQueue(), random.Random(1)
    requests = [push(queue, make_request(), ticket, draw.randrange(20)) for ticket in range(1, 200)]
    for request in draw.sample(requests, 70):
        leave(queue, request)

    told = [request for _key, request in queue.ahead()]

    assert told == queue.live()
    assert len(told) == 129


def test_the_dead_are_never_many_more_than_the_living(make_request: MakeRequest) -> None:
    queue = TicketQueue()
    requests = [push(queue, make_request(), ticket, 0.0) for ticket in range(1, 1001)]

    for request in requests[:-1]:
        leave(queue, request)

    assert len(queue._heap) <= 2 * len(queue) + 16
    assert queue.first() is requests[-1]


def test_an_empty_queue_looks_ahead_at_nobody() -> None:
    assert list(TicketQueue().ahead()) == []
