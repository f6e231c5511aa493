"""A small device under the real scheduler, and a look at what every pair of siblings got: for the bounds of fairness.

    arrive --> Scheduler --> seat: rows, and room for input + max_tokens of each --> step: one token per row --> finish

The arena holds `NUM_ROWS` requests, and `capacity` tokens of them, so that the bounds bite. Virtual time is the number of steps.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from drivers.contract import Sampling
from kerneld.calls import FinishReason, InferArgs, Priority
from kerneld.context import Context
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.tariff import UNCALIBRATED
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.sharenode import SCALE, ShareNode
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript

NUM_ROWS = 4
BACKLOG = NUM_ROWS + 2  # requests in line that no step can use up
MODEL = "m"
UNIT = 12  # the least common multiple of the weights 1 to 4: service / weight in whole numbers


@dataclass(frozen=True)
class Job:
    """A request to come."""

    tenant: str
    num_input: int
    num_output: int  # that it generates before it ends by itself
    max_tokens: int  # of output, as it was asked for
    cancel_at: int | None = None  # it is cancelled when it has generated so many tokens; 0: before its first
    priority: Priority = Priority.INTERACTIVE
    nice: int = 0

    @property
    def num_tokens(self) -> int:
        """What it needs of the arena."""
        return self.num_input + self.max_tokens

    @property
    def input_us(self) -> int:
        """What its input costs."""
        return UNCALIBRATED.input_us(0, self.num_input)

    @property
    def output_us(self) -> int:
        """What its output may cost at most."""
        return UNCALIBRATED.output_us(self.num_input, self.max_tokens)


@dataclass
class Dearest:
    """U: the most that can be charged to one tenant from one of its turns to the next, or given back to the others meanwhile."""

    capacity: int
    input_us: int = 0
    outputs_us: list[int] = field(default_factory=list)

    def add(self, job: Job) -> None:
        """A job may come."""
        self.input_us = max(self.input_us, job.input_us)
        self.outputs_us = sorted([*self.outputs_us, job.output_us], reverse=True)[:NUM_ROWS]

    @property
    def u_us(self) -> int:
        """The dearest single input, and the dearest output that the arena holds at once."""
        return self.input_us + min(sum(self.outputs_us), UNCALIBRATED.output_us(0, self.capacity))


class Device:
    """Rows that generate one token per step, seated as the scheduler says."""

    def __init__(
        self,
        shares: FairShare,
        capacity: int = 1 << 20,
        policy: SchedulerPolicy | None = None,
        may_preempt: bool = False,
        scheduler: Scheduler | None = None,
    ) -> None:
        self.shares = shares
        self.scheduler = scheduler or Scheduler(shares, policy or SchedulerPolicy(courtesy_us=0))
        self.scheduler.set_resident(MODEL, True)
        self.capacity = capacity
        self.may_preempt = may_preempt
        self.steps = 0
        self.running: list[Request] = []
        self.waiting: dict[str, list[Request]] = {}  # by tenant, in order of arrival
        self.first_token_waits: dict[str, list[int]] = {}
        self.watchers: list[Callable[[], None]] = []  # called after every charge, and whenever somebody begins or ceases to wait
        self.dearest = Dearest(capacity)
        self.num_preemptions = 0
        self._jobs: dict[str, Job] = {}
        self._serial = itertools.count()

    def job_of(self, request: Request) -> Job:
        """What a request was made from."""
        return self._jobs[request.id]

    def arrive(self, job: Job) -> Request:
        """A request comes."""
        request = make_request(job, next(self._serial), float(self.steps))
        self._jobs[request.id] = job
        self.dearest.add(job)
        self.waiting.setdefault(job.tenant, []).append(request)
        self.scheduler.enqueue(request)
        self.look()
        return request

    def cancel(self, request: Request) -> None:
        """A request ends before its time, wherever it is."""
        self._end(request, FinishReason.CANCELLED)

    def step(self) -> None:
        """Seat whom the scheduler names, and let every row generate one token."""
        self.steps += 1
        self.seat()
        for request in list(self.running):
            job = self.job_of(request)
            if job.cancel_at == request.num_generated:
                self.cancel(request)
                continue
            request.context.tokens.append(0)
            request.num_since_admission += 1
            self.scheduler.charge_output(request, 1)
            self.look()
            if request.num_generated >= job.num_output:
                self._end(request, FinishReason.STOP)

    def seat(self) -> None:
        """Admit as many as fit; the first that does not stops the line, or has others preempted."""
        while (request := self.candidate()) is not None:
            while not self.fits(request):
                victim = self.scheduler.victim(self.running, request) if self.may_preempt else None
                if victim is None:
                    self.on_misfit(request)
                    return
                self.preempt(victim)
                if victim in self.running:  # it leaves later
                    return
            self.admit(request)

    def candidate(self) -> Request | None:
        """Who is next."""
        return self.scheduler.next_candidate()

    def on_misfit(self, request: Request) -> None:
        """The one that is next does not fit: the line stops."""

    def fits(self, request: Request) -> bool:
        """Whether there is a row and room for all of a request's tokens."""
        used = sum(self.job_of(each).num_tokens for each in self.running)
        return len(self.running) < NUM_ROWS and used + self.job_of(request).num_tokens <= self.capacity

    def admit(self, request: Request) -> None:
        """Give a waiting request a row."""
        self.waiting[request.tenant].remove(request)
        self.scheduler.admit(request, 0)
        request.num_since_admission = 0
        self.running.append(request)
        self.first_token_waits.setdefault(request.tenant, []).append(self.steps - int(request.arrival))
        self.look()

    def preempt(self, request: Request) -> None:
        """Take a row away."""
        self.num_preemptions += 1
        self.running.remove(request)
        self.scheduler.preempt(request)
        self.waiting[request.tenant].append(request)
        self.look()

    def look(self) -> None:
        """Let everybody who watches look at the accounts."""
        for watcher in self.watchers:
            watcher()

    def _end(self, request: Request, reason: FinishReason) -> None:
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting[request.tenant].remove(request)
        self.scheduler.finish(request, reason)
        self.look()


