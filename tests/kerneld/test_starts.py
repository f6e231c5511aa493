"""Requests followed to their start: what is estimated, what is learned of it, and what a scrape shows of fairness."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kerneld.calls import FinishReason, Priority
from kerneld.events import RequestAdmitted, RequestArrived, RequestFinished, TariffChanged
from kerneld.fairshare import FairShare
from kerneld.pricing.tariff import Tariff
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.starts import Starts
from tests.kerneld.rig import ANN, BOB, Rig, Sizes, in_loop, prompt_of, running

MakeRequest = Callable[..., Request]


class Line:
    """A scheduler with one row and two tenants, on a clock of the test's own."""

    def __init__(self, make_request: MakeRequest) -> None:
        self._make = make_request
        shares = FairShare()
        shares.add("ann")
        shares.add("bob")
        self.now = 100.0
        self.scheduler = Scheduler(shares)
        self.scheduler.set_resident("m", True)
        self.requests: dict[str, Request] = {}
        self.starts = Starts(self.scheduler, self.requests, 1, lambda: self.now)

    def arrive(self, tenant: str, num_input: int = 100, model: str = "m") -> Request:
        """A request of so many input tokens; it costs ten times as many microseconds and more, until a model was measured."""
        request = self._make(tenant, num_input=num_input, model=model)
        self.requests[request.id] = request
        self.scheduler.enqueue(request)
        event = RequestArrived(request.id, request.context.id, tenant, num_input, request.max_tokens, Priority.INTERACTIVE, 0, 0.0)
        self.starts.on_event(event)
        return request

    def admit(self, request: Request, queue_s: float = 0.0) -> None:
        self.scheduler.admit(request, 0)
        self.starts.on_event(RequestAdmitted(request.id, request.tenant, queue_s, 0))

    def end(self, request: Request) -> None:
        self.scheduler.finish(request)
        self.starts.on_event(RequestFinished(request.id, "c", request.tenant, FinishReason.CANCELLED, 1, 0, 0, 0.0, 0.0))

    def seconds(self, request: Request) -> float | None:
        return self.starts.estimate(request, self.scheduler.queue_position(request)).seconds

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.starts.tick()


@pytest.fixture
def line(make_request: MakeRequest) -> Line:
    """The row is taken, somebody waits, and a thousand microseconds of work are done in a second."""
    line = Line(make_request)
    line.admit(line.arrive("ann"))
    line.arrive("ann")
    line.tick()
    line.scheduler.shares.charge("bob", 1000)
    line.scheduler.shares.charge("ann", 1000)
    line.tick(2.0)
    return line


def test_nobody_knows_before_something_was_measured(make_request: MakeRequest) -> None:
    line = Line(make_request)
    first = line.arrive("ann")
    assert line.seconds(first) == 0.0  # there is a row for it
    line.admit(first)
    assert line.seconds(line.arrive("ann")) is None


def test_who_has_more_ahead_waits_longer(line: Line) -> None:
    second, third = line.arrive("ann"), line.arrive("ann")
    line.now += 1
    rate = line.starts.estimator.rate
    assert rate == pytest.approx(1000)
    waits = [line.seconds(request) for request in (second, third)]
    assert None not in waits
    assert waits[0] < waits[1]  # type: ignore[operator]


def test_a_light_tenant_does_not_wait_for_all_that_a_hog_queued(line: Line) -> None:
    for _ in range(100):
        last = line.arrive("ann")
    light = line.arrive("bob")
    line.now += 1

    hogs, lights = line.seconds(last), line.seconds(light)

    assert hogs is not None
    assert lights is not None
    assert lights < hogs / 10


def test_estimates_are_judged_by_the_first_admission_only(line: Line) -> None:
    request = line.arrive("bob")
    told_s = line.seconds(request)
    assert told_s is not None
    judged = line.starts.estimator.num_judged

    line.admit(request, queue_s=2 * told_s)
    line.scheduler.preempt(request)
    line.admit(request, queue_s=50.0)

    assert line.starts.estimator.num_judged == judged + 1


def test_of_a_burst_one_is_judged_and_all_count_as_work_ahead(line: Line) -> None:
    judged, before = line.starts.estimator.num_judged, line.seconds(line.arrive("bob"))
    burst = [line.arrive("bob") for _ in range(5)]
    line.now += 1
    last = line.arrive("bob")

    after = line.seconds(last)
    for request in [*burst, last]:
        line.admit(request, queue_s=1.0)

    assert before is not None
    assert after is not None
    assert after > 5 * before
    assert line.starts.estimator.num_judged == judged + 1


def test_work_that_left_the_line_is_ahead_of_nobody(line: Line) -> None:
    heavy, light = line.arrive("ann", num_input=100_000), line.arrive("ann")
    line.now += 1
    before = line.seconds(light)
    line.end(heavy)
    line.now += 1
    after = line.seconds(light)
    assert before is not None
    assert after is not None
    assert after < before / 10


def test_work_of_another_that_left_the_line_is_ahead_of_nobody_at_once(line: Line) -> None:
    heavy = line.arrive("ann", num_input=100_000)
    first, second = (line.arrive("bob", num_input=50_000) for _ in range(2))
    line.now += 1
    before = line.seconds(second)
    line.end(heavy)
    after = line.seconds(second)
    line.end(first)
    assert before is not None
    assert after is not None
    assert after < 0.7 * before


