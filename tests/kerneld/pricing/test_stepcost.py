"""What is heard of steps becomes what steps cost, by model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.contract import RowResult, StepResult
from drivers.wire import NO_STEP
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepfit import StepTerms, StepWork, context_tokens
from kerneld.request import Request
from kerneld.rows import Flight, Part, Row
from memory.page import Space
from memory.table import PageTable
from tests.kerneld.rig import Rig, in_loop, prompt_of, running

SMALL = StepTerms(0.002, 0.0001, 0.0001, 1e-8)
LARGE = StepTerms(0.010, 0.002, 0.0005, 1e-7)


def part_of(request: Request, slot: int, position: int, num_first: int) -> Part:
    row = Row(request, slot, PageTable("lab", (Space(1, 4, 256, 512),)), position, position + num_first, 10)
    return Part(row, num_first, num_first, 1)


def result_of(*slots: int, seconds: float) -> StepResult:
    return StepResult(tuple(RowResult(slot, (7,)) for slot in slots), seconds, len(slots))


def test_the_rows_of_a_step_are_its_work(make_request: Callable[..., Request]) -> None:
    heard, told = StepCosts(), StepCosts()
    parts = {0: part_of(make_request(), 0, 100, 1), 1: part_of(make_request(), 1, 20, 30)}

    for _ in range(4):
        heard.heard(Flight(1, 2, parts), 0, False, result_of(0, 1, seconds=0.05))
        told.note({"m": StepWork(31, 2, 100 + context_tokens(20, 30))}, 0.05)
    heard.heard(Flight(1, 2, parts), 1, True, result_of(1, seconds=0.01))  # row 0 has stopped
    told.note({"m": StepWork(1, 1, 20)}, 0.01)

    works = {"m": StepWork(5, 2, 100)}
    assert heard.predict(works) == told.predict(works) is not None


def test_plans_without_steps_teach_nothing(make_request: Callable[..., Request]) -> None:
    costs = StepCosts()

    costs.heard(Flight(1, 0, {}), NO_STEP, True, StepResult((), 0.0, 0))
    costs.heard(Flight(2, 1, {0: part_of(make_request(), 0, 0, 5)}), 0, True, result_of(0, seconds=0.0))

    assert list(costs) == []


def test_a_step_of_several_models_is_taken_apart_as_expected() -> None:
    draw, costs = random.Random(1), StepCosts()
    truths = {"small": SMALL, "large": LARGE}

    def work() -> StepWork:
        rows, chunk = draw.randint(1, 16), draw.choice([0, 0, draw.randint(2, 200)])
        return StepWork(rows + chunk, rows + (chunk > 0), rows * draw.randint(10, 1000) + context_tokens(0, chunk))

    for idx in range(1200):
        names = [["small"], ["large"], ["small", "large"]][idx % 3]
        works = {name: work() for name in names}
        costs.note(works, sum(truths[name].seconds(works[name]) for name in names) * draw.gauss(1.0, 0.03))

    probe = StepWork(40, 9, 4000)
    for name, truth in truths.items():
        assert costs.predict({name: probe}) == pytest.approx(truth.seconds(probe), rel=0.15)
    assert costs.predict(dict.fromkeys(truths, probe)) == pytest.approx(sum(truth.seconds(probe) for truth in truths.values()), rel=0.15)


def test_nothing_is_predicted_of_a_model_that_was_not_measured() -> None:
    costs = StepCosts()
    costs.know("m", 0.001)
    costs.know("adapter", 0.0)
    for _ in range(8):
        costs.note({"m": StepWork(4, 4, 40)}, 0.01)

    assert costs.predict({"m": StepWork(4, 4, 40)}) == pytest.approx(0.01, rel=0.01)
    assert costs.predict({"m": StepWork(4, 4, 40), "n": StepWork(1, 1, 0)}) is None
    assert [name for name, _fit in costs] == ["m"]
    costs.forget("m")
    assert costs.find("m") is None


@in_loop
async def test_a_daemon_learns_what_its_driver_tells(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.options = {"prefill_s": "0.002"}  # and so is every other token
    async with running(rig):
        for seed in range(4):
            await rig.infer(await rig.alloc(), prompt_of(seed, 60), 12)

        costs = rig.machine.scheduler.costs

        assert costs.predict({"m": StepWork(20, 1, context_tokens(0, 20))}) == pytest.approx(0.04, rel=0.05)
        assert costs.predict({"m": StepWork(8, 8, 8 * 50)}) == pytest.approx(0.016, rel=0.3)
