"""What is left when the device has no memory, or is gone, wherever work is queued: an error, and a driver that can be closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.contract import OpenSpec, Plan, RowRun, Sampling
from drivers.cuda.driver import CudaDriver
from drivers.cuda.runtime import Work
from drivers.errors import DeviceLost, DeviceOutOfMemory, DriverError
from tests.drivers.cpu_rig import prompt_of, save_model
from tests.drivers.cuda.cuda_rig import CudaRig
from tests.drivers.cuda.late_runtime import LateRuntime, LateStream

TINY = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
GREEDY = Sampling(temperature=0.0)
ERRORS = (lambda: DeviceOutOfMemory(1 << 30, 1 << 20, "CUDA out of memory."), lambda: DeviceLost("Xid 79: it has fallen off the bus."))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_model(directory, "Llama", **TINY)
    return directory


@dataclass
class FailingStream(LateStream):
    """A stream that takes so much more work, and then none."""

    left: int | None = None
    error: Callable[[], DriverError] = field(default=ERRORS[0])
    num_runs: int = 0

    def run(self, work: Work) -> None:
        """Keep work back, or refuse it."""
        self.num_runs += 1
        if self.left is not None:
            if self.left == 0:
                raise self.error()
            self.left -= 1
        super().run(work)


class FailingRig(CudaRig):
    """A rig whose device can be told to fail."""

    def adopt(self) -> None:
        """Put the stream in place, and load."""
        if not isinstance(self.device.compute, FailingStream):
            self.device.compute = FailingStream(self.device)
        super().adopt()

    @property
    def stream(self) -> FailingStream:
        """Where it fails."""
        assert isinstance(self.device.compute, FailingStream)
        return self.device.compute


@pytest.mark.parametrize("error", ERRORS, ids=["memory", "lost"])
@settings(max_examples=12)
@given(left=st.integers(0, 8))
def test_a_step_that_fails_raises_and_the_driver_can_be_closed(tiny: Path, error: Callable[[], DriverError], left: int) -> None:
    rig = FailingRig(tiny, options={"run_ahead": "4"})
    start = rig.start(0, prompt_of(9), GREEDY, 24)
    rig.driver.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, 9),), num_steps=8))
    rig.stream.left, rig.stream.error = left, error

    with pytest.raises(type(error())):
        [rig.driver.step(idx) for idx in range(8)]

    rig.stream.left = None
    rig.driver.close()
    rig.driver.close()


def test_a_load_without_memory_leaves_no_model_and_can_be_tried_again_wherever_it_failed(tiny: Path) -> None:
    rig = FailingRig(tiny)
    expected = rig.generate(prompt_of(9), 4)
    rig.driver.unload(1)
    before = rig.stream.num_runs
    rig.adopt()
    rig.driver.unload(1)

    for left in range(rig.stream.num_runs - before):
        rig.stream.left = left
        with pytest.raises(DeviceOutOfMemory):
            rig.adopt()
        rig.stream.left = None
        assert not rig.driver._loaded.models

    rig.adopt()
    assert rig.generate(prompt_of(9), 4) == expected


def test_a_driver_that_finds_no_memory_for_its_arena_gives_the_device_back() -> None:
    closed = []

    class Small(LateRuntime):
        def close(self) -> None:
            closed.append(1)
            super().close()

    with pytest.raises(DeviceOutOfMemory):
        CudaDriver(lambda _device: Small()).open(OpenSpec(1 << 30, 1 << 30, 1024, 16, 8, 512), None)

    assert closed == [1]
