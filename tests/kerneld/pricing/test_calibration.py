"""Tariffs follow from what steps take, seldom and only where they are wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kerneld.events import TariffChanged
from kerneld.pricing.calibration import MIN_STEPS, REVISE_S, TOLERANCE, USUAL_CONTEXT, Calibration, is_off, moved, scaled, tariff_of
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepfit import StepFit, StepMix, StepTerms, StepWork, context_tokens
from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.pricing.tariffs import Tariffs
from tests.kerneld.conftest import FakeClock
from tests.kerneld.rig import Rig, in_loop, prompt_of, running

TRUTH = StepTerms(step_s=0.0123, token_s=0.00123, row_s=0.000456, context_s=7.89e-7)


class Bench:
    """A calibration whose steps are told, and whose events are heard."""

    def __init__(self, clock: FakeClock) -> None:
        self.costs, self.tariffs = StepCosts(), Tariffs()
        self.events: list[TariffChanged] = []
        self.calibration = Calibration(self.costs, self.tariffs, self.events.append, clock)
        self._draw = random.Random(1)

    def run(self, num_steps: int, factor: float = 1.0, *, has_prefill: bool = True) -> None:
        for idx in range(num_steps):
            chunk = self._draw.randint(50, 300) if has_prefill and idx % 3 == 0 else 0
            work = StepWork(
                8 + chunk, 8 + (chunk > 0), 8 * self._draw.randint(0, 2000) + context_tokens(self._draw.randint(0, 2000), chunk)
            )
            self.costs.note({"m": work}, factor * TRUTH.seconds(work))


def test_prices_are_what_tokens_take_in_two_digits() -> None:
    fit = StepFit()
    fit.terms, fit.mean_rows = TRUTH, 8.0

    assert tariff_of(fit) == Tariff(input_ns=1_200_000, cached_ns=120_000, output_ns=3_200_000, context_ns=790)


def test_nothing_is_free_but_context() -> None:
    assert tariff_of(StepFit()) == Tariff(1, 1, 1, 0)


def test_a_model_is_uncalibrated_until_it_made_enough_steps_and_read_input(clock: FakeClock) -> None:
    bench, reader = Bench(clock), Bench(clock)
    bench.run(2 * MIN_STEPS, has_prefill=False)
    reader.run(MIN_STEPS - 1)

    bench.calibration.look()
    reader.calibration.look()

    assert bench.tariffs.get("m") == reader.tariffs.get("m") == UNCALIBRATED
    reader.run(1)
    reader.calibration.look()
    [event] = reader.events
    found = reader.tariffs.get("m")
    assert event == TariffChanged("m", found.input_ns, found.cached_ns, found.output_ns, found.context_ns)
    assert found.input_ns == pytest.approx(1_230_000, rel=0.1)
    assert found.output_ns == pytest.approx(3_223_500, rel=0.1)


def test_prices_are_revised_once_a_minute_at_most_and_only_where_they_are_wrong(clock: FakeClock) -> None:
    bench = Bench(clock)
    bench.run(200)
    bench.calibration.look()
    first = bench.tariffs.get("m")

    bench.run(600, factor=1.15)
    clock.advance(REVISE_S)
    bench.calibration.look()  # near enough
    bench.run(1200, factor=3.0)
    bench.calibration.look()  # too early
    assert (bench.tariffs.get("m"), len(bench.events)) == (first, 1)

    clock.advance(REVISE_S)
    bench.calibration.look()
    assert bench.tariffs.get("m").input_ns == pytest.approx(3 * first.input_ns, rel=TOLERANCE)
    assert len(bench.events) == 2


def test_a_price_moves_by_half_at_most_against_the_others() -> None:
    known = Tariff(100_000, 10_000, 400_000, 100)

    assert moved(known, Tariff(1_000, 100, 9_000_000, 50_000)) == Tariff(67_000, 6_700, 600_000, 200)
    assert moved(known, Tariff(110_000, 11_000, 390_000, 0)) == Tariff(110_000, 11_000, 390_000, 67)


def test_context_that_was_free_begins_with_half_of_what_input_costs() -> None:
    tariff = moved(Tariff(102_400, 10_240, 400_000, 0), Tariff(102_400, 10_240, 400_000, 5_300))

    assert tariff.context_ns * USUAL_CONTEXT == 102_400 / 2


def test_what_was_computed_lately_costs_what_it_took() -> None:
    mix = StepMix(input_tokens=1000, output_tokens=500, context_tokens=1_000_000, seconds=0.8)

    tariff = scaled(Tariff(100_000, 10_000, 400_000, 100), mix)

    assert tariff == Tariff(200_000, 20_000, 800_000, 200)
    assert scaled(tariff, StepMix()) == tariff, "nothing was computed"


def test_a_removed_model_is_measured_anew(clock: FakeClock) -> None:
    bench = Bench(clock)
    bench.run(200)
    bench.calibration.look()

    bench.calibration.forget("m")
    bench.calibration.look()

    assert (bench.tariffs.get("m"), len(bench.events)) == (UNCALIBRATED, 1)


@pytest.mark.parametrize(
    ("fresh", "is_wrong"),
    [
        (Tariff(125, 10, 1000, 0), False),
        (Tariff(126, 10, 1000, 0), True),
        (Tariff(100, 10, 749, 0), True),
        (Tariff(100, 10, 1000, 1), True),  # at a thousand tokens it counts
    ],
)
def test_a_price_is_off_by_more_than_a_quarter(fresh: Tariff, is_wrong: bool) -> None:
    assert is_off(Tariff(100, 10, 1000, 0), fresh) is is_wrong


@in_loop
async def test_a_second_of_a_busy_device_is_charged_as_a_second(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.options = {"prefill_s": "0.002"}  # seconds of the device are what its driver tells
    async with running(rig):
        machine = rig.machine
        contexts = [await rig.alloc() for _ in range(6)]
        for seed, context in enumerate(contexts):
            await rig.infer(context, prompt_of(seed, 40), 30)
        machine.calibration.look()
        told_s = 0.0

        def note(_num_prefill: int, _num_output: int, compute_s: float) -> None:
            nonlocal told_s
            told_s += compute_s

        machine.devices.first.dispatcher.on_progress = note
        before = machine.scheduler.shares.service("lab")
        for task in [rig.begin(await rig.alloc(), prompt_of(50 + seed, 40 + seed), 25) for seed in range(8)]:
            await task

        charged = machine.scheduler.shares.service("lab") - before

        assert machine.scheduler.charging.tariffs.get("m") != UNCALIBRATED
        assert charged == pytest.approx(told_s * 1e6, rel=0.1)
