"""The bounds of fairness (ARCHITECTURE.md, section "Fair shares"), with the real scheduler over a small simulated device.

Each bound is checked twice: that it holds, and that a scheduler without the rule behind it breaks it.
"""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from kerneld.calls import Priority
from kerneld.errors import WrongState
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.forecast import Forecast
from kerneld.request import Request
from kerneld.sharenode import ShareNode, ShareRules
from kerneld.sharetree import ShareTree
from tests.kerneld.fairness_rig import BACKLOG, MODEL, Device, Gaps, Job, Source, hog, make_shares, random_source, run, run_random_tree

NUM_TREES = 2_000 if settings().max_examples > 200 else 200
SEEDS = st.integers(0, 2**32 - 1)
SLICES_US = (0, 300, 1200)
LAG_US = 500


@settings(max_examples=NUM_TREES)
@given(seed=SEEDS)
def test_the_gap_between_siblings_stays_within_the_bound_in_every_tree(seed: int) -> None:
    outcome = run_random_tree(seed)
    target(outcome.ratio)

    assert outcome.gap_us <= outcome.bound_us, f"worst / bound = {outcome.ratio:.3f}"
    assert 2 * outcome.counter_gap_us <= outcome.bound_us, "counters of active siblings are further apart than U / w_min"


def test_random_trees_come_near_the_bound() -> None:
    outcomes = [run_random_tree(seed) for seed in (18, 53, 3, 36)]

    assert max(outcome.ratio for outcome in outcomes) > 0.4
    assert all(outcome.num_pairs > 0 for outcome in outcomes)


def test_shares_follow_weights_within_two_percent() -> None:
    weights = {"a": 1, "b": 2, "c": 3, "d": 4}
    device = Device(make_shares(weights))
    gaps = Gaps(device.shares)
    device.watchers.append(gaps.look)

    run(device, [hog(tenant) for tenant in weights], random.Random(1), 20_000)

    assert gaps.worst_ratio <= 2 * device.dearest.u_us  # it does not grow with time
    total = sum(device.shares.service(tenant) for tenant in weights)
    for tenant, weight in weights.items():
        assert abs(device.shares.service(tenant) / total - weight / 10) <= 0.02 * weight / 10


class _Wild(Forecast):
    """Expects anything: nothing, a little, more than can come."""

    draw = random.Random(5)

    def of(self, tenant: str) -> int:
        """Never the same."""
        return self.draw.choice((0, 0, 5, 40, 1_000_000))


def with_wild_forecast(shares: FairShare, capacity: int) -> Device:
    """A device whose forecasts are worth nothing, so that much is prepaid that never comes."""
    device = Device(shares, capacity)
    device.scheduler.charging.forecast = _Wild()
    return device


