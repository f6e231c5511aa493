"""Limits of tenants: inherited down the tree, named with their holder, and exact about when to come back."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.admission import Admission, Demand, HeldBack
from kerneld.calls import LimitMode, Limits
from kerneld.errors import InvalidArgument, KernelError, QueueFull, QuotaExceeded
from kerneld.limitmodes import check_modes
from kerneld.tally import Tally
from tests.kerneld.conftest import FakeClock


@pytest.fixture
def waiting() -> Tally:
    return Tally()


@pytest.fixture
def running() -> Tally:
    return Tally()


@pytest.fixture
def admission(waiting: Tally, running: Tally, clock: FakeClock) -> Admission:
    return Admission(waiting, running, max_queued=5, max_contexts=10, clock=clock)


def test_without_limits_everything_comes_in(admission: Admission) -> None:
    admission.check_context("lab/ann")
    admission.check_request("lab/ann", Demand(1_000_000))


def test_contexts_are_limited_by_everybody_above(admission: Admission) -> None:
    admission.set_limits("lab", Limits(max_contexts=2))
    admission.set_limits("lab/ann", Limits(max_contexts=5))
    admission.contexts.add("lab/bob")
    admission.contexts.add("lab/ann")

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_context("lab/ann")

    assert caught.value.facts == {"limit": "max_contexts", "value": "2", "holder": "lab"}
    admission.check_context("other")


def test_the_daemon_bounds_all_contexts(admission: Admission) -> None:
    for i in range(10):
        admission.contexts.add(f"t{i}")

    with pytest.raises(QuotaExceeded, match="This daemon has 10 contexts"):
        admission.check_context("new")


def test_queues_are_bounded_by_tenant_and_by_the_daemon(admission: Admission, waiting: Tally) -> None:
    admission.set_limits("lab", Limits(max_queued=2))
    for path in ("lab/ann", "lab/bob"):
        waiting.add(path)

    with pytest.raises(QueueFull) as caught:
        admission.check_request("lab/ann", Demand(1))
    for path in ("a", "b", "c"):
        waiting.add(path)
    with pytest.raises(QueueFull, match="this daemon"):
        admission.check_request("d", Demand(1))

    assert (caught.value.facts["holder"], caught.value.retry_after_s) == ("lab", 1.0)


def test_who_fills_the_queue_keeps_nobody_out_who_sends_little(waiting: Tally, running: Tally, clock: FakeClock) -> None:
    admission = Admission(waiting, running, max_queued=64, max_contexts=10, clock=clock)
    for _ in range(64):
        waiting.add("hog")

    with pytest.raises(QueueFull):
        admission.check_request("hog", Demand(1))
    admission.check_request("ann", Demand(1))
    waiting.add("ann")
    with pytest.raises(QueueFull):  # one of 7 that are left is an eighth of them, and no more few
        admission.check_request("ann", Demand(1))
    for number in range(7):
        admission.check_request(f"tenant{number}", Demand(1))
        waiting.add(f"tenant{number}")
    with pytest.raises(QueueFull):
        admission.check_request("bob", Demand(1))


@pytest.mark.parametrize(("start_s", "retry_s"), [(None, 1.0), (0.0, 0.1), (2.5, 2.5), (600.0, 60.0)])
def test_a_full_queue_says_when_the_next_one_leaves_it(admission: Admission, waiting: Tally, start_s: float, retry_s: float) -> None:
    asked: list[str] = []
    admission.next_start_s = lambda path: asked.append(path) or start_s  # type: ignore[func-returns-value]
    admission.set_limits("lab", Limits(max_queued=1))
    waiting.add("lab/bob")

    with pytest.raises(QueueFull) as caught:
        admission.check_request("lab/ann", Demand(1))

    assert (asked, caught.value.retry_after_s) == (["lab"], retry_s)


def test_requests_per_minute_say_when_the_next_may_come(admission: Admission, clock: FakeClock) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=2))
    for path in ("lab/ann", "lab/bob"):
        admission.check_request(path, Demand(1))
        admission.take_request(path, Demand(1))

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab/ann", Demand(1))

    assert caught.value.retry_after_s == pytest.approx(30.0)
    assert caught.value.facts == {"limit": "requests_per_minute", "value": "2", "holder": "lab", "retry": "exact"}


def test_output_is_taken_from_the_rate_and_delays_the_next_request(admission: Admission) -> None:  # invariant 3
    admission.set_limits("lab", Limits(tokens_per_minute=100))
    admission.check_request("lab", Demand(40))
    admission.take_request("lab", Demand(40))
    admission.take_tokens("lab", 90)

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab", Demand(10))

    assert caught.value.retry_after_s == pytest.approx(24.0)


def test_a_refused_request_took_nothing(admission: Admission) -> None:  # invariant 2
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.set_limits("lab/ann", Limits(tokens_per_minute=60))
    admission.take_request("lab/bob", Demand(1))

    for _ in range(5):
        with pytest.raises(QuotaExceeded):
            admission.check_request("lab/ann", Demand(60))
    admission.set_limits("lab", Limits())

    admission.check_request("lab/ann", Demand(60))


def test_setting_the_same_rate_again_gives_nothing_back(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.take_request("lab", Demand(1))

    admission.set_limits("lab", Limits(requests_per_minute=1, max_contexts=3))

    with pytest.raises(QuotaExceeded):
        admission.check_request("lab", Demand(1))


def test_a_removed_tenant_has_no_limits(admission: Admission) -> None:
    admission.set_limits("lab", Limits(max_contexts=1))
    admission.contexts.add("lab")

    admission.remove("lab")
    admission.remove("lab")

    admission.check_context("lab")


# ------------------------------------------------------------------------------------------------------------------------ soft and hard


def test_a_soft_rate_refuses_nothing_and_says_when_each_has_room(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=2, modes={"requests_per_minute": LimitMode.SOFT}))
    held_back = []
    for _ in range(4):
        admission.check_request("lab/ann", Demand(1))
        held_back.append(admission.take_request("lab/ann", Demand(1)))

    assert held_back == [HeldBack(0, 0), HeldBack(0, 0), HeldBack(30.0, 0), HeldBack(60.0, 0)]


def test_a_hard_limit_above_a_soft_one_refuses(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=3))
    admission.set_limits("lab/ann", Limits(requests_per_minute=1, modes={"requests_per_minute": LimitMode.SOFT}))
    for _ in range(3):
        admission.check_request("lab/ann", Demand(1))
        admission.take_request("lab/ann", Demand(1))

    with pytest.raises(QuotaExceeded, match="'lab' may use 3 requests per minute"):
        admission.check_request("lab/ann", Demand(1))


def test_of_two_rates_the_one_that_takes_longer_is_named(admission: Admission, clock: FakeClock) -> None:  # invariant 1
    admission.set_limits("lab", Limits(requests_per_minute=1, tokens_per_minute=60))
    admission.take_request("lab", Demand(60))
    admission.take_tokens("lab", 60)

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab", Demand(60))
    assert caught.value.facts["limit"] == "tokens_per_minute"
    assert caught.value.retry_after_s is not None
    clock.advance(caught.value.retry_after_s)
    admission.check_request("lab", Demand(60))


def test_loads_are_counted_by_the_hour_and_only_where_one_begins(admission: Admission) -> None:
    admission.set_limits("lab", Limits(loads_per_hour=2))
    for _ in range(2):
        admission.check_request("lab/ann", Demand(1, num_loads=1))
        admission.take_request("lab/ann", Demand(1, num_loads=1))

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab/bob", Demand(1, num_loads=1))
    admission.check_request("lab/bob", Demand(1, num_loads=0))

    assert caught.value.message == "Tenant 'lab' may start 2 loads of models per hour; try again in 1801 s."
    assert caught.value.retry_after_s == pytest.approx(1800)


def test_soft_loads_hold_back_the_load_and_not_the_request(admission: Admission) -> None:
    admission.set_limits("lab", Limits(loads_per_hour=1, modes={"loads_per_hour": LimitMode.SOFT}))
    admission.take_request("lab", Demand(1, num_loads=1))

    assert admission.take_request("lab", Demand(1, num_loads=1)) == HeldBack(0, 3600.0)


def test_a_hard_limit_of_running_requests_counts_those_that_wait(admission: Admission, waiting: Tally, running: Tally) -> None:
    admission.set_limits("lab", Limits(max_running=2, modes={"max_running": LimitMode.HARD}))
    admission.set_limits("guest", Limits(max_running=1))
    for tally in (waiting, running):
        tally.add("lab/ann")
        tally.add("guest")

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab/bob", Demand(1))
    admission.check_request("guest", Demand(1))

    assert caught.value.facts == {"limit": "max_running", "value": "2", "holder": "lab", "retry": "estimate"}
    assert caught.value.message == "Tenant 'lab' has 2 requests, as many as may run or wait; one has to end first."


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(requests_per_minute=1), "Tenant 'lab' may use 1 request per minute; try"),
        (Limits(tokens_per_minute=1), "Tenant 'lab' may use 1 token per minute; try"),
        (Limits(loads_per_hour=1), "Tenant 'lab' may start 1 load of models per hour; try"),
        (Limits(loads_per_hour=2), "Tenant 'lab' may start 2 loads of models per hour; try"),
        (Limits(max_queued=1), "The queue of tenant 'lab' is full: 1 request waits."),
    ],
)
def test_a_limit_of_one_is_told_in_the_singular(admission: Admission, waiting: Tally, limits: Limits, said: str) -> None:
    admission.set_limits("lab", limits)
    for _ in range(2):
        admission.take_request("lab", Demand(1, 1))
    waiting.add("lab")

    with pytest.raises(KernelError) as caught:
        admission.check_request("lab", Demand(1, 1))

    assert caught.value.message.startswith(said)


def test_a_request_that_never_ran_is_given_back(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.take_request("lab", Demand(1))
    admission.give_back("lab", Demand(1))

    admission.check_request("lab", Demand(1))


def test_a_rate_that_is_changed_back_and_forth_forgives_nothing_that_was_used(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.take_request("lab", Demand(1))

    for requests_per_minute in (60, 5, 1):
        admission.set_limits("lab", Limits(requests_per_minute=requests_per_minute))

    with pytest.raises(QuotaExceeded):
        admission.check_request("lab", Demand(1))


def test_a_rate_that_is_raised_counts_what_was_used_against_its_new_amount(admission: Admission) -> None:
    admission.set_limits("lab", Limits(tokens_per_minute=100))
    admission.take_request("lab", Demand(1000))

    admission.set_limits("lab", Limits(tokens_per_minute=2000))
    admission.check_request("lab", Demand(1000))

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab", Demand(1001))
    assert caught.value.retry_after_s == pytest.approx(60 / 2000, abs=1e-5)


def test_a_rate_that_is_lowered_leaves_no_debt_for_what_was_allowed(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=60))
    for _ in range(60):
        admission.take_request("lab", Demand(1))

    admission.set_limits("lab", Limits(requests_per_minute=2))

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab", Demand(1))
    assert caught.value.retry_after_s == pytest.approx(30.0)
    admission.set_limits("lab", Limits(requests_per_minute=1))
    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab", Demand(1))
    assert caught.value.retry_after_s == pytest.approx(60.0)


def test_ten_thousand_waiting_requests_of_one_tenant_are_a_full_queue(waiting: Tally, running: Tally, clock: FakeClock) -> None:
    admission = Admission(waiting, running, max_queued=1_000_000, max_contexts=1, clock=clock)
    admission.set_limits("lab", Limits(max_queued=10_000))
    for _ in range(10_000):
        admission.check_request("lab/ann", Demand(1))
        waiting.add("lab/ann")

    with pytest.raises(QueueFull, match="queue of tenant 'lab' is full: 10000 requests"):
        admission.check_request("lab/ann", Demand(1))
    admission.check_request("other", Demand(1))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("max_contexts", "is always hard; soft or hard can be requests_per_minute, tokens_per_minute, loads_per_hour, max_running."),
        ("device_bytes", "is always hard"),
        ("requests_per_second", "is no limit"),
        ("modes", "is no limit"),
    ],
)
def test_a_limit_that_can_have_no_mode_is_named(name: str, told: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_modes(Limits(modes={"max_running": LimitMode.HARD, name: LimitMode.SOFT}))
    assert f"limits.modes['{name}']: {told}" in caught.value.message


# --------------------------------------------------------------------------------------------------------------------- exact, always


class Stream(NamedTuple):
    """Requests of two tenants beneath one, with pauses between them."""

    limits: Limits
    calls: list[tuple[str, float, int, int]]  # tenant, pause in seconds, tokens of input, loads


streams = st.builds(
    Stream,
    st.builds(Limits, requests_per_minute=st.integers(0, 9), tokens_per_minute=st.integers(0, 900), loads_per_hour=st.integers(0, 3)),
    st.lists(st.tuples(st.sampled_from(["lab/ann", "lab/bob"]), st.floats(0, 100), st.integers(0, 90), st.integers(0, 1)), max_size=40),
)


@given(streams, st.floats(0, 1e7))
def test_who_waits_as_long_as_told_comes_in(stream: Stream, start: float) -> None:
    clock = FakeClock()
    clock.now = start
    admission = Admission(Tally(), Tally(), max_queued=1, max_contexts=1, clock=clock)
    admission.set_limits("lab", stream.limits)
    for tenant, pause, num_tokens, num_loads in stream.calls:
        clock.advance(pause)
        try:
            admission.check_request(tenant, Demand(num_tokens, num_loads))
        except QuotaExceeded as refusal:
            clock.advance(refusal.retry_after_s or 0.0)
            admission.check_request(tenant, Demand(num_tokens, num_loads))
        admission.take_request(tenant, Demand(num_tokens, num_loads))


@given(streams)
def test_no_stretch_of_time_lets_in_more_than_its_part_and_a_burst(stream: Stream) -> None:
    clock, admitted = FakeClock(), []
    admission = Admission(Tally(), Tally(), max_queued=1, max_contexts=1, clock=clock)
    admission.set_limits("lab", stream.limits)
    for tenant, pause, num_tokens, num_loads in stream.calls:
        clock.advance(pause)
        try:
            admission.check_request(tenant, Demand(num_tokens, num_loads))
        except QuotaExceeded:
            continue
        admission.take_request(tenant, Demand(num_tokens, num_loads))
        admitted.append((clock.now, num_loads))
    per_minute, per_hour = stream.limits.requests_per_minute, stream.limits.loads_per_hour
    for i, (since, _) in enumerate(admitted):
        for j in range(i, len(admitted)):
            minutes = (admitted[j][0] - since + 2e-6) / 60
            assert not per_minute or j - i + 1 <= per_minute * (1 + minutes)
            assert not per_hour or sum(loads for _, loads in admitted[i : j + 1]) <= per_hour * (1 + minutes / 60)


@given(streams)
def test_soft_requests_run_no_faster_than_hard_ones_would_come_in(stream: Stream) -> None:
    clock, ready = FakeClock(), []
    admission = Admission(Tally(), Tally(), max_queued=1, max_contexts=1, clock=clock)
    limits = Limits(requests_per_minute=stream.limits.requests_per_minute, modes={"requests_per_minute": LimitMode.SOFT})
    admission.set_limits("lab", limits)
    for tenant, pause, num_tokens, _loads in stream.calls:
        clock.advance(pause)
        admission.check_request(tenant, Demand(num_tokens))
        ready.append(clock.now + admission.take_request(tenant, Demand(num_tokens)).request_s)
    assert ready == sorted(ready)
    for i, since in enumerate(ready):
        for j in range(i, len(ready)):
            assert not limits.requests_per_minute or j - i + 1 <= limits.requests_per_minute * (1 + (ready[j] - since + 2e-6) / 60)


# ------------------------------------------------------------------------------------------------------------------------ to the unit


def test_who_comes_a_microsecond_too_early_is_refused(admission: Admission, clock: FakeClock) -> None:
    clock.now = 0.0
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.take_request("lab", Demand(1))
    clock.now = 59.9999985

    with pytest.raises(QuotaExceeded):
        admission.check_request("lab", Demand(1))
    clock.now = 60.0000005
    admission.check_request("lab", Demand(1))


def test_a_request_without_input_counts_as_one_token(admission: Admission) -> None:
    admission.set_limits("lab", Limits(tokens_per_minute=1))
    admission.take_request("lab", Demand(0))

    with pytest.raises(QuotaExceeded):
        admission.check_request("lab", Demand(0))


def test_what_is_given_back_late_makes_no_room_beyond_the_limit(admission: Admission, clock: FakeClock) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=2))
    admission.take_request("lab", Demand(1))
    clock.advance(120)
    admission.give_back("lab", Demand(1))
    for _ in range(2):
        admission.take_request("lab", Demand(1))

    with pytest.raises(QuotaExceeded):
        admission.check_request("lab", Demand(1))


# ------------------------------------------------------------------------------------------------------------------------ after a restart


@pytest.mark.parametrize(("passed_s", "retry_s"), [(0.0, 60.0), (20.0, 40.0), (-3600.0, 60.0)])  # a clock that went back takes nothing
def test_the_time_that_a_restart_took_counts(waiting: Tally, running: Tally, clock: FakeClock, passed_s: float, retry_s: float) -> None:
    before, after = (Admission(waiting, running, max_queued=5, max_contexts=10, clock=clock) for _ in range(2))
    for admission in (before, after):
        admission.set_limits("lab", Limits(requests_per_minute=1))
    before.changes()
    before.unix = lambda: 5000.0
    before.take_request("lab", Demand(1))
    after.unix = lambda: 5000.0 + passed_s
    after.restore(before.changes())

    with pytest.raises(QuotaExceeded) as caught:
        after.check_request("lab", Demand(1))

    assert caught.value.retry_after_s == pytest.approx(retry_s, abs=1e-5)


def test_what_could_not_be_written_is_told_again(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.changes()
    admission.unix = lambda: 5000.0
    admission.take_request("lab/ann", Demand(1))
    told = admission.changes()
    assert told.rates.keys() == {"lab"}
    assert not admission.changes().rates

    admission.unkept(told)

    assert admission.changes().rates == told.rates
