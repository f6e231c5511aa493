"""The CPU driver through its contract: plans, pages, rows, errors."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from drivers.contract import FramePatch, InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver
from drivers.errors import DeviceLost, DeviceOutOfMemory, OptionUnknown, PageCorrupt, PlanRejected, UnknownModel
from drivers.hostmem import HostMemory, host_frame_bytes
from memory.page import Move, Tier, Zero
from tests.drivers.cpu_rig import GRANULE_BYTES, GREEDY, TORCH, CpuRig, greedy_reference, prompt_of, reference_logits, save_model

DEMO_MODEL = Path(__file__).parents[2] / "examples" / "demo_model"
KEY = b"0123456789abcdef"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama model."""
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, "Llama")
    return directory


@pytest.fixture(scope="module", params=[{}, TORCH], ids=["native", "torch"])
def options(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """Both ways in which the driver computes."""
    chosen: Mapping[str, str] = request.param
    return chosen


@pytest.fixture
def rig(model: Path, options: Mapping[str, str]) -> Iterator[CpuRig]:
    """A driver with that model."""
    rig = CpuRig(model, options=options)
    assert rig.driver._loaded.models[1].is_native is (not options)
    yield rig
    rig.driver.close()


@pytest.fixture(scope="module")
def alone(model: Path, options: Mapping[str, str]) -> dict[int, list[int]]:
    """What prompts 0..4 go on with when nobody else is there."""
    rig = CpuRig(model, options=options)
    return {seed: rig.generate(prompt_of(20 + 7 * seed, seed), 24) for seed in range(5)}


def test_text_does_not_depend_on_strangers_chunks_or_quanta(rig: CpuRig, alone: dict[int, list[int]]) -> None:
    prompts = {seed: prompt_of(20 + 7 * seed, seed) for seed in range(5)}
    found: dict[int, list[int]] = {seed: [] for seed in prompts}
    left = {seed: len(prompt) for seed, prompt in prompts.items()}
    starts = [rig.start(seed, prompt, GREEDY, 24 + 8) for seed, prompt in prompts.items()]
    turn = 0
    while min(len(tokens) for tokens in found.values()) < 24:
        runs = [(seed, min(left[seed], 5 + seed) or 1) for seed in prompts if len(found[seed]) < 24]
        for seed, count in runs:
            left[seed] = max(0, left[seed] - count)
        num_steps = 1 if any(left.values()) else 1 + turn % 4
        for results in rig.run(runs, num_steps, starts):
            for seed, result in results.items():
                found[seed] += result.tokens
        starts, turn = [], turn + 1
    assert {seed: tokens[:24] for seed, tokens in found.items()} == alone


def test_a_row_goes_on_in_another_slot_from_its_pages(rig: CpuRig, alone: dict[int, list[int]]) -> None:
    prompt = prompt_of(20, 0)
    start = rig.start(0, prompt, GREEDY, 24)
    first = [results[0].tokens[0] for results in rig.run([(0, 20)], 11, [start])]
    known = (*prompt, *first)
    again = RowStart(5, 1, len(known) - 1, known[-1:], start.frames, GREEDY)
    rest = [results[5].tokens[0] for results in rig.run([(5, 1)], 13, [again], clears=(0,))]
    assert first + rest == alone[0]


def test_what_a_frame_held_before_does_not_matter(rig: CpuRig, alone: dict[int, list[int]]) -> None:
    """A row in frames full of NaN, then one that goes on in the middle of a page whose rest is NaN."""
    start = rig.start(0, prompt_of(20, 0), GREEDY, 24)
    arena = rig.driver._opened().ground.arena  # the test's way to make a mess that the kernel never would
    size_bytes = rig.spec.groups[0].frame_bytes
    for frame in start.frames[0]:
        arena.frames(size_bytes)[frame].fill_(0xFF)
    first = [results[0].tokens[0] for results in rig.run([(0, 20)], 5, [start])]
    middle = RowStart(1, 1, 24, (first[-1],), start.frames, GREEDY)
    for view in arena.token_views(rig.driver._loaded.models[1].frames[0]):
        view[start.frames[0][1], :, :, 8:].fill_(math.nan)
    rest = [results[1].tokens[0] for results in rig.run([(1, 1)], 19, [middle], clears=(0,))]
    assert first + rest == alone[0]


def test_a_fork_copies_its_last_page_and_goes_its_own_way(rig: CpuRig, alone: dict[int, list[int]]) -> None:
    prompt = prompt_of(20, 0)
    start = rig.start(0, prompt, GREEDY, 24)
    rig.run([(0, 20)], 3, [start])
    [[copied, *others]] = rig.tables(40)
    fork = RowStart(1, 1, 19, (prompt[19],), ((start.frames[0][0], copied, *others),), GREEDY)
    move = Move(rig.space_ids[0], Tier.DEVICE, start.frames[0][1], Tier.DEVICE, copied, KEY, 3)
    rig.driver.apply(Plan(1, 50, moves=(move,), starts=(fork,), runs=(RowRun(1, 1),), num_steps=24))
    assert [rig.driver.step(idx).rows[0].tokens[0] for idx in range(24)] == alone[0]


def test_stop_tokens_end_a_row_within_a_quantum(rig: CpuRig, alone: dict[int, list[int]]) -> None:
    stop = alone[0][5]
    expected = alone[0][: alone[0].index(stop) + 1]
    start = rig.start(0, prompt_of(20, 0), Sampling(temperature=0.0, stop_token_ids=(stop,)), 24)
    steps = rig.run([(0, 20)], 12, [start])
    assert [token for results in steps if 0 in results for token in results[0].tokens] == expected
    assert [results[0].is_stopped for results in steps if 0 in results] == [False] * (len(expected) - 1) + [True]


def test_a_seeded_draw_goes_on_the_same_after_an_interruption(rig: CpuRig) -> None:
    wild = Sampling(temperature=1.0, seed=99, top_p=0.95, repetition_penalty=1.1)
    prompt = prompt_of(20, 0)
    whole = rig.generate(prompt, 16, wild)
    cut = (*prompt, *whole[:7])
    resumed = rig.generate(cut, 9, wild, chunk=10)
    assert resumed == whole[7:]


def test_scores_equal_transformers_over_chunks(tmp_path: Path, options: Mapping[str, str]) -> None:
    reference = save_model(tmp_path, "Llama")
    prompt = prompt_of(50, 3)
    expected = reference_logits(reference, prompt).log_softmax(-1)
    rig = CpuRig(tmp_path, options=options)
    start = RowStart(2, 1, 0, tuple(prompt), rig.tables(50), Sampling(num_logprobs=199), score_from=10)
    steps = [rig.run([(2, 30)], starts=[start])[0][2], rig.run([(2, 20)])[0][2]]
    found = [logprob for step in steps for logprob in step.logprobs]
    assert all(step.tokens == () for step in steps)
    assert [one.logprob for one in found] == pytest.approx([float(expected[idx - 1, prompt[idx]]) for idx in range(10, 50)], rel=1e-4)
    everything = torch.tensor([[logprob for _, logprob in sorted(one.top)] for one in found])
    assert float((everything - expected[9:49]).abs().max() / expected.abs().max()) <= 1e-4


def test_a_row_whose_logits_are_not_finite_fails_alone(tmp_path: Path, options: Mapping[str, str]) -> None:
    save_model(tmp_path, "Llama")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][150] = math.nan
    save_file(tensors, path)
    rig = CpuRig(tmp_path, options=options)
    poisoned = [*prompt_of(20, 1)[:19], 150]
    clean = [token if token != 150 else 151 for token in prompt_of(30, 9)]
    steps = rig.run([(0, 20), (1, 30)], 3, [rig.start(0, poisoned, GREEDY, 8), rig.start(1, clean, GREEDY, 8)])
    assert "not finite" in steps[0][0].error
    assert all(results[1].error == "" and results[1].tokens for results in steps)
    assert 0 not in steps[1]


