"""Weights from disk into the arena: mapped, checked, converted piece by piece, never twice in memory.

Interface:
- `inspect_model` reads config and headers and answers what the model needs; nothing is left behind.
- `load_weights` copies every part to its place and answers views of the arena by segment and part name.

At most one piece of `PIECE_BYTES` of the mapping counts as this process's memory at a time: pages are let go as soon as they were read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drivers.contract import InspectSpec, KvGroupSpec, ModelSpec, SegmentSpec
from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig, read_config
from drivers.models.layout import Arrangement, Segment, Source, check_tensors, decoder_segments
from drivers.models.shards import MappedFile, StoredTensor, find_tensors

PIECE_BYTES = 8 << 20
STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LAYOUT_VERSION = "page-layer-token-kv-head.1"  # changes with anything about how a page is laid out or computed


@dataclass(frozen=True, slots=True)
class PageShape:
    """What a driver's pages have in common, whatever the model."""

    page_tokens: int
    granule_bytes: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory that was read and found good."""

    config: DecoderConfig
    segments: tuple[Segment, ...]
    tensors: Mapping[str, StoredTensor]


def open_model(source: InspectSpec, dtype: torch.dtype) -> ModelFiles:
    """Read config and headers. Raises: ModelUnsupported, ModelCorrupt."""
    if source.quant:
        raise ModelUnsupported(f"quant is {source.quant!r}; supported is none (''): weights in float32, bfloat16 or float16.")
    directory = Path(source.path)
    config = read_config(directory, source.max_positions)
    tensors = find_tensors(directory)
    segments = decoder_segments(config, dtype.itemsize)
    check_tensors(config, segments, tensors)
    return ModelFiles(config, segments, tensors)


def inspect_model(source: InspectSpec, pages: PageShape) -> ModelSpec:
    """What a model needs of a device. Raises: ModelUnsupported, ModelCorrupt."""
    files = open_model(source, pages.dtype)
    config = files.config
    dtype_name = str(pages.dtype).removeprefix("torch.")
    return ModelSpec(
        architecture=config.architecture,
        dtype=dtype_name,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        num_parameters=sum(math.prod(part.shape) for segment in files.segments for part in segment.parts),
        segments=tuple(SegmentSpec(segment.name, segment.size_bytes) for segment in files.segments),
        groups=tuple(
            KvGroupSpec(len(group.layers), frame_bytes(config, len(group.layers), pages), group.window) for group in config.groups
        ),
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
        numerics=f"{LAYOUT_VERSION}/{dtype_name}/{pages.page_tokens}/{config.rope.name(config.max_positions)}/torch-{torch.__version__}",
    )


def frame_bytes(config: DecoderConfig, num_layers: int, pages: PageShape) -> int:
    """Bytes of one page of a KV group, whole granules."""
    used = num_layers * pages.page_tokens * 2 * config.num_kv_heads * config.head_dim * pages.dtype.itemsize
    return -(-used // pages.granule_bytes) * pages.granule_bytes


@dataclass(frozen=True, slots=True)
class Target:
    """Where the weights go: the arena as bytes, the offset of each segment, and the dtype to compute in."""

    arena: Tensor  # [arena_bytes] uint8
    offsets: Sequence[int]
    dtype: torch.dtype


def load_weights(files: ModelFiles, target: Target, progress: Callable[[int, int], None]) -> tuple[dict[str, Tensor], ...]:
    """Copy the weights into the arena; answers, for each segment, its parts by name.

    `progress(bytes_done, bytes_total)` counts bytes in the arena. Raises: ModelCorrupt, ModelUnsupported; the target is then half written.
    """
    views = tuple(segment_views(segment, target, offset) for segment, offset in zip(files.segments, target.offsets, strict=True))
    total = sum(view.nbytes for segment in views for view in segment.values())
    done = 0
    progress(0, total)
    mapped: dict[Path, MappedFile] = {}
    try:
        for segment, parts in zip(files.segments, views, strict=True):
            for part in segment.parts:
                for source in part.sources:
                    stored = files.tensors[source.tensor]
                    if stored.file not in mapped:
                        mapped[stored.file] = _map_unchanged(stored)
                    rows = parts[part.name][source.row : source.row + source.shape[0]]
                    for copied in _copy(mapped[stored.file], stored, (source, files.config), rows):
                        done += copied
                        progress(done, total)
    finally:
        for file in mapped.values():
            file.close()
    return views


def _map_unchanged(stored: StoredTensor) -> MappedFile:
    file = MappedFile(stored.file)
    if len(file.memory) < stored.start + stored.size_bytes:
        file.close()
        raise ModelCorrupt(f"{stored.file.name} became shorter while it was read.")
    return file


def segment_views(segment: Segment, target: Target, offset: int) -> dict[str, Tensor]:
    """The parts of a segment that lies at a byte offset of the arena."""
    views = {}
    for part in segment.parts:
        start = offset + part.offset_bytes
        size_bytes = math.prod(part.shape) * target.dtype.itemsize
        views[part.name] = target.arena[start : start + size_bytes].view(target.dtype).view(part.shape)
    return views


def _copy(file: MappedFile, stored: StoredTensor, origin: tuple[Source, DecoderConfig], rows: Tensor) -> Iterator[int]:
    """Copy one stored tensor to its rows, piece by piece; yields the bytes written by each."""
    source, config = origin
    place = _arranged(rows, source.arrangement, config)
    lead = place.shape[0]
    row_bytes = stored.size_bytes // lead
    step = max(1, PIECE_BYTES // row_bytes)
    for first in range(0, lead, step):
        count = min(step, lead - first)
        start = stored.start + first * row_bytes
        piece = torch.frombuffer(file.memory, dtype=torch.uint8, count=count * row_bytes, offset=start)
        values = _aligned(piece, stored).view(STORED_DTYPES[stored.stored_dtype]).view(count, *place.shape[1:])
        place[first : first + count].copy_(values)
        del piece, values  # the mapping cannot be closed while tensors look at it
        file.release(start, count * row_bytes)
        yield count * row_bytes * rows.element_size() // STORED_DTYPES[stored.stored_dtype].itemsize


def _aligned(piece: Tensor, stored: StoredTensor) -> Tensor:
    """The piece itself, or a copy where the file does not keep its items aligned (headers of odd length do that)."""
    return piece.clone() if stored.start % STORED_DTYPES[stored.stored_dtype].itemsize else piece


def _arranged(rows: Tensor, arrangement: Arrangement, config: DecoderConfig) -> Tensor:
    """A view of the target rows whose plain order is the order of the stored tensor."""
    queries, kv_heads, head_dim = config.num_queries_per_kv, config.num_kv_heads, config.head_dim
    if arrangement is Arrangement.QUERY_ROWS:
        return rows.view(queries, kv_heads, head_dim, *rows.shape[1:]).transpose(0, 1)
    if arrangement is Arrangement.OUTPUT_COLUMNS:
        return rows.view(rows.shape[0], queries, kv_heads, head_dim).transpose(1, 2)
    return rows