def test_who_was_idle_when_one_looked_is_not_ahead_of_those_who_waited(line: Line) -> None:
    line.scheduler.shares.charge("ann", 1_000_000)
    line.arrive("ann", num_input=100_000)
    line.now += 1
    line.starts.map()
    second = [line.arrive("bob", num_input=50_000) for _ in range(2)][1]
    at_once = line.seconds(second)
    line.now += 1
    a_second_later = line.seconds(second)
    assert at_once is not None
    assert at_once == pytest.approx(a_second_later, rel=0.05)


def test_outputs_of_a_tenant_that_nobody_knows_are_as_long_as_those_of_others(line: Line) -> None:
    def wait_of_the_second() -> float:
        first, second = line.arrive("bob"), line.arrive("bob")
        line.now += 1
        seconds = line.seconds(second)
        line.end(second)
        line.end(first)
        assert seconds is not None
        return seconds

    longest = wait_of_the_second()  # 100 tokens, which is all that they may have
    for _ in range(200):
        line.starts.on_event(RequestFinished("r", "c", "ann", FinishReason.STOP, 1, 0, 10, 0.0, 0.0))

    assert wait_of_the_second() < 0.7 * longest


def test_what_waits_is_priced_anew_as_outputs_tell_more(line: Line) -> None:
    waiting = [line.arrive("bob") for _ in range(3)]
    line.now += 1
    before = line.seconds(waiting[-1])
    for _ in range(200):
        line.scheduler.charging.forecast.ended("bob", 10, is_cut_off=False)

    line.tick(0.0)

    after = line.seconds(waiting[-1])
    assert before is not None
    assert after is not None
    assert after < before


def test_new_prices_make_what_was_measured_worthless(line: Line) -> None:
    waiting = [line.arrive("ann") for _ in range(3)]
    line.scheduler.charging.tariffs.put("m", Tariff(100, 10, 200))
    line.starts.on_event(TariffChanged("m", 100, 10, 200, 0))
    line.now += 1
    assert line.seconds(waiting[-1]) is None

    line.tick()
    line.scheduler.shares.charge("bob", 10)
    line.tick()

    before = line.seconds(waiting[-1])
    assert before is not None
    line.end(waiting[0])
    line.now += 1
    after = line.seconds(waiting[-1])
    assert after is not None
    assert after < before


def test_who_waits_for_a_model_has_no_estimate(line: Line) -> None:
    request = line.arrive("bob", model="absent")
    assert line.seconds(request) is None
    line.admit(line.arrive("bob"), queue_s=1.0)
    line.end(request)


def test_who_is_at_a_limit_has_no_estimate_though_there_is_a_row(make_request: MakeRequest) -> None:
    line = Line(make_request)
    line.scheduler.set_max_running("ann", 1)
    first = line.arrive("ann")
    line.admit(first)
    second = line.arrive("ann")
    line.scheduler.finish(line.requests.setdefault("other", line.arrive("bob")))

    assert line.seconds(second) is None
    line.end(first)
    line.now += 1.0  # until one looks again
    assert line.seconds(second) == 0.0


def test_output_that_is_paid_ahead_is_done_when_it_comes(make_request: MakeRequest) -> None:
    line = Line(make_request)
    line.scheduler.charging.tariffs.put("m", Tariff(0, 0, 1_000_000))
    line.scheduler.charging.forecast.ended("ann", 100, is_cut_off=False)
    first = line.arrive("ann")
    line.arrive("ann")
    line.tick()
    line.admit(first)
    assert line.scheduler.charging.prepaid_us(first) >= 10_000

    for _ in range(4):
        line.scheduler.charge_output(first, 2)
        line.tick()

    assert line.starts.estimator.rate == pytest.approx(2000)


def test_a_clock_that_stands_still_measures_nothing(line: Line) -> None:
    rate = line.starts.estimator.rate
    line.scheduler.shares.charge("ann", 10**9)
    line.tick(0.0)
    assert line.starts.estimator.rate == rate


@in_loop
async def test_a_scrape_under_equal_backlog_shows_that_all_get_the_same(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=2))) as rig:
        now = 0.0
        machine = rig.machine
        machine.starts = starts = Starts(machine.scheduler, machine.requests, 2, lambda: now)
        tasks = [rig.begin(await rig.alloc(each), prompt_of(idx, 20), 6, caller=each) for idx in range(40) for each in (ANN, BOB)]
        await rig.until(lambda: len(machine.requests) > 70)
        starts.tick()
        for second in range(1, 13):
            await rig.until(lambda: sum(task.done() for task in tasks) >= 4 * second)  # noqa: B023 - it is awaited at once
            now = float(second)
            starts.tick()

        page = rig.daemon.metrics.render().decode()

        jain = re.search(r"^kerneld_jain_index (\S+)$", page, re.MULTILINE)
        lags = {tenant: float(lag) for tenant, lag in re.findall(r'^kerneld_lag{tenant="(\S+)"} (\S+)$', page, re.MULTILINE)}
        assert jain is not None
        assert starts.window.indices().keys() == {"lab"}
        assert float(jain[1]) >= 0.99
        assert lags["lab/ann"] + lags["lab/bob"] == pytest.approx(0, abs=1e-6)
        for task in tasks:
            task.cancel()