@pytest.fixture
def host(model: Path, options: Mapping[str, str]) -> Iterator[tuple[CpuRig, HostMemory]]:
    """A driver with a host tier of 1 MiB, and the front's own mapping of it."""
    tier = HostMemory.create(1 << 20, GRANULE_BYTES)
    driver = CpuDriver()
    spec = OpenSpec(8, 1 << 20, GRANULE_BYTES, 16, 8, 512, threads=1, host_bytes=1 << 20, options=dict(options))
    driver.open(spec, os.dup(tier.fd))
    rig = CpuRig.__new__(CpuRig)
    rig.__dict__.update(directory=model, driver=driver, seq=0, num_slabs=8, page_tokens=16, max_positions=0, quant="")
    rig.adopt()
    yield rig, tier
    driver.close()
    tier.close()


def test_pages_survive_the_way_to_the_host_tier_and_back(host: tuple[CpuRig, HostMemory], alone: dict[int, list[int]]) -> None:
    rig, tier = host
    prompt = prompt_of(20, 0)
    start = rig.start(0, prompt, GREEDY, 24)
    first = [results[0].tokens[0] for results in rig.run([(0, 20)], 5, [start])]
    space, frames = rig.space_ids[0], start.frames[0]
    step = host_frame_bytes(rig.spec.groups[0].frame_bytes, GRANULE_BYTES) // GRANULE_BYTES
    down = tuple(Move(space, Tier.DEVICE, frames[idx], Tier.HOST, idx * step, KEY, (16, 8)[idx]) for idx in range(2))
    gone = tuple(Zero(space, Tier.DEVICE, frame) for frame in frames)
    rig.driver.apply(Plan(1, 90, moves=down, clears=(0,)))
    assert tier.peek(step) is not None
    rig.driver.apply(Plan(1, 91, zeros=gone))
    [others] = rig.tables(48)
    up = tuple(Move(space, Tier.HOST, idx * step, Tier.DEVICE, others[idx], KEY, (16, 8)[idx]) for idx in range(2))
    again = RowStart(0, 1, 24, (first[-1],), (others,), GREEDY)
    rig.driver.apply(Plan(1, 92, moves=up, starts=(again,), runs=(RowRun(0, 1),), num_steps=19))
    assert first + [rig.driver.step(idx).rows[0].tokens[0] for idx in range(19)] == alone[0]


