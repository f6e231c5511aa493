"""How the CUDA driver runs a model's calls: which implementations it offers to the fusion pass, and what each fused call does.

Linears of floats are the library's. Nothing here waits for the device or reads from it, so that a decode step can be captured whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from drivers.models.weight import Weight
from drivers.ops import reference
from drivers.ops.calls import (
    ActivationSettings,
    AttentionSettings,
    Call,
    EmbedSettings,
    ExpertSettings,
    HeadNormSettings,
    NormSettings,
    RopeSettings,
    SoftcapSettings,
)
from drivers.ops.implementation import Implementation, Shapes
from drivers.ops.running import setting
from drivers.triton.layout import MAX_HEAD_DIM, PREFILL_TILE, Angles, AttentionShape, Heads, LayerKv, LoraPlaces, StepRows
from drivers.triton.matrix import QuantMatrix
from drivers.triton.table import KernelTable

FEW_TOKENS = 64  # up to here quantized weights are multiplied as they are; above, they are written out as floats first

Matrix = Tensor | QuantMatrix
Parts = Mapping[str, Matrix]


@dataclass(frozen=True, slots=True)
class StepAdapters:
    """The adapters of a step's rows."""

    arena: Tensor  # all of it, as items of the compute dtype
    table: Tensor  # see drivers.triton.layout
    products: Mapping[tuple[int, str], int]  # (layer, part without ".weight") -> index into the table
    width: int  # no rank is larger

    def of(self, layer: int, part: str) -> LoraPlaces:
        """Those of one product."""
        return LoraPlaces(self.arena, self.table[self.products[layer, part.removesuffix(".weight")]], self.width)


@dataclass(slots=True)
class CudaPass:
    """One forward pass: values by name, and what calls read beside weights."""

    values: dict[str, Tensor]
    step: StepRows
    kernels: KernelTable
    dtype: torch.dtype
    heads: Heads
    kv: Sequence[LayerKv]  # of each layer
    windows: Sequence[int]  # of each KV group; 0: none
    angles: Sequence[Angles]  # of each rotary table
    still: Angles  # that turn nothing
    fixed_chunk: int = 0  # keys of a split where no bit may depend on the batch; 0: it may
    adapters: StepAdapters | None = None  # None: no row has one
    layer: int = -1  # of the calls that run now; -1: outside of the layers

    def out(self, call: Call, *values: Tensor) -> None:
        """Give a call's outputs their values."""
        self.values.update(zip(call.outputs, values, strict=True))

    def read(self, call: Call) -> Tensor:
        """The first input of a call."""
        return self.values[call.inputs[0]]


Run = Callable[[Call, Parts, CudaPass], None]


def on_device(part: Tensor | Weight) -> Matrix:
    """A part of the arena as the kernels take it."""
    if isinstance(part, Tensor):
        return part
    places, storage, num = part.places, part.storage, part.places.num_matrices
    rows = num * places.rows  # of experts: those of all, one behind the other
    values = part.bytes[: num * places.values_bytes].view(rows, -1)
    scales = part.bytes[places.scales_start :][: num * places.scales_bytes].view(torch.float16 if storage.group else torch.float32)
    offsets = None
    if storage.has_offsets:
        offsets = part.bytes[places.offsets_start :][: num * places.offsets_bytes].view(torch.float32).view(rows, -1)
    bits = 8 * values.shape[1] // places.columns
    return QuantMatrix(values, scales.view(rows, -1), offsets, part.shape[-1], storage.group, bits)


def vector(parts: Parts, name: str) -> Tensor:
    """A part that is never quantized."""
    part = parts[name]
    assert isinstance(part, Tensor), name
    return part


def embed(call: Call, parts: Parts, step: CudaPass) -> None:
    """Rows of the table."""
    table, tokens = parts[call.parts[0]], step.read(call)
    rows = F.embedding(tokens, table) if isinstance(table, Tensor) else step.kernels.dequantize(table, step.dtype, tokens)
    scale = setting(call, EmbedSettings).scale
    step.out(call, rows if scale == 1.0 else rows * scale)


