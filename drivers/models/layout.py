"""How weights lie in the arena: segments, the parts in them, and which stored tensors fill each part.

    segment "layer.3"   | input_norm | qkv.weight                    | qkv.bias | output.weight | ... | down.weight |
                                     | q rows  | k rows   | v rows   |
                                       one GEMM serves all three

Parts start at multiples of 64 bytes. Query heads are stored **group-major**: head g * num_kv_heads + j is the g-th query of KV head j,
where Hugging Face stores j * queries_per_kv + g. Attention then reads its queries and leaves its output without a copy; the rows of the
query projection and the columns of the output projection are permuted once, here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.families.table import write_down
from drivers.models.parts import PartSpec, Source
from drivers.models.shards import StoredTensor

ALIGN_BYTES = 64
HARMLESS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # what follows from the config; the last two are masks


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor in the arena."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    offset_bytes: int = 0  # from the start of the segment


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the weights that moves as one."""

    name: str
    parts: tuple[Part, ...]
    size_bytes: int


def decoder_segments(config: DecoderConfig, item_bytes: int) -> tuple[Segment, ...]:
    """The segments of a decoder: the embedding, each layer, and the end (final norm, and the head where it is not tied)."""
    sheets = write_down(config)
    names = ["embedding", *(f"layer.{layer}" for layer in range(config.num_layers)), "end"]
    return tuple(_segment(name, sheet.parts, item_bytes) for name, sheet in zip(names, sheets, strict=True))


def check_tensors(config: DecoderConfig, segments: tuple[Segment, ...], stored: Mapping[str, StoredTensor]) -> None:
    """Every needed tensor is there in its shape, and nothing else is. Raises: ModelCorrupt, ModelUnsupported."""
    sources = {source.tensor: source for segment in segments for part in segment.parts for source in part.sources}
    for name, source in sources.items():
        if name not in stored:
            raise ModelCorrupt(f"The weights lack {name}.")
        if stored[name].shape != source.shape:
            raise ModelCorrupt(f"{stored[name].file.name}: {name} has shape {stored[name].shape}; config.json asks for {source.shape}.")
    for name in stored:
        is_harmless = name.endswith(HARMLESS) or (config.is_tied and name == "lm_head.weight")
        if name not in sources and not is_harmless:
            raise ModelUnsupported(f"The weights hold {name}, which {config.architecture} with this config does not use.")


def _segment(name: str, parts: Sequence[PartSpec], item_bytes: int) -> Segment:
    placed: list[Part] = []
    offset = 0
    for part in parts:
        placed.append(Part(part.name, part.shape, part.sources, offset))
        offset += _aligned(math.prod(part.shape) * item_bytes)
    return Segment(name, tuple(placed), offset)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
