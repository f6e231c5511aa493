"""A decoder run so that a token's bits depend on nothing beside it: through every layer in tiles of as many tokens, whatever a step holds.

How a library multiplies a row depends on how many rows there are, not on what is in the others. Nor, on most processors, on which of them
it is: that is tried for every model when it is loaded (`rows_are_alike`). Attention takes every token that is there in a call of its own
(`plan_alone`), and so do adapters.

    step    | row a: 1 token | row b: 20 tokens ....................... |
    tiles   |------------- 16 tokens --------------|- 5, and 11 of none -|

Layers are the outer loop: the weights of one serve all tiles, and are streamed once. Where rows are not alike, where experts pick their
own tokens, and for models of `transformers`, a tile is one token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from drivers.models.adapter import AdapterWeights, LoraBatch
from drivers.models.decoder import Decoder, StepBatch
from drivers.ops.calls import AttentionSettings, Call, ExpertSettings, RopeSettings
from drivers.ops.fusion import Choice
from drivers.ops.ragged import AttentionShape, RowSpan, plan_alone
from drivers.ops.reference import LayerKv, LoraRows, Rotation
from drivers.ops.running import Parts

TILE = 16  # measured: tiles of 8 are slower with many rows, of 32 with one (DECISIONS.md)
TRIES = 8  # of different rows: what a kernel adds in another order shows in few of the numbers that it gives


class AloneDecoder:
    """The same model; what it answers is the same for a token in any step."""

    def __init__(self, decoder: Decoder, tile: int) -> None:
        """`tile`: tokens; 1: token by token, as steps of one."""
        self._decoder = decoder
        self._tile = tile

    @classmethod
    def of(cls, decoder: Decoder, first: int) -> AloneDecoder:
        """A decoder, of whose layers `first` is the first that is here."""
        calls = [choice.call for choices in decoder.cover.lists for choice in choices]
        has_experts = any(isinstance(found, ExpertSettings) for call in calls for found in call.settings)
        can_tile = decoder.config.foreign is None and not has_experts and rows_are_alike(decoder, first)
        return cls(decoder, TILE if can_tile else 1)

    def over(self, decoder: Decoder) -> AloneDecoder:
        """The same with that decoder, which has other pages."""
        return AloneDecoder(decoder, self._tile)

    def forward(self, batch: StepBatch) -> Tensor:
        """See `Decoder.forward`."""
        if self._tile == 1:
            return torch.cat([self._decoder.forward(token) for token in batch.alone()])
        return self.run_layers(batch, self._decoder.first(batch), range(self._decoder.config.num_layers))

    def run_layers(self, batch: StepBatch, residual: Tensor, layers: range) -> Tensor:
        """See `Decoder.run_layers`."""
        if self._tile == 1:
            tokens = zip(batch.alone(), torch.split(residual, 1), strict=True)
            return torch.cat([self._decoder.run_layers(token, row, layers) for token, row in tokens])
        tiles = list(self._tiles(batch, residual))
        for idx, layer in enumerate(self._decoder.weights.layers):  # asking for the next: this one is done
            if idx in layers:
                for tile in tiles:
                    tile.run(self._decoder.cover.lists[1 + idx], layer.parts, idx)
        return torch.cat([tile.residual for tile in tiles])

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Decoder.logits`."""
        rows = torch.split(hidden, self._tile)
        return torch.cat([self._decoder.logits(padded(some, self._tile))[: some.shape[0]] for some in rows])

    def _tiles(self, batch: StepBatch, residual: Tensor) -> Iterator[Tile]:
        tokens = [[one for row in group.spans for one in row.tokens()] for group in batch.attention]
        adapters = _adapters(batch)
        for start in range(0, residual.shape[0], self._tile):
            at = slice(start, start + self._tile)
            plans = [
                plan_alone(group.shape, [replace(one, start=idx) for idx, one in enumerate(some[at])])
                for group, some in zip(batch.attention, tokens, strict=True)
            ]
            part = StepBatch(batch.tokens[at], batch.positions[at], plans, _lora(adapters[at]))
            yield Tile(self._decoder, part, residual[at], self._tile)


