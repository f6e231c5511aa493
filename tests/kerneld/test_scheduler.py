"""Decisions of the scheduler: who is next, how long a quantum is, who gives way. The bounds are in test_scheduler_fairness.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drivers.contract import Sampling
from kerneld.calls import FinishReason, InferArgs, Priority
from kerneld.context import Context
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.request import Request, RequestState
from kerneld.scheduler import Scheduler
from kerneld.sharenode import SCALE
from kerneld.step import RowNeed
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript

MakeRequest = Callable[..., Request]


@pytest.fixture
def scheduler() -> Scheduler:
    shares = FairShare()
    for path in ("lab", "lab/ann", "lab/bob", "other"):
        shares.add(path)
    made = Scheduler(shares, SchedulerPolicy(max_step_tokens=64))
    made.set_resident("m", True)
    return made


def admit_all(scheduler: Scheduler) -> list[Request]:
    """Admit as if everything fitted."""
    admitted = []
    while (request := scheduler.next_candidate()) is not None:
        scheduler.admit(request, 0)
        admitted.append(request)
    return admitted


def grow(request: Request, num_tokens: int) -> None:
    request.context.tokens.extend([0] * num_tokens)
    request.num_since_admission += num_tokens


# ------------------------------------------------------------------------------------------------------------------------ who is next


def test_a_tenant_is_served_by_class_then_niceness_then_arrival(scheduler: Scheduler, make_request: MakeRequest) -> None:
    late = make_request("lab", arrival=3.0)
    early = make_request("lab", arrival=1.0)
    nice = make_request("lab", arrival=0.0, nice=5)
    batch = make_request("lab", arrival=0.0, nice=-5, priority=Priority.BATCH)
    for request in (batch, nice, late, early):
        scheduler.enqueue(request)

    assert admit_all(scheduler) == [early, late, nice, batch]


def test_asking_for_the_candidate_changes_nothing(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.enqueue(make_request("lab"))

    assert scheduler.next_candidate() is scheduler.next_candidate()


def test_a_large_request_that_is_next_is_not_passed_by_a_small_one(scheduler: Scheduler, make_request: MakeRequest) -> None:  # invariant 1
    large = make_request("lab/ann", num_input=1000, arrival=1.0)
    small = make_request("lab/ann", num_input=1, arrival=2.0)
    scheduler.enqueue(large)
    scheduler.enqueue(small)

    assert scheduler.next_candidate() is large


def test_a_request_whose_model_is_not_there_stops_nobody(scheduler: Scheduler, make_request: MakeRequest) -> None:  # invariant 1
    absent = make_request("lab/ann", model="absent", arrival=1.0)
    present = make_request("lab/ann", arrival=2.0)
    scheduler.enqueue(absent)
    scheduler.enqueue(present)

    parked = (scheduler.next_candidate(), scheduler.queue_position(absent), scheduler.waiting.total)
    scheduler.set_resident("absent", True)

    assert parked == (present, 0, 2)
    assert scheduler.next_candidate() is absent


def test_requests_are_parked_when_their_model_goes(scheduler: Scheduler, make_request: MakeRequest) -> None:
    request = make_request("lab/ann")
    scheduler.enqueue(request)

    scheduler.set_resident("m", False)

    assert (scheduler.next_candidate(), scheduler.waiting.of("lab")) == (None, 1)


def test_a_parked_request_can_end(scheduler: Scheduler, make_request: MakeRequest) -> None:
    request = make_request("lab/ann", model="absent")
    scheduler.enqueue(request)

    scheduler.finish(request)
    scheduler.set_resident("absent", True)

    assert (scheduler.next_candidate(), scheduler.waiting.total, request.state) == (None, 0, RequestState.FINISHED)


def test_a_request_that_waits_for_its_pages_stops_nobody_and_keeps_its_place(scheduler: Scheduler, make_request: MakeRequest) -> None:
    first, second = make_request("lab/ann", arrival=1.0), make_request("lab/ann", arrival=2.0)
    scheduler.enqueue(first)
    scheduler.enqueue(second)

    scheduler.park(first)
    meanwhile = (scheduler.next_candidate(), scheduler.queue_position(first), scheduler.waiting.total)
    scheduler.unpark(first)

    assert meanwhile == (second, 0, 2)
    assert scheduler.next_candidate() is first


def test_a_tenant_whose_only_request_waits_for_its_pages_is_owed_what_others_are_served_meanwhile(
    scheduler: Scheduler, make_request: MakeRequest
) -> None:
    held, ended, late = make_request("lab/ann"), make_request("lab/ann"), make_request("lab/bob")
    for request in (held, ended):
        scheduler.enqueue(request)
        scheduler.park(request)
    scheduler.enqueue(late)
    scheduler.shares.charge("lab/bob", 1000)

    scheduler.finish(ended)
    scheduler.unpark(held)
    owed = scheduler.shares.lag("lab/bob", "lab/ann")
    scheduler.finish(held)
    scheduler.enqueue(make_request("lab/ann"))

    assert owed == 1000 * SCALE
    assert scheduler.shares.lag("lab/bob", "lab/ann") == 0, "who asked for nothing is lifted"


def test_a_preempted_request_keeps_its_place(scheduler: Scheduler, make_request: MakeRequest) -> None:
    first, second = make_request("lab/ann", arrival=1.0), make_request("lab/ann", arrival=2.0)
    scheduler.enqueue(first)
    scheduler.admit(first, 0)
    scheduler.enqueue(second)

    scheduler.preempt(first)

    assert (scheduler.next_candidate(), scheduler.queue_position(second)) == (first, 2)


def test_a_change_of_niceness_moves_a_waiting_request(scheduler: Scheduler, make_request: MakeRequest) -> None:
    first, second = make_request("lab/ann", arrival=1.0), make_request("lab/ann", arrival=2.0)
    scheduler.enqueue(first)
    scheduler.enqueue(second)

    second.context.nice = -1
    scheduler.reorder(second)
    scheduler.reorder(make_request("lab/ann"))  # in no queue: nothing to move

    assert (scheduler.next_candidate(), scheduler.queue_position(first)) == (second, 2)


def test_cancelled_requests_leave_no_trace(scheduler: Scheduler, make_request: MakeRequest) -> None:
    requests = [make_request("lab/ann") for _ in range(100)]
    for request in requests:
        scheduler.enqueue(request)

    for request in requests[:-1]:
        scheduler.finish(request)

    assert admit_all(scheduler) == requests[-1:]
    assert (scheduler.waiting.total, scheduler.running.of("lab")) == (0, 1)


# ------------------------------------------------------------------------------------------------------ rows lost through no decision


def run_all(scheduler: Scheduler, *requests: Request) -> None:
    for request in requests:
        scheduler.enqueue(request)
        scheduler.admit(request, 0)


def test_who_lost_its_row_has_it_again_before_anybody_in_the_order_of_admission(  # invariant 5
    scheduler: Scheduler, make_request: MakeRequest
) -> None:
    ran = [make_request(tenant) for tenant in ("other", "lab/ann", "lab/bob")]
    run_all(scheduler, *ran)
    waiting = make_request("lab/ann", nice=-20)
    scheduler.enqueue(waiting)

    for request in reversed(ran):
        scheduler.interrupt(request)

    assert admit_all(scheduler) == [*ran, waiting]


def test_who_lost_its_row_twice_keeps_the_place_of_its_first_admission(scheduler: Scheduler, make_request: MakeRequest) -> None:
    first, second = make_request("other"), make_request("lab/ann")
    run_all(scheduler, first, second)
    for request in (first, second):
        scheduler.interrupt(request)

    scheduler.admit(first, 0)
    scheduler.interrupt(first)

    assert admit_all(scheduler) == [first, second]


def test_an_interruption_changes_no_counter_and_costs_nothing(scheduler: Scheduler, make_request: MakeRequest) -> None:  # invariant 5
    ran = [make_request(tenant) for tenant in ("other", "lab/ann", "lab/bob")]
    run_all(scheduler, *ran)
    scheduler.enqueue(make_request("other"))
    before = scheduler.accounts()

    for request in ran:
        scheduler.interrupt(request)
    charged = [scheduler.admit(request, 0) for request in ran]

    assert scheduler.accounts() == before
    assert charged == [0, 0, 0]


def test_a_preempted_one_waits_in_line_and_is_not_first(scheduler: Scheduler, make_request: MakeRequest) -> None:
    preempted, interrupted = make_request("lab/ann", arrival=0.0), make_request("lab/ann", arrival=1.0)
    run_all(scheduler, preempted, interrupted)

    scheduler.preempt(preempted)
    scheduler.interrupt(interrupted)

    assert admit_all(scheduler) == [interrupted, preempted]


def test_whoever_is_to_be_tried_alone_waits_in_line(scheduler: Scheduler, make_request: MakeRequest) -> None:
    suspect, other = make_request("lab/ann", arrival=1.0), make_request("lab/ann", arrival=0.0)
    run_all(scheduler, suspect)
    scheduler.enqueue(other)
    scheduler.interrupt(suspect)

    scheduler.suspect(suspect)

    assert scheduler.next_candidate() is other
    assert scheduler.queue_position(suspect) == 2


def test_an_interrupted_one_of_a_tenant_that_waits_for_memory_stops_nobody(scheduler: Scheduler, make_request: MakeRequest) -> None:
    held, other = make_request("lab/ann"), make_request("other")
    run_all(scheduler, held)
    scheduler.enqueue(other)
    scheduler.interrupt(held)

    scheduler.hold_back("lab")
    meanwhile = scheduler.next_candidate()
    scheduler.let_in()

    assert (meanwhile, scheduler.next_candidate()) == (other, held)


def test_an_interrupted_one_whose_model_goes_is_first_when_it_is_back(scheduler: Scheduler, make_request: MakeRequest) -> None:
    ran, other = make_request("lab/ann"), make_request("other", model="n")
    run_all(scheduler, ran)
    scheduler.set_resident("n", True)
    scheduler.enqueue(other)
    scheduler.interrupt(ran)

    scheduler.set_resident("m", False)
    meanwhile = scheduler.next_candidate()
    scheduler.set_resident("m", True)

    assert (meanwhile, scheduler.next_candidate()) == (other, ran)


def test_after_a_restart_those_that_ran_are_first_as_they_ran(scheduler: Scheduler, make_request: MakeRequest) -> None:
    ran = [make_request("lab/bob", arrival=9.0), make_request("lab/ann", arrival=8.0)]
    waited = make_request("other", arrival=1.0)
    scheduler.recover(waited, is_running=False)
    for request in ran:
        request.is_charged = True
        scheduler.recover(request, is_running=True)

    assert admit_all(scheduler) == [*ran, waited]


def test_one_for_which_there_was_no_room_gets_everything_back_when_it_ends(scheduler: Scheduler, make_request: MakeRequest) -> None:
    request = make_request("lab/ann", num_input=100)
    run_all(scheduler, request)
    scheduler.interrupt(request)

    refund = scheduler.finish(request, FinishReason.DEADLINE)

    assert (refund, scheduler.shares.service("lab")) == (1000, 0)


# --------------------------------------------------------------------------------------------------------------------- beside the line


def test_a_deferred_request_waits_until_its_time(scheduler: Scheduler, make_request: MakeRequest) -> None:
    deferred, other = make_request("lab/ann", arrival=0.0), make_request("lab/ann", arrival=1.0)
    scheduler.enqueue(deferred)
    scheduler.enqueue(other)

    scheduler.defer(deferred, 50.0)
    before = (scheduler.next_candidate(), scheduler.undefer(49.0), scheduler.num_deferred)
    joined = scheduler.undefer(50.0)

    assert before == (other, False, 1)
    assert (joined, scheduler.next_candidate()) == (True, deferred)


def test_a_deferred_request_is_admitted_early_when_nobody_else_is_there(scheduler: Scheduler, make_request: MakeRequest) -> None:
    late, soon = make_request("lab/ann"), make_request("lab/bob")
    for request, until in ((late, 50.0), (soon, 40.0)):
        scheduler.defer(request, until)
        scheduler.enqueue(request)

    assert admit_all(scheduler) == [soon, late]
    assert (scheduler.num_deferred, scheduler.undefer(60.0)) == (0, False)


def test_a_deferred_request_that_is_admitted_early_is_not_owed_what_others_were_served(
    scheduler: Scheduler, make_request: MakeRequest
) -> None:
    busy, deferred = make_request("lab/bob"), make_request("lab/ann", num_input=0)
    run_all(scheduler, busy)
    scheduler.shares.charge("lab/bob", 1000)
    scheduler.defer(deferred, 50.0)
    scheduler.enqueue(deferred)

    scheduler.admit(deferred, 0)

    assert scheduler.shares.lag("lab/bob", "lab/ann") == 0


def test_a_deferred_request_does_not_shorten_quanta(scheduler: Scheduler, make_request: MakeRequest) -> None:
    request = make_request("other")
    scheduler.defer(request, 50.0)
    scheduler.enqueue(request)

    assert scheduler.plan_step([RowNeed(make_request(), 1, 100)]).num_steps == 2


# --------------------------------------------------------------------------------------------------------------------------- looks ahead


def test_the_line_is_the_order_in_which_all_would_be_seated(scheduler: Scheduler, make_request: MakeRequest) -> None:
    ran = make_request("other")
    run_all(scheduler, ran)
    for number in range(12):
        tenant = ("lab/ann", "lab/bob", "other")[number % 3]
        scheduler.enqueue(make_request(tenant, num_input=7 * number % 50, nice=number % 2))
    scheduler.interrupt(ran)

    told = list(scheduler.line(100))

    assert told == admit_all(scheduler)
    assert told[0] is ran


def test_looking_at_the_line_changes_nothing_and_ends_where_it_is_told(scheduler: Scheduler, make_request: MakeRequest) -> None:
    for _ in range(5):
        scheduler.enqueue(make_request("lab/ann"))
    before = (scheduler.accounts(), scheduler.next_candidate())

    told = list(scheduler.line(3))

    assert len(told) == 3
    assert (scheduler.accounts(), scheduler.next_candidate()) == before


def test_the_most_urgent_model_is_that_of_the_waiter_that_would_be_picked_first(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.enqueue(make_request("lab/ann", model="rich"))
    scheduler.enqueue(make_request("other", model="poor"))
    scheduler.enqueue(make_request("lab/ann", model="poor"))
    scheduler.shares.charge("lab/ann", 1000)

    urgencies = [scheduler.urgency(model) for model in ("poor", "rich", "nobody's")]

    assert urgencies[2] is None
    assert urgencies[0] is not None
    assert urgencies[1] is not None
    assert urgencies[0] < urgencies[1]


def test_the_urgency_of_a_model_counts_what_others_were_served_while_it_was_away(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.enqueue(make_request("other"))
    scheduler.enqueue(make_request("lab/ann", model="late"))
    scheduler.shares.add("sleeper")
    scheduler.shares.charge("other", 1000)
    scheduler.enqueue(make_request("sleeper", model="early"))

    early, late = scheduler.urgency("early"), scheduler.urgency("late")

    assert early is not None
    assert late is not None
    assert late < early


def test_of_one_tenant_the_stricter_class_makes_a_load_more_urgent(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.enqueue(make_request("lab/ann", model="a", priority=Priority.BATCH, arrival=0.0))
    scheduler.enqueue(make_request("lab/ann", model="b", arrival=9.0))

    batch, interactive = scheduler.urgency("a"), scheduler.urgency("b")

    assert batch is not None
    assert interactive is not None
    assert interactive < batch


def test_ten_thousand_requests_of_one_tenant_come_and_go_in_constant_time_each(scheduler: Scheduler, make_request: MakeRequest) -> None:
    requests = [make_request("lab/ann", num_input=0) for _ in range(10_000)]
    for request in requests:
        scheduler.enqueue(request)

    for request in requests[:9_000]:
        scheduler.finish(request, FinishReason.CANCELLED)

    assert scheduler.next_candidate() is requests[9_000]
    assert len(scheduler._waiting.queue("lab/ann")._heap) <= 2 * 1_000 + 16
    assert (scheduler.waiting.total, scheduler.shares.service("lab")) == (1_000, 0)


# ------------------------------------------------------------------------------------------------------------------- limits and company


def test_a_tenant_at_its_limit_waits_without_stopping_others(scheduler: Scheduler, make_request: MakeRequest) -> None:  # invariant 3
    scheduler.set_max_running("lab", 1)
    mine = [make_request("lab/ann", arrival=float(i)) for i in range(2)]
    theirs = make_request("other", arrival=9.0)
    for request in (*mine, theirs):
        scheduler.enqueue(request)

    admitted = admit_all(scheduler)
    scheduler.finish(mine[0])

    assert set(admitted) == {mine[0], theirs}
    assert scheduler.next_candidate() is mine[1]


def test_a_raised_limit_lets_the_next_one_in(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.set_max_running("lab/ann", 1)
    requests = [make_request("lab/ann") for _ in range(2)]
    for request in requests:
        scheduler.enqueue(request)
    admit_all(scheduler)

    scheduler.set_max_running("lab/ann", 0)

    assert scheduler.next_candidate() is requests[1]


def test_a_removed_tenant_that_comes_back_begins_anew(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.set_max_running("other", 1)
    past = run(scheduler, make_request("other"), 10)
    scheduler.finish(past)

    scheduler.remove_tenant("other")
    scheduler.shares.add("other")
    requests = [make_request("other") for _ in range(2)]
    for request in requests:
        scheduler.enqueue(request)

    assert (admit_all(scheduler), scheduler.running.of("other")) == (requests, 2)


def test_a_suspect_runs_without_company(scheduler: Scheduler, make_request: MakeRequest) -> None:  # invariant 4
    running, suspect, bystander = make_request("lab/ann"), make_request("lab/ann"), make_request("lab/ann")
    suspect.is_alone = True
    for request in (running, suspect, bystander):
        scheduler.enqueue(request)
    scheduler.admit(running, 0)

    candidates = [scheduler.next_candidate()]
    scheduler.finish(running)
    candidates.append(scheduler.next_candidate())
    scheduler.admit(suspect, 0)
    candidates.append(scheduler.next_candidate())
    scheduler.acquit(suspect)
    candidates.append(scheduler.next_candidate())

    assert candidates == [None, suspect, None, bystander]


# ------------------------------------------------------------------------------------------------------------------------- what is paid


def test_input_is_charged_once_and_cached_input_costs_a_tenth(scheduler: Scheduler, make_request: MakeRequest) -> None:  # invariant 2
    request = make_request("lab/ann", num_input=100)
    scheduler.enqueue(request)

    first = scheduler.admit(request, 60)
    scheduler.preempt(request)
    again = scheduler.admit(request, 0)

    assert (first, again, scheduler.shares.service("lab")) == (60 * 1 + 40 * 10, 0, 460)


def test_output_is_charged_as_it_comes_while_nothing_is_known(scheduler: Scheduler, make_request: MakeRequest) -> None:
    request = make_request("lab/ann", num_input=0)
    scheduler.enqueue(request)
    scheduler.admit(request, 0)

    assert scheduler.charge_output(request, 3) == 60


def test_expected_output_is_paid_ahead_and_given_back(scheduler: Scheduler, make_request: MakeRequest) -> None:  # invariant 2
    for length in (10, 30):
        past = make_request("lab/ann", num_input=0)
        scheduler.enqueue(past)
        scheduler.admit(past, 0)
        scheduler.charge_output(past, length)
        grow(past, length)
        scheduler.finish(past)
    spent = scheduler.shares.service("lab/ann")
    request = make_request("lab/ann", num_input=0)
    scheduler.enqueue(request)

    paid = [scheduler.admit(request, 0), scheduler.charge_output(request, 5)]
    grow(request, 5)
    refund = scheduler.finish(request)

    assert (paid, refund) == ([20 * 20, 0], 15 * 20)
    assert scheduler.shares.service("lab/ann") - spent == 5 * 20


def test_a_request_without_output_does_not_change_what_is_expected(scheduler: Scheduler, make_request: MakeRequest) -> None:
    for length in (40, 0, 0):
        past = make_request("lab/ann", num_input=0)
        scheduler.enqueue(past)
        scheduler.admit(past, 0)
        grow(past, length)
        scheduler.finish(past)
    request = make_request("lab/ann", num_input=0)
    scheduler.enqueue(request)

    scheduler.admit(request, 0)

    assert request.num_prepaid == 40


def test_output_beyond_what_was_expected_is_charged(scheduler: Scheduler, make_request: MakeRequest) -> None:
    request = make_request("lab/ann", num_input=0)
    request.num_prepaid = 2

    assert [scheduler.charge_output(request, 3), scheduler.charge_output(request, 1)] == [20, 20]


# ------------------------------------------------------------------------------------------------------------------------- the quantum


def test_quanta_grow_while_nobody_waits_and_shrink_when_somebody_does(scheduler: Scheduler, make_request: MakeRequest) -> None:
    rows = [RowNeed(make_request("lab/ann"), 1, 100)]

    calm = [scheduler.plan_step(rows).num_steps for _ in range(5)]
    scheduler.enqueue(make_request("other"))
    busy = scheduler.plan_step(rows).num_steps

    assert (calm, busy) == ([2, 4, 8, 8, 8], 1)


def test_a_parked_request_does_not_shorten_quanta(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.enqueue(make_request("other", model="absent"))

    assert scheduler.plan_step([RowNeed(make_request(), 1, 100)]).num_steps == 2


def test_better_classes_have_their_input_read_first(scheduler: Scheduler, make_request: MakeRequest) -> None:
    batch, interactive = make_request("lab", priority=Priority.BATCH), make_request("lab")
    run_all(scheduler, batch, interactive)

    shape = scheduler.plan_step([RowNeed(batch, 500, 100), RowNeed(interactive, 40, 100)])

    assert [(share.request, share.num_tokens) for share in shape.shares] == [(interactive, 40), (batch, 24)]


def test_an_unfinished_prefill_makes_single_steps(scheduler: Scheduler, make_request: MakeRequest) -> None:
    shape = scheduler.plan_step([RowNeed(make_request(), 1, 100), RowNeed(make_request(), 500, 100)])

    assert (shape.num_steps, [share.num_tokens for share in shape.shares]) == (1, [1, 63])


# ------------------------------------------------------------------------------------------------------------------------ who gives way


def run(scheduler: Scheduler, request: Request, num_served: int) -> Request:
    scheduler.enqueue(request)
    scheduler.admit(request, 0)
    scheduler.charge_output(request, num_served)
    request.num_since_admission = num_served
    return request


def test_the_newest_of_the_most_served_tenant_gives_way(scheduler: Scheduler, make_request: MakeRequest) -> None:
    other = run(scheduler, make_request("other", arrival=3.0), 90)
    old = run(scheduler, make_request("lab/ann", arrival=1.0), 500)
    new = run(scheduler, make_request("lab/ann", arrival=2.0), 100)

    assert scheduler.victim([other, new, old]) is new


def test_a_lax_class_gives_way_before_a_newer_request(scheduler: Scheduler, make_request: MakeRequest) -> None:
    batch = run(scheduler, make_request("lab/ann", arrival=1.0, priority=Priority.BATCH), 100)
    new = run(scheduler, make_request("lab/ann", arrival=2.0), 100)

    assert scheduler.victim([batch, new]) is batch


def test_who_had_its_minimum_service_gives_way_first(scheduler: Scheduler, make_request: MakeRequest) -> None:
    fresh = run(scheduler, make_request("lab/ann", arrival=2.0), 10)
    served = run(scheduler, make_request("other", arrival=1.0), 64)
    scheduler.shares.charge("lab/ann", 1_000_000)

    assert scheduler.victim([fresh, served]) is served


def test_the_only_one_that_runs_never_gives_way_to_itself(scheduler: Scheduler, make_request: MakeRequest) -> None:
    only = run(scheduler, make_request("lab/ann"), 500)

    assert scheduler.victim([only]) is None


def test_a_waiting_request_preempts_only_who_is_far_ahead(scheduler: Scheduler, make_request: MakeRequest) -> None:
    rich = run(scheduler, make_request("lab/ann"), 70)
    waiting = make_request("other")
    scheduler.enqueue(waiting)
    missing = scheduler.policy.preempt_lag_us - scheduler.shares.lag("lab/ann", "other") // SCALE

    scheduler.shares.charge("lab/ann", missing + scheduler.charging.expected_cost(waiting, 0))
    at_the_lag = scheduler.victim([rich], waiting)
    scheduler.shares.charge("lab/ann", 1)

    assert (at_the_lag, scheduler.victim([rich], waiting)) == (None, rich)


def test_a_tenant_does_not_preempt_itself(scheduler: Scheduler, make_request: MakeRequest) -> None:
    rich = run(scheduler, make_request("lab/ann"), 10_000)

    assert scheduler.victim([rich], make_request("lab/ann")) is None


# --------------------------------------------------------------------------------------------------------------------------- deadlines


def test_each_expired_request_is_told_of_once(scheduler: Scheduler, make_request: MakeRequest) -> None:
    waiting = make_request("lab/ann", deadline=5.0)
    running = make_request("lab/ann", deadline=4.0)
    ended = make_request("lab/ann", deadline=3.0)
    later = make_request("lab/ann", deadline=9.0)
    for request in (waiting, running, ended, later):
        scheduler.enqueue(request)
    scheduler.admit(running, 0)
    scheduler.finish(ended)

    told = [[late.request for late in scheduler.expired(now)] for now in (2.0, 5.0, 6.0)]

    assert told == [[], [running, waiting], []]


# ----------------------------------------------------------------------------------------------------------------------- random lives

TENANTS = ["a", "a/x", "a/y", "b"]
MODELS = ["m", "n"]


class LifeOfScheduler(RuleBasedStateMachine):
    """Arrivals, admissions, preemptions, endings, models coming and going, limits: the queues, the counts and the accounts always agree."""

    @initialize()
    def start(self) -> None:
        shares = FairShare()
        for path in TENANTS:
            shares.add(path)
        self.scheduler = Scheduler(shares)
        self.scheduler.set_resident("m", True)
        self.resident = {"m"}
        self.limits = dict.fromkeys(TENANTS, 0)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_made = 0

    @rule(tenant=st.sampled_from(TENANTS), model=st.sampled_from(MODELS), nice=st.integers(-2, 2), num_input=st.integers(0, 50))
    def arrive(self, tenant: str, model: str, nice: int, num_input: int) -> None:
        self.num_made += 1
        context = Context(id=f"c{self.num_made}", owner="o", tenant=tenant, model=model, fingerprint="", seed=0, created_at=0.0, nice=nice)
        log = OutputLog(num_input, lambda: 0.0)
        context.tokens.extend([0] * num_input)
        request = Request(
            id=f"r{self.num_made}",
            context=context,
            args=InferArgs(context.id),
            sampling=Sampling(),
            num_input=num_input,
            output_start=num_input,
            max_tokens=64,
            arrival=float(self.num_made // 2),
            log=log,
            transcript=Transcript(log, None),
        )
        self.scheduler.enqueue(request)
        self.waiting.append(request)

    @rule(num_cached=st.integers(0, 50))
    def admit(self, num_cached: int) -> None:
        request = self.scheduler.next_candidate()
        if request is None:
            return
        self.scheduler.admit(request, min(num_cached, request.num_input))
        self.waiting.remove(request)
        self.running.append(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), num_tokens=st.integers(1, 8))
    def generate(self, data: st.DataObject, num_tokens: int) -> None:
        request = data.draw(st.sampled_from(self.running))
        grow(request, num_tokens)
        self.scheduler.charge_output(request, num_tokens)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.scheduler.preempt(request)
        self.running.remove(request)
        self.waiting.append(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def interrupt(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.scheduler.interrupt(request)
        self.running.remove(request)
        self.waiting.append(request)

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running + self.waiting))
        self.scheduler.finish(request)
        (self.running if request in self.running else self.waiting).remove(request)

    @rule()
    def park(self) -> None:
        request = self.scheduler.next_candidate()
        if request is not None:
            self.scheduler.park(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def unpark(self, data: st.DataObject) -> None:
        self.scheduler.unpark(data.draw(st.sampled_from(self.waiting)))

    @rule(model=st.sampled_from(MODELS), is_resident=st.booleans())
    def load_or_unload(self, model: str, is_resident: bool) -> None:
        self.scheduler.set_resident(model, is_resident)
        (self.resident.add if is_resident else self.resident.discard)(model)

    @rule(tenant=st.sampled_from(TENANTS), limit=st.integers(0, 3))
    def limit(self, tenant: str, limit: int) -> None:
        self.scheduler.set_max_running(tenant, limit)
        self.limits[tenant] = limit

    @invariant()
    def counts_agree(self) -> None:
        for path in TENANTS:
            assert self.scheduler.waiting.of(path) == sum(below(request.tenant, path) for request in self.waiting)
            assert self.scheduler.running.of(path) == sum(below(request.tenant, path) for request in self.running)

    @invariant()
    def the_candidate_is_the_best_of_its_tenant_and_there_is_one_if_one_may_run(self) -> None:
        ready = [request for request in self.waiting if request.context.model in self.resident and not request.is_parked]
        eligible = [request for request in ready if request.is_interrupted or self.has_room(request.tenant)]
        candidate = self.scheduler.next_candidate()
        assert (candidate is None) == (not eligible)
        interrupted = [request for request in ready if request.is_interrupted]
        if interrupted:
            assert candidate is min(interrupted, key=lambda request: request.turn)
        elif candidate is not None:
            assert candidate in eligible
            ranks = [(request.context.nice, request.arrival) for request in eligible if request.tenant == candidate.tenant]
            assert (candidate.context.nice, candidate.arrival) == min(ranks)

    def has_room(self, tenant: str) -> bool:
        have_rows = self.running + [request for request in self.waiting if request.is_interrupted]
        return all(
            not limit or sum(below(request.tenant, path) for request in have_rows) < limit
            for path, limit in self.limits.items()
            if below(tenant, path)
        )


def below(tenant: str, path: str) -> bool:
    return f"{tenant}/".startswith(f"{path}/")


TestLifeOfScheduler = LifeOfScheduler.TestCase


def test_a_suspect_that_loses_its_row_does_not_keep_its_tenant_at_its_limit(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.set_max_running("lab/ann", 1)
    suspect = make_request("lab/ann")
    suspect.is_alone = True
    run_all(scheduler, suspect)

    scheduler.interrupt(suspect)

    assert scheduler.next_candidate() is suspect
