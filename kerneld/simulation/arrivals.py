"""Arrivals: the requests that a workload comes to. The same workload gives the same jobs; each tenant draws from a generator of its own.

Lengths are quasi-random: whatever part of a tenant's requests is served, it has about the mean length of all. So schedulers that serve
different requests are compared by what they do, and not by how long these happen to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from kerneld.simulation.workload import Arrival, Job, Phase, TenantLoad, Workload

# Multiples of these fill the unit square evenly. Source: Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018 (R2).
_STEP_INPUT: Final = 0.7548776662466927
_STEP_OUTPUT: Final = 0.5698402909980532


def jobs_of(workload: Workload) -> tuple[Job, ...]:
    """All jobs of a workload in the order of arrival; those of one instant in the order of the tenants."""
    if workload.jobs:
        return tuple(job for job in workload.jobs if job.arrival_s < workload.duration_s)
    drawn = [job for tenant in workload.tenants for job in _jobs_of_tenant(tenant, workload)]
    return tuple(sorted(drawn, key=lambda job: job.arrival_s))


def _jobs_of_tenant(tenant: TenantLoad, workload: Workload) -> Iterator[Job]:
    random = Random(f"{workload.seed}:{tenant.path}")
    first_input, first_output = random.random(), random.random()
    for count, arrival_s in enumerate(_times(tenant, workload.duration_s, random)):
        num_output = tenant.output.at((first_output + count * _STEP_OUTPUT) % 1.0)
        yield Job(
            tenant=tenant.path,
            arrival_s=round(arrival_s, 6),
            num_input=tenant.input.at((first_input + count * _STEP_INPUT) % 1.0),
            num_output=num_output,
            max_tokens=max(tenant.max_tokens, num_output),
            priority=tenant.priority,
            nice=tenant.nice,
            deadline_s=tenant.deadline_s,
        )


def _times(tenant: TenantLoad, duration_s: float, random: Random) -> Iterator[float]:
    yield from (at for at in tenant.trace if at < duration_s)
    begin = 0.0
    for phase in tenant.phases:
        end = min(phase.until_s, duration_s)
        if phase.rate > 0:
            yield from _times_of_phase(phase, begin, end, random)
        begin = end


def _times_of_phase(phase: Phase, begin: float, end: float, random: Random) -> Iterator[float]:
    """Arrivals in [begin, end): drawn in time that stands still while the phase is off."""
    on_s, cycle_s = phase.on_s, phase.on_s + phase.off_s
    awake, count = 0.0, 0
    while True:
        if phase.arrival is Arrival.POISSON:
            awake += random.expovariate(phase.rate)
        else:
            awake = count / phase.rate
            count += 1
        at = begin + (awake if not on_s else awake // on_s * cycle_s + awake % on_s)
        if at >= end:
            return
        yield at
