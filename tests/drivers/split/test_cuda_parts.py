"""A part on an NVIDIA device that is played: beside the host, and beside another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.conformance import CHECKS, Check
from drivers.conformance_bench import Subject
from drivers.conformance_models import LAYERS, write_adapter, write_model, write_refused_models
from drivers.split.cpu_stage import CpuStage
from drivers.split.cuda_stage import CudaStage
from drivers.split.driver import SplitDriver
from tests.drivers.cpu_rig import GREEDY, CpuRig, save_model
from tests.drivers.cuda.late_runtime import late_runtimes

BESIDE = {"cuda,cpu": {"parts": "cuda,cpu"}, "cpu,cuda": {"parts": "cpu,cuda", "shares": "1,3"}, "cuda,cuda": {"parts": "cuda,cuda"}}


def on_played_devices(options: dict[str, str]) -> SplitDriver:
    """Parts by these options; NVIDIA devices are played."""
    make = late_runtimes(0)
    return SplitDriver(lambda name: CudaStage(make) if name == "cuda" else CpuStage(), options)


@pytest.fixture(scope="module", params=BESIDE)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = tmp_path_factory.mktemp("models")
    options = BESIDE[request.param]
    adapter, other = write_adapter(folder / "adapter"), write_adapter(folder / "other", layers=LAYERS + 1)
    model, refused = write_model(folder / "model"), write_refused_models(folder / "refused")
    return Subject(lambda: on_played_devices(options), model, refused, adapter, other)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_device_with_such_parts_conforms(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Qwen3Moe"])
@pytest.mark.parametrize("beside", BESIDE)
def test_the_tokens_are_those_of_the_processor(tmp_path: Path, beside: str, family: str) -> None:
    changes: dict[str, object] = {"sliding_window": 16} if family == "Gemma2" else {}
    if family == "Qwen3Moe":
        changes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1, "mlp_only_layers": []}
    save_model(tmp_path, family, **{"num_hidden_layers": 4, **changes})
    alone, split = CpuRig(tmp_path), CpuRig(tmp_path, driver=on_played_devices(BESIDE[beside]))
    prompt = range(3, 45)
    assert split.generate(prompt, 12, GREEDY, chunk=20) == alone.generate(prompt, 12)


def test_what_is_told_is_of_the_parts_that_were_opened(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    driver = on_played_devices({})
    assert "not there" not in driver.probe().device_name
    rig = CpuRig(tmp_path, options=BESIDE["cuda,cpu"], driver=driver)
    assert rig.driver.probe().device_name.startswith("a device that is not there + ")
