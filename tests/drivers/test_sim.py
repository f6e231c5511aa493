"""The simulated device: what steps take, and the promises of a device."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.client import Device
from drivers.contract import InspectSpec, LoadSpec, Plan, RowRun, RowStart, Sampling, StepResult
from drivers.errors import DriverUnavailable, ModelUnsupported
from drivers.registry import available, create
from drivers.sim import TOKEN, SimDevice, StepCostsInvalid, StepModel
from drivers.wire import NO_STEP, PlanFailed
from memory.page import Move, Tier

COSTS = StepModel(step_s=1.0, token_s=0.1, row_s=0.01, context_s=0.001)
PAGE_BYTES = 100


class Timeline:
    """Time that goes from one callback to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object:
        heapq.heappush(self._heap, (self.now + delay, len(self._heap), callback))
        return None

    def run(self) -> None:
        while self._heap:
            self.now, _, callback = heapq.heappop(self._heap)
            callback()


class Ear:
    """Hears a device, and remembers when."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.heard: list[tuple[float, int, int, bool, StepResult]] = []

    def on_step(self, plan_seq: int, step_idx: int, is_last: bool, result: StepResult) -> None:
        self.heard.append((round(self._timeline.now, 9), plan_seq, step_idx, is_last, result))

    def on_plan_failed(self, failed: PlanFailed) -> None:
        raise AssertionError(failed)

    def on_lost(self, reason: str) -> None:
        raise AssertionError(reason)

    @property
    def steps(self) -> list[tuple[float, int, int, bool]]:
        return [item[:4] for item in self.heard]

    @property
    def tokens(self) -> list[list[tuple[int, ...]]]:
        return [[row.tokens for row in item[4].rows] for item in self.heard]


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture
def ear(timeline: Timeline) -> Ear:
    return Ear(timeline)


@pytest.fixture
def device(timeline: Timeline, ear: Ear) -> SimDevice:
    device = SimDevice(timeline, COSTS, {1: PAGE_BYTES}, bytes_per_s=1000.0)
    device.attach(ear)
    return device


def start(slot: int, num_tokens: int, position: int = 0, sampling: Sampling | None = None) -> RowStart:
    return RowStart(slot, 1, position, tuple(range(3, 3 + num_tokens)), ((0,),), sampling or Sampling())


def test_it_is_a_device(device: SimDevice) -> None:
    as_device: Device = device

    assert as_device.capabilities.driver == "sim"


def test_a_step_takes_what_the_model_says_of_tokens_rows_and_context(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    device.submit(Plan(1, 1, starts=(start(0, 3), start(1, 1, position=10)), runs=(RowRun(0, 3), RowRun(1, 1)), num_steps=1))
    timeline.run()

    seconds = 1.0 + 0.1 * 4 + 0.01 * 2 + 0.001 * (0 + 1 + 2 + 10)
    assert ear.steps == [(round(seconds, 9), 1, 0, True)]
    assert ear.heard[0][4].compute_s == pytest.approx(seconds)
    assert ear.heard[0][4].num_tokens == 4


def test_a_chunk_of_a_prefill_samples_nothing_and_is_answered(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    device.submit(Plan(1, 1, starts=(start(0, 3),), runs=(RowRun(0, 2),), num_steps=1))
    device.submit(Plan(1, 2, runs=(RowRun(0, 1),), num_steps=1))
    timeline.run()

    assert ear.tokens == [[()], [(TOKEN,)]]


def test_every_step_of_a_quantum_is_told_when_it_has_ended(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    device.submit(Plan(1, 1, starts=(start(0, 1),), runs=(RowRun(0, 1),), num_steps=3))
    timeline.run()

    assert ear.steps == [(1.11, 1, 0, False), (2.221, 1, 1, False), (3.333, 1, 2, True)]


def test_the_next_plan_begins_when_the_one_before_ends(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    device.submit(Plan(1, 1, starts=(start(0, 1),), runs=(RowRun(0, 1),), num_steps=1))
    device.submit(Plan(1, 2, runs=(RowRun(0, 1),), num_steps=1))
    timeline.run()

    assert ear.steps == [(1.11, 1, 0, True), (2.221, 2, 0, True)]


def test_a_cut_ends_a_quantum_after_the_step_that_runs(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    device.submit(Plan(1, 1, starts=(start(0, 1),), runs=(RowRun(0, 1),), num_steps=8))
    device.cut(1, NO_STEP)
    timeline.run()

    assert ear.steps == [(1.11, 1, 0, True)]


def test_a_plan_that_is_cut_before_it_begins_makes_no_step(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    device.submit(Plan(1, 1, starts=(start(0, 1),), runs=(RowRun(0, 1),), num_steps=1))
    device.submit(Plan(1, 2, runs=(RowRun(0, 1),), num_steps=4))
    device.cut(2, NO_STEP)
    timeline.run()

    assert ear.steps == [(1.11, 1, 0, True), (1.11, 2, NO_STEP, True)]


def test_a_plan_of_no_steps_takes_the_time_of_its_copies(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    up = Move(1, Tier.HOST, 0, Tier.DEVICE, 0, b"k", 16)
    down = Move(1, Tier.DEVICE, 1, Tier.HOST, 1, b"l", 16)
    device.submit(Plan(1, 1, moves=(up, up, down)))
    timeline.run()

    assert ear.steps == [(0.3, 1, NO_STEP, True)]
    assert ear.heard[0][4].copies.up_bytes == 2 * PAGE_BYTES
    assert ear.heard[0][4].copies.down_s == pytest.approx(0.1)


def test_copies_go_before_the_first_step_and_are_told_with_it(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    up = Move(1, Tier.HOST, 0, Tier.DEVICE, 0, b"k", 16)
    device.submit(Plan(1, 1, moves=(up,), starts=(start(0, 1),), runs=(RowRun(0, 1),), num_steps=2))
    timeline.run()

    assert [step[0] for step in ear.steps] == [1.21, 2.321]
    assert [item[4].copies.up_bytes for item in ear.heard] == [PAGE_BYTES, 0]


def test_a_row_stops_where_its_seed_says(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    sampling = Sampling(seed=3, stop_token_ids=(2,))
    device.submit(Plan(1, 1, starts=(start(0, 2, sampling=sampling),), runs=(RowRun(0, 2),), num_steps=8))
    device.submit(Plan(1, 2, runs=(RowRun(0, 1),), num_steps=1))  # made before anybody knew
    timeline.run()

    assert ear.tokens == [[(TOKEN,)], [(2,)], []]
    assert ear.heard[1][4].rows[0].is_stopped
    assert ear.steps[1][3], "nobody was left to go on"
    assert ear.heard[2][4].compute_s == 0.0


def test_a_slot_is_free_again_once_it_was_cleared(timeline: Timeline, device: SimDevice, ear: Ear) -> None:
    device.submit(Plan(1, 1, starts=(start(0, 1),), runs=(RowRun(0, 1),), num_steps=1))
    device.submit(Plan(1, 2, clears=(0,), starts=(start(0, 2),), runs=(RowRun(0, 2),), num_steps=1))
    timeline.run()

    assert ear.heard[1][4].num_tokens == 2


def test_it_has_no_models(device: SimDevice) -> None:
    source = InspectSpec("/models/m")
    with pytest.raises(ModelUnsupported, match="runs no model"):
        device.inspect(source).send(None)
    with pytest.raises(ModelUnsupported, match="loads no model"):
        device.load(LoadSpec(1, source, (), ()), lambda _done, _total: None).send(None)
    with pytest.raises(ModelUnsupported):
        device.unload(1).send(None)


def test_step_costs_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"step_s": 0.03, "token_s": 2e-4, "row_s": 6e-4, "context_s": 1e-8}))

    assert StepModel.read(path) == StepModel(0.03, 2e-4, 6e-4, 1e-8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "steps.json"),
        ('{"step_s": 1}', "token_s"),
        ('{"step_s": "a", "token_s": 1}', "step_s"),
        ('{"step_s": -1, "token_s": 1}', "not negative"),
        ('{"step_s": 0, "token_s": 0}', "no time"),
    ],
)
def test_step_costs_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "steps.json"
    path.write_text(text)

    with pytest.raises(StepCostsInvalid, match=said):
        StepModel.read(path)


def test_no_worker_runs_it_and_the_registry_says_so() -> None:
    with pytest.raises(DriverUnavailable, match="kerneld sim WORKLOAD"):
        create("sim")
    assert "sim" not in dict(available())
