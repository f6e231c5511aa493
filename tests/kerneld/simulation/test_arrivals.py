"""Arrivals of a workload."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kerneld.calls import Priority
from kerneld.simulation.arrivals import jobs_of
from kerneld.simulation.workload import Arrival, Fixed, Job, Lengths, Lognormal, Phase, TenantLoad, Uniform, Workload


def workload(*tenants: TenantLoad, duration_s: float = 100.0, seed: int = 1) -> Workload:
    return Workload("test", duration_s, tenants, seed)


def times(load: TenantLoad, duration_s: float = 100.0) -> list[float]:
    return [job.arrival_s for job in jobs_of(workload(load, duration_s=duration_s))]


def test_constant_arrivals_are_evenly_spread_and_end_before_the_workload() -> None:
    assert times(TenantLoad("a", phases=(Phase(0.5),)), 6.0) == [0.0, 2.0, 4.0]


def test_on_and_off_arrivals_pause() -> None:
    load = TenantLoad("a", phases=(Phase(1.0, Arrival.ONOFF, on_s=2.0, off_s=3.0),))

    assert times(load, 12.0) == [0.0, 1.0, 5.0, 6.0, 10.0, 11.0]


def test_phases_follow_one_another() -> None:
    load = TenantLoad("a", phases=(Phase(1.0, until_s=2.0), Phase(0.0, until_s=5.0), Phase(2.0)))

    assert times(load, 6.0) == [0.0, 1.0, 5.0, 5.5]


def test_poisson_arrivals_come_at_their_rate_on_the_whole() -> None:
    num_jobs = len(times(TenantLoad("a", phases=(Phase(2.0, Arrival.POISSON),)), 1000.0))

    assert num_jobs == pytest.approx(2000, rel=0.1)


def test_a_trace_is_sent_as_it_stands() -> None:
    assert times(TenantLoad("a", trace=(0.5, 0.5, 3.0, 11.0)), 10.0) == [0.5, 0.5, 3.0]


def test_jobs_of_all_tenants_come_in_the_order_of_arrival() -> None:
    jobs = jobs_of(workload(TenantLoad("a", phases=(Phase(1.0),)), TenantLoad("b", phases=(Phase(1.0),)), duration_s=2.0))

    assert [(job.arrival_s, job.tenant) for job in jobs] == [(0.0, "a"), (0.0, "b"), (1.0, "a"), (1.0, "b")]


def test_the_same_seed_gives_the_same_jobs_and_another_others() -> None:
    load = TenantLoad("a", phases=(Phase(1.0, Arrival.POISSON),), input=Lognormal(100, 1.0, 1000))

    assert jobs_of(workload(load)) == jobs_of(workload(load))
    assert jobs_of(workload(load)) != jobs_of(workload(load, seed=2))


def test_a_tenant_draws_the_same_whoever_else_is_there() -> None:
    load, other = (TenantLoad(path, phases=(Phase(1.0, Arrival.POISSON),)) for path in ("a", "b"))
    alone, beside = jobs_of(workload(load)), jobs_of(workload(other, load))

    assert alone == tuple(job for job in beside if job.tenant == "a")


@pytest.mark.parametrize(
    ("lengths", "mean"), [(Fixed(7), 7), (Uniform(10, 30), 20), (Lognormal(136, 1.0, 100_000), 136), (Lognormal(50, 0.0, 100), 50)]
)
def test_lengths_have_their_mean_over_any_part_of_the_requests(lengths: Lengths, mean: float) -> None:
    jobs = jobs_of(workload(TenantLoad("a", phases=(Phase(100.0),), input=lengths, output=lengths)))

    for part in (jobs[:2000], jobs[5000:7000]):
        assert sum(job.num_input for job in part) / len(part) == pytest.approx(mean, rel=0.1)
        assert sum(job.num_output for job in part) / len(part) == pytest.approx(mean, rel=0.1)


def test_lengths_stay_within_their_bounds() -> None:
    jobs = jobs_of(workload(TenantLoad("a", phases=(Phase(50.0),), input=Lognormal(10, 2.0, 40), output=Uniform(3, 5))))

    assert {job.num_output for job in jobs} == {3, 4, 5}
    assert min(job.num_input for job in jobs) == 1
    assert max(job.num_input for job in jobs) == 40


def test_requests_ask_for_what_they_come_to_be_or_for_more() -> None:
    load = TenantLoad("a", phases=(Phase(1.0),), output=Fixed(10), priority=Priority.BATCH, nice=3, deadline_s=9.0)
    exact, more = (jobs_of(workload(replace(load, max_tokens=most)))[0] for most in (0, 64))

    assert (exact.num_output, exact.max_tokens, more.num_output, more.max_tokens) == (10, 10, 10, 64)
    assert (exact.priority, exact.nice, exact.deadline_s) == (Priority.BATCH, 3, 9.0)


def test_jobs_that_are_given_are_not_drawn() -> None:
    given = (Job("a", 1.0, 2, 3, 3), Job("a", 200.0, 2, 3, 3))

    assert jobs_of(replace(workload(TenantLoad("a", phases=(Phase(1.0),))), jobs=given)) == given[:1]
