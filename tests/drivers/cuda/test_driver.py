"""The CUDA driver computes what other code computes, on a device that does everything as late as it may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cuda.driver import CudaDriver
from drivers.cuda.graphs import sizes_of
from drivers.errors import DeviceOutOfMemory, DriverUnavailable, ModelUnsupported, OptionUnknown, PlanRejected
from drivers.registry import create
from drivers.triton.table import DEFINITIONS
from memory.page import Tier, Zero
from tests.drivers.cpu_rig import GRANULE_BYTES, GREEDY, TORCH, CpuRig, greedy_reference, prompt_of, save_model
from tests.drivers.cuda.cuda_rig import CudaRig
from tests.drivers.cuda.late_runtime import LateRuntime
from tests.drivers.family_rig import MOE
from tests.drivers.interpreted import KERNELS

DRAWING = Sampling(temperature=0.9, top_k=60, top_p=0.95, min_p=0.01, seed=7)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    save_model(directory, "Llama")
    return directory


@pytest.fixture(scope="module")
def told(llama: Path) -> list[int]:
    """What the CPU driver draws."""
    return CpuRig(llama).generate(prompt_of(37), 24, DRAWING)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Qwen3", {}),
        ("Mistral", {"sliding_window": 24}),
        ("Gemma2", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
        ("GPT2", {"n_embd": 96, "n_head": 6, "n_layer": 2, "n_positions": 512}),
        ("Olmo2", {}),
        ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
        ("Qwen3Moe", {**MOE, "norm_topk_prob": True, "mlp_only_layers": [1]}),
        ("Qwen3Moe", {**MOE, "norm_topk_prob": False}),
    ],
)
def test_the_tokens_are_those_of_transformers(tmp_path: Path, family: str, changes: dict[str, object]) -> None:
    reference = save_model(tmp_path, family, **changes)
    prompt = prompt_of(37)

    assert CudaRig(tmp_path).generate(prompt, 10, chunk=20) == greedy_reference(reference, prompt, 10)


@pytest.mark.parametrize("options", [{"run_ahead": "0"}, {"run_ahead": "1"}, {}, {"run_ahead": "8", "graphs": "off"}])
def test_draws_are_those_of_the_cpu_driver_however_far_ahead_steps_are_queued(
    llama: Path, told: list[int], options: dict[str, str]
) -> None:
    for seed in range(3):
        assert CudaRig(llama, seed, options=options).generate(prompt_of(37), 24, DRAWING) == told


@pytest.mark.parametrize(("family", "changes"), [("Qwen3", {}), ("Qwen3Moe", {**MOE, "moe_intermediate_size": 16})])
def test_kernels_and_definitions_draw_the_same(tmp_path: Path, family: str, changes: dict[str, object]) -> None:
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_model(tmp_path, family, **shape, **changes)
    kernels = replace(KERNELS, paged_attention=DEFINITIONS.paged_attention)  # NumPy's matmul warns of NaNs that are not there
    rigs = [CudaRig(tmp_path, kernels=table, max_step_tokens=20) for table in (kernels, DEFINITIONS)]

    found, expected = (rig.generate(prompt_of(18), 4, DRAWING) for rig in rigs)

    assert found == expected


def test_steps_behind_a_cut_leave_no_trace(llama: Path, told: list[int]) -> None:
    rig = CudaRig(llama, options={"run_ahead": "4"})
    rig.driver.apply(Plan(1, 1, starts=(rig.start(0, prompt_of(37), DRAWING, 40),), runs=(RowRun(0, 37),), num_steps=8))
    found = [token for idx in range(3) for token in rig.driver.step(idx).rows[0].tokens]

    for seq in range(2, 23):
        rig.driver.apply(Plan(1, seq, runs=(RowRun(0, 1),), num_steps=6))
        found += rig.driver.step(0).rows[0].tokens

    assert found == told


def test_a_cut_row_that_is_gone_does_not_write_to_the_frames_of_the_next(llama: Path, told: list[int]) -> None:
    for seed in range(4):
        rig = CudaRig(llama, seed, options={"run_ahead": "8"})
        start = rig.start(0, prompt_of(37), DRAWING, 24)
        rig.driver.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, 37),), num_steps=8))
        rig.driver.step(0)
        again = RowStart(0, 1, 0, start.tokens, tuple(table[::-1] for table in start.frames), DRAWING)
        rig.seq = 1

        assert [results[0].tokens[0] for results in rig.run([(0, 37)], 8, starts=(again,), clears=(0,))] == told[:8]


def test_frames_are_zeroed_behind_steps_that_were_queued_for_their_old_owner(llama: Path) -> None:
    for seed in range(6):
        rig = CudaRig(llama, seed, options={"run_ahead": "8"})
        start = rig.start(0, prompt_of(37), DRAWING, 24)
        rig.driver.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, 37),), num_steps=8))
        rig.driver.step(0)
        zeros = tuple(Zero(rig.space_ids[0], Tier.DEVICE, frame) for frame in start.frames[0])
        rig.driver.apply(Plan(1, 2, clears=(0,), zeros=zeros))
        arena = rig.device.whole()

        size = rig.spec.groups[0].frame_bytes
        assert not any(arena[frame * GRANULE_BYTES : frame * GRANULE_BYTES + size].any() for frame in start.frames[0])


def test_weights_are_loaded_behind_steps_that_were_queued_for_the_owner_of_their_place(llama: Path, told: list[int]) -> None:
    for seed in range(4):
        rig = CudaRig(llama, seed, options={"run_ahead": "8"})
        start = rig.start(0, prompt_of(37), DRAWING, 24)
        rig.driver.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, 37),), num_steps=8))
        rig.driver.step(0)
        rig.driver.apply(Plan(1, 2, clears=(0,)))
        offsets, end = [], min(start.frames[0]) * GRANULE_BYTES
        for segment in rig.spec.segments:
            offsets.append(end)
            end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        rig.driver.load(LoadSpec(2, rig.source, (20,), tuple(offsets)), lambda done, total: None)
        free = tuple(frame for frame in rig.free if frame * GRANULE_BYTES >= end)[:4]
        assert end > max(start.frames[0]) * GRANULE_BYTES, "the weights lie where the row's pages were"
        rig.seq = 2

        assert [step[0].tokens[0] for step in rig.run([(0, 37)], 8, starts=(RowStart(0, 2, 0, start.tokens, (free,), DRAWING),))] == told[
            :8
        ]


def test_a_row_that_rests_stands_where_it_stood_while_others_decode(llama: Path) -> None:
    rig = CudaRig(llama)
    rig.run([(0, 20)], 2, starts=(rig.start(0, prompt_of(20), DRAWING, 24),))
    seats = rig.driver._loaded.models[1].seats
    before = (rig.device.whole(), seats.ints[0].tolist())[1]
    rig.run([(slot, 5) for slot in (1, 2, 3)], 8, starts=[rig.start(slot, prompt_of(5, slot), DRAWING, 24) for slot in (1, 2, 3)])

    assert (rig.device.whole(), seats.ints[0].tolist())[1] == before
    assert rig.driver._loaded.models[1].graphs.size_for(3) == 4


def test_rows_of_every_kind_share_a_step(llama: Path, told: list[int]) -> None:
    rig, plain = CudaRig(llama), CpuRig(llama)
    kinds = [
        DRAWING,
        msgspec.structs.replace(DRAWING, num_logprobs=2),
        msgspec.structs.replace(DRAWING, repetition_penalty=1.3, presence_penalty=0.5),
        msgspec.structs.replace(GREEDY, stop_token_ids=tuple(range(180, 199))),
    ]
    found, expected = ([], [])
    for one, results in ((rig, found), (plain, expected)):
        starts = [one.start(slot, prompt_of(20 + slot, slot), kind, 24) for slot, kind in enumerate(kinds)]
        starts.append(replace_scoring(one.start(4, prompt_of(30, 9), kinds[1])))
        runs = [(slot, 20 + slot) for slot in range(4)] + [(4, 30)]
        results.extend(one.run(runs, 6, starts=starts))
    assert [{slot: (row.tokens, row.is_stopped) for slot, row in step.items()} for step in found] == [
        {slot: (row.tokens, row.is_stopped) for slot, row in step.items()} for step in expected
    ]
    for step, other in zip(found, expected, strict=True):
        for slot, row in step.items():
            assert [entry.logprob for entry in row.logprobs] == pytest.approx([entry.logprob for entry in other[slot].logprobs], abs=1e-4)
    assert len(found[0][4].logprobs) == 29


def replace_scoring(start: RowStart) -> RowStart:
    """The same tokens, scored."""
    return msgspec.structs.replace(start, score_from=0)


def score(rig: CpuRig) -> torch.Tensor:
    """Log-probabilities of a text."""
    [results] = rig.run([(0, 120)], starts=(replace_scoring(rig.start(0, prompt_of(120))),))
    return torch.tensor([entry.logprob for entry in results[0].logprobs])


@pytest.mark.parametrize(
    ("source", "most"), [({"quant": "int8"}, 0.2), ({"quant": "int4"}, 2.0), ({"kv_quant": "int8"}, 0.05), ({"kv_quant": "fp8"}, 0.3)]
)
def test_quantized_weights_and_pages_change_scores_a_little(llama: Path, source: dict[str, str], most: float) -> None:
    plain, rig = score(CpuRig(llama)), CudaRig(llama, **source)

    difference = float((score(rig) - plain).abs().mean())

    assert 1e-4 < difference < most
    assert (rig.spec.quant, rig.spec.kv_quant) == (source.get("quant", ""), source.get("kv_quant", ""))
    assert source.get("kv_quant", "weights-" + source.get("quant", "")) in rig.spec.numerics


@pytest.mark.parametrize(("quant", "most"), [("int8", 0.2), ("int4", 2.0)])
def test_quantized_experts_change_scores_a_little(tmp_path: Path, quant: str, most: float) -> None:
    save_model(tmp_path, "Qwen3Moe", **MOE)

    difference = float((score(CudaRig(tmp_path, quant=quant)) - score(CpuRig(tmp_path))).abs().mean())

    assert 1e-4 < difference < most


def test_quantized_experts_are_those_of_the_cpu_driver(tmp_path: Path) -> None:
    save_model(tmp_path, "Mixtral", num_local_experts=4)

    assert score(CudaRig(tmp_path, quant="int8")) == pytest.approx(score(CpuRig(tmp_path, quant="int8", options=TORCH)), abs=1e-3)


def test_pages_of_eight_bits_are_smaller(llama: Path) -> None:
    whole, small = CudaRig(llama).spec, CudaRig(llama, kv_quant="int8").spec

    assert small.groups[0].frame_bytes < whole.groups[0].frame_bytes // 2


def test_a_load_captures_every_size_once_and_tells_what_runs_and_what_prefill_costs(llama: Path) -> None:
    rig = CudaRig(llama)

    assert rig.device.num_captured == len(sizes_of(8)) == 4
    assert rig.loaded.prefill_s > 0.0
    assert rig.loaded.runs_on == "a device that is not there, decode steps captured, 2 ahead"
    assert [(report.op, report.implementation, report.num_calls) for report in rig.loaded.ops] == [
        ("embed", "torch.embed", 1),
        ("rms_norm", "triton.rms_norm", 1),
        ("linear", "torch.linear", 13),
        ("rope_kv_write", "triton.rope_kv_write", 3),
        ("paged_attention", "triton.paged_attention", 3),
        ("add_rms_norm", "triton.add_rms_norm", 6),
        ("act_mul", "triton.act_mul", 3),
    ]


def test_graphs_have_lanes_for_every_number_of_rows() -> None:
    assert sizes_of(1) == (1,)
    assert sizes_of(9) == (1, 2, 4, 8, 9)


@pytest.mark.parametrize("options", [{"run_ahead": "9"}, {"run_ahead": "-1"}, {"graphs": "yes"}, {"streams": "2"}, {"device": "all"}])
def test_options_that_mean_nothing_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(OptionUnknown):
        CudaDriver(lambda _device: LateRuntime()).open(OpenSpec(1, 1 << 20, 1024, 16, 8, 512, options=options), None)


def test_what_the_driver_cannot_run_is_refused_by_name(llama: Path) -> None:
    driver = CudaRig(llama).driver

    with pytest.raises(ModelUnsupported, match=r"kv_quant is 'int2'; this device has int8, fp8"):
        driver.inspect(InspectSpec(str(llama), kv_quant="int2"))


def test_the_device_is_the_one_that_the_options_name() -> None:
    asked: list[int] = []

    def make(device: int) -> LateRuntime:
        asked.append(device)
        return LateRuntime()

    driver = CudaDriver(make)
    driver.open(OpenSpec(1, 1 << 20, 1024, 16, 8, 512, options={"device": "3"}), None)
    driver.close()

    assert asked == [3]


def test_more_memory_than_there_is_and_a_bad_arena_are_refused() -> None:
    with pytest.raises(DeviceOutOfMemory):
        CudaDriver(lambda _device: LateRuntime()).open(OpenSpec(1 << 30, 1 << 30, 1024, 16, 8, 512), None)
    with pytest.raises(PlanRejected):
        CudaDriver(lambda _device: LateRuntime()).open(OpenSpec(1, 1 << 20, 1000, 16, 8, 512), None)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_torch_without_cuda_says_what_to_install() -> None:
    with pytest.raises(DriverUnavailable, match=r"built without CUDA. Install .* kerneld\[cuda\]"):
        create("cuda").probe()
