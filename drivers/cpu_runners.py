"""The two ways in which a loaded model computes on the CPU: torch, call by call, or natively, one call for a forward pass.

Either takes a step's rows as they are and answers hidden states `[num_tokens, hidden]`, of which logits are asked for by token. A runner
belongs to one model; weights and pages stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from drivers.arena import Arena, FrameShape
from drivers.cpu_shapes import heads_of
from drivers.models.adapter import LoraBatch
from drivers.models.alone import AloneDecoder
from drivers.models.config import DecoderConfig
from drivers.models.decoder import Decoder, DecoderWeights, StepBatch
from drivers.native.engine import ArenaSpan, Engine, NativeModel
from drivers.native.program import Program
from drivers.native.sampling import Draws, draw
from drivers.native.step import NativeLora, NativeStep
from drivers.ops.ragged import AttentionShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv
from drivers.rows import StepRows
from drivers.sampling import Asked, Pick

HeldPages = tuple[Sequence[FrameShape], Sequence[Sequence[int]]]  # of each KV group: its frames, and the layers that they are of


@dataclass(frozen=True, slots=True)
class StepLora:
    """The adapters of a step's rows, as either way takes them."""

    batch: LoraBatch
    tables: tuple[np.ndarray, ...]  # of each adapter, for native code


class Runner(Protocol):
    """What computes a model."""

    def forward(self, share: StepRows, lora: StepLora | None = None) -> Tensor:
        """Compute the step's tokens and write their keys and values; answers hidden states. Raises: StreamBroken."""

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """Logits `[n, vocab]` of those tokens of the step."""

    def draw(self, hidden: Tensor, tokens: Sequence[int], asked: Sequence[Asked]) -> list[Pick] | None:
        """See `drivers.stepping.Head`."""

    def in_arena(self, arena: Arena) -> Runner:
        """The same model on the pages of another arena. It must not run beside this one."""

    def close(self) -> None:
        """Forget what native code keeps of it. Safe to call twice."""


class LayerRunner(Protocol):
    """What computes some layers of a model that lies on several devices (`drivers.split`); so does every runner of what does not stream."""

    def first(self, share: StepRows) -> Tensor:
        """The hidden states before the first layer."""

    def run_layers(self, share: StepRows, residual: Tensor, layers: range) -> Tensor:
        """The hidden states behind `layers`, of those before them, which are not used again; writes keys and values of the layers."""


class TorchRunner:
    """Call by call. `alone`, if given, is the decoder that runs so that nothing depends on what else is in a step."""

    def __init__(self, decoder: Decoder, pages: HeldPages, attention: Sequence[AttentionShape], alone: AloneDecoder | None = None) -> None:
        self.decoder = decoder
        self._pages = pages
        self._attention = attention
        self._alone = alone
        self._runs: Decoder | AloneDecoder = alone or decoder

    def forward(self, share: StepRows, lora: StepLora | None = None) -> Tensor:
        """See `Runner`."""
        batch = self.batch(share, None if lora is None else lora.batch)
        return self._runs.forward(batch)

    def first(self, share: StepRows) -> Tensor:
        """See `LayerRunner`."""
        return self.decoder.first(self.batch(share))

    def run_layers(self, share: StepRows, residual: Tensor, layers: range) -> Tensor:
        """See `LayerRunner`."""
        return self._runs.run_layers(self.batch(share), residual.to(self.decoder.dtype), layers)

    def batch(self, share: StepRows, lora: LoraBatch | None = None) -> StepBatch:
        """The indexes of one step, and its adapters."""
        return StepBatch(
            tokens=torch.from_numpy(share.tokens),
            positions=torch.from_numpy(share.positions),
            attention=[plan_attention(shape, _spans(share, group)) for group, shape in enumerate(self._attention)],
            lora=lora,
        )

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """See `Runner`."""
        chosen = hidden if len(tokens) == hidden.shape[0] else hidden[list(tokens)]
        return self._runs.logits(chosen.to(self.decoder.dtype))

    def draw(self, _hidden: Tensor, _tokens: Sequence[int], _asked: Sequence[Asked]) -> list[Pick] | None:
        """See `Runner`: logits are all that torch makes."""
        return None

    def in_arena(self, arena: Arena) -> Runner:
        """See `Runner`."""
        decoder = self.decoder.with_pages(layer_pages(self.decoder.config, arena, *self._pages))
        return TorchRunner(decoder, self._pages, self._attention, None if self._alone is None else self._alone.over(decoder))

    def close(self) -> None:
        """See `Runner`."""


