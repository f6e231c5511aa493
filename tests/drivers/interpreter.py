"""A second definition of what a description computes, in the plainest torch, so that families are proved without our ops.

Whole texts, one at a time, without pages. Query heads are group-major, as in the arena.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from drivers.models.config import DecoderConfig
from drivers.models.description import describe
from drivers.models.rotary import inverse_frequencies
from drivers.ops.calls import (
    Activation,
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

Parts = Mapping[str, Tensor]


@dataclass
class Interpreter:
    """Logits of a whole text."""

    config: DecoderConfig
    segments: Sequence[Parts]
    values: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """`[len(tokens), vocab]`."""
        description = describe(self.config)
        self.values = {"tokens": torch.tensor(tokens), "positions": torch.arange(len(tokens))}
        last = {**self.segments[0], **self.segments[-1]}
        for calls, parts in zip((description.first, *description.layers, description.last), (*self.segments[:-1], last), strict=True):
            for call in calls:
                self._run(call, parts)
        return self.values["logits"]

    def _run(self, call: Call, parts: Parts) -> None:
        inputs = [self.values[name] for name in call.inputs]
        weights = [parts[name] for name in call.parts]
        answer = getattr(self, f"_{call.op}")(*inputs, *weights, *call.settings)
        if call.outputs:
            self.values[call.outputs[0]] = answer

    def _embed(self, tokens: Tensor, table: Tensor, settings: EmbedSettings) -> Tensor:
        return table[tokens] * settings.scale

    def _embed_positions(self, residual: Tensor, positions: Tensor, table: Tensor) -> Tensor:
        return residual + table[positions]

    def _rms_norm(self, x: Tensor, weight: Tensor, settings: NormSettings) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + settings.eps).sqrt() * (weight + settings.has_unit_offset)

    def _layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, settings: NormSettings) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + settings.eps).sqrt() * weight + bias

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x @ weight.T if bias is None else x @ weight.T + bias

    def _head_norm(self, qkv: Tensor, query_norm: Tensor, key_norm: Tensor, settings: HeadNormSettings) -> Tensor:
        norm = NormSettings(settings.eps, settings.has_unit_offset)
        queries, keys, values = self._split(qkv)
        if settings.is_over_all_heads:
            queries, keys = queries.flatten(1), keys.flatten(1)
        queries, keys = self._rms_norm(queries, query_norm, norm), self._rms_norm(keys, key_norm, norm)
        return torch.cat((queries.flatten(1), keys.flatten(1), values.flatten(1)), -1)

    def _rope(self, qkv: Tensor, positions: Tensor, settings: RopeSettings) -> Tensor:
        rope, half = self.config.rotary[settings.table], settings.num_dims // 2
        angles = positions[:, None, None] * inverse_frequencies(rope, self.config.head_dim, self.config.max_positions)
        cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
        turned = []
        queries, keys, values = self._split(qkv)
        for part in (queries, keys):
            low, high, rest = part[..., :half], part[..., half : 2 * half], part[..., 2 * half :]
            turned.append(torch.cat((low * cos - high * sin, high * cos + low * sin, rest), -1).flatten(1))
        return torch.cat((*turned, values.flatten(1)), -1)

    def _kv_write(self, qkv: Tensor, settings: AttentionSettings) -> None:
        self.values[f"kv.{settings.layer}"] = qkv

    def _paged_attention(self, qkv: Tensor, settings: AttentionSettings) -> Tensor:
        queries = self._split(qkv)[0]
        _, keys, values = self._split(self.values[f"kv.{settings.layer}"])
        keys, values = (part.repeat(1, self.config.num_queries_per_kv, 1) for part in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * settings.scale
        if settings.softcap:
            scores = settings.softcap * (scores / settings.softcap).tanh()
        window = self.config.groups[settings.group].window
        distance = torch.arange(len(qkv))[:, None] - torch.arange(len(qkv))
        scores[:, (distance < 0) | (distance >= (window or len(qkv)))] = float("-inf")
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1)

    def _add(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual

    def _act(self, x: Tensor, settings: ActivationSettings) -> Tensor:
        return activate(x, settings.function)

    def _act_mul(self, gate_up: Tensor, settings: ActivationSettings) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return activate(gate, settings.function) * up

    def _experts(self, x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, settings: ExpertSettings) -> Tensor:
        shares, chosen = (x @ router.T).softmax(-1).topk(settings.top_k)
        if settings.is_normalized:
            shares = shares / shares.sum(-1, keepdim=True)
        gates, ups = torch.einsum("th,tknh->tkn", x, gate_up[chosen]).chunk(2, -1)
        answers = torch.einsum("tkn,tkhn->tkh", activate(gates, settings.function) * ups, down[chosen])
        return (answers * shares.unsqueeze(-1)).sum(1)

    def _softcap(self, logits: Tensor, settings: SoftcapSettings) -> Tensor:
        return settings.cap * (logits / settings.cap).tanh()

    def _split(self, qkv: Tensor) -> list[Tensor]:
        heads = qkv.view(len(qkv), -1, self.config.head_dim)
        first, end = self.config.num_heads, self.config.num_heads + self.config.num_kv_heads
        return [heads[:, :first], heads[:, first:end], heads[:, end:]]


def activate(x: Tensor, function: Activation) -> Tensor:
    """The function, as torch has it."""
    if function is Activation.SILU:
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if function is Activation.GELU_TANH else "none")
