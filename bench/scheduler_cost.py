"""What does deciding cost? The real scheduler without a device: who is next, who gives way, how long a step is, what is charged.

At most 50 us a step with 1,000 queued requests of 64 tenants and 32 running rows, and no more than that with 10,000: a step should cost
what changes, not what waits.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

from bench.report import Figure, at_most, json_path, publish
from drivers.contract import Sampling
from kerneld.calls import FinishReason, InferArgs, Priority
from kerneld.context import Context
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.tariff import Tariff
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.step import RowNeed
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript

T = TypeVar("T")

ROWS, TENANTS, STEPS = 32, 64, 4000
SETTLING = 1000  # steps until what tenants' outputs are expected to be is known
MODEL = "model"
TARIFF = Tariff(input_ns=60_000, cached_ns=600, output_ns=300_000, context_ns=10)  # a step of 32 rows in 10 ms: where deciding matters
PARTS = ("who is next", "who gives way", "shape of the step", "tokens charged", "who comes, ends and is seated")


class Load:
    """A scheduler with a queue of some length, which stays that long, and with all rows taken."""

    def __init__(self, num_queued: int) -> None:
        self._draw = random.Random(1)
        self._numbers = itertools.count(1)
        self._tenants = [f"lab{idx % 4}/group{idx % 16}/person{idx}" for idx in range(TENANTS)]
        policy = SchedulerPolicy()
        shares = FairShare(policy.slices_us, policy.share_cap_us)
        for idx, tenant in enumerate(self._tenants):
            shares.add(tenant, 1 + idx % 4)
        self.scheduler = Scheduler(shares, policy)
        self.scheduler.set_resident(MODEL, True)
        self.scheduler.charging.tariffs.put(MODEL, TARIFF)
        self.scheduler.locality.stamp = lambda: 1  # something is known, though nothing of these requests
        self.rows: dict[str, Request] = {}
        self.lengths: dict[str, int] = {}
        self.took = dict.fromkeys(PARTS, 0.0)
        for _ in range(num_queued):
            self.arrive()
        self._seat()

    def arrive(self) -> None:
        """Another request comes."""
        number, tenant = next(self._numbers), self._draw.choice(self._tenants)
        context = Context(id=f"{number:032x}", owner="o", tenant=tenant, model=MODEL, fingerprint="", seed=0, created_at=0.0)
        context.priority = self._draw.choice((Priority.INTERACTIVE, Priority.INTERACTIVE, Priority.BATCH))
        context.tokens.extend([0] * self._draw.randint(16, 512))
        log = OutputLog(context.num_tokens, lambda: 0.0)
        request = Request(
            id=f"{number:032x}",
            context=context,
            args=InferArgs(context.id),
            sampling=Sampling(),
            num_input=context.num_tokens,
            output_start=context.num_tokens,
            max_tokens=256,
            arrival=float(number),
            log=log,
            transcript=Transcript(log, None),
        )
        self.lengths[request.id] = self._draw.randint(16, 240)
        self._time(PARTS[4], lambda: self.scheduler.enqueue(request))

    def step(self) -> float:
        """One step of decode, as dispatcher and composer ask for it; returns the microseconds that deciding took."""
        scheduler, rows = self.scheduler, list(self.rows.values())
        needs = [RowNeed(row, 1, row.num_remaining, row.context.num_tokens) for row in rows]
        before = sum(self.took.values())
        candidate = self._time(PARTS[0], scheduler.next_candidate)
        if candidate is not None:
            victim = self._time(PARTS[1], lambda: scheduler.victim(rows, candidate))
            if victim is not None:
                self._time(PARTS[4], lambda: self._preempt(victim))
        self._time(PARTS[2], lambda: scheduler.plan_step(needs))
        for row in rows:
            row.context.tokens.append(0)
            row.num_since_admission += 1
        self._time(PARTS[3], lambda: scheduler.charge_outputs([(row, 1) for row in self.rows.values()]))
        over = [row for row in self.rows.values() if row.num_generated >= self.lengths[row.id]]
        for _ in over:
            self.arrive()
        self._time(PARTS[4], lambda: self._end(over))
        return sum(self.took.values()) - before

    def _preempt(self, victim: Request) -> None:
        del self.rows[victim.id]
        self.scheduler.preempt(victim)
        self._seat()

    def _end(self, over: list[Request]) -> None:
        for row in over:
            del self.rows[row.id]
            self.scheduler.finish(row, FinishReason.STOP)
        if over:
            self._seat()

    def _seat(self) -> None:
        while len(self.rows) < ROWS and (request := self.scheduler.next_candidate()) is not None:
            self.scheduler.admit(request, 0)
            self.rows[request.id] = request

    def _time(self, part: str, work: Callable[[], T]) -> T:
        started_at = time.thread_time_ns()  # not the wall's: whatever else runs here is no cost of deciding
        done = work()
        self.took[part] += (time.thread_time_ns() - started_at) / 1e3
        return done


def cost(num_queued: int, num_steps: int) -> tuple[float, float, dict[str, float]]:
    """Mean and median microseconds of a step with so many in the queue, and the mean of each part."""
    load = Load(num_queued)
    for _ in range(SETTLING):
        load.step()
    load.took = dict.fromkeys(PARTS, 0.0)
    took = [load.step() for _ in range(num_steps)]
    return statistics.fmean(took), statistics.median(took), {part: us / num_steps for part, us in load.took.items()}


def cancel_all(num_queued: int) -> float:
    """Microseconds to cancel one of so many queued requests of one tenant, when all of them are."""
    load = Load(0)
    load._tenants = load._tenants[:1]
    load.rows = dict.fromkeys(map(str, range(ROWS)))  # type: ignore[assignment]
    for _ in range(num_queued):
        load.arrive()
    waiting = load.scheduler._waiting.queue(load._tenants[0]).live()
    started_at = time.perf_counter()
    for request in waiting:
        load.scheduler.finish(request, FinishReason.CANCELLED)
    return (time.perf_counter() - started_at) * 1e6 / num_queued


def main(num_steps: int = STEPS) -> None:
    mean, median, parts = cost(1_000, num_steps)
    deep_mean, _deep_median, _deep_parts = cost(10_000, num_steps)
    load = f"1,000 queued, {TENANTS} tenants, {ROWS} rows"
    figures = [
        at_most(f"deciding, per step: {load}", mean, 50, "us"),
        Figure("the same, median step", median, "us"),
        *(Figure(f"of it, {part}", us, "us") for part, us in parts.items()),
        at_most("the same with 10,000 queued", deep_mean, 50, "us"),
        Figure("a cancel, of 10,000 queued requests of one tenant", cancel_all(10_000), "us"),
    ]
    publish("scheduler_cost", "Scheduling: what deciding costs, without a device", figures, json_path())


if __name__ == "__main__":
    main()