@settings(max_examples=NUM_TREES // 4)
@given(seed=SEEDS)
def test_no_forecast_breaks_the_bound(seed: int) -> None:
    _Wild.draw = random.Random(seed)
    outcome = run_random_tree(seed, make=with_wild_forecast)
    target(outcome.ratio)

    assert outcome.gap_us <= outcome.bound_us
    assert 2 * outcome.counter_gap_us <= outcome.bound_us


# ---------------------------------------------------------------------------------------------------------------------- the lift


class _SleepyNode(ShareNode):
    """A node that is not lifted when it wakes."""

    __slots__ = ()

    def lift(self) -> None:
        """Stay where it is."""


def shares_without_lift() -> FairShare:
    """Accounts in which who slept is owed the service that it never asked for."""
    shares = FairShare()
    shares._tree = ShareTree(ShareRules(), _SleepyNode)
    return shares


def worst_after_sleep(shares: FairShare) -> float:
    """One tenant works while another sleeps; then both work: the largest gap while both are queued, of the bound."""
    device = Device(make_shares({"awake": 1, "sleeper": 1}, shares))
    gaps = Gaps(shares)
    device.watchers.append(gaps.look)
    sleeper = Source("sleeper", BACKLOG, 1, 1, 40, 30, is_erratic=False, cancels=0.0, first_step=2500)
    run(device, [hog("awake"), sleeper], random.Random(1), 6000)
    return float(gaps.worst_ratio / (2 * device.dearest.u_us))


def test_a_sleeper_is_owed_nothing() -> None:
    assert worst_after_sleep(FairShare()) <= 1


def test_without_the_lift_a_sleeper_would_break_the_bound() -> None:
    assert worst_after_sleep(shares_without_lift()) > 2


def test_without_the_lift_random_trees_break_the_bound() -> None:
    def broken(shares: FairShare, capacity: int) -> Device:
        shares._tree = make_shares({node.path: node.weight for node in shares._tree if node.path}, shares_without_lift())._tree
        return Device(shares, capacity)

    outcomes = [run_random_tree(seed, 400, broken) for seed in range(25)]

    assert max(outcome.ratio for outcome in outcomes) > 1


# ------------------------------------------------------------------------------------------------------------- nobody slips past


class _SlippingDevice(Device):
    """Where the winner does not fit, any request that does slips past it."""

    def on_misfit(self, request: Request) -> None:
        """Seat whoever fits."""
        for other in [each for queue in self.waiting.values() for each in queue]:
            if self.fits(other):
                self.admit(other)


def worst_of_large_beside_small(device: Device) -> float:
    """A tenant of large requests beside one of small ones in an arena that just holds a large one: the largest gap, of the bound."""
    gaps, draw = Gaps(device.shares), random.Random(2)
    device.watchers.append(gaps.look)
    for _ in range(4000):
        while len(device.waiting.get("large", ())) < BACKLOG:
            device.arrive(Job("large", 60, 40, 40))
        while len(device.waiting.get("small", ())) < BACKLOG:
            num_output = draw.randint(2, 8)
            device.arrive(Job("small", 1, num_output, num_output))
        device.step()
    return float(gaps.worst_ratio / (2 * device.dearest.u_us))


def test_small_requests_do_not_pass_a_large_one() -> None:
    assert worst_of_large_beside_small(Device(make_shares({"small": 1, "large": 1}), capacity=100)) <= 1


def test_with_slip_past_a_large_request_would_starve() -> None:
    assert worst_of_large_beside_small(_SlippingDevice(make_shares({"small": 1, "large": 1}), capacity=100)) > 2


# ---------------------------------------------------------------------------------------------------------- classes and locality


@settings(max_examples=NUM_TREES // 4)
@given(seed=SEEDS)
def test_classes_widen_the_bound_by_a_slice_and_no_more(seed: int) -> None:
    draw = random.Random(seed)
    weights = {f"t{i}": draw.randint(1, 4) for i in range(draw.randint(2, 4))}
    device = Device(make_shares(weights, FairShare(SLICES_US)))
    gaps = Gaps(device.shares)
    device.watchers.append(gaps.look)
    sources = [random_source(draw, tenant) for tenant in weights]
    for source in sources:
        source.priorities = draw.choice([[Priority.INTERACTIVE], [Priority.BATCH], [Priority.IDLE], list(Priority)])

    run(device, sources, draw, 150)

    ratio = gaps.worst_ratio / (2 * (device.dearest.u_us + SLICES_US[-1]))
    target(float(ratio))
    assert ratio <= 1


def test_a_stricter_class_waits_less_for_the_same_share() -> None:
    device = Device(make_shares({"quick": 1, "patient": 1}, FairShare((0, 4000, 16000))))
    quick = Source("quick", BACKLOG, 1, 1, 10, 10, is_erratic=False, cancels=0.0)
    patient = Source("patient", BACKLOG, 1, 1, 10, 10, is_erratic=False, cancels=0.0, priorities=[Priority.IDLE])

    run(device, [quick, patient], random.Random(3), 3000)

    quick_us, patient_us = device.shares.service("quick"), device.shares.service("patient")
    assert 0 < quick_us - patient_us <= 16000 + 2 * device.dearest.u_us
    assert device.first_token_waits["quick"][0] <= device.first_token_waits["patient"][0]


def test_whoever_changes_class_all_the_time_gains_no_share() -> None:
    device = Device(make_shares({"gamer": 1, "plain": 1}, FairShare(SLICES_US)))
    gamer = Source("gamer", BACKLOG, 1, 1, 20, 20, is_erratic=False, cancels=0.0, priorities=list(Priority))

    run(device, [gamer, hog("plain", 20, 20)], random.Random(4), 10_000)

    gained = device.shares.service("gamer") - device.shares.service("plain")
    assert abs(gained) <= 2 * (device.dearest.u_us + SLICES_US[-1])


class _LocalDevice(Device):
    """Takes any tenant within a lag of the pick, at random: the worst that a preference for cached prefixes could do."""

    draw = random.Random(5)

    def candidate(self) -> Request | None:
        """The first request of one of those that are near."""
        near = self.shares.near(LAG_US, 8)
        return min(self.waiting[self.draw.choice(near)], key=lambda request: (request.arrival, request.id)) if near else None


@settings(max_examples=NUM_TREES // 4)
@given(seed=SEEDS)
def test_a_preference_within_a_lag_widens_the_bound_by_the_lag(seed: int) -> None:
    _LocalDevice.draw = random.Random(seed)
    outcome = run_random_tree(seed, make=_LocalDevice)
    target(outcome.ratio)

    # The lag is virtual time: at weight w it is w * LAG_US of service, and the outcome is scaled by the least weight, 4 at most.
    assert outcome.gap_us <= outcome.bound_us + 2 * 4 * LAG_US


def courteous(shares: FairShare, capacity: int) -> Device:
    """A device on which who asks for little may be ahead by the lag of who has many rows."""
    return Device(shares, capacity, SchedulerPolicy(courtesy_us=LAG_US))


@settings(max_examples=NUM_TREES // 4)
@given(seed=SEEDS)
def test_courtesy_within_a_lag_widens_the_bound_by_the_lag(seed: int) -> None:
    outcome = run_random_tree(seed, make=courteous)
    target(outcome.ratio)

    assert outcome.gap_us <= outcome.bound_us + 2 * 4 * LAG_US  # as above


# --------------------------------------------------------------------------------------------------------------- who waits for whom


def test_a_light_tenant_waits_little_beside_63_hogs() -> None:
    hogs = [f"hog{i}" for i in range(63)]
    device = Device(make_shares(dict.fromkeys([*hogs, "light"], 1)))
    draw = random.Random(6)
    sources = [hog(tenant) for tenant in hogs]
    for _ in range(20):
        run(device, sources, draw, 60)
        device.arrive(Job("light", 5, 5, 5))
    run(device, sources, draw, 600)

    waits = device.first_token_waits["light"]
    slowest_us = 20  # service per step, at least: one row that generates
    assert len(waits) == 20
    assert max(waits) <= 2 * 63 * device.dearest.u_us / slowest_us
    assert max(waits) <= 100  # in fact it is next when every hog has had a turn


@pytest.mark.parametrize("many", [1, 8, 64])
def test_the_unit_is_the_person_however_many_requests_it_has(many: int) -> None:
    device = Device(make_shares({"one": 1, "many": 1}))
    flood = Source("many", BACKLOG * many, 1, 1, 20, 20, is_erratic=False, cancels=0.0)

    run(device, [hog("one", 20, 20), flood], random.Random(7), 5000)

    assert abs(device.shares.service("one") - device.shares.service("many")) <= 2 * device.dearest.u_us


def test_a_person_with_many_leaves_below_is_one_to_the_others() -> None:
    keys = [f"lab/eve/key{i}" for i in range(20)]
    device = Device(make_shares({"lab/ann": 1, **dict.fromkeys(keys, 1)}))

    run(device, [hog("lab/ann"), *[hog(key) for key in keys]], random.Random(8), 3000)

    assert abs(device.shares.service("lab/ann") - device.shares.service("lab/eve")) <= 2 * device.dearest.u_us


def test_who_cancels_before_the_first_token_has_paid() -> None:
    device = Device(make_shares({"honest": 1, "quitter": 1}))
    gaps = Gaps(device.shares)
    device.watchers.append(gaps.look)
    quitter = Source("quitter", BACKLOG, 1, 1, 40, 30, is_erratic=False, cancels=1.0)

    run(device, [hog("honest"), quitter], random.Random(9), 3000)

    assert gaps.worst_ratio <= 2 * device.dearest.u_us
    assert device.shares.service("quitter") > Fraction(9, 10) * device.shares.service("honest")


@pytest.mark.parametrize("is_resident", [True, False])
def test_a_tenant_with_requests_is_not_removed_wherever_they_are(is_resident: bool) -> None:
    device = Device(make_shares({"a": 1}))
    device.scheduler.set_resident(MODEL, is_resident)
    request = device.arrive(Job("a", 5, 5, 5))
    with pytest.raises(WrongState):
        device.scheduler.remove_tenant("a")
    device.scheduler.set_resident(MODEL, True)
    device.seat()
    with pytest.raises(WrongState):
        device.scheduler.remove_tenant("a")
    device.cancel(request)

    device.scheduler.remove_tenant("a")

    assert "a" not in device.shares
