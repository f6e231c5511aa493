"""What of a model's shapes ops, native code and the arena ask about."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from drivers.arena import FrameShape
from drivers.models.config import DecoderConfig, KvGroup
from drivers.models.loader import ModelFiles, PageShape, frame_bytes
from drivers.models.rotary import inverse_frequencies
from drivers.models.storage import Kind
from drivers.models.weight import KINDS
from drivers.native.program import ELSEWHERE, KvGroupShape, ModelShape, RotaryTable
from drivers.ops.implementation import Shapes
from drivers.ops.ragged import HeadShape

KV_KINDS = {"int8": Kind.INT8, "fp8": Kind.FLOAT8}


@dataclass(frozen=True, slots=True)
class Held:
    """What of a model lies on a device that has not all of it."""

    layers: range
    frame_bytes: tuple[int, ...]  # of each KV group, whole granules; the layers of the group that are here need no more

    def of(self, group: KvGroup) -> tuple[int, ...]:
        """The layers of a group that are here."""
        return tuple(layer for layer in group.layers if layer in self.layers)


def whole(files: ModelFiles, pages: PageShape) -> Held:
    """All of a model."""
    config, kv_quant = files.config, files.runtime.kv_quant
    sizes = (frame_bytes(config, len(group.layers), pages, kv_quant) for group in config.groups)
    return Held(range(config.num_layers), tuple(sizes))


def heads_of(config: DecoderConfig) -> HeadShape:
    """Attention heads of a model."""
    return HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)


def frames_of(files: ModelFiles, pages: PageShape, held: Held) -> tuple[FrameShape, ...]:
    """A frame of each KV group."""
    config, runtime = files.config, files.runtime
    return tuple(
        FrameShape(
            len(held.of(group)),
            pages.page_tokens,
            config.num_kv_heads,
            config.head_dim,
            size_bytes,
            torch.uint8 if runtime.kv_quant else pages.dtype,
            runtime.is_native,
        )
        for group, size_bytes in zip(config.groups, held.frame_bytes, strict=True)
    )


def native_shape(files: ModelFiles, pages: PageShape, held: Held) -> ModelShape:
    """What a native program is told beside calls and weights."""
    config, frames = files.config, frames_of(files, pages, held)
    place = {
        layer: idx * frame.layer_bytes
        for group, frame in zip(config.groups, frames, strict=True)
        for idx, layer in enumerate(held.of(group))
    }
    return ModelShape(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        page_tokens=pages.page_tokens,
        granule_bytes=pages.granule_bytes,
        kv_kind=KV_KINDS.get(files.runtime.kv_quant) or KINDS[pages.dtype],
        groups=tuple(KvGroupShape(frame.size_bytes, group.window) for frame, group in zip(frames, config.groups, strict=True)),
        layer_bytes=tuple(place.get(layer, ELSEWHERE) for layer in range(config.num_layers)),
        rotary=tuple(
            RotaryTable(inverse_frequencies(rope, config.head_dim, config.max_positions).numpy(), rope.attention_factor)
            for rope in config.rotary
        ),
    )


def shapes_of(files: ModelFiles, pages: PageShape) -> list[Shapes]:
    """What implementations may ask about the calls of each segment. A tied head is a part of the first one."""
    config, first = files.config, {part.name: part.shape for part in files.segments[0].parts}
    heads, dtype = heads_of(config), str(pages.dtype).removeprefix("torch.")
    return [
        Shapes(heads, pages.page_tokens, config.hidden_size, dtype, {**first, **{part.name: part.shape for part in segment.parts}})
        for segment in files.segments
    ]


def linears_of(files: ModelFiles) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the linears that adapters may change."""
    names = ("qkv.weight", "output.weight", "gate_up.weight", "down.weight")
    shapes = {part.shape for segment in files.segments[1:-1] for part in segment.parts if part.name in names}
    return tuple(sorted((shape[0], shape[1]) for shape in shapes))
