"""Where requests wait, and what the shares hear of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kerneld.calls import Priority
from kerneld.context import Context
from kerneld.fairshare import FairShare
from kerneld.request import Place, Request
from kerneld.sharenode import SCALE
from kerneld.waiting import Waiting, class_rank
from tests.kerneld.conftest import new_request

MakeRequest = Callable[..., Request]


@pytest.fixture
def waiting() -> Waiting:
    shares = FairShare()
    for path in ("lab/ann", "lab/bob"):
        shares.add(path)
    made = Waiting(shares)
    made.set_resident("m", True)
    return made


def always(_tenant: str) -> bool:
    return True


def test_those_at_the_front_go_by_turn_and_a_closed_tenant_stops_nobody_there(waiting: Waiting, make_request: MakeRequest) -> None:
    first, second = make_request("lab/ann"), make_request("lab/bob")
    for turn, request in ((1, first), (2, second)):
        request.turn, request.is_interrupted = turn, True
        waiting.add(request)

    assert waiting.front(always) is first
    assert waiting.front(lambda tenant: tenant != "lab/ann") is second
    assert waiting.front(lambda _tenant: False) is None
    assert (waiting.num_ready, waiting.position(second), list(waiting.ahead())) == (2, 2, [first, second])


def test_an_interrupted_request_wakes_nobody_up(waiting: Waiting, make_request: MakeRequest) -> None:
    shares = waiting._shares
    waiting.add(make_request("lab/bob"))
    shares.charge("lab/bob", 1000)
    request = make_request("lab/ann")
    request.is_interrupted = True

    waiting.add(request)
    waiting.park(request)
    waiting.unpark(request)
    waiting.remove(request)

    assert shares.counters("lab/ann")[-2:] == (0, 0)


def test_a_class_that_changes_in_line_is_counted_anew_and_lifts_nobody(waiting: Waiting, make_request: MakeRequest) -> None:
    shares, request = waiting._shares, make_request("lab/ann")
    waiting.add(request)
    waiting.add(make_request("lab/bob"))
    shares.charge("lab/bob", 1000)

    request.context.priority = Priority.IDLE
    request.rank = 2  # whoever changes it may say so at once
    waiting.move(request)

    assert shares._tree.own("lab/ann").num_by_rank == [0, 0, 1]
    assert counter(shares, "lab/ann") == 0


def counter(shares: FairShare, tenant: str) -> int:
    return shares.counters(tenant)[1] // SCALE


def test_who_waits_for_a_model_keeps_its_place_in_the_accounts(waiting: Waiting, make_request: MakeRequest) -> None:
    shares, absent = waiting._shares, make_request("lab/ann", model="n")
    waiting.add(make_request("lab/bob"))
    waiting.add(absent)
    shares.charge("lab/bob", 1000)
    waiting.add(make_request("lab/ann"))  # it asks for something else meanwhile
    waiting.set_resident("n", True)

    assert (counter(shares, "lab/ann"), counter(shares, "lab/bob"), absent.place) == (0, 1000, Place.LINE)
    assert not shares._tree.own("lab/ann").num_held


def test_who_was_asleep_is_owed_nothing_for_asking_for_a_model_that_is_absent(waiting: Waiting, make_request: MakeRequest) -> None:
    shares = waiting._shares
    waiting.add(make_request("lab/bob"))
    shares.charge("lab/bob", 1000)

    waiting.add(make_request("lab/ann", model="n"))
    shares.charge("lab/bob", 10)
    waiting.set_resident("n", True)

    assert counter(shares, "lab/ann") == 1000


def test_what_is_owed_for_a_wait_for_a_model_has_a_bound(make_request: MakeRequest) -> None:
    shares = FairShare(held_cap_us=300)
    for path in ("lab/ann", "lab/bob"):
        shares.add(path)
    waiting = Waiting(shares)
    waiting.set_resident("m", True)
    waiting.add(make_request("lab/bob"))
    waiting.add(make_request("lab/ann", model="n"))
    shares.charge("lab/bob", 60_000_000)

    waiting.set_resident("n", True)

    assert counter(shares, "lab/ann") == 60_000_000 - 300


def test_a_limit_that_is_reached_while_a_model_is_absent_is_no_credit(waiting: Waiting, make_request: MakeRequest) -> None:
    shares = waiting._shares
    waiting.add(make_request("lab/bob"))
    shares.set_open("lab/ann", False)
    waiting.add(make_request("lab/ann", model="n"))
    shares.charge("lab/bob", 1000)

    shares.set_open("lab/ann", True)
    waiting.set_resident("n", True)

    assert counter(shares, "lab/ann") == 1000


@pytest.mark.parametrize("model", ["m", "n"])
def test_what_is_held_is_let_go_whatever_became_of_it_meanwhile(waiting: Waiting, make_request: MakeRequest, model: str) -> None:
    request = make_request("lab/ann", model=model)
    waiting.add(request)
    waiting.park(request)
    request.is_interrupted = True  # whoever changes it moves it, sooner or later

    waiting.remove(request)

    assert waiting._shares._tree.own("lab/ann").num_held == 0
    waiting._shares.remove("lab/ann")


def test_whose_model_leaves_waits_beside_wherever_it_waited(waiting: Waiting, make_request: MakeRequest) -> None:
    requests = [make_request("lab/ann") for _ in range(4)]
    line, front, deferred, parked = requests
    front.is_interrupted, deferred.defer_until = True, 9.0
    for request in requests:
        waiting.add(request)
    waiting.park(parked)
    places = [request.place for request in requests]

    waiting.set_resident("m", False)
    gone = [request.place for request in requests]
    waiting.set_resident("m", True)

    assert places == [Place.LINE, Place.FRONT, Place.DEFERRED, Place.PARKED]
    assert gone == [Place.ABSENT, Place.ABSENT, Place.ABSENT, Place.PARKED]
    assert [request.place for request in requests] == places
    assert (line.missing, waiting.tally.total) == ("", 4)


def test_deferred_requests_join_when_their_time_comes(waiting: Waiting, make_request: MakeRequest) -> None:
    requests = [make_request("lab/ann") for _ in range(3)]
    for until, request in zip((3.0, 1.0, 2.0), requests, strict=True):
        request.defer_until = until
        waiting.add(request)

    nobody, some = waiting.undefer(0.5), waiting.undefer(2.0)

    assert (nobody, some) == (False, True)
    assert [request.place for request in requests] == [Place.DEFERRED, Place.LINE, Place.LINE]
    assert (waiting.num_deferred, waiting.deferred(always)) == (1, requests[0])


def test_of_the_deferred_the_first_of_an_open_tenant_is_found_without_a_walk(waiting: Waiting, make_request: MakeRequest) -> None:
    for number in range(200):
        request = make_request("lab/ann", arrival=float(number))
        request.defer_until = 1.0
        waiting.add(request)
    late, later = make_request("lab/bob"), make_request("lab/bob")
    late.defer_until, later.defer_until = 2.0, 3.0
    for request in (later, late):
        waiting.add(request)
    asked: list[str] = []

    def is_open(tenant: str) -> bool:
        asked.append(tenant)
        return tenant == "lab/bob"

    first = waiting.deferred(is_open)
    waiting.remove(late)
    second = waiting.deferred(is_open)
    waiting.remove(later)

    assert (first, second, waiting.deferred(is_open)) == (late, later, None)
    assert len(asked) <= 2 * 3
    assert waiting.num_deferred == 200


def test_a_class_that_changes_while_one_waits_leaves_the_shares_as_they_were(waiting: Waiting, make_request: MakeRequest) -> None:
    request = make_request("lab/ann", priority=Priority.IDLE)
    waiting.add(request)

    request.context.priority = Priority.INTERACTIVE
    waiting.remove(request)

    assert waiting._shares.pick() is None


def test_who_does_not_wait_cannot_leave(waiting: Waiting, make_request: MakeRequest) -> None:
    with pytest.raises(AssertionError, match="does not wait"):
        waiting.remove(make_request("lab/ann"))


TENANTS = ["a", "a/x", "b"]
MODELS = ["m", "n"]


class LifeOfWaiting(RuleBasedStateMachine):
    """Whatever becomes of requests, each is where it belongs, and the shares count exactly those in line."""

    @initialize()
    def start(self) -> None:
        self.shares = FairShare()
        for path in TENANTS:
            self.shares.add(path)
        self.waiting = Waiting(self.shares)
        self.waiting.set_resident("m", True)
        self.requests: list[Request] = []
        self.num_made = 0

    @rule(
        tenant=st.sampled_from(TENANTS),
        model=st.sampled_from(MODELS),
        priority=st.sampled_from(Priority),
        is_interrupted=st.booleans(),
        is_alone=st.booleans(),
        until=st.sampled_from([0.0, 1.0, 2.0]),
    )
    def add(self, tenant: str, model: str, priority: Priority, is_interrupted: bool, is_alone: bool, until: float) -> None:
        self.num_made += 1
        context = Context(id=f"{self.num_made}", owner="o", tenant=tenant, model=model, fingerprint="", seed=0, created_at=0.0)
        request = new_request(context, f"r{self.num_made}")
        context.priority = priority
        request.turn, request.is_interrupted, request.is_alone, request.defer_until = self.num_made, is_interrupted, is_alone, until
        self.waiting.add(request)
        self.requests.append(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def remove(self, data: st.DataObject, priority: Priority) -> None:
        request = data.draw(st.sampled_from(self.requests))
        request.context.priority = priority
        self.waiting.remove(request)
        self.requests.remove(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def move(self, data: st.DataObject, priority: Priority) -> None:
        request = data.draw(st.sampled_from(self.requests))
        request.context.priority = priority
        request.rank = class_rank(request)
        self.waiting.move(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def park_or_unpark(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        (self.waiting.unpark if request.is_parked else self.waiting.park)(request)

    @rule(model=st.sampled_from(MODELS), is_resident=st.booleans())
    def load_or_unload(self, model: str, is_resident: bool) -> None:
        self.waiting.set_resident(model, is_resident)

    @rule(now=st.sampled_from([0.5, 1.0, 2.0]))
    def undefer(self, now: float) -> None:
        self.waiting.undefer(now)

    @invariant()
    def everybody_is_where_it_belongs(self) -> None:
        for request in self.requests:
            assert request.ticket
            assert request.place is self.waiting._place_of(request)
            assert (request.place is Place.ABSENT) == (bool(request.missing) and not request.is_parked)
        assert self.waiting.tally.total == len(self.requests)

    @invariant()
    def the_shares_count_those_in_line(self) -> None:
        for tenant in TENANTS:
            mine = [request for request in self.requests if request.tenant == tenant and request.place is Place.LINE]
            assert set(self.waiting.queue(tenant).live()) == set(mine)
            by_rank = [sum(request.rank == rank for request in mine) for rank in range(3)]
            assert self.shares._tree.own(tenant).num_by_rank == by_rank
            aside = [request for request in self.requests if request.tenant == tenant and request.place in (Place.PARKED, Place.ABSENT)]
            held = [request for request in aside if not (request.is_interrupted or request.defer_until)]
            assert self.shares._tree.own(tenant).num_held == len(held)
        ready = [request for request in self.requests if request.place in (Place.LINE, Place.FRONT)]
        assert self.waiting.num_ready == len(ready)


TestLifeOfWaiting = LifeOfWaiting.TestCase
