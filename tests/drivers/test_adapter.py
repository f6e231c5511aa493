"""Adapters on the CPU driver against `transformers` with the same change merged into the weights; many in one batch; what is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from drivers.contract import InspectSpec, LoadSpec, ModelSpec, OpenSpec, RowStart
from drivers.cpu import CpuDriver
from drivers.cpu_runners import StepLora
from drivers.errors import ModelCorrupt, ModelUnsupported, PlanRejected, UnknownModel
from drivers.hostmem import HostMemory
from drivers.models.adapter import AdapterWeights, LoraBatch, load_adapter, open_adapter
from drivers.models.loader import Target
from drivers.native.step import adapter_table
from drivers.ops.reference import LoraRows
from drivers.rows import StepRows
from tests.drivers.cpu_rig import GRANULE_BYTES, CpuRig, greedy_reference, prompt_of, reference_logits, save_model
from tests.drivers.family_rig import save_family
from tests.drivers.peft_rig import ALL, merged, save_adapter
from tests.drivers.test_decoder import DecoderRig, relative_error

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {}),
    "llama-one-query-per-kv": ("Llama", {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3-window": ("Qwen3", {"head_dim": 32, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
}
OTHER_LINEARS: dict[str, tuple[str, ...]] = {
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gemma2": ALL,
    "olmo2": ALL,
    "mixtral": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qwen3-moe": ALL,
}
ADAPTERS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "all": (ALL, {"target_modules": "all-linear"}),
    "query-value": (("q_proj", "v_proj"), {"r": 4}),
    "key-up": (("k_proj", "up_proj"), {"use_rslora": True}),
    "output-down": (("o_proj", "down_proj"), {"target_modules": ".*(o|down)_proj"}),
    "patterns": (
        ALL,
        {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"model.layers.0.self_attn.k_proj": 64, "o_proj": 2.5}},
    ),
}


class AdapterRig(CpuRig):
    """The CPU driver with one model, and adapters at the end of its arena."""

    end = 0

    def adapt(self, adapter_id: int, directory: Path) -> ModelSpec:
        """Load an adapter of the model."""
        source = InspectSpec(str(directory), self.max_positions, base=str(self.directory))
        spec = self.driver.inspect(source)
        size = -(-spec.segments[0].size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        self.end = (self.end or self.num_slabs << 20) - size
        last = self.end // GRANULE_BYTES - max(group.frame_bytes for group in self.spec.groups) // GRANULE_BYTES
        self.free = [frame for frame in self.free if frame <= last]
        self.driver.load(LoadSpec(adapter_id, source, (), (self.end,), base_id=1), lambda done, total: None)
        return spec

    def begin(self, slot: int, tokens: Sequence[int], adapter_id: int, room: int = 0) -> RowStart:
        """A row that runs with an adapter."""
        return msgspec.structs.replace(self.start(slot, tokens, room=room), adapter_id=adapter_id)

    def together(self, prompts: Sequence[tuple[Sequence[int], int]], num_tokens: int) -> list[list[int]]:
        """Greedy tokens of rows (prompt, adapter), all in one batch."""
        starts = [self.begin(slot, prompt, adapter_id, num_tokens) for slot, (prompt, adapter_id) in enumerate(prompts)]
        found: list[list[int]] = [[] for _ in prompts]
        for results in self.run([(slot, len(prompt)) for slot, (prompt, _) in enumerate(prompts)], num_tokens, starts=starts):
            for slot, result in results.items():
                found[slot] += result.tokens
        self.run([], 0, clears=range(len(prompts)))
        return found


class LogitsRig(DecoderRig):
    """A decoder all of whose rows run with the adapter of their slot; None: without one."""

    def adapt(self, directories: Sequence[Path | None], base: Path) -> None:
        """Load an adapter for each slot, each into memory of its own."""
        self.adapters: list[AdapterWeights | None] = []
        for directory in directories:
            files = None if directory is None else open_adapter(InspectSpec(str(directory), base=str(base)), torch.float32)
            place = None if files is None else Target(torch.empty(files.size_bytes, dtype=torch.uint8), (0,), torch.float32)
            self.adapters.append(load_adapter(files, place, lambda done, total: None) if files is not None and place is not None else None)

    def hidden(self, share: StepRows) -> torch.Tensor:
        """The last hidden states of a step."""
        tokens: list[int] = []
        counts: list[int] = []
        adapters: list[AdapterWeights] = []
        for row, start, count in zip(share.rows, share.starts, share.counts, strict=True):
            adapter = self.adapters[row.slot]
            if adapter is not None:
                tokens += range(start, start + count)
                counts.append(count)
                adapters.append(adapter)
        lora = LoraBatch(LoraRows(torch.tensor(tokens), tuple(counts)), adapters)
        return self.model.runner.forward(share, StepLora(lora, tuple(map(adapter_table, adapters))))


@pytest.fixture
def llama(tmp_path: Path) -> transformers.PreTrainedModel:
    """A small Llama in `base`."""
    return save_model(tmp_path / "base", "Llama")


def scores(rig: AdapterRig, prompts: Sequence[tuple[Sequence[int], int]], chunk: int) -> list[torch.Tensor]:
    """Log-probabilities of every token but the first of each prompt, computed side by side in chunks."""
    starts = [
        msgspec.structs.replace(rig.begin(slot, prompt, adapter_id), score_from=0) for slot, (prompt, adapter_id) in enumerate(prompts)
    ]
    found: list[list[float]] = [[] for _ in prompts]
    left = [len(prompt) for prompt, _ in prompts]
    while any(left):
        runs = [(slot, min(chunk + slot, num)) for slot, num in enumerate(left) if num]
        [results] = rig.run(runs, starts=starts)
        starts = []
        for slot, count in runs:
            left[slot] -= count
            found[slot] += [item.logprob for item in results[slot].logprobs]
    rig.run([], 0, clears=range(len(prompts)))
    return [torch.tensor(parts) for parts in found]


@pytest.mark.parametrize("case", OTHER_LINEARS)
def test_linears_of_every_family_can_be_adapted_under_the_names_of_its_modules(case: str, tmp_path: Path) -> None:
    model = save_family(tmp_path / "base", case)
    changes = save_adapter(tmp_path / "a", model, OTHER_LINEARS[case], fan_in_fan_out=case == "gpt2")
    rig = LogitsRig(tmp_path / "base")
    rig.adapt([None, tmp_path / "a"], tmp_path / "base")
    prompt = prompt_of(50, 1)
    plain, adapted = rig.logits([prompt, prompt], chunk=13)
    assert relative_error(plain, reference_logits(model, prompt)) <= 1e-4
    assert relative_error(adapted, reference_logits(merged(model, changes), prompt)) <= 1e-4


def test_an_adapter_of_experts_is_refused_and_told_what_can_be_adapted(tmp_path: Path) -> None:
    save_family(tmp_path / "base", "mixtral")
    save_adapter(tmp_path / "a", save_model(tmp_path / "other", "Llama"), ["gate_proj"])
    with pytest.raises(ModelUnsupported, match=r"mlp\.gate_proj; supported are, of MixtralForCausalLM, q_proj, k_proj, v_proj, o_proj\."):
        open_adapter(InspectSpec(str(tmp_path / "a"), base=str(tmp_path / "base")), torch.float32)


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_with_merged_weights(family: str, is_native: bool, tmp_path: Path) -> None:
    kind, changes = FAMILIES[family]
    model = save_model(tmp_path / "base", kind, **changes)
    models, directories = [model], list[Path | None]([None])
    for number, (name, (targets, config)) in enumerate(ADAPTERS.items()):
        models.append(merged(model, save_adapter(tmp_path / name, model, targets, seed=number, **config)))
        directories.append(tmp_path / name)
    rig = LogitsRig(tmp_path / "base", is_native=is_native)
    rig.adapt(directories, tmp_path / "base")
    prompts = [prompt_of(20 + 11 * slot, slot) for slot in range(len(models))]
    for prompt, found, merged_model in zip(prompts, rig.logits(prompts, chunk=9), models, strict=True):
        assert relative_error(found, reference_logits(merged_model, prompt)) <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_of_many_adapters_in_one_batch_equals_merged_weights(family: str, tmp_path: Path) -> None:
    kind, changes = FAMILIES[family]
    model = save_model(tmp_path / "base", kind, **changes)
    rig = AdapterRig(tmp_path / "base")
    models = {0: model}
    for number, (name, (targets, config)) in enumerate(ADAPTERS.items(), 2):
        models[number] = merged(model, save_adapter(tmp_path / name, model, targets, seed=number, **config))
        rig.adapt(number, tmp_path / name)
    prompts = [(prompt_of(20 + 7 * number, number), number) for number in models]
    found_tokens = rig.together([*prompts, (prompt_of(20, 50), 3)], 12)
    for (prompt, number), tokens in zip([*prompts, (prompt_of(20, 50), 3)], found_tokens, strict=True):
        assert tokens == greedy_reference(models[number], prompt, 12)
    distinct = {tuple(rig.together([(prompts[0][0], number)], 12)[0]) for number in models}
    assert len(distinct) > len(models) // 2


def test_rows_of_the_base_are_bit_identical_beside_adapters(llama: transformers.PreTrainedModel, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", llama, seed=1)
    rig = AdapterRig(tmp_path / "base")
    rig.adapt(2, tmp_path / "a")
    rows = [(prompt_of(30, 1), 0), (prompt_of(30, 2), 2), (prompt_of(30, 3), 0)]
    without = [(prompt, 0) for prompt, _ in rows]
    beside, alone = scores(rig, rows, 11), scores(rig, without, 11)
    assert torch.equal(beside[0], alone[0])
    assert torch.equal(beside[2], alone[2])
    assert not torch.equal(beside[1], alone[1])


def test_an_adapter_is_alone_what_it_is_in_company(llama: transformers.PreTrainedModel, tmp_path: Path) -> None:
    rig = AdapterRig(tmp_path / "base")
    for number in (2, 3):
        save_adapter(tmp_path / str(number), llama, seed=number)
        rig.adapt(number, tmp_path / str(number))
    rows = [(prompt_of(25 + number, number), number) for number in (3, 2, 0)]
    together = rig.together(rows, 10)
    assert together == [rig.together([row], 10)[0] for row in rows]


def test_a_row_may_only_name_an_adapter_of_its_model(llama: transformers.PreTrainedModel, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", llama)
    rig = AdapterRig(tmp_path / "base")
    spec = rig.adapt(2, tmp_path / "a")
    assert (spec.groups, len(spec.segments)) == ((), 1)
    with pytest.raises(PlanRejected, match="adapter 3"):
        rig.run([(0, 5)], starts=[rig.begin(0, prompt_of(5), 3)])
    rig.driver.unload(2)
    with pytest.raises(PlanRejected, match="adapter 2"):
        rig.run([(0, 5)], starts=[rig.begin(0, prompt_of(5), 2)])
    with pytest.raises(UnknownModel):
        rig.driver.unload(2)


def test_an_adapter_outlives_its_base_and_serves_it_again(llama: transformers.PreTrainedModel, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", llama)
    rig = AdapterRig(tmp_path / "base")
    rig.adapt(2, tmp_path / "a")
    before = rig.together([(prompt_of(25), 2)], 8)
    rig.driver.unload(1)
    rig.adopt()
    rig.free = rig.free[::2]
    assert rig.together([(prompt_of(25), 2)], 8) == before


def test_an_adapter_of_a_streamed_base_says_what_it_says_of_a_resident_one(llama: transformers.PreTrainedModel, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", llama)
    rig = AdapterRig(tmp_path / "base")
    rig.adapt(2, tmp_path / "a")
    rows = [(prompt_of(25, 1), 2), (prompt_of(25, 2), 0)]
    resident = rig.together(rows, 8)
    rig.driver.unload(1)
    first, *_, end = rig.spec.segments
    whole = [-(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES for segment in (first, end)]
    slots = (sum(whole), sum(whole) + (1 << 18))
    offsets = (0, *[-1] * (len(rig.spec.segments) - 2), whole[0])
    rig.driver.load(LoadSpec(1, InspectSpec(str(rig.directory)), rig.space_ids, offsets, slots), lambda done, total: None)
    assert rig.together(rows, 8) == resident


def test_two_spellings_of_one_linear_are_refused(llama: transformers.PreTrainedModel, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", llama, target_modules="all-linear")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    again = {name.replace("layers.0.", "layers.00."): tensor.clone() for name, tensor in tensors.items() if "layers.0." in name}
    save_file({**tensors, **again}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ModelUnsupported, match=r"layers\.00"):
        open_adapter(InspectSpec(str(tmp_path / "a"), base=str(tmp_path / "base")), torch.float32)


@pytest.mark.parametrize("problem", ["no base", "taken", "spaces", "offset"])
def test_a_load_of_an_adapter_that_cannot_be_is_rejected_and_leaves_nothing(
    problem: str, llama: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "a", llama)
    rig = AdapterRig(tmp_path / "base")
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


def test_values_that_are_not_finite_are_refused_at_load(llama: transformers.PreTrainedModel, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", llama, size=float("inf"))
    rig = AdapterRig(tmp_path / "base")
    with pytest.raises(ModelCorrupt, match="not finite"):
        rig.adapt(2, tmp_path / "a")


@pytest.mark.parametrize("change", [{"hidden_size": 48, "head_dim": 8}, {"num_hidden_layers": 5}, {"num_key_value_heads": 3}])
def test_an_adapter_of_another_base_is_refused_by_name(change: dict[str, object], tmp_path: Path) -> None:
    save_model(tmp_path / "base", "Llama")
    save_adapter(tmp_path / "a", save_model(tmp_path / "other", "Llama", **change))
    with pytest.raises(ModelCorrupt, match="made for another base"):
        AdapterRig(tmp_path / "base").adapt(2, tmp_path / "a")


def test_an_adapter_comes_back_from_the_host_tier_or_its_files_where_the_image_is_damaged(
    llama: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "a", llama)
    rig = AdapterRig(tmp_path / "base")
    rig.driver.close()
    rig.driver = CpuDriver()
    host = HostMemory.create(4 << 20, GRANULE_BYTES)
    rig.driver.open(OpenSpec(8, 1 << 20, GRANULE_BYTES, 16, 8, 512, threads=1, host_bytes=4 << 20), os.dup(host.fd))
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
