"""How calls are run in Python: where an op's function finds its arguments, and where its answer goes.

A **pass** is one forward pass: values by name, and what its calls read beside weights. A function of `drivers.ops.reference`, or a faster
one of the same signature, becomes a `Run` by the binding of its op; a fused call can always be run as the calls that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
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
from drivers.ops.experts import Matrix
from drivers.ops.experts import experts as plain_experts
from drivers.ops.ragged import HeadShape, RaggedBatch
from drivers.ops.reference import LayerKv, Rotation

Parts = Mapping[str, Tensor | Weight]  # vectors are tensors
Adapt = Callable[[Tensor, Tensor, tuple[int, str]], Tensor]  # (y, x, (layer, place)): `y` with what adapters change of the product of `x`
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Rotary:
    """One rotary table of a model: dimension pair i turns by `position * frequencies[i]`; cos and sin are multiplied by `factor`."""

    frequencies: Tensor  # [R / 2] f32
    factor: float = 1.0


@dataclass(slots=True)
class Pass:
    """One forward pass."""

    values: dict[str, Tensor]  # "tokens" and "positions", and what calls made of them
    dtype: torch.dtype
    heads: HeadShape
    kv: Sequence[LayerKv]  # of each layer
    attention: Sequence[RaggedBatch]  # of each KV group
    rotary: Sequence[Rotary]
    adapt: Adapt | None = None
    layer: int = -1  # of the calls that run now; -1: outside of the layers
    rotations: dict[int, Rotation] = field(default_factory=dict)  # by rotary table, made when first asked for

    def rotation(self, table: int, dtype: torch.dtype) -> Rotation:
        """The factors of this pass's positions."""
        found = self.rotations.get(table)
        if found is None:
            rotary = self.rotary[table]
            found = self.rotations[table] = Rotation.at(self.values["positions"], rotary.frequencies, rotary.factor, dtype)
        return found


Run = Callable[[Call, Parts, Pass], None]


def setting(call: Call, kind: type[S]) -> S:
    """The settings of that kind which a call has. Raises: LookupError."""
    for found in call.settings:
        if isinstance(found, kind):
            return found
    raise LookupError(f"The call of {call.op} lacks {kind.__name__}.")


def vector(parts: Parts, name: str) -> Tensor:
    """A part that is a vector."""
    part = parts[name]
    assert isinstance(part, Tensor), f"{name} is a vector, and never quantized"
    return part


def matrix(parts: Parts, name: str, dtype: torch.dtype) -> Tensor:
    """A part that is a matrix, as floats: made for the moment of those that are quantized."""
    part = parts[name]
    return part if isinstance(part, Tensor) else part.dequantize(dtype)


def embed(call: Call, parts: Parts, step: Pass) -> None:
    """Run `embed`."""
    tokens, part, scale = step.values[call.inputs[0]], parts[call.parts[0]], setting(call, EmbedSettings).scale
    if isinstance(part, Weight):  # of a large table, the rows alone
        part, tokens = part.rows(tokens, step.dtype), torch.arange(tokens.shape[0])
    step.values[call.outputs[0]] = reference.embed(part, tokens, scale)


def embed_positions(call: Call, parts: Parts, step: Pass) -> None:
    """Run `embed_positions`."""
    residual, positions = (step.values[name] for name in call.inputs)
    step.values[call.outputs[0]] = reference.embed_positions(residual, positions, matrix(parts, call.parts[0], residual.dtype))


def rms_norm(function: Callable[[Tensor, Tensor, float, bool], Tensor]) -> Run:
    """Bind `rms_norm`."""

    def run(call: Call, parts: Parts, step: Pass) -> None:
        norm = setting(call, NormSettings)
        step.values[call.outputs[0]] = function(step.values[call.inputs[0]], vector(parts, call.parts[0]), norm.eps, norm.has_unit_offset)

    return run


def add_rms_norm(function: Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]) -> Run:
    """Bind `add` and the `rms_norm` of what it gives."""

    def run(call: Call, parts: Parts, step: Pass) -> None:
        norm = setting(call, NormSettings)
        x, residual = (step.values[name] for name in call.inputs)
        step.values[call.outputs[1]] = function(x, residual, vector(parts, call.parts[0]), norm.eps, norm.has_unit_offset)
        step.values[call.outputs[0]] = residual

    return run


def layer_norm(call: Call, parts: Parts, step: Pass) -> None:
    """Run `layer_norm`."""
    norm = setting(call, NormSettings)
    weight, bias = (vector(parts, name) for name in call.parts)
    step.values[call.outputs[0]] = reference.layer_norm(step.values[call.inputs[0]], weight, bias, norm.eps, norm.has_unit_offset)


def linear(call: Call, parts: Parts, step: Pass) -> None:
    """Run `linear`, and what the step's adapters change of it."""
    x = step.values[call.inputs[0]]
    y = reference.linear(x, matrix(parts, call.parts[0], x.dtype), vector(parts, call.parts[1]) if len(call.parts) > 1 else None)
    if step.adapt is not None and step.layer >= 0:
        y = step.adapt(y, x, (step.layer, call.parts[0].removesuffix(".weight")))
    step.values[call.outputs[0]] = y


