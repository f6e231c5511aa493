"""The forward pass of a decoder-only transformer over a ragged batch, written in named ops.

Every linear, norm and rotation runs on the flat batch `[num_tokens, ...]`; only attention knows where rows begin. Nothing here depends on
the device: the ops come from the table the decoder is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.models.adapter import LoraBatch
from drivers.models.config import DecoderConfig
from drivers.models.rotary import inverse_frequencies
from drivers.ops.ragged import HeadShape, RaggedBatch
from drivers.ops.reference import LayerKv, Rotation
from drivers.ops.table import OpTable


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's parts, as `drivers.models.layout` names them."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    inner_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    @classmethod
    def of(cls, parts: Mapping[str, Tensor]) -> LayerWeights:
        """Name the parts of a layer's segment."""
        return cls(
            input_norm=parts["input_norm"],
            qkv=parts["qkv.weight"],
            qkv_bias=parts.get("qkv.bias"),
            query_norm=parts.get("query_norm"),
            key_norm=parts.get("key_norm"),
            output=parts["output.weight"],
            output_bias=parts.get("output.bias"),
            inner_norm=parts["inner_norm"],
            gate_up=parts["gate_up.weight"],
            gate_up_bias=parts.get("gate_up.bias"),
            down=parts["down.weight"],
            down_bias=parts.get("down.bias"),
        )


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """What a decoder computes with: views of the arena.

    `layers` is gone over once per forward pass, in order. Resident ones are a tuple; streamed ones arrive as they are asked for, and a
    layer's views are good until the next one is asked for.
    """

    embedding: Tensor
    layers: Iterable[LayerWeights]
    norm: Tensor
    head: Tensor

    @classmethod
    def of(cls, segments: Sequence[Mapping[str, Tensor]]) -> DecoderWeights:
        """Name the segments of a model that is wholly resident (embedding, layers, end)."""
        layers = tuple(LayerWeights.of(parts) for parts in segments[1:-1])
        return cls.around(segments[0], layers, segments[-1])

    @classmethod
    def around(cls, first: Mapping[str, Tensor], layers: Iterable[LayerWeights], end: Mapping[str, Tensor]) -> DecoderWeights:
        """Put layers between the embedding and the end."""
        return cls(first["embedding"], layers, end["norm"], end.get("head", first["embedding"]))


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step of one model: flat tokens, and where the keys of each KV group lie."""

    tokens: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    attention: Sequence[RaggedBatch]  # one per KV group
    lora: LoraBatch | None = None


class Decoder:
    """A loaded model. Its weights and pages are views of the arena; it owns neither."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, pages: Sequence[LayerKv], ops: OpTable) -> None:
        """`pages` has one view per layer."""
        self.config = config
        self.ops = ops
        self.heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        self.embedding = weights.embedding
        self.layers = weights.layers
        self.norm = weights.norm
        self.head = weights.head
        self.pages = tuple(pages)
        self._group_of = {layer: group for group, members in enumerate(config.groups) for layer in members.layers}
        self._frequencies = inverse_frequencies(config.rope, config.head_dim, config.max_positions)

    def forward(self, batch: StepBatch) -> Tensor:
        """Compute the batch's tokens and write their keys and values; answers the last hidden states `[num_tokens, hidden]`, not normed."""
        ops, eps = self.ops, self.config.norm_eps
        residual = ops.embed(self.embedding, batch.tokens)
        rotation = self._rotation(batch.positions, residual.dtype)
        x: Tensor | None = None
        for idx, layer in enumerate(self.layers):  # asking for the next layer says that this one has finished
            norm = layer.input_norm
            x = ops.rms_norm(residual, norm, eps) if x is None else ops.add_rms_norm(x, residual, norm, eps)
            x = self._attend(x, layer, idx, (rotation, batch))
            x = ops.add_rms_norm(x, residual, layer.inner_norm, eps)
            x = ops.swiglu(self._linear(x, (layer.gate_up, layer.gate_up_bias), batch.lora, (idx, "gate_up")))
            x = self._linear(x, (layer.down, layer.down_bias), batch.lora, (idx, "down"))
        assert x is not None
        return residual.add_(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[n, vocab]` of the hidden states `[n, hidden]` that `forward` gave."""
        return self.ops.linear(self.ops.rms_norm(hidden, self.norm, self.config.norm_eps), self.head, None)

    def _attend(self, x: Tensor, layer: LayerWeights, idx: int, step: tuple[Rotation, StepBatch]) -> Tensor:
        rotation, batch = step
        ops, heads, kv, attention = self.ops, self.heads, self.pages[idx], batch.attention[self._group_of[idx]]
        qkv = self._linear(x, (layer.qkv, layer.qkv_bias), batch.lora, (idx, "qkv")).view(x.shape[0], -1, heads.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            self._norm_heads(qkv, layer.query_norm, layer.key_norm)
        queries = ops.rope_kv_write(qkv, rotation, kv, attention)
        mixed, _ = ops.paged_attention(queries, kv, attention)
        return self._linear(mixed.view(x.shape[0], -1), (layer.output, layer.output_bias), batch.lora, (idx, "output"))

    def _linear(self, x: Tensor, weights: tuple[Tensor, Tensor | None], lora: LoraBatch | None, where: tuple[int, str]) -> Tensor:
        """A linear of a layer, with what the step's adapters change of it."""
        y = self.ops.linear(x, *weights)
        return y if lora is None else lora.add(self.ops, y, x, where)

    def _norm_heads(self, qkv: Tensor, query_norm: Tensor, key_norm: Tensor) -> None:
        queries = qkv[:, : self.heads.num_heads]
        keys = qkv[:, self.heads.num_heads : self.heads.num_heads + self.heads.num_kv_heads]
        queries.copy_(self.ops.rms_norm(queries, query_norm, self.config.norm_eps))
        keys.copy_(self.ops.rms_norm(keys, key_norm, self.config.norm_eps))

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        angles = positions.float().unsqueeze(-1) * self._frequencies
        cos, sin = angles.cos() * self.config.rope.attention_factor, angles.sin() * self.config.rope.attention_factor
        return Rotation(
            cos=torch.cat((cos, cos), dim=-1).to(dtype).unsqueeze(1),
            sin=torch.cat((-sin, sin), dim=-1).to(dtype).unsqueeze(1),
        )
