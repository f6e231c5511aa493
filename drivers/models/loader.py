"""Weights from disk into the arena: checked, read in pieces straight into place, turned aside where need be, never twice in memory.

    read_checkpoint --> config, tensors     (what is there)
    arrange(..., Runtime) --> ModelFiles    (what form each part gets: whoever runs the model decides)
    model_spec / load_weights               (what it needs / where it goes)

What has the form and, in runs, the order that it is to have is read to where it stays; see `drivers.models.placing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from drivers.contract import InspectSpec, KvGroupSpec, ModelSpec, SegmentSpec
from drivers.copier import Copier, Piece
from drivers.errors import ModelUnsupported
from drivers.models.checkpoint import Checkpoint, read_checkpoint
from drivers.models.config import DecoderConfig
from drivers.models.layout import Part, Segment, check_tensor, check_tensors, decoder_segments
from drivers.models.parts import Arrangement, PartSpec
from drivers.models.placing import Placed, Placing
from drivers.models.runtime import Runtime, check_quant, form_of
from drivers.models.shards import Shards
from drivers.models.storage import Storage
from drivers.models.stored import Stored
from drivers.models.weight import KINDS, Weight, view_part

LAYOUT_VERSION = "page-layer-token-kv-head.1"  # changes with anything about how a page is laid out or computed
KV_BYTES = {"": 0, "int8": 1, "fp8": 1}  # of one value; 0: as the compute dtype
KV_SCALE_BYTES = 4  # of one token and head


@dataclass(frozen=True, slots=True)
class PageShape:
    """What a driver's pages have in common, whatever the model."""

    page_tokens: int
    granule_bytes: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory that was read and found good, and how its parts are to lie."""

    config: DecoderConfig
    segments: tuple[Segment, ...]
    tensors: Mapping[str, Stored]
    runtime: Runtime
    quant: str = ""  # of the checkpoint itself


def open_model(source: InspectSpec, dtype: torch.dtype) -> ModelFiles:
    """Read config and headers, for torch to run. Raises: ModelUnsupported, ModelCorrupt."""
    return arrange(read_checkpoint(source), Runtime(dtype, quant=source.quant, kv_quant=source.kv_quant))


def arrange(checkpoint: Checkpoint, runtime: Runtime) -> ModelFiles:
    """Give every part its form and place. Raises: ModelUnsupported, ModelCorrupt."""
    check_quant(runtime)
    if runtime.quant and checkpoint.quant:
        raise ModelUnsupported(f"The checkpoint is quantized already ({checkpoint.quant}); leave quant={runtime.quant} out.")
    config, tensors = checkpoint.config, checkpoint.tensors
    if config.foreign is not None and (runtime.quant or runtime.kv_quant):
        raise ModelUnsupported(f"{config.architecture} is computed by transformers, over floats; leave quant and kv_quant out.")

    def form(part: PartSpec) -> Storage:
        stored = [check_tensor(source, tensors).form for source in part.sources]
        if config.foreign is not None:  # floats, whatever they were
            return Storage(KINDS[runtime.dtype])
        turned = any(source.arrangement is Arrangement.OUTPUT_COLUMNS for source in part.sources) and config.num_queries_per_kv > 1
        return form_of(part, runtime, stored, config.head_dim if turned else 0)

    segments = decoder_segments(config, form)
    check_tensors(config, segments, tensors)
    return ModelFiles(config, segments, tensors, runtime, checkpoint.quant)


def inspect_model(source: InspectSpec, pages: PageShape) -> ModelSpec:
    """What a model needs of a device that runs it with torch. Raises: ModelUnsupported, ModelCorrupt."""
    return model_spec(open_model(source, pages.dtype), pages)


def model_spec(files: ModelFiles, pages: PageShape) -> ModelSpec:
    """What a model needs of a device."""
    config, runtime = files.config, files.runtime
    return ModelSpec(
        architecture=config.architecture,
        dtype=str(runtime.dtype).removeprefix("torch."),
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        num_parameters=sum(math.prod(part.shape) for segment in files.segments for part in segment.parts),
        segments=tuple(SegmentSpec(segment.name, segment.size_bytes) for segment in files.segments),
        groups=tuple(
            KvGroupSpec(len(group.layers), frame_bytes(config, len(group.layers), pages, runtime.kv_quant), group.window)
            for group in config.groups
        ),
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
        numerics=f"{LAYOUT_VERSION}/{runtime.name}/{pages.page_tokens}/{config.rope_name}/torch-{torch.__version__}",
        quant=files.quant or runtime.quant,
        kv_quant=runtime.kv_quant,
    )


def frame_bytes(config: DecoderConfig, num_layers: int, pages: PageShape, kv_quant: str = "") -> int:
    """Bytes of one page of a KV group, whole granules."""
    return -(-layers_bytes(config, num_layers, pages, kv_quant) // pages.granule_bytes) * pages.granule_bytes


def layers_bytes(config: DecoderConfig, num_layers: int, pages: PageShape, kv_quant: str = "") -> int:
    """What so many layers take of a page."""
    values = 2 * config.num_kv_heads * config.head_dim * (KV_BYTES[kv_quant] or pages.dtype.itemsize)
    scales = 2 * config.num_kv_heads * KV_SCALE_BYTES if kv_quant else 0
    return num_layers * pages.page_tokens * (values + scales)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the weights go: the arena as bytes, the offset of each segment, the dtype to compute in, and who copies."""

    arena: Tensor  # [arena_bytes] uint8
    offsets: Sequence[int]
    dtype: torch.dtype
    copier: Copier = field(default_factory=Copier)


