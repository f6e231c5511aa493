"""Runs of workloads: the daemon's own parts under virtual time."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from drivers.sim import StepModel
from kerneld.calls import Limits
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.scheduler import Scheduler
from kerneld.simulation.arrivals import jobs_of
from kerneld.simulation.measures import Books, claims_of, service_of
from kerneld.simulation.presets import PRESETS
from kerneld.simulation.records import Outcome, Record, write_records
from kerneld.simulation.run import Run, simulate
from kerneld.simulation.workload import DeviceSpec, Fixed, Phase, TenantLoad, Workload
from kerneld.simulation.world import Scheduling, World

ROOT = Path(__file__).resolve().parents[3]
# 100 ms a step, whatever is in it; 64 pages of 4 tokens.
DEVICE = DeviceSpec(costs=StepModel(0.1, 0.0), pages=64, page_tokens=4, page_bytes=4096, max_rows=8, max_step_tokens=64, context_tokens=256)


def workload(*tenants: TenantLoad, duration_s: float = 30.0, device: DeviceSpec = DEVICE) -> Workload:
    return Workload("test", duration_s, tenants, device=device)


def sends(path: str, *times: float, num_input: int = 4, num_output: int = 4, **given: object) -> TenantLoad:
    return replace(TenantLoad(path, trace=times, input=Fixed(num_input), output=Fixed(num_output)), **given)  # type: ignore[arg-type]


def run(load: Workload, scheduling: Scheduling = Scheduling.HVTC) -> Run:
    return simulate(load, scheduling)


def shortened(name: str, duration_s: float) -> Workload:
    return replace(PRESETS[name](), duration_s=duration_s)


def written(records: list[Record]) -> str:
    file = io.StringIO()
    write_records(records, file)
    return hashlib.sha256(file.getvalue().encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------- single requests


def test_a_request_alone_gets_a_token_a_step() -> None:
    [record] = run(workload(sends("a", 1.0))).records

    assert record.outcome is Outcome.FINISHED
    assert (record.arrival_s, record.input_tokens, record.output_tokens) == (1.0, 4, 4)
    assert record.first_token_s == pytest.approx(1.1)
    assert record.finish_s == pytest.approx(1.4)


def test_a_request_that_stops_early_stops_where_it_was_to() -> None:
    [record] = run(workload(sends("a", 0.0, num_output=5, max_tokens=50))).records

    assert (record.outcome, record.output_tokens) == (Outcome.FINISHED, 5)
    assert record.finish_s == pytest.approx(0.5)


def test_the_end_of_the_run_cuts_what_runs_and_leaves_what_waits() -> None:
    device = replace(DEVICE, max_rows=1)
    cut, waiting = run(workload(sends("a", 0.0, 0.1, num_output=100), duration_s=2.05, device=device)).records

    assert (cut.outcome, cut.output_tokens, cut.finish_s) == (Outcome.CUT, 20, 2.05)
    assert (waiting.outcome, waiting.output_tokens, waiting.first_token_s, waiting.finish_s) == (Outcome.WAITING, 0, None, None)


def test_a_deadline_ends_what_waits() -> None:
    device = replace(DEVICE, max_rows=1)
    _first, late = run(workload(sends("a", 0.0, 0.1, num_output=100, deadline_s=1.0), device=device)).records

    assert (late.outcome, late.first_token_s) == (Outcome.EXPIRED, None)
    assert late.finish_s == pytest.approx(1.25), "housekeeping looks every quarter of a second"


def test_limits_reject_and_are_told() -> None:
    limited = sends("a", 0.0, 0.0, 0.0, 0.0, num_output=50, limits=Limits(max_queued=1))
    done = run(workload(limited, device=replace(DEVICE, max_rows=1)))

    assert done.measures.rejected == 2
    assert {record.outcome for record in done.records if record.finish_s is None} == {Outcome.REJECTED}


def test_a_prompt_beyond_the_limit_of_its_tenant_is_rejected() -> None:
    limits = Limits(device_bytes=4 * 4096)
    long, short = run(workload(sends("a", 0.0, num_input=40, limits=limits), sends("b", 0.0, num_input=40))).records

    assert (long.outcome, short.outcome) == (Outcome.REJECTED, Outcome.FINISHED)


def test_frames_that_run_short_preempt_and_nothing_is_lost() -> None:
    policy = SchedulerPolicy(growth_share=0.0, min_service_tokens=4)
    crowded = workload(*(sends(path, 0.0, 0.0, num_input=40, num_output=60) for path in "abc"), duration_s=200.0)
    done = run(replace(crowded, scheduler=replace(crowded.scheduler, policy=policy)))

    assert [record.outcome for record in done.records] == [Outcome.FINISHED] * 6
    assert {record.output_tokens for record in done.records} == {60}


def test_a_host_tier_takes_what_leaves_the_device_in_the_time_of_its_copies() -> None:
    policy = SchedulerPolicy(growth_share=0.0, min_service_tokens=4)
    device = replace(DEVICE, host_pages=64, copy_bytes_per_s=4096.0)
    crowded = workload(*(sends(path, 0.0, 0.0, num_input=40, num_output=60) for path in "abc"), duration_s=400.0, device=device)
    crowded = replace(crowded, scheduler=replace(crowded.scheduler, policy=policy))
    swapped, dropped = run(crowded), run(replace(crowded, device=DEVICE))

    assert [record.outcome for record in swapped.records] == [Outcome.FINISHED] * 6
    assert swapped.busy_s != dropped.busy_s


def test_the_books_of_memory_hold_to_the_end() -> None:
    load = shortened("zipf", 20.0)
    world = World(load, Scheduling.HVTC)
    world.run(jobs_of(load))

    world.pager.check_integrity()


# ------------------------------------------------------------------------------------------------------------------------- the whole


def test_weights_are_kept() -> None:
    tenants = [TenantLoad(f"w{weight}", weight=weight, phases=(Phase(8.0),), input=Fixed(64), output=Fixed(64)) for weight in (1, 2, 3, 4)]
    load = Workload("weights", 240.0, tuple(tenants))
    shares = {figures.tenant: figures.share for figures in simulate(load, Scheduling.HVTC).tenants()}

    assert shares == pytest.approx({"w1": 0.1, "w2": 0.2, "w3": 0.3, "w4": 0.4}, rel=0.05)


def test_fair_shares_close_the_gap_that_first_come_first_served_opens() -> None:
    load = shortened("fig3", 120.0)
    fcfs, hvtc = (simulate(load, scheduling).measures for scheduling in Scheduling)

    assert hvtc.max_gap <= fcfs.max_gap / 10
    assert hvtc.tokens_per_s >= 0.99 * fcfs.tokens_per_s


def test_first_come_first_served_serves_in_the_order_of_arrival() -> None:
    records = [record for record in simulate(shortened("fig3", 40.0), Scheduling.FCFS).records if record.first_token_s is not None]

    assert [record.first_token_s for record in records] == sorted(record.first_token_s or 0.0 for record in records)
    assert {record.tenant for record in records} == {"client1", "client2"}


class NoLift(FairShare):
    """Accounts in which whoever slept is owed what he did not ask for: every tenant counts as if a request of it were held."""

    def add(self, path: str, weight: int = 1) -> None:
        super().add(path, weight)
        self.hold(path)


def test_without_the_lift_who_slept_takes_the_machine_from_who_did_not() -> None:
    """In the second phase of figure 10 both overload; without the lift, the first one is owed all that it left in the first phase."""
    load = shortened("fig10", 360.0)
    parts = []
    for shares in (FairShare(), NoLift()):
        world = World(load, Scheduling.HVTC, partial(Scheduler, shares))
        books = Books(world.run(jobs_of(load)), load.duration_s, claims_of(load.tenants, load.senders))
        window = np.array([320.0, 360.0])
        edges = {tenant: service_of(books.of[tenant]).at(window) for tenant in load.senders}
        served = {tenant: levels[1] - levels[0] for tenant, levels in edges.items()}
        parts.append(served["client2"] / sum(served.values()))

    # The first one asks for two thirds of the machine in that phase, and without the lift it gets them.
    assert parts[0] == pytest.approx(0.5, abs=0.05)
    assert parts[1] < 0.4


def test_the_same_workload_gives_the_same_run_to_the_last_bit() -> None:
    """Whatever the order of hashes in the process that runs it."""
    script = (
        "from tests.kerneld.simulation.test_world import Scheduling, shortened, simulate, written\n"
        "print(*(written(list(simulate(shortened('zipf', 30.0), scheduling).records)) for scheduling in Scheduling))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    here = " ".join(written(list(simulate(shortened("zipf", 30.0), scheduling).records)) for scheduling in Scheduling)

    assert told == [here + "\n"] * 2


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name: str) -> None:
    load = shortened(name, 15.0)
    done = simulate(load, Scheduling.HVTC)

    assert done.measures.tokens_per_s > 0
    assert {figures.tenant for figures in done.tenants()} == set(load.senders)