class NativeRunner:
    """One call for the layers that are there, and one for the logits."""

    def __init__(
        self, engine: Engine, program: Program, weights: DecoderWeights, arena: Arena, places: Places, *, draws: bool = True
    ) -> None:
        """`places`: of the weights, which may lie in another arena than the pages. `draws`: tokens, too, not logits alone."""
        self._draws = draws
        self._engine = engine
        self._weights = weights
        self._places = places
        span = ArenaSpan(arena.bytes.data_ptr(), arena.size_bytes)
        self._model = NativeModel(engine, program, span, places.max_tokens)
        self._num_groups = len(program.shape.groups)
        self._bases = places.address + np.maximum(np.array(places.offsets, dtype=np.int64), 0).astype(np.uint64)

    def forward(self, share: StepRows, lora: StepLora | None = None) -> Tensor:
        """See `Runner`."""
        step = self._step(share, lora)
        if not self._places.is_streamed:
            return self._model.forward(step, self._bases)
        residual = self._model.first(step, self._bases)
        for idx, layer in enumerate(self._weights.layers):  # asking for the next one says that this one has finished
            self._bases[idx + 1] = self._places.address + np.uint64(layer.offset)
            self._model.run_layers(step, residual, (idx, idx + 1), self._bases)
        return residual

    def first(self, share: StepRows) -> Tensor:
        """See `LayerRunner`."""
        return self._model.first(self._step(share, None), self._bases)

    def run_layers(self, share: StepRows, residual: Tensor, layers: range) -> Tensor:
        """See `LayerRunner`."""
        given = residual.float().contiguous()
        self._model.run_layers(self._step(share, None), given, (layers.start, layers.stop), self._bases)
        return given

    def _step(self, share: StepRows, lora: StepLora | None) -> NativeStep:
        rows = share.rows
        spans = (share.starts, share.counts, [row.position for row in rows])
        tables = [[row.tables[group] for row in rows] for group in range(self._num_groups)]
        native = None if lora is None else NativeLora.of(lora.batch, lora.tables, is_bf16=self._places.is_lora_bf16)
        return NativeStep.of(share.tokens, spans, tables, native)

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """See `Runner`."""
        return self._model.logits(hidden, tokens, self._bases)

    def draw(self, hidden: Tensor, tokens: Sequence[int], asked: Sequence[Asked]) -> list[Pick] | None:
        """See `Runner`: one call, from the head to tokens."""
        if not self._draws:
            return None
        if all(one.given < 0 and one.row.sampling.is_plainly_greedy for one in asked):
            return [Pick(token) for token in self._model.greedy(hidden, tokens, self._bases).tolist()]
        return draw(self._model, hidden, tokens, Draws.of(asked), self._bases)

    def in_arena(self, arena: Arena) -> Runner:
        """See `Runner`."""
        return NativeRunner(self._engine, self._model.program, self._weights, arena, self._places, draws=self._draws)

    def close(self) -> None:
        """See `Runner`."""
        self._model.close()


@dataclass(frozen=True, slots=True)
class Places:
    """Where native code finds the weights, and how long its steps are."""

    address: np.uint64  # of the arena that they are in
    offsets: tuple[int, ...]  # of each segment; -1 of those that are streamed
    max_tokens: int
    is_lora_bf16: bool

    @property
    def is_streamed(self) -> bool:
        """Whether some layers do not stay."""
        return min(self.offsets) < 0


def layer_pages(config: DecoderConfig, arena: Arena, frames: Sequence[FrameShape], groups: Sequence[Sequence[int]]) -> list[LayerKv]:
    """Views of the pages of each layer, as torch reads them; of a layer that is in none of `groups`, none at all."""
    heads = heads_of(config)
    by_layer = {
        layer: LayerKv(arena.layer_pages(frame, idx), heads)
        for layers, frame in zip(groups, frames, strict=True)
        for idx, layer in enumerate(layers)
    }
    nowhere = LayerKv(next(iter(by_layer.values())).pages[:0], heads)
    return [by_layer.get(layer, nowhere) for layer in range(config.num_layers)]


def _spans(share: StepRows, group: int) -> list[RowSpan]:
    parts = zip(share.rows, share.starts, share.counts, strict=True)
    return [RowSpan(start, count, row.position, row.tables[group]) for row, start, count in parts]
