"""Steps are sized so that running rows go on in time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepfit import StepTerms, StepWork, context_tokens
from kerneld.pricing.stepsize import CAUTIOUS_PREFILL_TOKENS, MIN_PREFILL_TOKENS, StepSizer
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.step import RowNeed

MakeRequest = Callable[..., Request]
TERMS = StepTerms(step_s=0.008, token_s=0.001, row_s=0.0005, context_s=1e-6)


def sizer_of(policy: SchedulerPolicy | None = None, **models: StepTerms) -> StepSizer:
    """A sizer that knows what steps of these models cost."""
    costs = StepCosts()
    for model, terms in models.items():
        teach(costs, model, terms)
    return StepSizer(costs, policy or SchedulerPolicy())


def teach(costs: StepCosts, model: str, terms: StepTerms) -> None:
    costs.know(model, 1.0)
    for _ in range(4):
        costs.note({model: StepWork(1, 1, 0)}, 1.0)
    fit = costs.find(model)
    assert fit is not None
    fit.terms = terms


def decoding(make_request: MakeRequest, count: int, position: int = 100, model: str = "m") -> list[RowNeed]:
    return [RowNeed(make_request(model=model), 1, 100, position) for _ in range(count)]


def prefill(make_request: MakeRequest, num_pending: int, position: int = 0, model: str = "m") -> RowNeed:
    return RowNeed(make_request(model=model), num_pending, 100, position)


def step_s(terms: StepTerms, rows: list[RowNeed], num_prefill: int, position: int) -> float:
    context = sum(row.position for row in rows) + context_tokens(position, num_prefill)
    return terms.seconds(StepWork(len(rows) + num_prefill, len(rows) + (num_prefill > 0), context))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a factory has nothing to reset
@given(
    count=st.integers(1, 32),
    position=st.integers(0, 4000),
    token=st.floats(1e-5, 0.01),
    context=st.sampled_from([0.0, 1e-9, 1e-6]),
    gap_factor=st.floats(1.1, 4.0),
)
def test_a_step_with_input_is_as_long_as_it_may_be_and_no_longer(
    make_request: MakeRequest, count: int, position: int, token: float, context: float, gap_factor: float
) -> None:
    terms = StepTerms(0.01, token, 0.0005, context)
    rows = decoding(make_request, count)

    budget = sizer_of(SchedulerPolicy(max_step_tokens=512, gap_factor=gap_factor), m=terms).budget(
        [*rows, prefill(make_request, 4000, position)]
    )

    num_prefill, alone_s = budget - count, step_s(terms, rows, 0, 0)
    assert MIN_PREFILL_TOKENS <= num_prefill <= 512 - count
    if num_prefill > MIN_PREFILL_TOKENS:
        assert step_s(terms, rows, num_prefill, position) <= gap_factor * alone_s * 1.000001
    if budget < 512:
        assert step_s(terms, rows, num_prefill + 1, position) > gap_factor * alone_s


def test_later_chunks_of_a_long_prompt_are_smaller(make_request: MakeRequest) -> None:
    sizer = sizer_of(SchedulerPolicy(gap_factor=4.0), m=TERMS)

    sizes = [sizer.budget([*decoding(make_request, 16), prefill(make_request, 4000, at)]) - 16 for at in (0, 1000, 2000, 3000)]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1] > 2 * MIN_PREFILL_TOKENS


def test_a_pause_that_nobody_minds_may_be_used_up(make_request: MakeRequest) -> None:
    rows = decoding(make_request, 4)
    bound_s = 0.040

    budget = sizer_of(SchedulerPolicy(gap_factor=1.1, token_gap_s=bound_s), m=TERMS).budget([*rows, prefill(make_request, 1000)])

    assert step_s(TERMS, rows, budget - 4, 0) <= bound_s < step_s(TERMS, rows, budget - 3, 0)


def test_a_prefill_gets_on_whatever_is_asked(make_request: MakeRequest) -> None:
    sizer = sizer_of(SchedulerPolicy(gap_factor=1.0), m=TERMS)

    assert sizer.budget([*decoding(make_request, 32), prefill(make_request, 1000)]) == 32 + MIN_PREFILL_TOKENS


def test_several_prefills_share_the_room_in_order(make_request: MakeRequest) -> None:
    sizer, rows = sizer_of(SchedulerPolicy(gap_factor=4.0), m=TERMS), decoding(make_request, 8)
    alone = sizer.budget([*rows, prefill(make_request, 1000)])

    together = sizer.budget([*rows, prefill(make_request, 5), prefill(make_request, 5), prefill(make_request, 1000)])

    assert alone - 3 <= together < alone  # each row costs something besides its tokens


@pytest.mark.parametrize("rows_wanted", [(0, 1), (3, 0), (0, 0)])
def test_where_nobody_waits_for_anybody_a_step_may_be_full(make_request: MakeRequest, rows_wanted: tuple[int, int]) -> None:
    num_decoding, num_prefills = rows_wanted
    rows = decoding(make_request, num_decoding) + [prefill(make_request, 1000) for _ in range(num_prefills)]

    assert sizer_of(SchedulerPolicy(max_step_tokens=300), m=TERMS).budget(rows) == 300


def test_until_a_model_was_measured_chunks_are_small(make_request: MakeRequest) -> None:
    rows = decoding(make_request, 4)
    unknown = sizer_of().budget([*rows, prefill(make_request, 1000)])
    other = sizer_of(m=TERMS).budget([*rows, prefill(make_request, 1000, model="n")])

    assert unknown == other == 4 + CAUTIOUS_PREFILL_TOKENS


def test_a_step_is_never_larger_than_the_device_takes(make_request: MakeRequest) -> None:
    sizer = sizer_of(SchedulerPolicy(max_step_tokens=40, gap_factor=100.0), m=TERMS)

    assert sizer.budget([*decoding(make_request, 32), prefill(make_request, 1000)]) == 40


def test_input_that_seems_to_cost_nothing_fills_the_step(make_request: MakeRequest) -> None:
    sizer = sizer_of(m=StepTerms(step_s=0.01))

    assert sizer.budget([*decoding(make_request, 2), prefill(make_request, 5000)]) == 512


def test_rows_of_a_second_model_pay_for_its_part_of_the_step(make_request: MakeRequest) -> None:
    sizer = sizer_of(SchedulerPolicy(gap_factor=2.0), m=TERMS, n=TERMS)
    rows = decoding(make_request, 16)

    same = sizer.budget([*rows, prefill(make_request, 1000)])
    other = sizer.budget([*rows, prefill(make_request, 1000, model="n")])

    assert other == same - round(TERMS.step_s / TERMS.token_s)


@pytest.mark.parametrize(("seconds", "num_steps"), [(0.001, 8), (0.1, 2), (0.2, 1), (5.0, 1)])
def test_quanta_of_slow_models_are_short(make_request: MakeRequest, seconds: float, num_steps: int) -> None:
    sizer = sizer_of(SchedulerPolicy(max_steps=8, max_quantum_s=0.25), m=StepTerms(step_s=seconds))

    assert sizer.most_steps(decoding(make_request, 3)) == num_steps


def test_quanta_of_unmeasured_models_are_bounded_by_the_policy_alone(make_request: MakeRequest) -> None:
    assert sizer_of(SchedulerPolicy(max_steps=5)).most_steps(decoding(make_request, 3)) == 5


def test_the_scheduler_plans_by_it(make_request: MakeRequest) -> None:
    scheduler = Scheduler(FairShare(), SchedulerPolicy(max_quantum_s=0.25))
    teach(scheduler.sizer.costs, "m", StepTerms(step_s=0.1, token_s=0.005))
    rows = decoding(make_request, 2)

    alone = [scheduler.plan_step(rows).num_steps for _ in range(4)]
    beside = scheduler.plan_step([*rows, prefill(make_request, 1000)])

    assert alone == [2, 2, 2, 2]
    assert (beside.num_steps, beside.num_tokens) == (1, 2 + 17)  # 0.8 * 0.110 / 0.005


@pytest.mark.parametrize("seed", range(3))
def test_a_long_prompt_keeps_nobody_waiting_whose_cost_is_learned_on_the_way(make_request: MakeRequest, seed: int) -> None:
    device = Device(make_request, StepTerms(0.018, 0.0005, 0.0003, 7e-7), seed)

    gaps = device.read(4000)

    assert gaps[len(gaps) * 99 // 100] < 2.0
    assert sum(gaps) / len(gaps) > 1.6  # and the room is used


def test_a_device_that_became_slower_unseen_holds_few_steps_up(make_request: MakeRequest) -> None:
    device = Device(make_request, StepTerms(0.018, 0.0005, 0.0003, 7e-7), 7)
    device.read(4000)
    device.terms = StepTerms(*(5 * term for term in device.terms))
    for _ in range(300):
        device.step(0, 0)  # only rows that generate tell of it

    gaps = device.read(1000)

    assert sum(gap > 3.0 for gap in gaps) <= 4


class Device:
    """Sixteen rows that generate, and prompts beside them; steps take what `terms` say, more or less."""

    def __init__(self, make_request: MakeRequest, terms: StepTerms, seed: int) -> None:
        self.terms = terms
        self._draw = random.Random(seed)
        self._sizer = StepSizer(StepCosts(), SchedulerPolicy())
        self._sizer.costs.know("m", terms.seconds(StepWork(64, 1, 2016)) / 64)
        self._request = make_request()
        self._position = 64
        for _ in range(160):
            self.step(0, 0)

    def step(self, num_prefill: int, position: int) -> float:
        """Make a step with so many tokens of input; returns how many times longer it is than without."""
        self._position += 1
        alone = StepWork(16, 16, 16 * self._position)
        work = StepWork(16 + num_prefill, 16 + (num_prefill > 0), alone.context_tokens + context_tokens(position, num_prefill))
        self._sizer.costs.note({"m": work}, self.terms.seconds(work) * self._draw.gauss(1.0, 0.05))
        return self.terms.seconds(work) / self.terms.seconds(alone)

    def read(self, num_tokens: int) -> list[float]:
        """Read a prompt, in as many steps as that takes; returns how many times longer each one is than without, shortest first."""
        done, gaps = 0, []
        while done < num_tokens:
            rows = [RowNeed(self._request, 1, 100, self._position)] * 16
            budget = self._sizer.budget([*rows, RowNeed(self._request, max(num_tokens - done, 2), 100, done)])
            gaps.append(self.step(budget - 16, done))
            done += budget - 16
        return sorted(gaps)
