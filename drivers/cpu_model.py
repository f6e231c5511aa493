"""A model in the arena of the CPU driver: its decoder, the shape of its pages, and the batches it makes of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from drivers.arena import Arena, FrameShape
from drivers.contract import LoadSpec
from drivers.errors import PlanRejected
from drivers.models.decoder import Decoder, DecoderWeights, StepBatch
from drivers.models.layout import ALIGN_BYTES
from drivers.models.loader import ModelFiles, PageShape, Target, frame_bytes, load_weights
from drivers.ops.check import CheckShape, disagreements
from drivers.ops.ragged import AttentionShape, HeadShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv
from drivers.ops.table import OpTable, quarantine
from drivers.rows import GroupLimit, ModelLimit, StepRows

WORKSPACE_TOKENS = 8192  # keys gathered at once: 6 MB of bf16 at the 135M shape


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A loaded model. Frozen: a load makes one, an unload forgets it."""

    decoder: Decoder
    limit: ModelLimit
    space_ids: tuple[int, ...]  # one per KV group
    frames: tuple[FrameShape, ...]
    attention: tuple[AttentionShape, ...]

    def batch(self, share: StepRows) -> StepBatch:
        """The indexes of one step."""
        return StepBatch(
            tokens=torch.from_numpy(share.tokens),
            positions=torch.from_numpy(share.positions),
            attention=[plan_attention(shape, _spans(share, group)) for group, shape in enumerate(self.attention)],
        )


def _spans(share: StepRows, group: int) -> list[RowSpan]:
    parts = zip(share.rows, share.starts, share.counts, strict=True)
    return [RowSpan(start, count, row.position, row.tables[group]) for row, start, count in parts]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a model is built on."""

    arena: Arena
    pages: PageShape
    ops: OpTable


def load_model(files: ModelFiles, spec: LoadSpec, ground: Ground, progress: Callable[[int, int], None]) -> CpuModel:
    """Copy the weights into place, compare the fused ops with their definitions, and warm up.

    Raises: PlanRejected, if the offsets or spaces do not fit the model; ModelCorrupt; ModelUnsupported.
    """
    _check_places(files, spec, ground.arena.size_bytes)
    config = files.config
    dtype = ground.pages.dtype
    segments = load_weights(files, Target(ground.arena.bytes, spec.offsets, dtype), progress)
    heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
    page_tokens = ground.pages.page_tokens
    frames = tuple(
        FrameShape(
            len(group.layers),
            page_tokens,
            config.num_kv_heads,
            config.head_dim,
            frame_bytes(config, len(group.layers), ground.pages),
            dtype,
        )
        for group in config.groups
    )
    workspace_tokens = -(-WORKSPACE_TOKENS // page_tokens) * page_tokens
    workspace = torch.zeros(workspace_tokens, 2, config.num_kv_heads, config.head_dim, dtype=dtype)
    windows = tuple(group.window for group in config.groups)
    ops = _checked_ops(files, ground, heads, windows)
    decoder = Decoder(config, DecoderWeights.of(segments), _layer_pages(files, ground.arena, frames, heads), ops)
    _warm_up(decoder)
    return CpuModel(
        decoder=decoder,
        limit=ModelLimit(
            config.vocab_size,
            config.max_positions,
            tuple(GroupLimit(ground.arena.num_frames(frame.size_bytes), window) for frame, window in zip(frames, windows, strict=True)),
        ),
        space_ids=spec.space_ids,
        frames=frames,
        attention=tuple(AttentionShape(page_tokens, window, workspace) for window in windows),
    )


def _check_places(files: ModelFiles, spec: LoadSpec, arena_bytes: int) -> None:
    if len(spec.offsets) != len(files.segments) or len(spec.space_ids) != len(files.config.groups):
        raise PlanRejected(
            f"Model {spec.model_id} has {len(files.segments)} segments and {len(files.config.groups)} KV groups; "
            f"the load names {len(spec.offsets)} offsets and {len(spec.space_ids)} spaces."
        )
    for segment, offset in zip(files.segments, spec.offsets, strict=True):
        if offset % ALIGN_BYTES or offset < 0 or offset + segment.size_bytes > arena_bytes:
            raise PlanRejected(f"Segment {segment.name} at offset {offset} is not aligned to {ALIGN_BYTES} or leaves the arena.")


def _layer_pages(files: ModelFiles, arena: Arena, frames: tuple[FrameShape, ...], heads: HeadShape) -> list[LayerKv]:
    by_layer = {
        layer: LayerKv(arena.layer_pages(frame, idx), heads)
        for group, frame in zip(files.config.groups, frames, strict=True)
        for idx, layer in enumerate(group.layers)
    }
    return [by_layer[layer] for layer in range(files.config.num_layers)]


def _checked_ops(files: ModelFiles, ground: Ground, heads: HeadShape, windows: tuple[int | None, ...]) -> OpTable:
    config = files.config
    shape = CheckShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        heads=heads,
        page_tokens=ground.pages.page_tokens,
        windows=windows,
        dtype=ground.pages.dtype,
    )
    return quarantine(ground.ops, disagreements(ground.ops, shape))


def _warm_up(decoder: Decoder) -> None:
    """Have the library build its kernels for this model's linears now: all layers have the shapes of the first."""
    layer, config, dtype = next(iter(decoder.layers)), decoder.config, decoder.embedding.dtype
    for weight in (layer.qkv, layer.output, layer.gate_up, layer.down, decoder.head):
        decoder.ops.linear(torch.zeros(1, weight.shape[1], dtype=dtype), weight, None)
    decoder.logits(torch.from_numpy(np.zeros((1, config.hidden_size), dtype=np.float32)).to(dtype))
