"""Small models with random weights on the native engine, and what the definitions of their ops say of the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from drivers.models.config import DecoderConfig, ExpertConfig, LayerConfig, groups_of
from drivers.models.description import describe
from drivers.models.layout import Segment, decoder_segments
from drivers.models.parts import PartSpec
from drivers.models.placing import Placed
from drivers.models.rotary import RopeConfig, inverse_frequencies
from drivers.models.storage import Kind, Storage
from drivers.models.tiles import Tile, convert
from drivers.models.weight import Weight
from drivers.native.engine import ArenaSpan, Engine, NativeModel
from drivers.native.lowering import layer_part_bytes, lower
from drivers.native.program import NATIVE_OPS, KvGroupShape, ModelShape, RotaryTable
from drivers.native.step import NativeLora, NativeStep
from drivers.ops.calls import Activation, Description, ExpertSettings
from drivers.ops.fusion import fuse
from drivers.ops.implementation import Implementation, Shapes
from drivers.ops.ragged import AttentionShape, HeadShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv
from drivers.ops.running import Pass, Rotary, run_definition

P = 16  # page_tokens
GRANULE = 256
VECTOR = Storage(Kind.FLOAT32)
FLOAT32 = Storage(Kind.FLOAT32, is_panels=True)
BFLOAT16 = Storage(Kind.BFLOAT16, is_panels=True)
INT8 = Storage(Kind.INT8, is_panels=True)
INT4 = Storage(Kind.INT4, group=32, is_panels=True)

LLAMA = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocab_size=203,
    hidden_size=96,
    intermediate_size=160,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    max_positions=2048,
    rotary=(RopeConfig(),),
    layers=(LayerConfig(),) * 3,
    groups=groups_of((LayerConfig(),) * 3),
    attention_scale=0.25,
    activation=Activation.SILU,
    has_qkv_bias=False,
    has_output_bias=False,
    has_mlp_bias=False,
    has_qk_norm=False,
    is_tied=True,
    bos_token_id=None,
    eos_token_ids=(),
)
NEAR, FAR = LayerConfig(window=40, table=1), LayerConfig()
MIXED = (NEAR, FAR, NEAR)
PLAIN = LayerConfig(table=None)
EXPERTS = (LayerConfig(has_experts=True), LayerConfig(), LayerConfig(has_experts=True))
MODELS = {
    "llama": LLAMA,
    "qwen3": replace(LLAMA, architecture="Qwen3ForCausalLM", has_qk_norm=True, has_qkv_bias=True, has_mlp_bias=True, is_tied=False),
    "gemma3": replace(
        LLAMA,
        architecture="Gemma3ForCausalLM",
        activation=Activation.GELU_TANH,
        has_qk_norm=True,
        has_unit_offset=True,
        attention_softcap=7.0,
        logits_softcap=5.0,
        embedding_scale=96**0.5,
        rotary=(RopeConfig(rope_type="linear", factor=4.0, theta=1e6), RopeConfig()),
        layers=MIXED,
        groups=groups_of(MIXED),
    ),
    "olmo2": replace(LLAMA, architecture="Olmo2ForCausalLM", has_qk_norm=True, has_qk_norm_over_all_heads=True),
    "gpt2": replace(
        LLAMA,
        architecture="GPT2LMHeadModel",
        num_kv_heads=6,
        rotary=(),
        layers=(PLAIN,) * 3,
        groups=groups_of((PLAIN,) * 3),
        activation=Activation.GELU,
        has_layer_norm=True,
        has_qkv_bias=True,
        has_output_bias=True,
        num_positions=2048,
    ),
    "experts": replace(
        LLAMA,
        architecture="Qwen3MoeForCausalLM",
        has_qk_norm=True,
        layers=EXPERTS,
        groups=groups_of(EXPERTS),
        experts=ExpertConfig(ExpertSettings(5, 2, True, Activation.SILU), 48),
    ),
    "odd": replace(LLAMA, intermediate_size=88, rotary=(RopeConfig(fraction=0.5),)),  # half of gate_up is no whole panels
}


def fused(description: Description, config: DecoderConfig, segments: Sequence[Segment]) -> Description:
    """All that native code can fuse."""
    heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
    ops = [
        Implementation(op.name, op.covers, "native", 1.0, visible=tuple(range(len(op.covers))) if "kv_write" in op.covers else (-1,))
        for op in NATIVE_OPS
    ]
    shapes = [Shapes(heads, P, config.hidden_size, "float32", {part.name: part.shape for part in one.parts}) for one in segments]
    return fuse(description, ops, lambda idx: shapes[idx]).description


def zeros(size_bytes: int) -> np.ndarray:
    """Bytes from a multiple of 64 on."""
    memory = np.zeros(size_bytes + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size_bytes]


def form_of(storage: Storage) -> object:
    """How parts lie: vectors and small matrices as floats, the others as told."""

    def form(spec: PartSpec) -> Storage:
        if len(spec.shape) == 1:
            return VECTOR
        if spec.name in ("router", "position_embedding"):
            return FLOAT32
        is_end = spec.name in ("embedding", "head")
        return INT8 if is_end and storage.is_quantized else storage

    return form


@dataclass
class Context:
    """Tokens of one row, and where its pages are."""

    tokens: list[int]
    tables: list[np.ndarray]
    position: int = 0


@dataclass
class Rig:
    """A model on an engine."""

    config: DecoderConfig
    storage: Storage = FLOAT32
    kv_kind: Kind = Kind.FLOAT32
    num_threads: int = 2
    is_fused: bool = True
    max_pages: int = 200
    level: str = ""
    engine: Engine | None = None  # None: one of its own

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        config = self.config
        self.segments = decoder_segments(config, form_of(self.storage))  # type: ignore[arg-type]
        self.memory = [zeros(segment.size_bytes) for segment in self.segments]
        self.weights = [self._fill(segment, memory, generator) for segment, memory in zip(self.segments, self.memory, strict=True)]
        self.description = describe(config)
        calls = fused(self.description, config, self.segments) if self.is_fused else self.description
        self.shape = self._shape()
        self.program = lower(calls, self.segments, self.shape)
        self.pages = zeros(sum(group.frame_bytes for group in self.shape.groups) * self.max_pages)
        self.engine = self.engine or Engine(self.num_threads, level=self.level)
        self.model = NativeModel(self.engine, self.program, ArenaSpan(self.pages.ctypes.data, len(self.pages)), 64)
        self.bases = np.array([memory.ctypes.data for memory in self.memory], dtype=np.uint64)
        self._taken = 0

    def close(self) -> None:
        """Give everything back."""
        self.model.close()
        self.engine.close()

    def _fill(self, segment: Segment, memory: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in segment.parts:
            scale = 1.0 if part.name == "router" else part.shape[-1] ** -0.5 if len(part.shape) > 1 else 0.3
            values = torch.randn(part.shape, generator=generator) * scale + (1.0 if part.name.endswith("norm") else 0.0)
            place = torch.from_numpy(memory[part.offset_bytes : part.offset_bytes + part.places.size_bytes])
            if len(part.shape) == 1:
                place.view(torch.float32).copy_(values)
                found[part.name] = values
                continue
            for idx, each in enumerate(values.view(-1, *part.shape[-2:]).numpy()):
                Placed(part, place).region.put(convert(Tile(Kind.FLOAT32, each), part.storage, part.name), idx, 0)
            found[part.name] = Weight(part.storage, part.shape, place).dequantize(torch.float32)
        return found

    def _shape(self) -> ModelShape:
        config = self.config
        shape = ModelShape(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            page_tokens=P,
            granule_bytes=GRANULE,
            kv_kind=self.kv_kind,
            groups=(),
            layer_bytes=(),
            rotary=tuple(
                RotaryTable(inverse_frequencies(rope, config.head_dim, config.max_positions).numpy(), rope.attention_factor)
                for rope in config.rotary
            ),
        )
        part = layer_part_bytes(shape)
        groups = tuple(KvGroupShape(-(-len(group.layers) * part // GRANULE) * GRANULE, group.window) for group in config.groups)
        places = {layer: idx * part for group in config.groups for idx, layer in enumerate(group.layers)}
        return replace(shape, groups=groups, layer_bytes=tuple(places[layer] for layer in range(config.num_layers)))

    # --------------------------------------------------------------------------------------------------------------------------- rows

    def start(self, length: int, seed: int = 0) -> Context:
        """A context of random tokens, whose pages lie here and there."""
        num_pages = -(-length // P)
        assert self._taken + num_pages <= self.max_pages
        order = np.arange(self._taken, self._taken + num_pages)[::-1]
        self._taken += num_pages
        tables, start = [], 0
        for group in self.shape.groups:
            tables.append((start + order * group.frame_bytes) // GRANULE)
            start += group.frame_bytes * self.max_pages
        generator = np.random.default_rng(seed)
        return Context(generator.integers(0, self.config.vocab_size, length).tolist(), tables)

    def step(self, parts: Sequence[tuple[Context, int]], lora: NativeLora | None = None) -> NativeStep:
        """The next tokens of some contexts, so many of each."""
        counts = [count for _, count in parts]
        starts = [sum(counts[:idx]) for idx in range(len(counts))]
        tokens = [token for context, count in parts for token in context.tokens[context.position : context.position + count]]
        positions = [context.position for context, _ in parts]
        tables = [[context.tables[group] for context, _ in parts] for group in range(len(self.shape.groups))]
        return NativeStep.of(np.array(tokens, dtype=np.int64), (starts, counts, positions), tables, lora)

    def run(self, parts: Sequence[tuple[Context, int]], lora: NativeLora | None = None) -> list[Tensor]:
        """Compute them; answers the hidden states of each context's tokens."""
        hidden = self.model.forward(self.step(parts, lora), self.bases)
        for context, count in parts:
            context.position += count
        return list(hidden.split([count for _, count in parts]))

    def alone(self, length: int, seed: int = 0) -> Tensor:
        """Hidden states of a context that was computed at once, alone."""
        return self.run([(self.start(length, seed), length)])[0]

    # ------------------------------------------------------------------------------------------------------------------- definitions

    def defined(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of a context as the definitions have them, in float32."""
        config, count = self.config, len(tokens)
        heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        num_pages = -(-count // P)
        span = RowSpan(0, count, 0, np.arange(num_pages))
        shapes = [AttentionShape(P, group.window, torch.zeros(P, 2, config.num_kv_heads, config.head_dim)) for group in config.groups]
        step = Pass(
            values={"tokens": torch.tensor(tokens), "positions": torch.arange(count)},
            dtype=torch.float32,
            heads=heads,
            kv=[LayerKv(torch.zeros(num_pages, P, 2, config.num_kv_heads, config.head_dim), heads) for _ in config.layers],
            attention=[plan_attention(shape, [span]) for shape in shapes],
            rotary=[Rotary(torch.from_numpy(table.inverse_frequencies), table.factor) for table in self.shape.rotary],
        )
        lists = (self.description.first, *self.description.layers, self.description.last)
        hidden = torch.empty(0)
        for idx, calls in enumerate(lists):
            if idx == len(lists) - 1:
                hidden = step.values["residual"].clone()
            for call in calls:
                run_definition(call, {**self.weights[0], **self.weights[idx]}, step)
        return hidden, step.values["logits"]