def embed_positions(call: Call, parts: Parts, step: CudaPass) -> None:
    """Learned positions."""
    residual, positions = (step.values[name] for name in call.inputs)
    step.out(call, reference.embed_positions(residual, positions, vector(parts, call.parts[0])))


def rms_norm(call: Call, parts: Parts, step: CudaPass) -> None:
    """A norm by itself."""
    norm = setting(call, NormSettings)
    step.out(call, step.kernels.rms_norm(step.read(call), vector(parts, call.parts[0]), norm.eps, norm.has_unit_offset))


def add_rms_norm(call: Call, parts: Parts, step: CudaPass) -> None:
    """The residual, and its norm."""
    norm, (x, residual) = setting(call, NormSettings), (step.values[name] for name in call.inputs)
    y = step.kernels.add_rms_norm(x, residual, vector(parts, call.parts[0]), (norm.eps, norm.has_unit_offset))
    step.out(call, residual, y)


def layer_norm(call: Call, parts: Parts, step: CudaPass) -> None:
    """As the library does it."""
    norm, (weight, bias) = setting(call, NormSettings), (vector(parts, name) for name in call.parts)
    step.out(call, reference.layer_norm(step.read(call), weight, bias, norm.eps, norm.has_unit_offset))


def linear(call: Call, parts: Parts, step: CudaPass) -> None:
    """Floats are the library's; quantized weights are multiplied as they are for few tokens. Then what adapters change of it."""
    x, weight = step.read(call), parts[call.parts[0]]
    y = _product(x, weight, vector(parts, call.parts[1]) if len(call.parts) > 1 else None, step)
    if step.adapters is not None and step.layer >= 0:
        step.kernels.lora(y, x, step.adapters.of(step.layer, call.parts[0]), step.step)
    step.out(call, y)


def _product(x: Tensor, weight: Matrix, bias: Tensor | None, step: CudaPass) -> Tensor:
    if step.fixed_chunk:
        return step.kernels.fixed_linear(x, weight, bias)
    if isinstance(weight, QuantMatrix):
        if x.shape[0] <= FEW_TOKENS:
            return step.kernels.quant_linear(x, weight, bias)
        weight = step.kernels.dequantize(weight, x.dtype, None)
    return F.linear(x, weight, bias)


def head_norm(call: Call, parts: Parts, step: CudaPass) -> None:
    """Over all heads together, in place; those of single heads are fused with the turn."""
    qkv, norm, start = step.read(call), setting(call, HeadNormSettings), 0
    for name, heads in zip(call.parts, (step.heads.num_heads, step.heads.num_kv_heads), strict=True):
        part = qkv[:, start : start + heads * step.heads.head_dim]
        part.copy_(step.kernels.rms_norm(part, vector(parts, name), norm.eps, norm.has_unit_offset))
        start += part.shape[1]
    step.out(call, qkv)


def rope_kv_write(call: Call, parts: Parts, step: CudaPass) -> None:
    """Norms of heads, turns, and the write to pages: as many of them as the call stands for."""
    qkv, attention = step.read(call), setting(call, AttentionSettings)
    ropes = [each for each in call.settings if isinstance(each, RopeSettings)]
    norms = [each for each in call.settings if isinstance(each, HeadNormSettings)]
    weights = (vector(parts, call.parts[0]), vector(parts, call.parts[1]), norms[0].eps, norms[0].has_unit_offset) if norms else None
    angles = step.angles[ropes[0].table] if ropes else step.still
    place = (step.heads, step.step.tables[attention.group], step.step)
    step.kernels.rope_kv_write(qkv, angles, weights, step.kv[attention.layer], place)
    step.values.update(dict.fromkeys(call.outputs, qkv))


def paged_attention(call: Call, _parts: Parts, step: CudaPass) -> None:
    """Over the pages of each row."""
    qkv, attention, heads = step.read(call), setting(call, AttentionSettings), step.heads
    queries = qkv.view(qkv.shape[0], -1, heads.head_dim)[:, : heads.num_heads]
    shape = AttentionShape(heads, attention.scale, attention.softcap, step.windows[attention.group], step.fixed_chunk)
    mixed, _ = step.kernels.paged_attention(queries, step.kv[attention.layer], step.step.tables[attention.group], step.step, shape)
    step.out(call, mixed.flatten(1))


