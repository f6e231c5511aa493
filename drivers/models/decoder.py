"""A decoder run in Python, call by call, over torch: the definition of every model, and what runs one that native code does not cover.

Linears, norms and rotations run on the flat batch `[num_tokens, ...]`; only attention knows where rows begin. Nothing here depends on the
device: which implementation runs a call was chosen before (`drivers.ops.fusion`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.models.adapter import LoraBatch
from drivers.models.config import DecoderConfig
from drivers.models.rotary import inverse_frequencies
from drivers.ops.fusion import Choice, Cover
from drivers.ops.ragged import HeadShape, RaggedBatch, RowSpan, plan_attention
from drivers.ops.reference import LayerKv, LoraRows
from drivers.ops.running import Parts, Pass, Rotary
from drivers.ops.table import OpTable


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights."""

    offset: int  # of its segment in the arena, in bytes
    parts: Parts


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """What a decoder computes with: the parts of each segment, views of the arena.

    `layers` is gone over once per forward pass, in order. Resident ones are a tuple; streamed ones arrive as they are asked for, and a
    layer's views are good until the next one is asked for.
    """

    first: Parts
    layers: Iterable[Layer]
    last: Parts

    @classmethod
    def of(cls, segments: Sequence[Parts], offsets: Sequence[int]) -> DecoderWeights:
        """Name the segments of a model that is wholly resident (first, layers, last), and where they lie."""
        layers = tuple(Layer(offset, parts) for offset, parts in zip(offsets[1:-1], segments[1:-1], strict=True))
        return cls(segments[0], layers, segments[-1])


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step of one model: flat tokens, and where the keys of each KV group lie."""

    tokens: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    attention: Sequence[RaggedBatch]  # one per KV group
    lora: LoraBatch | None = None

    def alone(self) -> Iterable[StepBatch]:
        """Each token by itself, in order: whatever it is computed beside, it is computed like this."""
        for batch in self.attention[0].spans:
            for idx in range(batch.count):
                yield self._token(batch.start + idx)

    def _token(self, token: int) -> StepBatch:
        attention = [plan_attention(group.shape, [_token_of(group.spans, token)]) for group in self.attention]
        at = slice(token, token + 1)
        return StepBatch(self.tokens[at], self.positions[at], attention, None if self.lora is None else _lora_of(self.lora, token))


def _lora_of(lora: LoraBatch, token: int) -> LoraBatch | None:
    """The adapter of one token."""
    for tokens, adapter in zip(torch.split(lora.rows.tokens, list(lora.rows.counts)), lora.adapters, strict=True):
        if token in tokens.tolist():
            return LoraBatch(LoraRows(torch.zeros(1, dtype=torch.int64), (1,)), (adapter,))
    return None


def _token_of(spans: Sequence[RowSpan], token: int) -> RowSpan:
    [row] = [row for row in spans if row.start <= token < row.start + row.count]
    return RowSpan(0, 1, row.position + token - row.start, row.frames)


class Decoder:
    """A loaded model. Its weights and pages are views of the arena; it owns neither."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, pages: Sequence[LayerKv], ops: tuple[Cover, OpTable]) -> None:
        """`pages` has one view per layer; `ops`: what runs the calls, and what adapters are added with."""
        self.config = config
        self.weights = weights
        self.pages = tuple(pages)
        self.cover, self.table = ops
        self.dtype = pages[0].pages.dtype
        self.heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        self.rotary = tuple(
            Rotary(inverse_frequencies(rope, config.head_dim, config.max_positions), rope.attention_factor) for rope in config.rotary
        )
        self.last = {**weights.first, **weights.last}  # a tied head is a part of the first segment

    def with_pages(self, pages: Sequence[LayerKv]) -> Decoder:
        """The same model over other pages."""
        return Decoder(self.config, self.weights, pages, (self.cover, self.table))

    def forward(self, batch: StepBatch) -> Tensor:
        """Compute the batch's tokens and write their keys and values; answers the last hidden states `[num_tokens, hidden]`, not normed."""
        return self.run_layers(batch, self.first(batch), range(self.config.num_layers))

    def first(self, batch: StepBatch) -> Tensor:
        """The hidden states before the first layer."""
        step = self.pass_of(_inputs(batch), batch)
        run_calls(self.cover.lists[0], self.weights.first, step)
        return step.values["residual"]

    def run_layers(self, batch: StepBatch, residual: Tensor, layers: range) -> Tensor:
        """Compute these layers of the batch's tokens; answers the hidden states behind them. The weights of others need not be here."""
        step = self.pass_of({**_inputs(batch), "residual": residual}, batch)
        for step.layer, layer in enumerate(self.weights.layers):  # asking for the next: this one is done
            if step.layer in layers:
                run_calls(self.cover.lists[1 + step.layer], layer.parts, step)
        return step.values["residual"]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[n, vocab]` of the hidden states `[n, hidden]` that `forward` gave."""
        step = self.pass_of({"residual": hidden})
        run_calls(self.cover.lists[-1], self.last, step)
        return step.values["logits"]

    def pass_of(self, values: dict[str, Tensor], batch: StepBatch | None = None) -> Pass:
        """A pass over the pages of this model, whose values so far are `values`."""
        lora = batch.lora if batch is not None else None
        return Pass(
            values=values,
            dtype=self.dtype,
            heads=self.heads,
            kv=self.pages,
            attention=batch.attention if batch is not None else (),
            rotary=self.rotary,
            adapt=None if lora is None else lambda y, x, where: lora.add(self.table, y, x, where),
        )


def _inputs(batch: StepBatch) -> dict[str, Tensor]:
    return {"tokens": batch.tokens, "positions": batch.positions}


def run_calls(choices: Sequence[Choice], parts: Parts, step: Pass) -> None:
    """Run one list of calls."""
    for choice in choices:
        assert choice.implementation is not None, "a model with a call that nothing runs is not loaded"
        choice.implementation.run(choice.call, parts, step)