def test_a_page_that_does_not_hold_is_named_and_rows_stay_untouched(host: tuple[CpuRig, HostMemory]) -> None:
    rig, tier = host
    space, size_bytes = rig.space_ids[0], rig.spec.groups[0].frame_bytes
    tier.write_page(0, bytes(size_bytes), KEY, 16, space)
    tier.write_page(64, b"\x01" * size_bytes, KEY, 16, space)
    [frames] = rig.tables(48)
    moves = (
        Move(space, Tier.HOST, 0, Tier.DEVICE, frames[0], b"another key 1234", 16),
        Move(space, Tier.HOST, 64, Tier.DEVICE, frames[1], KEY, 16),
    )
    with pytest.raises(PageCorrupt) as caught:
        rig.driver.apply(Plan(1, 2, moves=moves, starts=(rig.start(0, [5]),)))
    assert caught.value.move_idxs == (0,)
    assert bytes(rig.driver._opened().ground.arena.frame(frames[1], 4)) == b"\x01" * 4
    assert rig.driver._opened().rows.row(0) is None


def test_zeroed_frames_are_zero_in_both_tiers(host: tuple[CpuRig, HostMemory]) -> None:
    rig, tier = host
    space, size_bytes = rig.space_ids[0], rig.spec.groups[0].frame_bytes
    tier.write_page(0, b"\x01" * size_bytes, KEY, 16, space)
    [frames] = rig.tables(16)
    rig.driver._opened().ground.arena.frame(frames[0], size_bytes)[:] = b"\x01" * size_bytes
    rig.driver.apply(Plan(1, 2, zeros=(Zero(space, Tier.HOST, 0), Zero(space, Tier.DEVICE, frames[0]))))
    assert tier.peek(0) is None
    assert not any(rig.driver._opened().ground.arena.frame(frames[0], size_bytes))


def test_frames_of_an_unloaded_model_can_still_be_zeroed(rig: CpuRig) -> None:
    [frames] = rig.tables(16)
    rig.driver.unload(1)
    rig.driver.apply(Plan(1, 2, zeros=(Zero(rig.space_ids[0], Tier.DEVICE, frames[0]),)))
    with pytest.raises(UnknownModel):
        rig.driver.unload(1)


