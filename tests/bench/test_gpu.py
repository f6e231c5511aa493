"""The program for a GPU: what it says without one, and that each of its parts runs, on a device that is not there, at tiny sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.gpu import main, measured, transformers_figures
from bench.gpu_ground import TINY
from bench.gpu_kernels import KernelSizes, check_kernels, kernel_rates
from bench.gpu_memory import MemorySizes, copy_figures, replay_figures, virtual_memory_figures
from bench.gpu_mixtures import MixtureShape, MixtureSizes, mixture_figures
from bench.gpu_model import ModelSizes, model_figures
from bench.report import Figure, publish
from drivers.cuda.runtime import Runtime
from drivers.triton.layout import Heads
from tests.drivers.cuda.late_runtime import LateRuntime
from tests.drivers.fake_cuda import GRANULARITY, FakeCuda

KERNEL_SIZES = KernelSizes(Heads(4, 2, 16), rows=(1, 3), keys=(40,), hidden=128, inner=96, vocabulary=300, copy_bytes=1 << 16)
MIXTURE_SIZES = MixtureSizes(
    (MixtureShape("tiny", 6, 2, 64, 96),), (1, 5), Heads(4, 2, 16), (96, 64), ranks=(6, 0, 9), rows=(1, 3), copy_bytes=1 << 16
)
MODEL_SIZES = ModelSizes((TINY,), rows=(1, 3), tokens=40, prefill=48, steps=4, peak=32, dtype=torch.float32, copy_bytes=1 << 16)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    device = LateRuntime()
    yield device
    device.close()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_without_a_device_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "built without CUDA" in capsys.readouterr().err


def test_parts_that_there_are_not_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--parts", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


def test_kernels_are_compared_with_their_definitions(runtime: Runtime) -> None:
    figures = list(check_kernels(runtime, KERNEL_SIZES))

    assert all(figure.is_met is not False for figure in figures)
    assert {figure.value for figure in figures} == {0.0}  # this device runs the definitions
    assert len(figures) == 33


def test_experts_and_adapters_are_compared_and_timed(runtime: Runtime) -> None:
    figures = list(mixture_figures(runtime, MIXTURE_SIZES))

    assert {figure.value for figure in figures if figure.what.endswith("error")} == {0.0}
    assert all(figure.value > 0.0 for figure in figures if not figure.what.endswith("error"))
    assert len(figures) == 2 * (2 + 2) + 2 + 2


def test_rates_of_kernels_are_told(runtime: Runtime) -> None:
    figures = list(kernel_rates(runtime, KERNEL_SIZES))

    assert [figure.what for figure in figures][:3] == [
        "copy inside the device",
        "decode attention, 1 rows of 40 tokens",
        "decode attention, 3 rows of 40 tokens",
    ]
    assert all(figure.value > 0.0 for figure in figures)


def test_a_whole_model_is_decoded_and_prefilled(runtime: Runtime) -> None:
    figures = {figure.what: figure for figure in model_figures(runtime, MODEL_SIZES)}

    assert {
        "decode step, tiny, 1 rows of 40 tokens",
        "decode step, tiny, 3 rows of 40 tokens",
        "prefill, tiny, 48 tokens",
    } <= figures.keys()
    assert all(figure.value > 0.0 for name, figure in figures.items() if "host" not in name)


def test_copies_maps_and_replays_are_timed(runtime: Runtime) -> None:
    sizes = MemorySizes(copies=(4096,), total=1 << 16, slabs=(4 * GRANULARITY,), maps=2, replays=3)

    figures = [*copy_figures(runtime, sizes), *virtual_memory_figures(FakeCuda(1 << 20), sizes), *replay_figures(runtime, sizes)]

    assert len(figures) == 1 + 4 + 1 + 5 + 2
    assert all(figure.value > 0.0 for figure in figures)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transformers_is_the_baseline(runtime: Runtime) -> None:
    [figure] = transformers_figures(runtime, TINY, rows=(2,), tokens=2)

    assert figure.value > 0.0


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_runtime: Runtime) -> Iterator[Figure]:
        yield Figure("one", 1.0, "s")
        raise RuntimeError("Triton Error [CUDA]: out of luck")

    figures = list(measured(runtime, ("bad", "good"), {"bad": broken, "good": lambda _: iter([Figure("two", 2.0, "s")])}))
    publish("gpu", "A title", figures, tmp_path / "gpu.json")

    assert [figure.what for figure in figures] == ["one", "bad failed", "bad took", "two", "good took"]
    assert math.isnan(figures[1].value)
    assert "out of luck" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["question"] == "gpu"
