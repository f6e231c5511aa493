"""What preemption makes of the bound (ARCHITECTURE.md, section "Fair shares", theorem 5), with the real scheduler over a small device."""

from __future__ import annotations

import random
from fractions import Fraction

from hypothesis import given, settings, target
from hypothesis import strategies as st

from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.forecast import Forecast
from kerneld.request import Request
from tests.kerneld.fairness_rig import BACKLOG, NUM_ROWS, Device, Gaps, Source, make_shares, run

NUM_RUNS = 400 if settings().max_examples > 200 else 40
TOKEN_US = 20
MAX_INPUT, MAX_OUTPUT = 10, 300
POLICY = SchedulerPolicy(min_service_tokens=6, preempt_lag_us=200, courtesy_us=0)
DELAY = 3  # steps between the decision that a row gives way and its last token


class _Unforeseen(Forecast):
    """Expects nothing, so that nothing is prepaid."""

    def of(self, tenant: str) -> int:
        """Nothing is known."""
        return 0


class _SlowDevice(Device):
    """A row that gives way generates on for some steps, as with plans that are on their way; nobody is seated meanwhile."""

    def __init__(self, shares: FairShare) -> None:
        super().__init__(shares, policy=POLICY, may_preempt=True)
        self.leaving: tuple[Request, int] | None = None

    def seat(self) -> None:
        """Let the one that leaves leave when it is time."""
        if self.leaving is not None:
            request, last_step = self.leaving
            if request in self.running:
                if self.steps <= last_step:
                    return
                super().preempt(request)
            self.leaving = None
        super().seat()

    def preempt(self, request: Request) -> None:
        """It leaves after the delay."""
        self.leaving = (request, self.steps + DELAY - 1)


def bound_us(device: Device) -> Fraction:
    """G of theorem 5 at weight 1, where nothing is prepaid: a lead that is tolerated, and what rows generate before they give way."""
    least_weight = min(node.weight for node in device.shares._tree)
    lead_us = least_weight * POLICY.preempt_lag_us + device.dearest.input_us
    late_tokens = POLICY.min_service_tokens + DELAY * NUM_ROWS  # one after the other gives way
    return Fraction(lead_us + (NUM_ROWS * late_tokens + 1) * TOKEN_US)


def run_hogs(device: Device, weights: dict[str, int], seed: int, num_steps: int) -> tuple[Gaps, Gaps]:
    """Tenants that always have requests in line, of long or of short outputs: the gaps among those below the root, and all gaps."""
    device.scheduler.charging.forecast = _Unforeseen()
    draw, gaps = random.Random(seed), (Gaps(device.shares, only_root=True), Gaps(device.shares))
    device.watchers += [each.look for each in gaps]
    run(device, [source(draw, tenant) for tenant in weights], draw, num_steps)
    return gaps


def source(draw: random.Random, tenant: str) -> Source:
    """A hog of long or of short outputs."""
    return Source(tenant, BACKLOG, 1, 1, MAX_INPUT, draw.choice((10, MAX_OUTPUT)), is_erratic=draw.random() < 0.3, cancels=0.1)


def random_weights(seed: int) -> dict[str, int]:
    """Two to four tenants, some of them one group."""
    draw = random.Random(seed)
    paths = draw.choice((["a", "b"], ["a", "b", "c"], ["a", "b", "g/c", "g/d"], ["g/a", "g/b", "h/c", "h/d"]))
    return {path: draw.randint(1, 4) for path in paths}


@settings(max_examples=NUM_RUNS)
@given(seed=st.integers(0, 2**32 - 1))
def test_with_preemption_the_bound_is_the_lead_and_what_rows_generate_before_they_give_way(seed: int) -> None:
    device = _SlowDevice(make_shares(random_weights(seed)))

    at_root, anywhere = run_hogs(device, random_weights(seed), seed, 400)

    ratio = at_root.worst_ratio / (2 * bound_us(device))
    target(float(ratio))
    assert ratio <= 1, f"worst / bound = {float(ratio):.3f}"
    assert anywhere.worst_ratio <= 2 * device.dearest.u_us


def test_the_bound_with_preemption_does_not_hold_without() -> None:
    waiting = [Device(make_shares({"a": 1, "b": 1})) for _ in range(4)]
    preempting = [_SlowDevice(make_shares({"a": 1, "b": 1})) for _ in range(4)]

    gaps = [
        [run_hogs(device, {"a": 1, "b": 1}, seed, 1500)[0].worst_ratio for seed, device in enumerate(each)]
        for each in (waiting, preempting)
    ]

    assert max(gaps[0]) > 2 * bound_us(waiting[0])
    assert max(gaps[1]) <= 2 * bound_us(preempting[0])
    assert all(device.num_preemptions > 0 for device in preempting[:2])