BAD_PAGES = {
    "unknown space": Plan(1, 2, zeros=(Zero(77, Tier.DEVICE, 0),)),
    "frame past the arena": Plan(1, 2, zeros=(Zero(10, Tier.DEVICE, 1 << 30),)),
    "disk": Plan(1, 2, zeros=(Zero(10, Tier.DISK, 0),)),
    "no host tier": Plan(1, 2, moves=(Move(10, Tier.DEVICE, 0, Tier.HOST, 0, KEY, 16),)),
}


@pytest.mark.parametrize("name", BAD_PAGES)
def test_a_page_move_that_cannot_be_is_rejected(name: str, rig: CpuRig) -> None:
    with pytest.raises(PlanRejected):
        rig.driver.apply(BAD_PAGES[name])


def test_a_load_beside_steps_disturbs_neither(rig: CpuRig, model: Path, alone: dict[int, list[int]]) -> None:
    source = InspectSpec(str(model))
    offsets, end = [], 7 << 20  # the last slab: the frames of these rows come from the end, so give the load its own place
    for segment in rig.spec.segments:
        offsets.append(end)
        end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
    first, last = offsets[0] // GRANULE_BYTES, end // GRANULE_BYTES
    size = rig.spec.groups[0].frame_bytes // GRANULE_BYTES
    rig.free = [frame for frame in rig.free if frame + size <= first or frame >= last]
    errors: list[BaseException] = []

    def load() -> None:
        try:
            for model_id in range(2, 6):
                rig.driver.load(LoadSpec(model_id, source, (model_id + 100,), tuple(offsets)), lambda done, total: None)
                rig.driver.unload(model_id)
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            errors.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    found = rig.generate(prompt_of(20, 0), 24)
    loading.join()
    assert errors == []
    assert found == alone[0]


