"""Adapters on the CUDA driver, on a device that does everything as late as it may: whose rows they change, and what is kept ready."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, Sampling
from drivers.cuda.driver import CudaDriver
from drivers.cuda.graphs import sizes_of
from drivers.errors import PlanRejected, UnknownModel
from drivers.hostmem import HostMemory
from drivers.triton.table import DEFINITIONS, KernelTable
from tests.drivers.cpu_rig import GRANULE_BYTES, greedy_reference, prompt_of, save_model
from tests.drivers.cuda.cuda_rig import CudaRig
from tests.drivers.cuda.late_runtime import LateRuntime
from tests.drivers.family_rig import save_family
from tests.drivers.interpreted import KERNELS
from tests.drivers.peft_rig import merged, save_adapter
from tests.drivers.test_adapter import ADAPTERS, AdapterRig, scores

DRAWING = Sampling(temperature=0.9, top_k=60, seed=7)


class AdaptedRig(CudaRig, AdapterRig):
    """The CUDA driver with one model, and adapters at the end of its arena."""

    def __init__(
        self,
        directory: Path,
        seed: int = 0,
        kernels: KernelTable = DEFINITIONS,
        options: Mapping[str, str] | None = None,
        max_step_tokens: int = 512,
        **source: str,
    ) -> None:
        """See `CudaRig`."""
        self.directory, self.max_positions = directory, 0
        super().__init__(directory, seed, kernels, options, max_step_tokens, **source)

    def load(self, adapter_id: int, directory: Path, offset: int) -> None:
        """Load an adapter that was inspected before, somewhere."""
        source = InspectSpec(str(directory), base=str(self.directory))
        self.driver.load(LoadSpec(adapter_id, source, (), (offset,), base_id=1), lambda done, total: None)


@pytest.fixture
def llama(tmp_path: Path) -> transformers.PreTrainedModel:
    """A small Llama in `base`, and adapters `a` and `b` of it."""
    model = save_model(tmp_path / "base", "Llama")
    save_adapter(tmp_path / "a", model, seed=1)
    save_adapter(tmp_path / "b", model, seed=2, r=3)
    return model


@pytest.mark.parametrize("options", [{}, {"run_ahead": "0"}, {"run_ahead": "8", "graphs": "off"}])
def test_greedy_text_of_many_adapters_in_one_batch_equals_merged_weights(tmp_path: Path, options: dict[str, str]) -> None:
    model = save_model(tmp_path / "base", "Qwen3", head_dim=32, use_sliding_window=True, sliding_window=20, max_window_layers=1)
    rig = AdaptedRig(tmp_path / "base", seed=len(options), options=options)
    models = {0: model}
    for number, (name, (targets, config)) in enumerate(ADAPTERS.items(), 2):
        models[number] = merged(model, save_adapter(tmp_path / name, model, targets, seed=number, **config))
        rig.adapt(number, tmp_path / name)
    prompts = [(prompt_of(20 + 7 * number, number), number) for number in models]

    found = rig.together(prompts, 8)

    assert found == [greedy_reference(models[number], prompt, 8) for prompt, number in prompts]


@pytest.mark.parametrize("case", ["gpt2", "gemma2", "mixtral"])
def test_linears_of_other_families_are_adapted_too(case: str, tmp_path: Path) -> None:
    targets = {"gpt2": ("c_attn", "c_proj", "c_fc"), "mixtral": ("q_proj", "o_proj")}.get(case, ("k_proj", "down_proj"))
    model = save_family(tmp_path / "base", case)
    changed = merged(model, save_adapter(tmp_path / "a", model, targets, fan_in_fan_out=case == "gpt2"))
    rig = AdaptedRig(tmp_path / "base")
    rig.adapt(2, tmp_path / "a")

    assert rig.together([(prompt_of(20), 2)], 8) == [greedy_reference(changed, prompt_of(20), 8)]


@pytest.mark.usefixtures("llama")
def test_rows_of_the_base_are_bit_identical_beside_adapters(tmp_path: Path) -> None:
    rig = AdaptedRig(tmp_path / "base")
    rig.adapt(2, tmp_path / "a")
    rows = [(prompt_of(30, 1), 0), (prompt_of(30, 2), 2), (prompt_of(30, 3), 0)]

    beside, alone = scores(rig, rows, 11), scores(rig, [(prompt, 0) for prompt, _ in rows], 11)

    assert torch.equal(beside[0], alone[0])
    assert torch.equal(beside[2], alone[2])
    assert not torch.equal(beside[1], alone[1])


@pytest.mark.parametrize("quant", ["", "int8"])
@pytest.mark.usefixtures("llama")
def test_scores_are_those_of_the_cpu_driver(tmp_path: Path, quant: str) -> None:
    rigs = AdaptedRig(tmp_path / "base", quant=quant), AdapterRig(tmp_path / "base", quant=quant, options={"native": "off"})
    for rig in rigs:
        rig.adapt(2, tmp_path / "a")
        rig.adapt(3, tmp_path / "b")
    rows = [(prompt_of(30, 1), 2), (prompt_of(26, 2), 0), (prompt_of(30, 3), 3)]

    for found, expected in zip(*(scores(rig, rows, 11) for rig in rigs), strict=True):
        assert found == pytest.approx(expected, abs=1e-3)


def test_kernels_and_definitions_draw_the_same(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_adapter(tmp_path / "a", save_model(tmp_path / "base", "Llama", **shape))
    kernels = replace(KERNELS, paged_attention=DEFINITIONS.paged_attention)  # NumPy's matmul warns of NaNs that are not there
    rigs = [AdaptedRig(tmp_path / "base", kernels=table, max_step_tokens=20) for table in (kernels, DEFINITIONS)]
    for rig in rigs:
        rig.adapt(2, tmp_path / "a")

    found, expected = (rig.together([(prompt_of(9), 2), (prompt_of(8, 1), 0)], 4) for rig in rigs)

    assert found == expected


@pytest.mark.usefixtures("llama")
def test_decode_steps_are_captured_for_the_ranks_that_loads_bring(tmp_path: Path, llama: transformers.PreTrainedModel) -> None:
    save_adapter(tmp_path / "wide", llama, r=30)
    rig, num = AdaptedRig(tmp_path / "base"), len(sizes_of(8))
    captured = [rig.device.num_captured]
    for number, name in enumerate(("a", "b", "wide"), 2):
        rig.adapt(number, tmp_path / name)
        captured.append(rig.device.num_captured)

    assert captured == [num, 2 * num, 2 * num, 3 * num]  # three of rank 30 side by side need more room


@pytest.mark.usefixtures("llama")
def test_a_slot_forgets_the_adapter_of_the_row_before(tmp_path: Path) -> None:
    rig = AdaptedRig(tmp_path / "base")
    plain = rig.together([(prompt_of(20), 0)], 8)
    rig.adapt(2, tmp_path / "a")

    adapted, again = rig.together([(prompt_of(20), 2)], 8), rig.together([(prompt_of(20), 0), (prompt_of(9), 2)], 8)

    assert adapted != plain
    assert again[0] == plain[0]


@pytest.mark.usefixtures("llama")
def test_a_row_finds_its_adapter_where_it_lies_now(tmp_path: Path) -> None:
    rig = AdaptedRig(tmp_path / "base")
    rig.adapt(2, tmp_path / "a")
    expected = rig.together([(prompt_of(20), 2)], 12)[0]
    rig.adapt(3, tmp_path / "b")
    start = rig.begin(0, prompt_of(20), 2, 12)
    found = [token for step in rig.run([(0, 20)], 4, starts=(start,)) for token in step[0].tokens]
    rig.driver.unload(2)
    rig.driver.unload(3)
    with pytest.raises(PlanRejected, match="Adapter 2 was unloaded under a plan"):
        rig.run([(0, 1)], 1)
    rig.load(3, tmp_path / "b", (rig.num_slabs << 20) - (1 << 18))
    rig.load(2, tmp_path / "a", rig.end)  # each lies where the other did, or near

    assert found + [token for step in rig.run([(0, 1)], 8) for token in step[0].tokens] == expected


@pytest.mark.usefixtures("llama")
def test_adapters_outlive_their_base_and_change_it_when_it_is_back(tmp_path: Path) -> None:
    rig = AdaptedRig(tmp_path / "base")
    rig.adapt(2, tmp_path / "a")
    before = rig.together([(prompt_of(20), 2), (prompt_of(20), 0)], 8)

    rig.driver.unload(1)
    rig.adopt()

    rig.free = [frame for frame in rig.free if frame * GRANULE_BYTES < rig.end - (1 << 16)]
    assert rig.together([(prompt_of(20), 2), (prompt_of(20), 0)], 8) == before


@pytest.mark.usefixtures("llama")
def test_steps_behind_a_cut_leave_no_trace(tmp_path: Path) -> None:
    told = AdapterRig(tmp_path / "base")
    told.adapt(2, tmp_path / "a")
    start = msgspec.structs.replace(told.start(0, prompt_of(20), DRAWING, 16), adapter_id=2)
    expected = [token for step in told.run([(0, 20)], 12, starts=(start,)) for token in step[0].tokens]
    for seed in range(3):
        rig = AdaptedRig(tmp_path / "base", seed, options={"run_ahead": "4"})
        rig.adapt(2, tmp_path / "a")
        start = msgspec.structs.replace(rig.start(0, prompt_of(20), DRAWING, 24), adapter_id=2)
        rig.driver.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, 20),), num_steps=8))
        found = [token for idx in range(3) for token in rig.driver.step(idx).rows[0].tokens]
        for seq in range(2, 11):
            rig.driver.apply(Plan(1, seq, runs=(RowRun(0, 1),), num_steps=6))
            found += rig.driver.step(0).rows[0].tokens

        assert found == expected


@pytest.mark.parametrize("problem", ["no base", "taken", "spaces", "offset"])
@pytest.mark.usefixtures("llama")
def test_a_load_that_does_not_fit_leaves_nothing(problem: str, tmp_path: Path) -> None:
    rig = AdaptedRig(tmp_path / "base")
    source = InspectSpec(str(tmp_path / "a"), base=str(tmp_path / "base"))
    load = {
        "no base": LoadSpec(2, source, (), (7 << 20,), base_id=5),
        "taken": LoadSpec(1, source, (), (7 << 20,), base_id=1),
        "spaces": LoadSpec(2, source, (77,), (7 << 20,), base_id=1),
        "offset": LoadSpec(2, source, (), ((8 << 20) - 64,), base_id=1),
    }[problem]

    with pytest.raises((PlanRejected, UnknownModel)):
        rig.driver.load(load, lambda done, total: None)
    with pytest.raises(PlanRejected, match="adapter 2"):
        rig.run([(0, 5)], starts=[rig.begin(0, prompt_of(5), 2)])


@pytest.mark.usefixtures("llama")
def test_an_adapter_comes_back_from_the_host_tier_or_its_files_where_the_image_is_damaged(tmp_path: Path) -> None:
    rig = AdaptedRig(tmp_path / "base")
    rig.driver.close()
    rig.device = LateRuntime(5)
    rig.driver = CudaDriver(lambda _device: rig.device)
    host = HostMemory.create(4 << 20, GRANULE_BYTES)
    rig.driver.open(OpenSpec(8, 1 << 20, GRANULE_BYTES, 16, 8, 512, host_bytes=4 << 20), os.dup(host.fd))
    rig.adopt()
    size_bytes = rig.adapt(2, tmp_path / "a").segments[0].size_bytes
    before = rig.together([(prompt_of(25), 2)], 8)
    [checksum] = rig.driver.park(2, (GRANULE_BYTES,))
    source = InspectSpec(str(tmp_path / "a"), base=str(tmp_path / "base"))
    load = LoadSpec(2, source, (), (rig.end,), host_offsets=(GRANULE_BYTES,), checksums=(checksum,), base_id=1)
    for num_corrupt in (0, 1):  # the image is damaged after the first
        rig.driver.unload(2)
        loaded = rig.driver.load(load, lambda done, total: None)
        assert (loaded.host_bytes, loaded.num_corrupt) == (0 if num_corrupt else size_bytes, num_corrupt)
        assert rig.together([(prompt_of(25), 2)], 8) == before
        os.pwrite(host.fd, b"damaged!", GRANULE_BYTES + 100)
    host.close()
