"""The bounds of fairness, with the real scheduler over a simulated device: rows that generate one token per step.

Stated bound (without preemption): of two tenants that both have requests queued all the time, service per weight differs by 2U/w_min at
most, U being the larger of the dearest single input and the dearest output that the device can hold.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from drivers.contract import Sampling
from kerneld.calls import InferArgs
from kerneld.context import Context
from kerneld.fairshare import FairShare
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.sharenode import ShareNode, ShareRules
from kerneld.sharetree import ShareTree
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript

NUM_ROWS = 4
MAX_INPUT = 40
MAX_OUTPUT = 30
# Dearest single input, and the output of all rows: what can be charged to one tenant between two of its turns.
U = max(10 * MAX_INPUT, 20 * MAX_OUTPUT * NUM_ROWS)


@dataclass
class Device:
    """A device of `NUM_ROWS` rows; every tenant in `sources` always has requests waiting, as its source makes them."""

    shares: FairShare
    sources: dict[str, Callable[[], tuple[int, int]]]
    steps: int = 0
    first_token_waits: dict[str, list[int]] = field(default_factory=dict)
    _outputs: dict[str, int] = field(default_factory=dict)
    _running: list[Request] = field(default_factory=list)
    _serial: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.shares)
        self.scheduler.set_resident("m", True)

    def arrive(self, tenant: str, num_input: int, num_output: int) -> None:
        number = next(self._serial)
        context = Context(id=f"c{number}", owner="o", tenant=tenant, model="m", fingerprint="", seed=0, created_at=0.0)
        context.tokens.extend([0] * num_input)
        log = OutputLog(num_input, lambda: 0.0)
        request = Request(
            id=f"r{number}",
            context=context,
            args=InferArgs(context.id),
            sampling=Sampling(),
            num_input=num_input,
            output_start=num_input,
            max_tokens=MAX_OUTPUT,
            arrival=float(self.steps),
            log=log,
            transcript=Transcript(log, None),
        )
        self._outputs[request.id] = num_output
        self.scheduler.enqueue(request)

    def step(self) -> None:
        self.steps += 1
        for tenant, source in self.sources.items():
            while self.scheduler.waiting.of(tenant) < 2:
                self.arrive(tenant, *source())
        while len(self._running) < NUM_ROWS and (request := self.scheduler.next_candidate()) is not None:
            self.scheduler.admit(request, 0)
            self._running.append(request)
            self.first_token_waits.setdefault(request.tenant, []).append(self.steps - int(request.arrival))
        for request in list(self._running):
            request.context.tokens.append(0)
            self.scheduler.charge_output(request, 1)
            if request.num_generated >= self._outputs[request.id]:
                self.scheduler.finish(request)
                self._running.remove(request)

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()


def make_shares(weights: dict[str, int], shares: FairShare | None = None) -> FairShare:
    made = shares or FairShare()
    for path, weight in weights.items():
        made.add(path, weight)
    return made


def worst_gap(device: Device, tenants: list[str], weights: dict[str, int], num_steps: int) -> float:
    """The largest difference of service per weight between two tenants, over any interval of the run."""
    lows = dict.fromkeys(itertools.combinations(tenants, 2), 0.0)
    highs = dict(lows)
    start = {tenant: device.shares.service(tenant) for tenant in tenants}
    for _ in range(num_steps):
        device.step()
        for pair in lows:
            one, other = ((device.shares.service(tenant) - start[tenant]) / weights[tenant] for tenant in pair)
            lows[pair] = min(lows[pair], one - other)
            highs[pair] = max(highs[pair], one - other)
    return max(highs[pair] - lows[pair] for pair in lows)


def random_source(seed: int) -> Callable[[], tuple[int, int]]:
    draw = random.Random(seed)
    return lambda: (draw.randint(0, MAX_INPUT), draw.randint(1, MAX_OUTPUT))


@given(weights=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 1000), num_steps=st.integers(100, 300))
def test_backlogged_tenants_stay_within_the_bound(weights: list[int], seed: int, num_steps: int) -> None:
    weight_of = {f"t{i}": weight for i, weight in enumerate(weights)}
    device = Device(make_shares(weight_of), {tenant: random_source(seed + i) for i, tenant in enumerate(weight_of)})

    gap = worst_gap(device, list(weight_of), weight_of, num_steps)

    assert gap <= 2 * U / min(weights)


@given(seed=st.integers(0, 1000))
def test_the_bound_holds_at_each_level_of_a_tree(seed: int) -> None:
    weight_of = {"lab": 2, "solo": 1, "lab/ann": 1, "lab/bob": 3}
    device = Device(make_shares(weight_of), {path: random_source(seed + i) for i, path in enumerate(["lab/ann", "lab/bob", "solo"])})

    device.run(50)
    gaps = [worst_gap(device, ["lab", "solo"], weight_of, 150), worst_gap(device, ["lab/ann", "lab/bob"], weight_of, 150)]

    assert all(gap <= 2 * U for gap in gaps)


def test_shares_follow_weights_within_two_percent() -> None:
    weight_of = {"a": 1, "b": 2, "c": 3, "d": 4}
    device = Device(make_shares(weight_of), {tenant: random_source(i) for i, tenant in enumerate(weight_of)})

    gap = worst_gap(device, list(weight_of), weight_of, 20_000)

    assert gap <= 2 * U  # it does not grow with time
    total = sum(device.shares.service(tenant) for tenant in weight_of)
    for tenant, weight in weight_of.items():
        assert abs(device.shares.service(tenant) / total - weight / 10) <= 0.02 * weight / 10


class _SleepyNode(ShareNode):
    """A node that is not lifted when it wakes: what the lift is there to prevent."""

    __slots__ = ()

    def lift(self) -> None:
        """Stay where it is."""


class _SharesWithoutLift(FairShare):
    def __init__(self) -> None:
        super().__init__()
        self._tree = ShareTree(ShareRules(), _SleepyNode)


def gap_after_sleep(shares: FairShare) -> float:
    """One tenant works while another sleeps; then both work: the largest gap while both have requests queued."""
    weights = {"awake": 1, "sleeper": 1}
    device = Device(make_shares(weights, shares), {"awake": random_source(1)})
    device.run(1000)
    device.sources["sleeper"] = random_source(2)
    return worst_gap(device, list(weights), weights, 600)


def test_without_the_lift_a_sleeper_would_break_the_bound() -> None:
    assert gap_after_sleep(FairShare()) <= 2 * U
    assert gap_after_sleep(_SharesWithoutLift()) > 4 * U


def test_a_light_tenant_waits_little_beside_many_hogs() -> None:
    hogs = [f"hog{i}" for i in range(15)]
    device = Device(make_shares(dict.fromkeys([*hogs, "light"], 1)), {hog: random_source(i) for i, hog in enumerate(hogs)})
    for _ in range(20):
        device.run(50)
        device.arrive("light", 5, 5)
    device.run(100)

    waits = device.first_token_waits["light"]
    assert len(waits) == 20
    assert max(waits) <= 2 * MAX_OUTPUT
