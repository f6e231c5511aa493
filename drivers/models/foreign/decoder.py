"""A decoder whose calls are those of a model of `transformers`: its modules compute, our pages remember.

Tokens of all rows run as one text with positions of their own; only attention knows where rows begin, and that is ours. The weights of a
layer are put into its module when its turn comes, so layers may be streamed. Before it runs, it is held against the same model with its
own attention, once: whatever of it our attention would not do, or it remembers besides keys and values, shows there.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from drivers.errors import ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.decoder import Decoder, DecoderWeights, Layer, StepBatch
from drivers.models.foreign.attention import attending
from drivers.models.foreign.skeleton import STUMBLES, make_model, read_theirs, slots_of
from drivers.ops import fused, reference
from drivers.ops.check import TOLERANCES, worst_error
from drivers.ops.fusion import Cover
from drivers.ops.ragged import AttentionShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv
from drivers.ops.running import Parts
from drivers.ops.table import OpTable

CHECKED = 12  # tokens of the text that is computed both ways
STRANGER = 3  # tokens of another text beside its first half


@dataclass
class Answer(BaseModelOutputWithPastAndCrossAttentions):
    """What bodies answer; those of mixtures of experts tell of their routers."""

    router_logits: tuple[Tensor, ...] | None = None


class Body(nn.Module):
    """In the place of a model's body: answers the hidden states that it is given, so that what stands behind it can be run alone."""

    @property
    def decoder(self) -> Body:
        """Some bodies have a body."""
        return self

    def forward(self, *_args: object, inputs_embeds: Tensor, **_said: object) -> Answer:
        """The last hidden states."""
        return Answer(last_hidden_state=inputs_embeds)


