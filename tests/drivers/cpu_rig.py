"""Small models with random weights, and the CPU driver around them: the front's part of the contract in its plainest form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
import transformers
from torch import Tensor

from drivers.contract import Driver, FramePatch, InspectSpec, LoadSpec, OpenSpec, Plan, RowResult, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver

GRANULE_BYTES = 1024
PAGE_TOKENS = 16
GREEDY = Sampling(temperature=0.0)
TORCH = {"native": "off"}  # options of a driver that leaves native code alone
SHAPE: dict[str, object] = {
    "vocab_size": 199,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}  # where names do not follow the family's
MODELS = {"GPT2": "GPT2LMHeadModel"}


def save_model(directory: Path, family: str, **changes: object) -> transformers.PreTrainedModel:
    """Write a small random model of a family to a directory and answer the reference implementation of it, in float32."""
    torch.manual_seed(7)
    shard_bytes = changes.pop("max_shard_size", "5GB")
    dtype = changes.pop("dtype", torch.float32)
    config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**{**SHAPE, **changes})
    model = getattr(transformers, MODELS.get(family, f"{family}ForCausalLM"))(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # the defaults, ones and zeros, would hide mistakes
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.2)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_bytes)
    reference: transformers.PreTrainedModel = model.float().eval()
    return reference


@dataclass
class CpuRig:
    """One driver with one model; frames are handed out in an order that no two neighbours share."""

    directory: Path
    dtype: str = "float32"
    max_positions: int = 0
    num_slabs: int = 8
    page_tokens: int = PAGE_TOKENS
    max_step_tokens: int = 512
    options: Mapping[str, str] = field(default_factory=dict)
    quant: str = ""
    kv_quant: str = ""
    is_batch_invariant: bool = False
    driver: Driver = field(default_factory=CpuDriver)
    seq: int = 0
    workspace: dict[int, int] = field(default_factory=dict)  # that the last run told of

    def __post_init__(self) -> None:
        """Open the driver and load the model at the start of the arena."""
        room = OpenSpec(self.num_slabs, 1 << 20, GRANULE_BYTES, self.page_tokens, 8, self.max_step_tokens)
        how = msgspec.structs.replace(room, dtype=self.dtype, options=dict(self.options), batch_invariant=self.is_batch_invariant)
        self.driver.open(msgspec.structs.replace(how, threads=1), None)
        self.adopt()

    def adopt(self) -> None:
        """Load the model into the open driver."""
        source = InspectSpec(str(self.directory), self.max_positions, self.quant, kv_quant=self.kv_quant)
        self.spec = self.driver.inspect(source)
        offsets, end = [], 0
        for segment in self.spec.segments:
            offsets.append(end)
            end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        self.space_ids = tuple(range(10, 10 + len(self.spec.groups)))
        self.driver.load(LoadSpec(1, source, self.space_ids, tuple(offsets)), lambda done, total: None)
        self.free = self._frames(end // GRANULE_BYTES)

    def _frames(self, first: int) -> list[int]:
        """Frames as large as the largest group's, every other one first, backwards."""
        size = max(group.frame_bytes for group in self.spec.groups) // GRANULE_BYTES
        frames = list(range(first, self.num_slabs * (1 << 20) // GRANULE_BYTES - size + 1, size))
        return frames[1::2] + frames[::2][::-1]

    def tables(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        """New page tables for so many tokens."""
        num_pages = -(-num_tokens // self.page_tokens)
        return tuple(tuple(self.free.pop() for _ in range(num_pages)) for _ in self.spec.groups)

    def start(self, slot: int, tokens: Sequence[int], sampling: Sampling = GREEDY, room: int = 0) -> RowStart:
        """A row at position 0 with frames for its tokens and `room` more."""
        return RowStart(slot, 1, 0, tuple(tokens), self.tables(len(tokens) + room), sampling)

    def run(
        self,
        runs: Sequence[tuple[int, int]],
        num_steps: int = 1,
        starts: Sequence[RowStart] = (),
        clears: Sequence[int] = (),
        patches: Sequence[FramePatch] = (),
    ) -> list[dict[int, RowResult]]:
        """Apply a plan and run all of its steps; answers the results of each step by slot."""
        self.seq += 1
        plan = Plan(
            boot_generation=1,
            seq=self.seq,
            clears=tuple(clears),
            starts=tuple(starts),
            patches=tuple(patches),
            runs=tuple(RowRun(slot, count) for slot, count in runs),
            num_steps=num_steps,
        )
        self.driver.apply(plan)
        steps = [self.driver.step(idx) for idx in range(num_steps)]
        self.workspace = {model_id: size for step in steps for model_id, size in step.workspace.items()}
        return [{result.slot: result for result in step.rows} for step in steps]

    def generate(self, prompt: Sequence[int], num_tokens: int, sampling: Sampling = GREEDY, chunk: int = 512) -> list[int]:
        """One row alone, its prompt in chunks, then all tokens in one quantum."""
        starts: Sequence[RowStart] = (self.start(0, prompt, sampling, num_tokens),)
        found: list[int] = []
        left = len(prompt)
        while left:
            count = min(chunk, left)
            left -= count
            [results] = self.run([(0, count)], starts=starts)
            starts = ()
            found += results[0].tokens
        if num_tokens > 1:
            found += [token for results in self.run([(0, 1)], num_tokens - 1) for token in results[0].tokens]
        self.run([], 0, clears=(0,))
        return found


def reference_logits(model: transformers.PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """Logits of every position `[len(tokens), vocab]`."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return logits


def greedy_reference(model: transformers.PreTrainedModel, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The continuation that `transformers` finds, past any stop token."""
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    settings = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False, "eos_token_id": None}
    tokens: list[int] = generate(torch.tensor([list(prompt)]), **settings)[0, len(prompt) :].tolist()
    return tokens


def prompt_of(length: int, seed: int = 0, vocab_size: int = 199) -> list[int]:
    """A repeatable prompt without special tokens."""
    random = torch.Generator().manual_seed(1000 + seed)
    prompt: list[int] = torch.randint(3, vocab_size, (length,), generator=random).tolist()
    return prompt