def load_weights(files: ModelFiles, target: Target, progress: Callable[[int, int], None]) -> tuple[dict[str, Tensor | Weight], ...]:
    """Copy the weights into the arena; answers, for each segment, its parts by name.

    `progress(bytes_done, bytes_total)` counts bytes in the arena. Raises: ModelCorrupt, ModelUnsupported; the target is then half written.
    """
    for segment, offset in zip(files.segments, target.offsets, strict=True):
        _clear_gaps(segment, target, offset)
    total = sum(part.places.size_bytes for segment in files.segments for part in segment.parts)
    done = 0
    progress(0, total)

    def add(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, total)

    with Shards() as shards:
        target.copier.run(sorted(_pieces(files, target, shards), key=lambda piece: piece.source), add)
    return tuple(segment_views(segment, target, offset) for segment, offset in zip(files.segments, target.offsets, strict=True))


def segment_views(segment: Segment, target: Target, offset: int) -> dict[str, Tensor | Weight]:
    """The parts of a segment that lies at a byte offset of the arena."""
    return {part.name: view_part(placed.bytes, part.storage, part.shape) for part, placed in _placed(segment, target, offset)}


def _placed(segment: Segment, target: Target, offset: int) -> Iterator[tuple[Part, Placed]]:
    for part in segment.parts:
        start = offset + part.offset_bytes
        yield part, Placed(part, target.arena[start : start + part.places.size_bytes])


def _clear_gaps(segment: Segment, target: Target, offset: int) -> None:
    """Zero what lies between the parts: an image of the segment takes along no bytes of whoever was there before."""
    ends = [*(part.offset_bytes for part in segment.parts[1:]), segment.size_bytes]
    for part, end in zip(segment.parts, ends, strict=True):
        start, places = offset + part.offset_bytes, part.places
        used = [(0, places.num_matrices * places.values_bytes), (places.scales_start, places.num_matrices * places.scales_bytes)]
        used += [(places.offsets_start, places.num_matrices * places.offsets_bytes), (end - part.offset_bytes, 0)]
        for (first, size_bytes), (after, _size) in pairwise(used):
            target.arena[start + first + size_bytes : start + after].zero_()


def _pieces(files: ModelFiles, target: Target, shards: Shards) -> Iterator[Piece]:
    for segment, offset in zip(files.segments, target.offsets, strict=True):
        for part, placed in _placed(segment, target, offset):
            for source in part.sources:
                yield from Placing(placed, source, files.tensors[source.tensor], files.config, shards).pieces()