class ForeignModel:
    """The modules, and where weights go in them."""

    def __init__(self, config: DecoderConfig, directory: Path) -> None:
        """Raises: ModelUnsupported, ModelCorrupt."""
        assert config.foreign is not None
        self.model = make_model(read_theirs(directory))
        self.slots = slots_of(self.model, config.foreign.layers)
        self.layers = self.model.get_submodule(config.foreign.layers)
        self.prefixes = ["", *(f"{config.foreign.layers}.{layer}." for layer in range(config.num_layers)), ""]
        self.ends = copy.copy(self.model)
        self.ends._modules = {**self.model._modules, self.model.base_model_prefix: Body()}
        self._filled: dict[int, Parts] = {}

    def fill(self, segment: int, parts: Parts) -> None:
        """Have the modules of a segment compute with these weights."""
        if self._filled.get(segment) is parts:
            return
        for slot in self.slots[segment]:
            values = parts[slot.name.removeprefix(self.prefixes[segment])]
            assert isinstance(values, Tensor), "weights of these models are never quantized"
            slot.fill(values)
        self._filled[segment] = parts

    def forward(self, tokens: Tensor, positions: Tensor, layers: Iterable[Layer]) -> Tensor:
        """Last hidden states `[T, hidden]` of flat tokens; each layer is asked for as its turn comes."""
        with self._bringing(layers):
            body = self.model.base_model
            hidden: Tensor = body(input_ids=tokens.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False).last_hidden_state
        return hidden.squeeze(0)

    def as_meant(self, tokens: Tensor, layers: Iterable[Layer]) -> Tensor:
        """Logits of a whole text `[T]` with the model's own attention."""
        ours = self.model.config._attn_implementation
        self.model.config._attn_implementation = "eager"
        try:
            with self._bringing(layers):
                logits: Tensor = self.model(input_ids=tokens.unsqueeze(0), use_cache=False).logits
        finally:
            self.model.config._attn_implementation = ours
        return logits.squeeze(0)

    @contextmanager
    def _bringing(self, layers: Iterable[Layer]) -> Iterator[None]:
        """Each layer gets its weights before it runs, and has finished when the next one is asked for."""
        coming, segments = iter(layers), itertools.count(1)

        def bring(_module: nn.Module, _args: object) -> None:
            self.fill(next(segments), next(coming).parts)

        hooks = [module.register_forward_pre_hook(bring) for module in self.layers.children()]
        try:
            yield
            assert next(coming, None) is None, "a model ran fewer layers than it has"
        finally:
            for hook in hooks:
                hook.remove()

    def logits(self, hidden: Tensor) -> Tensor:
        """What stands behind the body, of hidden states `[n, hidden]`."""
        logits: Tensor = self.ends(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return logits.squeeze(0)


class ForeignDecoder(Decoder):
    """See `drivers.models.decoder.Decoder`."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, pages: Sequence[LayerKv], ops: tuple[Cover, OpTable], model: ForeignModel
    ) -> None:
        super().__init__(config, weights, pages, ops)
        self.model = model
        model.fill(0, weights.first)
        model.fill(config.num_layers + 1, weights.last)

    def with_pages(self, pages: Sequence[LayerKv]) -> ForeignDecoder:
        """The same model over other pages."""
        return ForeignDecoder(self.config, self.weights, pages, (self.cover, self.table), self.model)

    def forward(self, batch: StepBatch) -> Tensor:
        """Compute the batch's tokens and write their keys and values; answers the last hidden states `[num_tokens, hidden]`."""

        def attend(module: nn.Module, heads: tuple[Tensor, Tensor, Tensor], _mask: Tensor | None, _said: Mapping[str, object]) -> Tensor:
            layer = module.layer_idx
            assert isinstance(layer, int)
            return self._attend(layer, heads, batch)

        with attending(attend):
            return self.model.forward(batch.tokens, batch.positions, self.weights.layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[n, vocab]` of the hidden states `[n, hidden]` that `forward` gave."""
        return self.model.logits(hidden)

    def _attend(self, layer: int, heads: tuple[Tensor, Tensor, Tensor], batch: StepBatch) -> Tensor:
        assert self.config.foreign is not None
        settings, kv = self.config.foreign.attention[layer], self.pages[layer]
        ragged, (query, key, value) = batch.attention[settings.group], (each.squeeze(0).transpose(0, 1) for each in heads)
        fused.kv_write(torch.cat((query, key, value), 1).flatten(1), kv, ragged)
        shape = (kv.heads.num_kv_heads, kv.heads.num_queries_per_kv)
        num_tokens, _, dims = query.shape
        queries = query.reshape(num_tokens, *shape, dims).transpose(1, 2).reshape(query.shape)  # group-major, as pages are read
        if settings.softcap or not fused.has_flash_attention():
            mixed, _ = reference.paged_attention(queries, kv, ragged, settings.scale, settings.softcap)
        else:
            mixed, _ = fused.paged_attention(queries, kv, ragged, settings.scale)
        return mixed.reshape(num_tokens, *shape[::-1], dims).transpose(1, 2).reshape(1, *query.shape)


def make_decoder(
    config: DecoderConfig, directory: Path, loaded: tuple[DecoderWeights, Sequence[LayerKv]], ops: tuple[Cover, OpTable]
) -> ForeignDecoder:
    """A model over its weights and pages, held against itself. Raises: ModelUnsupported, ModelCorrupt."""
    weights, pages = loaded
    decoder = ForeignDecoder(config, weights, pages, ops, ForeignModel(config, directory))
    try:
        error = error_of(decoder)
    except STUMBLES as stumble:
        raise ModelUnsupported(f"transformers' {config.architecture} does not run: {type(stumble).__name__}: {stumble}") from stumble
    if not error <= TOLERANCES[decoder.dtype]:
        what = f"{config.architecture} over pages is not what it is with its own attention"
        raise ModelUnsupported(f"{what} (error {error:.2g}), so it is not run.")
    return decoder


def error_of(decoder: ForeignDecoder) -> float:
    """The largest difference of a text computed in two pieces beside another one from the same computed whole, as it was meant."""
    config, num = decoder.config, min(CHECKED, decoder.config.max_positions)
    tokens, half = torch.arange(num) * 7 % config.vocab_size, num // 2
    page_tokens = decoder.pages[0].pages.shape[1]
    num_pages = -(-num // page_tokens)
    shape = (2 * num_pages, *decoder.pages[0].pages.shape[1:])
    trial = decoder.with_pages([LayerKv(torch.zeros(shape, dtype=decoder.dtype), decoder.heads) for _ in range(config.num_layers)])
    tables = np.arange(2 * num_pages).reshape(2, num_pages)
    other = min(STRANGER, half)
    first = [RowSpan(0, other, 0, tables[0]), RowSpan(other, half, 0, tables[1])]
    pieces = [
        (torch.cat((tokens[half : half + other], tokens[:half])), torch.cat((torch.arange(other), torch.arange(half))), first),
        (tokens[half:], torch.arange(half, num), [RowSpan(0, num - half, half, tables[1])]),
    ]
    workspace = torch.zeros(page_tokens * num_pages, 2, decoder.heads.num_kv_heads, decoder.heads.head_dim, dtype=decoder.dtype)
    windows = [group.window for group in config.groups]
    found = []
    for some, positions, rows in pieces:
        plans = [plan_attention(AttentionShape(page_tokens, window, workspace), rows) for window in windows]
        found.append(trial.forward(StepBatch(some, positions, plans)))
    hidden = torch.cat((found[0][other:], found[1]))
    return worst_error([trial.logits(hidden)], [decoder.model.as_meant(tokens, decoder.weights.layers)])
