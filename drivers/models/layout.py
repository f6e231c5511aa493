"""How weights lie in the arena: segments, the parts in them, and which stored tensors fill each part.

    segment "layer.3"   | input_norm | qkv.weight                    | qkv.bias | output.weight | ... | down.weight |
                                     | q rows  | k rows   | v rows   |
                                       one GEMM serves all three

Parts start at multiples of 64 bytes. Query heads are stored **group-major**: head g * num_kv_heads + j is the g-th query of KV head j,
where Hugging Face stores j * queries_per_kv + g. Attention then reads its queries and leaves its output without a copy; the rows of the
query projection and the columns of the output projection are permuted once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.families.table import write_down
from drivers.models.parts import PartSpec, Source
from drivers.models.storage import PANEL_ROWS, Places, Storage, aligned, places_of
from drivers.models.stored import Stored

HARMLESS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # what follows from the config; the last two are masks


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor in the arena."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    storage: Storage
    offset_bytes: int = 0  # from the start of the segment

    @property
    def places(self) -> Places:
        """Where its values, scales and offsets lie, from its own start."""
        return places_of(self.storage, self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the weights that moves as one."""

    name: str
    parts: tuple[Part, ...]
    size_bytes: int


def decoder_segments(config: DecoderConfig, form: Callable[[PartSpec], Storage]) -> tuple[Segment, ...]:
    """The segments of a decoder: the embedding, each layer, and the end (final norm, and the head where it is not tied).

    `form` says how each part is to lie there.
    """
    sheets = write_down(config)
    names = ["embedding", *(f"layer.{layer}" for layer in range(config.num_layers)), "end"]
    return tuple(_segment(name, sheet.parts, form) for name, sheet in zip(names, sheets, strict=True))


def why_no_panels(config: DecoderConfig) -> str:
    """Why the parts of a model cannot be panels; "" if they can: every stored tensor has to begin where a panel begins."""
    if config.foreign is not None:
        return f"{config.architecture} is computed by transformers"
    for sheet in write_down(config):
        for part in sheet.parts:
            starts = [source.row for source in part.sources] + ([part.shape[-2]] if len(part.shape) > 2 else [])
            if len(part.shape) > 1 and any(start % PANEL_ROWS for start in starts):
                return f"the rows of {part.name} are not in multiples of {PANEL_ROWS}"
    if config.num_queries_per_kv > 1 and config.head_dim % PANEL_ROWS:
        return f"head_dim is {config.head_dim}, not a multiple of {PANEL_ROWS}"
    return ""


def check_tensors(config: DecoderConfig, segments: tuple[Segment, ...], stored: Mapping[str, Stored]) -> None:
    """Every needed tensor is there in its shape, and nothing else is. Raises: ModelCorrupt, ModelUnsupported."""
    sources = {source.tensor: source for segment in segments for part in segment.parts for source in part.sources}
    for source in sources.values():
        check_tensor(source, stored)
    for name in stored:
        is_harmless = name.endswith(HARMLESS) or (config.is_tied and name == "lm_head.weight")
        if name not in sources and not is_harmless:
            raise ModelUnsupported(f"The weights hold {name}, which {config.architecture} with this config does not use.")


def check_tensor(source: Source, stored: Mapping[str, Stored]) -> Stored:
    """What fills a source, there and in its shape. Raises: ModelCorrupt."""
    found = stored.get(source.tensor)
    if found is None:
        raise ModelCorrupt(f"The weights lack {source.tensor}.")
    if found.shape != source.shape:
        raise ModelCorrupt(f"{found.source[0]}: {source.tensor} has shape {found.shape}; config.json asks for {source.shape}.")
    return found


def _segment(name: str, parts: Sequence[PartSpec], form: Callable[[PartSpec], Storage]) -> Segment:
    placed: list[Part] = []
    offset = 0
    for spec in parts:
        part = Part(spec.name, spec.shape, spec.sources, form(spec), offset)
        placed.append(part)
        offset += aligned(part.places.size_bytes)
    return Segment(name, tuple(placed), offset)
