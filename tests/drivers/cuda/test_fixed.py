"""With `batch_invariant` the CUDA driver gives a row the same bits in any company, however its prompt is cut; it says what it cannot do so.

Products of the interpreter do not depend on the shape of a tile; that kernels are one binary for all steps is asked in
`tests.drivers.triton.known`. The whole check of the conformance suite runs on definitions, in `test_conformance.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.contract import InspectSpec, RowResult, Sampling
from drivers.errors import ModelUnsupported
from drivers.triton.table import DEFINITIONS, KernelTable
from tests.drivers.cpu_rig import greedy_reference, prompt_of, save_model
from tests.drivers.cuda.cuda_rig import CudaRig
from tests.drivers.interpreted import KERNELS

TOLD = Sampling(temperature=0.0, num_logprobs=2)
TINY = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_model(directory, "Llama", **TINY)
    return directory


def rig(directory: Path, kernels: KernelTable = DEFINITIONS, **source: str) -> CudaRig:
    """A driver that was opened so."""
    return CudaRig(directory, kernels=kernels, max_step_tokens=24, batch_invariant=True, **source)


def told(steps: list[dict[int, RowResult]], slot: int) -> list[object]:
    """Tokens and log-probabilities of a row."""
    return [(step[slot].tokens, step[slot].logprobs) for step in steps if slot in step and step[slot].tokens]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("kernels", "source"),
    [(KERNELS, {}), (DEFINITIONS, {}), (DEFINITIONS, {"quant": "int8"}), (DEFINITIONS, {"kv_quant": "int8"})],
    ids=["kernels", "definitions", "int8 weights", "int8 pages"],
)
def test_a_row_has_the_same_bits_alone_in_chunks_and_in_company(tiny: Path, kernels: KernelTable, source: dict[str, str]) -> None:
    one, two, three = (rig(tiny, kernels, **source) for _ in range(3))

    alone = told(one.run([(0, 18)], 3, starts=(one.start(0, prompt_of(18), TOLD, 24),)), 0)
    chunks = two.run([(0, 7)], 1, starts=(two.start(0, prompt_of(18), TOLD, 24),)) + two.run([(0, 11)], 3)
    starts = (three.start(1, prompt_of(5, 9), TOLD, 24), three.start(0, prompt_of(18), TOLD, 24))
    company = three.run([(1, 5), (0, 18)], 3, starts=starts)

    assert told(chunks, 0) == told(company, 0) == alone
    assert len(alone) == 3


@pytest.mark.parametrize("family", ["Llama", "Olmo2", "Qwen3"])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    reference = save_model(tmp_path, family)
    prompt = prompt_of(37)

    assert rig(tmp_path).generate(prompt, 6, chunk=20) == greedy_reference(reference, prompt, 6)


def test_pages_that_were_computed_so_are_told_from_others(tiny: Path) -> None:
    assert rig(tiny).spec.numerics != CudaRig(tiny).spec.numerics


def test_device_show_tells_whose_the_linears_are(tiny: Path) -> None:
    assert "triton.linear" in {report.implementation for report in rig(tiny).loaded.ops}


def test_what_goes_by_the_step_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    save_model(tmp_path, "Mixtral", num_local_experts=4, num_experts_per_tok=2)
    driver = rig(tiny).driver

    with pytest.raises(ModelUnsupported, match=r"with batch_invariant.*experts"):
        driver.inspect(InspectSpec(str(tmp_path)))
    with pytest.raises(ModelUnsupported, match=r"batch_invariant.*adapters"):
        driver.inspect(InspectSpec(str(tmp_path), base=str(tiny)))