class Gaps:
    """The greatest |S_i / w_i - S_j / w_j| of any two siblings over any interval in which both had requests in line, per node."""

    def __init__(self, shares: FairShare, only_root: bool = False) -> None:
        self._shares = shares
        self._only_root = only_root
        self._spans: dict[tuple[ShareNode, ShareNode], tuple[int, int]] = {}  # least and greatest difference since both were queued
        self.worst_us = Fraction(0)
        self.worst_ratio = Fraction(0)  # of a gap to 1 / w_min of its siblings
        self.num_pairs = 0

    def look(self) -> None:
        """To be called after every change."""
        tree = self._shares._tree
        for parent in [tree.root] if self._only_root else tree:
            if len(parent.children) < 2:
                continue
            for one, other in itertools.combinations(parent.children.values(), 2):
                if one.is_active and other.is_active:
                    self._note(one, other)
                else:
                    self._spans.pop((one, other), None)

    def _note(self, one: ShareNode, other: ShareNode) -> None:
        difference = one.service * UNIT // one.weight - other.service * UNIT // other.weight
        span = self._spans.get((one, other))
        if span is None:
            self.num_pairs += 1
            self._spans[one, other] = (difference, difference)
            return
        low, high = span
        if low <= difference <= high:
            return
        gap = Fraction(max(difference - low, high - difference), UNIT)
        assert one.parent is not None
        self.worst_us = max(self.worst_us, gap)
        self.worst_ratio = max(self.worst_ratio, gap * min(child.weight for child in one.parent.children.values()))
        self._spans[one, other] = (min(low, difference), max(high, difference))


def counter_gap(shares: FairShare) -> Fraction:
    """The greatest distance between counters of active siblings anywhere in the tree, in microseconds, times their least weight."""
    worst = Fraction(0)
    for parent in shares._tree:
        active = [child.counter for child in parent.children.values() if child.is_active]
        if len(active) > 1:
            worst = max(worst, Fraction(max(active) - min(active), SCALE) * min(child.weight for child in parent.children.values()))
    return worst


def check_heaps(shares: FairShare) -> None:
    """Assert that all heaps are in order, and hold every active child."""
    for parent in shares._tree:
        for heap in (parent.line, parent.least_served):
            heap.check()
            assert all(child in heap for child in parent.children.values() if child.is_active)


def make_request(job: Job, number: int, arrival: float) -> Request:
    """A request as a verb would make it."""
    context = Context(id=f"c{number}", owner="o", tenant=job.tenant, model=MODEL, fingerprint="", seed=0, created_at=0.0)
    context.tokens.extend([0] * job.num_input)
    context.priority, context.nice = job.priority, job.nice
    log = OutputLog(job.num_input, lambda: 0.0)
    return Request(
        id=f"r{number:08}",
        context=context,
        args=InferArgs(context.id),
        sampling=Sampling(),
        num_input=job.num_input,
        output_start=job.num_input,
        max_tokens=job.max_tokens,
        arrival=arrival,
        log=log,
        transcript=Transcript(log, None),
    )


def make_shares(weights: Mapping[str, int], shares: FairShare | None = None) -> FairShare:
    """A tree of these tenants."""
    made = shares or FairShare()
    for path, weight in weights.items():
        made.add(path, weight)
    return made


