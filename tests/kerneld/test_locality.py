"""Whoever's KV is at hand goes first, within bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kerneld.calls import Priority
from kerneld.fairshare import FairShare
from kerneld.locality import MOST_LOOKED_AT, MOST_PASSED
from kerneld.policy import SchedulerPolicy
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.sharenode import SCALE

MakeRequest = Callable[..., Request]
LAG = 5_000
TOKEN_US, CACHED_US = 10, 1  # of input, as long as a model was not measured


class Cache:
    """What is at hand, by request."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.num_looks = 0
        self.stamp = 1

    def num_at_hand(self, request: Request) -> int:
        self.num_looks += 1
        return self.known.get(request.id, 0)


@pytest.fixture
def cache() -> Cache:
    return Cache()


def new_scheduler(cache: Cache, lag_us: int = LAG) -> Scheduler:
    shares = FairShare()
    for path in ("ann", "bob", "eve", "lab/kim", "lab/lee"):
        shares.add(path)
    made = Scheduler(shares, SchedulerPolicy(locality_lag_us=lag_us))
    made.set_resident("m", True)
    made.locality.num_at_hand, made.locality.stamp = cache.num_at_hand, lambda: cache.stamp
    return made


def wait(scheduler: Scheduler, *requests: Request) -> None:
    for request in requests:
        scheduler.enqueue(request)


def test_a_tenant_nearly_level_goes_first_if_more_of_its_request_is_at_hand(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    first, cached = make_request("ann", num_input=500), make_request("bob", num_input=500)
    wait(scheduler, first, cached)
    scheduler.shares.charge("bob", 4_000)
    cache.known[cached.id] = 480

    assert scheduler.next_candidate() is cached
    assert scheduler.shares.pick() == "ann"


def test_it_has_to_save_more_than_it_goes_ahead(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    first, cached = make_request("ann", num_input=500), make_request("bob", num_input=500)
    wait(scheduler, first, cached)
    cache.known[cached.id] = 100
    saved = 100 * (TOKEN_US - CACHED_US)

    scheduler.shares.charge("bob", saved - 1)
    worth = scheduler.next_candidate()
    scheduler.shares.charge("bob", 1)

    assert (worth, scheduler.next_candidate()) == (cached, first)


def test_nobody_further_ahead_than_the_lag_is_preferred(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    first, cached = make_request("ann"), make_request("bob", num_input=100_000)
    wait(scheduler, first, cached)
    cache.known[cached.id] = 99_999

    scheduler.shares.charge("bob", LAG + 1)

    assert scheduler.next_candidate() is first


def test_who_gave_its_row_up_does_not_get_it_back_before_the_one_it_was_taken_for(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    running, preempted = (make_request("bob", num_input=500) for _ in range(2))
    wait(scheduler, running, preempted)
    for request in (running, preempted):
        scheduler.admit(request, 0)
    late = make_request("ann", num_input=500)
    wait(scheduler, late)
    scheduler.preempt(preempted)
    cache.known[preempted.id] = 500

    assert scheduler.shares.lag("bob", "ann", preempted.rank, late.rank) <= LAG * SCALE
    assert scheduler.next_candidate() is late


def test_nobody_is_preferred_for_ever(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    patient = make_request("ann", num_input=500, arrival=0.0)
    wait(scheduler, patient)
    passed = 0
    while True:
        cached = make_request("bob", num_input=500)
        cache.known[cached.id] = 480
        wait(scheduler, cached)
        chosen = scheduler.next_candidate()
        assert chosen is not None
        if chosen is patient:
            break
        scheduler.admit(chosen, 480)
        scheduler.finish(chosen)
        passed += 1

    assert 1 <= passed <= 1 + LAG // (480 * CACHED_US)


def test_a_lag_of_nothing_turns_it_off(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache, lag_us=0)
    first, cached = make_request("ann"), make_request("ann", num_input=500)
    wait(scheduler, first, cached)
    cache.known[cached.id] = 480

    assert (scheduler.next_candidate(), cache.num_looks) == (first, 0)


def test_with_nothing_known_nobody_is_looked_at(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    wait(scheduler, make_request("ann"), make_request("bob"))
    cache.stamp = 0

    scheduler.next_candidate()

    assert cache.num_looks == 0


def test_asking_again_looks_at_nobody_again(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    wait(scheduler, make_request("ann"), make_request("bob"))

    first = scheduler.next_candidate()
    num_looks = cache.num_looks

    assert [scheduler.next_candidate() for _ in range(5)] == [first] * 5
    assert cache.num_looks == num_looks


def test_of_one_tenant_the_one_at_hand_goes_first_among_equals(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    first, cached = make_request("ann", num_input=500), make_request("ann", num_input=500)
    lax, nice = make_request("ann", num_input=500, priority=Priority.BATCH), make_request("ann", num_input=500, nice=5)
    wait(scheduler, first, cached, lax, nice)
    cache.known |= {cached.id: 100, lax.id: 500, nice.id: 500}

    assert scheduler.next_candidate() is cached


def test_no_request_is_passed_more_often_than_that(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    patient = make_request("ann", arrival=0.0)
    cached = [make_request("ann", num_input=500) for _ in range(2 * MOST_PASSED)]
    cache.known |= {request.id: 480 for request in cached}
    wait(scheduler, patient, *cached)
    served = []
    while patient.ticket:
        chosen = scheduler.next_candidate()
        assert chosen is not None
        scheduler.admit(chosen, 0)
        served.append(chosen)

    assert served == [*cached[:MOST_PASSED], patient]


def test_only_the_first_of_a_queue_are_looked_at(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    requests = [make_request("ann", num_input=500) for _ in range(MOST_LOOKED_AT + 1)]
    wait(scheduler, *requests)
    cache.known[requests[-1].id] = 480

    assert scheduler.next_candidate() is requests[0]
    assert cache.num_looks == MOST_LOOKED_AT


def test_a_tenant_that_is_closed_is_not_preferred(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    first, cached = make_request("ann", num_input=500), make_request("bob", num_input=500)
    wait(scheduler, first, cached)
    cache.known[cached.id] = 480
    before = scheduler.next_candidate()

    scheduler.hold_back("bob")

    assert (before, scheduler.next_candidate()) == (cached, first)


def test_the_lag_counts_at_each_level_of_the_tree(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    first, cached = make_request("lab/kim", num_input=500), make_request("lab/lee", num_input=500)
    wait(scheduler, first, cached)
    cache.known[cached.id] = 480
    scheduler.shares.charge("lab/lee", LAG + 1)

    assert scheduler.next_candidate() is first


def test_nobody_is_preferred_any_more_who_was_charged_meanwhile(cache: Cache, make_request: MakeRequest) -> None:
    scheduler = new_scheduler(cache)
    first, cached = make_request("ann"), make_request("bob", num_input=100_000)
    wait(scheduler, first, cached)
    cache.known[cached.id] = 99_999
    preferred = scheduler.next_candidate()

    scheduler.shares.charge("bob", LAG + 1)  # for what runs of it: no queue changes by that

    assert (preferred, scheduler.next_candidate()) == (cached, first)
