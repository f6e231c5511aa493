"""The forward pass against `transformers`, for every family and rotary scaling that the loader takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drivers.arena import Arena
from drivers.contract import InspectSpec, LoadSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu_ground import Ground
from drivers.cpu_model import CpuModel, inspect_cpu_model, load_model
from drivers.cpu_ops import OpChooser
from drivers.cpu_runners import TorchRunner
from drivers.models.decoder import Decoder
from drivers.models.loader import PageShape
from drivers.native.engine import Engine
from drivers.ops.implementation import REFERENCE, Implementation
from drivers.rows import RowTable, StepRows
from tests.drivers.cpu_rig import GRANULE_BYTES, GREEDY, TORCH, CpuRig, greedy_reference, prompt_of, reference_logits, save_model

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied-sharded": ("Llama", {"tie_word_embeddings": False, "max_shard_size": "60KB"}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-query-per-kv": ("Llama", {"num_key_value_heads": 6}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-llama3": ("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": {**YARN, "rope_theta": 10000.0}}),
    "mistral-window": ("Mistral", {"sliding_window": 24, "tie_word_embeddings": False}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    "qwen3-window-biases": (
        "Qwen3",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 33,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


class DecoderRig:
    """A model in an arena with a row table, so that tests can look at logits."""

    def __init__(self, directory: Path, max_positions: int = 0, *, is_native: bool = False, offers: Sequence[Implementation] = ()) -> None:
        """Load the model at the start of an arena of 8 MiB; `offers`: what may run it, else all that torch has."""
        pages = PageShape(16, GRANULE_BYTES, torch.float32)
        ops = OpChooser(pages, Engine(1) if is_native else None)
        ops.offers = tuple(offers) or ops.offers
        ground = Ground(Arena(8 << 20, GRANULE_BYTES), ops, max_tokens=512)
        source = InspectSpec(str(directory), max_positions)
        spec = inspect_cpu_model(source, ground)
        offsets, end = [], 0
        for segment in spec.segments:
            offsets.append(end)
            end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        load = LoadSpec(1, source, tuple(range(len(spec.groups))), tuple(offsets))
        with torch.inference_mode():
            self.model: CpuModel = load_model(ops.decide(source), load, ground, lambda done, total: None)
        assert self.model.is_native is is_native
        assert ops.bad == {}
        self.frame = max(group.frame_bytes for group in spec.groups) // GRANULE_BYTES
        self.next = end // GRANULE_BYTES

    @property
    def decoder(self) -> Decoder:
        """What computes in torch."""
        assert isinstance(self.model.runner, TorchRunner)
        return self.model.runner.decoder

    def logits(self, prompts: Sequence[Sequence[int]], chunk: int) -> list[Tensor]:
        """Logits of every position of every prompt, all computed side by side in chunks."""
        table = RowTable(8, 4096, 16)
        starts = tuple(
            RowStart(slot, 1, 0, tuple(prompt), self._tables(len(prompt)), Sampling(), score_from=0) for slot, prompt in enumerate(prompts)
        )
        found: list[list[Tensor]] = [[] for _ in prompts]
        while any(len(torch.cat(parts)) < len(prompt) if parts else True for parts, prompt in zip(found, prompts, strict=True)):
            rows = [(slot, table.row(slot)) for slot in range(len(prompts))]
            left = {slot: len(prompts[slot]) if row is None else len(row.pending) for slot, row in rows}
            runs = tuple(RowRun(slot, min(chunk + slot, num)) for slot, num in left.items() if num)
            table.apply(Plan(1, 1, starts=starts, runs=runs, num_steps=1))
            starts = ()
            self._compute(table, found)
        return [torch.cat(parts) for parts in found]

    def _compute(self, table: RowTable, found: list[list[Tensor]]) -> None:
        [share] = table.take(0)
        with torch.inference_mode():
            logits = self.model.runner.logits(self.hidden(share), range(len(share.tokens)))
        for row, start, count in zip(share.rows, share.starts, share.counts, strict=True):
            found[row.slot].append(logits[start : start + count])
            table.advance(row, count)

    def hidden(self, share: StepRows) -> Tensor:
        """The last hidden states of a step."""
        return self.model.runner.forward(share)

    def _tables(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        tables = []
        for _ in self.model.frames:
            num_pages = -(-num_tokens // 16)
            tables.append(tuple(self.next + self.frame * idx for idx in range(num_pages))[::-1])
            self.next += num_pages * self.frame
        return tuple(tables)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_across_pages_chunks_and_strangers(case: str, is_native: bool, tmp_path: Path) -> None:
    family, changes = CASES[case]
    reference = save_model(tmp_path, family, **changes)
    prompts = [prompt_of(100, 1), prompt_of(37, 2), prompt_of(1, 3), prompt_of(64, 4)]
    found = DecoderRig(tmp_path, is_native=is_native).logits(prompts, chunk=13)
    errors = [relative_error(logits, reference_logits(reference, prompt)) for logits, prompt in zip(found, prompts, strict=True)]
    assert max(errors) <= 1e-4


@pytest.mark.parametrize("options", [{}, TORCH], ids=["native", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_text_equals_transformers_over_64_tokens(case: str, options: Mapping[str, str], tmp_path: Path) -> None:
    family, changes = CASES[case]
    reference = save_model(tmp_path, family, **changes)
    prompts = [prompt_of(45, 5), prompt_of(17, 6), prompt_of(3, 7)]
    rig = CpuRig(tmp_path, options=options)
    starts = [rig.start(slot, prompt, GREEDY, 64) for slot, prompt in enumerate(prompts)]
    first = rig.run([(0, 20), (1, 17), (2, 3)], starts=starts)
    first += rig.run([(0, 25), (1, 1), (2, 1)])
    rest = rig.run([(0, 1), (1, 1), (2, 1)], num_steps=63)
    for slot, prompt in enumerate(prompts):
        found = [token for results in first + rest for token in results[slot].tokens][:64]
        assert found == greedy_reference(reference, prompt, 64)


def test_reference_ops_and_fused_ops_agree_on_a_model_with_two_kv_groups(tmp_path: Path) -> None:
    family, changes = CASES["qwen3-window-biases"]
    save_model(tmp_path, family, **changes)
    prompts = [prompt_of(90, 1), prompt_of(1, 2), prompt_of(20, 3)]
    plain = DecoderRig(tmp_path, offers=REFERENCE).logits(prompts, chunk=31)
    fused = DecoderRig(tmp_path).logits(prompts, chunk=31)
    assert max(relative_error(one, two) for one, two in zip(fused, plain, strict=True)) <= 1e-5


def test_dynamic_scaling_is_fixed_by_the_declared_maximum(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    reference = save_model(tmp_path, "Llama", rope_parameters=rope, max_position_embeddings=64)
    prompt = prompt_of(150, 8)
    expected = reference_logits(reference, prompt)  # transformers takes the length of this very sequence
    [found] = DecoderRig(tmp_path, max_positions=150).logits([prompt], chunk=50)
    assert relative_error(found, expected) <= 1e-4


def test_old_spelling_of_rotary_scaling_means_the_same(tmp_path: Path) -> None:
    from drivers.models.fields import Fields
    from drivers.models.rotary import RopeConfig

    old = {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}}
    assert RopeConfig.read(Fields(old, "config.json"), 64) == RopeConfig.read(Fields(new, "config.json"), 64)