def add(call: Call, _parts: Parts, step: CudaPass) -> None:
    """To the residual, in place."""
    x, residual = (step.values[name] for name in call.inputs)
    step.out(call, residual.add_(x))


def act_mul(call: Call, _parts: Parts, step: CudaPass) -> None:
    """Gate and up."""
    step.out(call, step.kernels.act_mul(step.read(call), setting(call, ActivationSettings).function))


def act(call: Call, _parts: Parts, step: CudaPass) -> None:
    """As the library does it."""
    step.out(call, reference.act(step.read(call), setting(call, ActivationSettings).function))


def experts(call: Call, parts: Parts, step: CudaPass) -> None:
    """The likeliest of each token."""
    x, rows = step.read(call), step.step.rows
    router, gate_up, down = vector(parts, call.parts[0]), parts[call.parts[1]], parts[call.parts[2]]
    lanes = rows if rows.shape[0] == x.shape[0] else None
    step.out(call, step.kernels.experts(x, router, (gate_up, down), setting(call, ExpertSettings), lanes))


def softcap(call: Call, _parts: Parts, step: CudaPass) -> None:
    """As the library does it."""
    step.out(call, reference.cap(step.read(call), setting(call, SoftcapSettings).cap))


def _heads_fit(_call: Call, shapes: Shapes) -> str:
    heads = shapes.heads
    if heads.head_dim > MAX_HEAD_DIM:
        return f"head_dim is {heads.head_dim}; tiles hold {MAX_HEAD_DIM}"
    shared = heads.num_heads // heads.num_kv_heads
    return f"{shared} query heads share a KV head; tiles hold {PREFILL_TILE}" if shared > PREFILL_TILE else ""


def _single_heads(call: Call, _shapes: Shapes) -> str:
    return "heads are normed together" if setting(call, HeadNormSettings).is_over_all_heads else ""


RUNS: dict[str, Run] = {
    "embed": embed, "embed_positions": embed_positions, "rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "layer_norm": layer_norm,
    "linear": linear, "head_norm": head_norm, "norm_rope_kv_write": rope_kv_write, "rope_kv_write": rope_kv_write,
    "kv_write": rope_kv_write, "paged_attention": paged_attention, "add": add, "act_mul": act_mul, "act": act, "experts": experts,
    "softcap": softcap,
}  # fmt: skip
KERNELS = ("rms_norm", "head_norm", "kv_write", "act_mul", "experts")
LIBRARY = ("embed", "embed_positions", "layer_norm", "linear", "add", "act", "softcap")  # kernels where weights are quantized
OFFERS = (
    *(Implementation(op, (op,), "triton", 4.0) for op in KERNELS),
    *(Implementation(op, (op,), "torch", 4.0) for op in LIBRARY),
    Implementation("paged_attention", ("paged_attention",), "triton", 4.0, supports=_heads_fit),
    Implementation("add_rms_norm", ("add", "rms_norm"), "triton", 5.0, visible=(0, 1)),
    Implementation("rope_kv_write", ("rope", "kv_write"), "triton", 5.0, visible=(0,), overwrites=True),
    Implementation(
        "norm_rope_kv_write", ("head_norm", "rope", "kv_write"), "triton", 6.0, supports=_single_heads, visible=(1,), overwrites=True
    ),
)
BY_BATCH = ("linear", "experts")  # whose bits depend on the batch: the library's kernels, and tiles as high as their company is large
FIXED_OFFERS = (  # none of these do
    *(offer for offer in OFFERS if offer.op not in BY_BATCH),
    Implementation("linear", ("linear",), "triton", 4.0),
)


def offers(*, is_fixed: bool) -> tuple[Implementation, ...]:
    """What runs calls; `is_fixed`: where a token's bits must not depend on its company."""
    return FIXED_OFFERS if is_fixed else OFFERS