def test_two_models_run_in_one_step(rig: CpuRig, tmp_path: Path) -> None:
    reference = save_model(tmp_path, "Qwen3", num_hidden_layers=2)
    spec = rig.driver.inspect(InspectSpec(str(tmp_path)))
    sizes = [-(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES for segment in spec.segments]
    first = min(rig.free) * GRANULE_BYTES
    offsets = tuple(first + sum(sizes[:idx]) for idx in range(len(sizes)))
    rig.driver.load(LoadSpec(2, InspectSpec(str(tmp_path)), (20,), offsets), lambda done, total: None)
    rig.free = [frame for frame in rig.free if frame * GRANULE_BYTES >= first + sum(sizes)]
    prompt = prompt_of(18, 2)
    other = RowStart(3, 2, 0, tuple(prompt), rig.tables(48), GREEDY)
    steps = rig.run([(0, 20), (3, 18)], 12, [rig.start(0, prompt_of(20, 0), GREEDY, 12), other])
    assert [results[3].tokens[0] for results in steps] == greedy_reference(reference, prompt, 12)


@pytest.mark.parametrize(
    "spec",
    [
        OpenSpec(1, 1 << 20, 1024, 16, 8, 512, dtype="float8"),
        OpenSpec(1, 1 << 20, 1024, 16, 8, 512, options={"turbo": "on"}),
        OpenSpec(1, 1 << 20, 1024, 16, 8, 512, options={"native": "perhaps"}),
        OpenSpec(1, 1 << 20, 1024, 16, 8, 512, options={"isa": "mmx"}),
        OpenSpec(1, 1 << 20, 1024, 16, 8, 512, options={"cpus": "0-"}),
        OpenSpec(1, 1 << 20, 1024, 16, 8, 512, options={"cpus": "4096"}),
        OpenSpec(1, 1 << 20, 1024, 16, 8, 512, threads=2, options={"cpus": str(min(os.sched_getaffinity(0)))}),
    ],
)
def test_settings_that_it_does_not_know_are_refused(spec: OpenSpec) -> None:
    with pytest.raises(OptionUnknown):
        CpuDriver().open(spec, None)


def test_more_memory_than_there_is_is_refused_with_the_numbers() -> None:
    with pytest.raises(DeviceOutOfMemory) as caught:
        CpuDriver().open(OpenSpec(1 << 20, 1 << 30, 1024, 16, 8, 512), None)
    assert caught.value.needed_bytes == 1 << 50
    assert 0 < caught.value.free_bytes < 1 << 50


def test_a_load_that_does_not_fit_its_model_is_rejected(rig: CpuRig) -> None:
    source = InspectSpec(str(rig.directory))
    for spec in (
        LoadSpec(2, source, (50,), (0,)),
        LoadSpec(2, source, (), tuple(range(0, 5 * 1024, 1024))),
        LoadSpec(2, source, (50,), (0, 1024, 2048, 3072, 1 << 40)),
        LoadSpec(2, source, (50,), (0, 1024, 2048, 3072, 4097)),
        LoadSpec(1, source, (50,), (0, 1024, 2048, 3072, 4096)),
    ):
        with pytest.raises(PlanRejected):
            rig.driver.load(spec, lambda done, total: None)


def test_a_closed_driver_says_so_and_closes_twice(model: Path) -> None:
    rig = CpuRig(model)
    rig.driver.close()
    rig.driver.close()
    with pytest.raises(DeviceLost):
        rig.driver.step(0)


def test_frames_may_come_by_patch_between_quanta(rig: CpuRig, alone: dict[int, list[int]]) -> None:
    prompt = prompt_of(20, 0)
    [frames] = rig.tables(48)
    start = RowStart(0, 1, 0, tuple(prompt), (frames[:2],), GREEDY)
    steps = rig.run([(0, 20)], 13, [start])
    steps += rig.run([(0, 1)], 11, patches=[FramePatch(0, 0, 2, frames[2:])])
    assert [results[0].tokens[0] for results in steps] == alone[0]


@pytest.mark.skipif(not (DEMO_MODEL / "model.safetensors").is_file(), reason="the shipped model is not in this checkout")
def test_the_shipped_model_writes_what_transformers_writes(options: Mapping[str, str]) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    rig = CpuRig(DEMO_MODEL, num_slabs=64, options=options)
    prompts = [prompt_of(90, 1, 4096), prompt_of(33, 2, 4096), prompt_of(5, 3, 4096)]
    starts = [rig.start(slot, prompt, GREEDY, 64) for slot, prompt in enumerate(prompts)]
    steps = rig.run([(slot, len(prompt)) for slot, prompt in enumerate(prompts)], 64, starts)
    for slot, prompt in enumerate(prompts):
        assert [results[slot].tokens[0] for results in steps] == greedy_reference(reference, prompt, 64)
    score = RowStart(4, 1, 0, tuple(prompts[0]), rig.tables(90), Sampling(num_logprobs=4096), score_from=0)
    found = rig.run([(4, 90)], starts=[score])[0][4].logprobs
    everything = torch.tensor([[logprob for _, logprob in sorted(one.top)] for one in found])
    expected = reference_logits(reference, prompts[0]).log_softmax(-1)[:-1]
    assert float((everything - expected).abs().max() / expected.abs().max()) <= 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 5e-2), ("float16", 5e-3)])
def test_narrow_dtypes_stay_near_the_float32_logits(dtype: str, tolerance: float, tmp_path: Path, options: Mapping[str, str]) -> None:
    reference = save_model(tmp_path, "Llama")
    prompts = [prompt_of(40, 1), prompt_of(25, 2)]
    rig = CpuRig(tmp_path, dtype=dtype, options=options)
    scores = [
        RowStart(slot, 1, 0, tuple(prompt), rig.tables(40), Sampling(num_logprobs=199), score_from=0) for slot, prompt in enumerate(prompts)
    ]
    [results] = rig.run([(0, 40), (1, 25)], starts=scores)
    for slot, prompt in enumerate(prompts):
        expected = reference_logits(reference, prompt).log_softmax(-1)[:-1]
        found = torch.tensor([[logprob for _, logprob in sorted(one.top)] for one in results[slot].logprobs])
        assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance


def test_what_the_driver_states_is_what_it_takes() -> None:
    stated = CpuDriver().probe()
    assert stated.batch_invariant
    for dtype in stated.dtypes:
        driver = CpuDriver()
        driver.open(OpenSpec(1, 1 << 20, 1024, 16, 8, 512, dtype=dtype, threads=1), None)
        driver.close()
