"""A model in the arena of the CPU driver: its decoder, the shape of its pages, and the batches it makes of rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from drivers.arena import Arena, FrameShape
from drivers.contract import LoadSpec
from drivers.copier import Copier
from drivers.cpu_ops import OpChooser
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory
from drivers.models.adapter import LoraBatch
from drivers.models.decoder import Decoder, DecoderWeights, StepBatch
from drivers.models.loader import ModelFiles, PageShape, Target, frame_bytes, load_weights, segment_views
from drivers.models.storage import ALIGN_BYTES
from drivers.models.streaming import SegmentStream
from drivers.models.weight import Weight
from drivers.ops.ragged import AttentionShape, HeadShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv, linear
from drivers.rows import GroupLimit, ModelLimit, StepRows
from drivers.streamed_weights import StreamedWeights, stream_weights
from drivers.weight_image import bring_segments

WORKSPACE_TOKENS = 8192  # keys gathered at once: 6 MB of bf16 at the 135M shape


@dataclass(frozen=True, slots=True)
class Arrival:
    """How the weights of a model came."""

    host_bytes: int = 0  # from the host tier
    copy_s: float = 0.0
    num_corrupt: int = 0  # segments whose image did not hold


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A loaded model. Frozen: a load makes one, an unload closes and forgets it."""

    decoder: Decoder
    limit: ModelLimit
    space_ids: tuple[int, ...]  # one per KV group
    frames: tuple[FrameShape, ...]
    attention: tuple[AttentionShape, ...]
    places: tuple[tuple[int, int], ...] = ()  # offset and size of each segment; -1 of those that are streamed
    arrival: Arrival = Arrival()
    streamed: StreamedWeights | None = None

    @property
    def stream(self) -> SegmentStream | None:
        """What brings its layers, if they do not all stay."""
        return self.streamed.stream if self.streamed is not None else None

    def close(self) -> None:
        """Write nothing to the arena any more."""
        if self.stream is not None:
            self.stream.close()

    def batch(self, share: StepRows, lora: LoraBatch | None = None) -> StepBatch:
        """The indexes of one step, and its adapters."""
        return StepBatch(
            tokens=torch.from_numpy(share.tokens),
            positions=torch.from_numpy(share.positions),
            attention=[plan_attention(shape, _spans(share, group)) for group, shape in enumerate(self.attention)],
            lora=lora,
        )