class Tile:
    """Tokens on their way through the layers: values of `size` rows, of which the first are those of the tokens, the others anything."""

    def __init__(self, decoder: Decoder, batch: StepBatch, residual: Tensor, size: int) -> None:
        self._num = residual.shape[0]
        self._size = size
        values = {"tokens": batch.tokens, "positions": batch.positions, "residual": residual}
        self._whole = decoder.pass_of({name: padded(value, size) for name, value in values.items()}, batch)
        self._real = decoder.pass_of({}, batch)

    @property
    def residual(self) -> Tensor:
        """The hidden states of the tokens."""
        return self._whole.values["residual"][: self._num]

    def run(self, choices: Sequence[Choice], parts: Parts, layer: int) -> None:
        """Run the calls of a layer."""
        self._whole.layer = self._real.layer = layer
        for choice in choices:
            assert choice.implementation is not None, "a model with a call that nothing runs is not loaded"
            is_attending = any(isinstance(found, AttentionSettings) for found in choice.call.settings)
            if not is_attending or self._num == self._size:
                choice.implementation.run(choice.call, parts, self._whole)
                continue
            self._narrow(choice.call)
            choice.implementation.run(choice.call, parts, self._real)
            for name in choice.call.outputs:
                self._whole.values[name] = padded(self._real.values[name], self._size)

    def _narrow(self, call: Call) -> None:
        """Give the pass of the tokens alone what a call reads."""
        self._real.values = {name: self._whole.values[name][: self._num] for name in call.inputs}
        for found in call.settings:
            if isinstance(found, RopeSettings) and found.table not in self._real.rotations:
                rotation = self._whole.rotation(found.table, self._whole.dtype)
                self._real.rotations[found.table] = Rotation(rotation.cos[: self._num], rotation.sin[: self._num])


def padded(values: Tensor, size: int) -> Tensor:
    """`values` with zeros behind, up to `size` rows; a copy in any case, as some calls overwrite what they read."""
    out = values.new_zeros((size, *values.shape[1:]))
    out[: values.shape[0]] = values
    return out


def rows_are_alike(decoder: Decoder, first: int) -> bool:
    """Try it with the layer `first`, and what stands behind the layers: a tile of one token comes out as rows of the same bits."""
    config, kv = decoder.config, decoder.pages[first]
    page = torch.zeros(1, *kv.pages.shape[1:], dtype=decoder.dtype)
    trial = decoder.with_pages([LayerKv(page, kv.heads)] * config.num_layers)
    spans = [RowSpan(idx, 1, 0, np.zeros(1, dtype=np.int64)) for idx in range(TILE)]
    plans = [plan_alone(AttentionShape(page.shape[1], group.window, torch.zeros_like(page[0])), spans) for group in config.groups]
    batch = StepBatch(torch.zeros(TILE, dtype=torch.int64), torch.zeros(TILE, dtype=torch.int64), plans)
    layer = next(itertools.islice(decoder.weights.layers, first, None))
    for row in torch.randn(TRIES, 1, config.hidden_size, generator=torch.Generator().manual_seed(1)).to(decoder.dtype):
        tile = Tile(trial, batch, row.expand(TILE, -1), TILE)
        tile.run(decoder.cover.lists[1 + first], layer.parts, first)
        found = [tile.residual] + ([trial.logits(tile.residual.clone())] if decoder.weights.last else [])
        if not all(torch.equal(values, values[:1].expand_as(values)) for values in found):
            return False
    return True


def _adapters(batch: StepBatch) -> list[AdapterWeights | None]:
    """Of each token of a step."""
    found: list[AdapterWeights | None] = [None] * batch.tokens.shape[0]
    if batch.lora is not None:
        rows = batch.lora.rows
        for tokens, adapter in zip(torch.split(rows.tokens, list(rows.counts)), batch.lora.adapters, strict=True):
            for token in tokens.tolist():
                found[token] = adapter
    return found


def _lora(adapters: Sequence[AdapterWeights | None]) -> LoraBatch | None:
    """Every token that has an adapter with it, by itself."""
    those = [(token, adapter) for token, adapter in enumerate(adapters) if adapter is not None]
    if not those:
        return None
    tokens = torch.tensor([token for token, _adapter in those])
    return LoraBatch(LoraRows(tokens, (1,) * len(those)), tuple(adapter for _token, adapter in those))