def random_tree(draw: random.Random) -> dict[str, int]:
    """Tenants with weights 1 to 4 in a tree of depth 3 at most."""
    weights: dict[str, int] = {}

    def grow(prefix: str, depth: int) -> None:
        for i in range(draw.randint(2, 3) if depth == 0 else draw.randint(1, 3)):
            path = f"{prefix}t{i}"
            weights[path] = draw.randint(1, 4)
            if depth < 2 and draw.random() < 0.35:
                grow(f"{path}/", depth + 1)

    grow("", 0)
    return weights


@dataclass
class Source:
    """Who sends what: the requests of one tenant."""

    tenant: str
    backlog: int  # it sees to it that so many wait; 0: it comes in bursts
    burst_every: int
    burst_size: int
    max_input: int
    max_output: int
    is_erratic: bool  # outputs are either the longest or one token, so that no forecast is right
    cancels: float  # share of requests that are cancelled
    first_step: int = 0
    priorities: Sequence[Priority] = (Priority.INTERACTIVE,)

    def job(self, draw: random.Random) -> Job:
        """The next request."""
        max_tokens = self.max_output if self.is_erratic else draw.randint(1, self.max_output)
        num_output = draw.choice((1, max_tokens)) if self.is_erratic else draw.randint(1, max_tokens)
        cancel_at = draw.randint(0, num_output - 1) if draw.random() < self.cancels else None
        return Job(self.tenant, draw.randint(0, self.max_input), num_output, max_tokens, cancel_at, draw.choice(self.priorities))

    def due(self, device: Device, draw: random.Random) -> Iterator[Job]:
        """What comes before the next step."""
        if device.steps < self.first_step:
            return
        if self.backlog:
            yield from (self.job(draw) for _ in range(self.backlog - len(device.waiting.get(self.tenant, ()))))
        elif draw.random() * self.burst_every < 1:
            yield from (self.job(draw) for _ in range(draw.randint(1, self.burst_size)))


def random_source(draw: random.Random, tenant: str) -> Source:
    """A tenant with habits of its own."""
    return Source(
        tenant=tenant,
        backlog=draw.choice((0, 2, BACKLOG, BACKLOG)),
        burst_every=draw.choice((5, 20, 60)),
        burst_size=draw.choice((1, 4, 10)),
        max_input=draw.choice((0, 10, 60)),
        max_output=draw.choice((2, 12, 40)),
        is_erratic=draw.random() < 0.4,
        cancels=draw.choice((0.0, 0.0, 0.2, 0.6)),
        first_step=draw.choice((0, 0, 50)),
    )


def hog(tenant: str, max_input: int = 40, max_output: int = 30) -> Source:
    """A tenant that always has requests in line, whoever is admitted."""
    return Source(tenant, BACKLOG, 1, 1, max_input, max_output, is_erratic=False, cancels=0.0)


def run(device: Device, sources: Iterable[Source], draw: random.Random, num_steps: int) -> None:
    """Let the sources send and the device work."""
    sources = list(sources)
    for _ in range(num_steps):
        for source in sources:
            for job in source.due(device, draw):
                device.arrive(job)
        if device.waiting and draw.random() < 0.05:  # somebody who waits goes away
            queue = draw.choice(list(device.waiting.values()))
            if len(queue) > 1:
                device.cancel(queue[-1])
        device.step()


@dataclass(frozen=True)
class Outcome:
    """What a random tree came to."""

    gap_us: Fraction  # times the least weight of its siblings
    bound_us: int  # 2 U
    counter_gap_us: Fraction  # times the least weight of its siblings
    num_pairs: int  # times that two siblings began to be queued together

    @property
    def ratio(self) -> float:
        """Of the bound, how much was used."""
        return float(self.gap_us / self.bound_us) if self.bound_us else 0.0


def run_random_tree(seed: int, num_steps: int = 150, make: Callable[[FairShare, int], Device] = Device) -> Outcome:
    """A random tree with random tenants, from its seed; every pair of siblings is watched all the time."""
    draw = random.Random(seed)
    weights = random_tree(draw)
    shares = make_shares(weights)
    device = make(shares, draw.choice((100, 160, 1 << 20)))
    gaps, counters = Gaps(shares), [Fraction(0)]
    device.watchers += [gaps.look, lambda: counters.append(max(counters.pop(), counter_gap(shares)))]
    leaves = [path for path in weights if not any(other.startswith(f"{path}/") for other in weights)]
    inner = [path for path in weights if path not in leaves and draw.random() < 0.3]
    run(device, [random_source(draw, path) for path in leaves + inner], draw, num_steps)
    return Outcome(gaps.worst_ratio, 2 * device.dearest.u_us, counters[0], gaps.num_pairs)