def _spans(share: StepRows, group: int) -> list[RowSpan]:
    parts = zip(share.rows, share.starts, share.counts, strict=True)
    return [RowSpan(start, count, row.position, row.tables[group]) for row, start, count in parts]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a model is built on."""

    arena: Arena
    pages: PageShape
    ops: OpChooser
    host: HostMemory | None = None
    copier: Copier = field(default_factory=Copier)


def load_model(files: ModelFiles, spec: LoadSpec, ground: Ground, progress: Callable[[int, int], None]) -> CpuModel:
    """Copy the weights into place, compare the fused ops with their definitions, and warm up.

    Raises: PlanRejected, if the offsets or spaces do not fit the model; ModelCorrupt; ModelUnsupported; StreamBroken.
    """
    _check_places(files, spec, ground.arena.size_bytes)
    target = Target(ground.arena.bytes, spec.offsets, ground.pages.dtype, ground.copier)
    began = time.perf_counter()
    if not spec.slots:
        parts, host_bytes, num_corrupt = _bring(files, target, spec, ground, progress)
        arrival = Arrival(host_bytes, time.perf_counter() - began, num_corrupt)
        return _build(files, spec, ground, (DecoderWeights.of(parts, spec.offsets), None, arrival))
    streamed = stream_weights(files, target, spec, ground.host, progress)
    try:
        return _build(files, spec, ground, (streamed.weights, streamed, Arrival(copy_s=time.perf_counter() - began)))
    except BaseException:
        streamed.stream.close()
        raise


def _bring(
    files: ModelFiles, target: Target, spec: LoadSpec, ground: Ground, progress: Callable[[int, int], None]
) -> tuple[tuple[dict[str, Tensor | Weight], ...], int, int]:
    """Weights from the host tier where it has them, from files where it has not, or has not any more.

    Answers the parts of each segment, the bytes that came from the host tier, and how many images did not hold.
    """
    if not spec.host_offsets or ground.host is None:
        return load_weights(files, target, progress), 0, 0
    sizes = [segment.size_bytes for segment in files.segments]
    bad = bring_segments(ground.arena, ground.host, spec, sizes, (ground.copier, progress))
    if bad:
        again = replace(files, segments=tuple(files.segments[idx] for idx in bad))
        load_weights(again, replace(target, offsets=tuple(spec.offsets[idx] for idx in bad)), lambda _done, _total: None)
    views = tuple(segment_views(segment, target, offset) for segment, offset in zip(files.segments, spec.offsets, strict=True))
    return views, sum(sizes) - sum(sizes[idx] for idx in bad), len(bad)


def _build(files: ModelFiles, spec: LoadSpec, ground: Ground, loaded: tuple[DecoderWeights, StreamedWeights | None, Arrival]) -> CpuModel:
    weights, streamed, arrival = loaded
    config, dtype = files.config, ground.pages.dtype
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
    ops = ground.ops.choose(files, page_tokens, dtype)
    pages = _layer_pages(files, ground.arena, frames, heads)
    if config.foreign is not None:
        from drivers.models.foreign.decoder import make_decoder  # heavy, and may be missing

        decoder: Decoder = make_decoder(config, Path(spec.source.path), (weights, pages), (ops.cover, ops.table))
    else:
        decoder = Decoder(config, weights, pages, (ops.cover, ops.table))
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
        places=tuple((offset, segment.size_bytes) for segment, offset in zip(files.segments, spec.offsets, strict=True)),
        arrival=arrival,
        streamed=streamed,
    )


def _check_places(files: ModelFiles, spec: LoadSpec, arena_bytes: int) -> None:
    if len(spec.offsets) != len(files.segments) or len(spec.space_ids) != len(files.config.groups):
        raise PlanRejected(
            f"Model {spec.model_id} has {len(files.segments)} segments and {len(files.config.groups)} KV groups; "
            f"the load names {len(spec.offsets)} offsets and {len(spec.space_ids)} spaces."
        )
    streamed = [segment for segment, offset in zip(files.segments, spec.offsets, strict=True) if offset < 0]
    if bool(streamed) != bool(spec.slots) or spec.offsets[0] < 0 or spec.offsets[-1] < 0:
        raise PlanRejected(f"Model {spec.model_id}: slots are for streamed segments, which the first and the last cannot be.")
    places = [(segment, offset) for segment, offset in zip(files.segments, spec.offsets, strict=True) if offset >= 0]
    if streamed:
        largest = max(streamed, key=lambda segment: segment.size_bytes)
        places += [(largest, slot) for slot in spec.slots]
    for segment, offset in places:
        if offset % ALIGN_BYTES or offset < 0 or offset + segment.size_bytes > arena_bytes:
            raise PlanRejected(f"Segment {segment.name} at offset {offset} is not aligned to {ALIGN_BYTES} or leaves the arena.")


def _layer_pages(files: ModelFiles, arena: Arena, frames: tuple[FrameShape, ...], heads: HeadShape) -> list[LayerKv]:
    by_layer = {
        layer: LayerKv(arena.layer_pages(frame, idx), heads)
        for group, frame in zip(files.config.groups, frames, strict=True)
        for idx, layer in enumerate(group.layers)
    }
    return [by_layer[layer] for layer in range(files.config.num_layers)]


def _warm_up(decoder: Decoder) -> None:
    """Have the library build its kernels for this model's linears now: all layers have the shapes of the first."""
    layer, dtype = next(iter(decoder.weights.layers)), decoder.dtype
    for name, weight in layer.parts.items():
        if name.endswith(".weight") and isinstance(weight, Tensor):
            linear(torch.zeros(1, weight.shape[1], dtype=dtype), weight, None)
    decoder.logits(torch.zeros(1, decoder.config.hidden_size, dtype=dtype))
