"""Who gives way to a waiting request: what counts as far ahead, and that rows are not taken back and forth."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from kerneld.calls import FinishReason, Priority
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.request import Request
from kerneld.scheduler import Scheduler

MakeRequest = Callable[..., Request]
LAG = 10_000
TOKEN_US = 20  # of output, as long as a model was not measured
SLICES = (0, 5_000, 40_000)


@pytest.fixture
def scheduler() -> Scheduler:
    return new_scheduler(LAG)


def new_scheduler(lag_us: int) -> Scheduler:
    shares = FairShare(SLICES)
    for path in ("ann", "bob", "eve"):
        shares.add(path)
    made = Scheduler(shares, SchedulerPolicy(preempt_lag_us=lag_us, min_service_tokens=4, locality_lag_us=0))
    made.set_resident("m", True)
    return made


def run(scheduler: Scheduler, request: Request, num_served: int = 4) -> Request:
    """Let a request run that is served without being charged for its output."""
    scheduler.enqueue(request)
    scheduler.admit(request, 0)
    request.num_since_admission = num_served
    return request


def wait(scheduler: Scheduler, request: Request) -> Request:
    scheduler.enqueue(request)
    return request


def expect_output(scheduler: Scheduler, tenant: str, num_tokens: int) -> None:
    scheduler.charging.forecast.restore({tenant: (num_tokens,)})


def test_what_the_waiting_one_is_to_be_charged_counts_for_the_one_that_runs(scheduler: Scheduler, make_request: MakeRequest) -> None:
    row = run(scheduler, make_request("ann", num_input=0))
    candidate = wait(scheduler, make_request("bob", num_input=100))
    expect_output(scheduler, "bob", 50)
    cost = 100 * 10 + 50 * TOKEN_US

    scheduler.shares.charge("ann", LAG + cost)
    level = scheduler.victim([row], candidate)
    scheduler.shares.charge("ann", 1)

    assert (level, scheduler.victim([row], candidate)) == (None, row)


def test_what_the_victim_prepaid_and_did_not_get_does_not_count_as_served(scheduler: Scheduler, make_request: MakeRequest) -> None:
    expect_output(scheduler, "ann", 80)
    row = run(scheduler, make_request("ann", num_input=0))
    candidate = wait(scheduler, make_request("bob", num_input=0))
    scheduler.shares.charge("ann", LAG)

    prepaid = scheduler.victim([row], candidate)
    for _ in range(80):  # it comes; what follows is charged
        scheduler.charge_outputs([(row, 1)])
    scheduler.charge_outputs([(row, 1)])

    assert (prepaid, scheduler.victim([row], candidate)) == (None, row)


def test_a_laxer_class_gives_way_for_its_slice_alone(scheduler: Scheduler, make_request: MakeRequest) -> None:
    idle = run(scheduler, make_request("ann", num_input=0, priority=Priority.IDLE))
    batch = run(scheduler, make_request("eve", num_input=0, priority=Priority.BATCH))
    candidate = wait(scheduler, make_request("bob", num_input=1000))

    assert scheduler.victim([idle, batch], candidate) is idle
    assert scheduler.victim([batch], candidate) is None


def test_an_interactive_row_gives_way_to_an_idle_one_only_a_slice_later(scheduler: Scheduler, make_request: MakeRequest) -> None:
    row = run(scheduler, make_request("ann", num_input=0))
    candidate = wait(scheduler, make_request("bob", num_input=0, priority=Priority.IDLE))

    scheduler.shares.charge("ann", LAG + SLICES[2])
    level = scheduler.victim([row], candidate)
    scheduler.shares.charge("ann", 1)

    assert (level, scheduler.victim([row], candidate)) == (None, row)


def test_nobody_gives_way_before_its_minimum_service(scheduler: Scheduler, make_request: MakeRequest) -> None:
    row = run(scheduler, make_request("ann", num_input=0), num_served=3)
    candidate = wait(scheduler, make_request("bob", num_input=0))
    scheduler.shares.charge("ann", 10 * LAG)

    early = scheduler.victim([row], candidate)
    row.num_since_admission = 4
    scheduler.charge_outputs([])  # a step

    assert (early, scheduler.victim([row], candidate)) == (None, row)


def test_who_was_found_level_is_looked_at_again_when_that_may_have_changed(scheduler: Scheduler, make_request: MakeRequest) -> None:
    row = run(scheduler, make_request("ann", num_input=0))
    candidate = wait(scheduler, make_request("bob", num_input=0))
    expect_output(scheduler, "bob", 0)
    found = [scheduler.victim([row], candidate)]

    for _ in range(2):
        scheduler.charge_output(row, LAG // TOKEN_US // 2)
        found.append(scheduler.victim([row], candidate))
    scheduler.charge_output(row, 1)
    found.append(scheduler.victim([row], candidate))

    assert found == [None, None, None, row]


def test_a_row_that_came_later_is_looked_at_too(scheduler: Scheduler, make_request: MakeRequest) -> None:
    scheduler.shares.charge("eve", 3 * LAG)
    row = run(scheduler, make_request("ann", num_input=0))
    candidate = wait(scheduler, make_request("bob", num_input=0))
    level = scheduler.victim([row], candidate)

    rich = run(scheduler, make_request("eve", num_input=0))

    assert (level, scheduler.victim([row, rich], candidate)) == (None, rich)


def test_who_has_nothing_running_takes_a_row_from_who_has_most(scheduler: Scheduler, make_request: MakeRequest) -> None:
    rows = [run(scheduler, make_request(tenant, num_input=0), 8) for tenant in ("ann", "bob", "bob", "bob")]
    candidate = wait(scheduler, make_request("eve"))

    assert scheduler.victim(rows, candidate) is rows[-1]


def test_who_has_nothing_running_takes_nobodys_only_row(scheduler: Scheduler, make_request: MakeRequest) -> None:
    rows = [run(scheduler, make_request(tenant, num_input=0), 8) for tenant in ("ann", "bob")]

    assert scheduler.victim(rows, wait(scheduler, make_request("eve"))) is None


def test_who_has_a_long_queue_is_left_to_the_lag(scheduler: Scheduler, make_request: MakeRequest) -> None:
    rows = [run(scheduler, make_request("bob", num_input=0), 8) for _ in range(2)]
    candidate = wait(scheduler, make_request("eve"))
    wait(scheduler, make_request("eve"))

    assert scheduler.victim(rows, candidate) is None


def test_who_has_a_row_takes_no_other_for_having_fewer(scheduler: Scheduler, make_request: MakeRequest) -> None:
    rows = [run(scheduler, make_request(tenant, num_input=0), 8) for tenant in ("ann", "bob", "bob", "bob")]

    assert scheduler.victim(rows, wait(scheduler, make_request("ann"))) is None


@pytest.mark.parametrize("case", ["behind", "of a better class"])
def test_a_row_is_kept_that_is(scheduler: Scheduler, make_request: MakeRequest, case: str) -> None:
    rows = [run(scheduler, make_request("bob", num_input=0), 0) for _ in range(2)]
    candidate = wait(scheduler, make_request("eve", priority=Priority.IDLE if case == "of a better class" else Priority.INTERACTIVE))
    scheduler.shares.charge("eve", scheduler.policy.courtesy_us + 1 if case == "behind" else 0)

    assert scheduler.victim(rows, candidate) is None


def test_a_deferred_request_takes_nobodys_row(scheduler: Scheduler, make_request: MakeRequest) -> None:
    row = run(scheduler, make_request("ann", num_input=0))
    candidate = make_request("bob", num_input=0)
    scheduler.defer(candidate, 50.0)
    scheduler.enqueue(candidate)
    scheduler.shares.charge("ann", 10 * LAG)

    assert (scheduler.next_candidate(), scheduler.victim([row], candidate)) == (candidate, None)


class Overload:
    """A device of some rows, and tenants that always have work; rows are taken whenever the rules allow it."""

    def __init__(self, scheduler: Scheduler, make_request: MakeRequest, num_rows: int, seed: int) -> None:
        self.scheduler = scheduler
        self.make = make_request
        self.num_rows = num_rows
        self.draw = random.Random(seed)
        self.rows: list[Request] = []
        self.lengths: dict[str, int] = {}
        self.num_finished = 0
        self.preempted: list[str] = []

    def step(self, tenants: tuple[str, ...]) -> None:
        scheduler = self.scheduler
        for tenant in tenants:
            while scheduler.waiting.of(tenant) <= self.num_rows:  # nobody runs out of work, and is lifted for it
                self.arrive(tenant)
        if len(self.rows) == self.num_rows and (candidate := scheduler.next_candidate()) is not None:
            victim = scheduler.victim(self.rows, candidate)
            if victim is not None:
                self.rows.remove(victim)
                scheduler.preempt(victim)
                self.preempted.append(victim.tenant)
        while len(self.rows) < self.num_rows and (candidate := scheduler.next_candidate()) is not None:
            scheduler.admit(candidate, 0)
            self.rows.append(candidate)
        for row in list(self.rows):
            row.context.tokens.append(0)
            row.num_since_admission += 1
        scheduler.charge_outputs([(row, 1) for row in self.rows])
        for row in [row for row in self.rows if row.num_generated >= self.lengths[row.id]]:
            self.rows.remove(row)
            scheduler.finish(row, FinishReason.STOP)
            self.num_finished += 1

    def arrive(self, tenant: str) -> None:
        request = self.make(tenant, num_input=self.draw.randint(1, 400), max_tokens=400)
        self.lengths[request.id] = self.draw.randint(1, 120)
        self.scheduler.enqueue(request)


@pytest.mark.parametrize(("num_rows", "seed"), [*itertools.product((2, 8), range(4))])
def test_tenants_of_equal_weight_hardly_ever_take_rows_from_each_other(
    scheduler: Scheduler, make_request: MakeRequest, num_rows: int, seed: int
) -> None:
    overload = Overload(scheduler, make_request, num_rows, seed)

    for _ in range(8000 // num_rows):
        overload.step(("ann", "bob"))

    assert overload.num_finished > 100
    assert len(overload.preempted) * 100 <= overload.num_finished


@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_was_taken_is_not_taken_back_before_twice_the_lag_was_served(make_request: MakeRequest, seed: int) -> None:
    lag = 300
    scheduler = new_scheduler(lag)
    overload = Overload(scheduler, make_request, 8, seed)
    services: list[tuple[str, dict[str, int]]] = []

    for _ in range(4000):
        num_before, at = len(overload.preempted), {tenant: scheduler.shares.service(tenant) for tenant in ("ann", "bob")}
        overload.step(("ann", "bob"))
        if len(overload.preempted) > num_before:
            services.append((overload.preempted[-1], at))

    turned = [(one, other) for one, other in itertools.pairwise(services) if one[0] != other[0]]
    assert len(turned) > 3
    for (loser, then), (winner, later) in turned:
        assert (later[winner] - then[winner]) - (later[loser] - then[loser]) > 2 * lag