def head_norm(function: Callable[[Tensor, Tensor, Tensor, HeadShape, HeadNormSettings], Tensor]) -> Run:
    """Bind `head_norm`."""

    def run(call: Call, parts: Parts, step: Pass) -> None:
        query_norm, key_norm = (vector(parts, name) for name in call.parts)
        qkv, settings = step.values[call.inputs[0]], setting(call, HeadNormSettings)
        step.values[call.outputs[0]] = function(qkv, query_norm, key_norm, step.heads, settings)

    return run


def rope(call: Call, _parts: Parts, step: Pass) -> None:
    """Run `rope`."""
    qkv = step.values[call.inputs[0]]
    rotation = step.rotation(setting(call, RopeSettings).table, qkv.dtype)
    step.values[call.outputs[0]] = reference.rope(qkv, rotation, step.heads)


def kv_write(function: Callable[[Tensor, LayerKv, RaggedBatch], None]) -> Run:
    """Bind `kv_write`."""

    def run(call: Call, _parts: Parts, step: Pass) -> None:
        attention = setting(call, AttentionSettings)
        function(step.values[call.inputs[0]], step.kv[attention.layer], step.attention[attention.group])

    return run


def paged_attention(function: Callable[[Tensor, LayerKv, RaggedBatch, float, float], tuple[Tensor, Tensor]]) -> Run:
    """Bind `paged_attention`."""

    def run(call: Call, _parts: Parts, step: Pass) -> None:
        attention, heads = setting(call, AttentionSettings), step.heads
        qkv = step.values[call.inputs[0]]
        queries = qkv[:, : heads.num_heads * heads.head_dim].view(qkv.shape[0], heads.num_heads, heads.head_dim)
        kv, batch = step.kv[attention.layer], step.attention[attention.group]
        step.values[call.outputs[0]] = function(queries, kv, batch, attention.scale, attention.softcap)[0].flatten(1)

    return run


def rope_attention(function: Callable[[Tensor, Rotation, LayerKv, RaggedBatch, float], Tensor]) -> Run:
    """Bind `rope`, `kv_write` and `paged_attention` in one."""

    def run(call: Call, _parts: Parts, step: Pass) -> None:
        attention, qkv = setting(call, AttentionSettings), step.values[call.inputs[0]]
        rotation = step.rotation(setting(call, RopeSettings).table, qkv.dtype)
        kv, batch = step.kv[attention.layer], step.attention[attention.group]
        step.values[call.outputs[0]] = function(qkv, rotation, kv, batch, attention.scale)

    return run


def add(call: Call, _parts: Parts, step: Pass) -> None:
    """Run `add`."""
    x, residual = (step.values[name] for name in call.inputs)
    step.values[call.outputs[0]] = reference.add(x, residual)


def act(call: Call, _parts: Parts, step: Pass) -> None:
    """Run `act`."""
    step.values[call.outputs[0]] = reference.act(step.values[call.inputs[0]], setting(call, ActivationSettings).function)


def act_mul(function: Callable[..., Tensor]) -> Run:
    """Bind `act_mul`."""

    def run(call: Call, _parts: Parts, step: Pass) -> None:
        step.values[call.outputs[0]] = function(step.values[call.inputs[0]], setting(call, ActivationSettings).function)

    return run


def experts(function: Callable[[Tensor, Tensor, Matrix, Matrix, ExpertSettings], Tensor]) -> Run:
    """Bind `experts`."""

    def run(call: Call, parts: Parts, step: Pass) -> None:
        x = step.values[call.inputs[0]]
        router, gate_up, down = (matrix(parts, name, x.dtype) for name in call.parts)
        answer = function(x, router, lambda expert: gate_up[expert], lambda expert: down[expert], setting(call, ExpertSettings))
        step.values[call.outputs[0]] = answer

    return run


def softcap(call: Call, _parts: Parts, step: Pass) -> None:
    """Run `softcap`."""
    step.values[call.outputs[0]] = reference.cap(step.values[call.inputs[0]], setting(call, SoftcapSettings).cap)


DEFINITIONS: dict[str, Run] = {
    "embed": embed,
    "embed_positions": embed_positions,
    "rms_norm": rms_norm(reference.rms_norm),
    "layer_norm": layer_norm,
    "linear": linear,
    "head_norm": head_norm(reference.head_norm),
    "rope": rope,
    "kv_write": kv_write(reference.kv_write),
    "paged_attention": paged_attention(reference.paged_attention),
    "add": add,
    "act_mul": act_mul(reference.act_mul),
    "act": act,
    "experts": experts(plain_experts),
    "softcap": softcap,
}  # of every primitive op


def run_definition(call: Call, parts: Parts, step: Pass) -> None:
    """Run a call by the definitions of what it stands for."""
    for each in call.stands_for or (call,):
        DEFINITIONS[each.op](each, parts, step)
