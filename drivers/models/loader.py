"""Weights from disk into the arena: checked, read in pieces straight into place, converted aside where need be, never twice in memory.

Interface:
- `inspect_model` reads config and headers and answers what the model needs; nothing is left behind.
- `load_weights` copies every part to its place and answers views of the arena by segment and part name.

What has the dtype and, in runs, the order that it is to have is read to where it stays. The rest is read aside, in pieces of
`PIECE_BYTES`, of which few are in memory at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drivers.contract import InspectSpec, KvGroupSpec, ModelSpec, SegmentSpec
from drivers.copier import Copier, Piece
from drivers.errors import ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.families.table import read_config, under_prefix
from drivers.models.layout import Segment, check_tensors, decoder_segments
from drivers.models.parts import Arrangement, Source, rows_of
from drivers.models.shards import Shard, Shards, StoredTensor, find_tensors

PIECE_BYTES = 4 << 20
MIN_RUN_BYTES = 4096  # shorter ones cost more to read one by one than to copy
MAX_SCATTER = 512  # runs of one read; the system allows 1024
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
    tensors = under_prefix(config, find_tensors(directory))
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
        numerics=f"{LAYOUT_VERSION}/{dtype_name}/{pages.page_tokens}/{config.rope_name}/torch-{torch.__version__}",
    )


def frame_bytes(config: DecoderConfig, num_layers: int, pages: PageShape) -> int:
    """Bytes of one page of a KV group, whole granules."""
    used = num_layers * pages.page_tokens * 2 * config.num_kv_heads * config.head_dim * pages.dtype.itemsize
    return -(-used // pages.granule_bytes) * pages.granule_bytes


@dataclass(frozen=True, slots=True)
class Target:
    """Where the weights go: the arena as bytes, the offset of each segment, the dtype to compute in, and who copies."""

    arena: Tensor  # [arena_bytes] uint8
    offsets: Sequence[int]
    dtype: torch.dtype
    copier: Copier = field(default_factory=Copier)


def load_weights(files: ModelFiles, target: Target, progress: Callable[[int, int], None]) -> tuple[dict[str, Tensor], ...]:
    """Copy the weights into the arena; answers, for each segment, its parts by name.

    `progress(bytes_done, bytes_total)` counts bytes in the arena. Raises: ModelCorrupt, ModelUnsupported; the target is then half written.
    """
    views = tuple(segment_views(segment, target, offset) for segment, offset in zip(files.segments, target.offsets, strict=True))
    for segment, offset in zip(files.segments, target.offsets, strict=True):
        _clear_gaps(segment, target, offset)
    total = sum(view.nbytes for parts in views for view in parts.values())
    done = 0
    progress(0, total)

    def add(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, total)

    with Shards() as shards:
        target.copier.run(sorted(_pieces(files, views, shards), key=lambda piece: piece.source), add)
    return views


def segment_views(segment: Segment, target: Target, offset: int) -> dict[str, Tensor]:
    """The parts of a segment that lies at a byte offset of the arena."""
    views = {}
    for part in segment.parts:
        start = offset + part.offset_bytes
        size_bytes = math.prod(part.shape) * target.dtype.itemsize
        views[part.name] = target.arena[start : start + size_bytes].view(target.dtype).view(part.shape)
    return views


def _clear_gaps(segment: Segment, target: Target, offset: int) -> None:
    """Zero what lies between the parts: an image of the segment takes along no bytes of whoever was there before."""
    ends = [*(part.offset_bytes for part in segment.parts[1:]), segment.size_bytes]
    for part, end in zip(segment.parts, ends, strict=True):
        used = part.offset_bytes + math.prod(part.shape) * target.dtype.itemsize
        target.arena[offset + used : offset + end].zero_()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor that lies in one piece, writable."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _pieces(files: ModelFiles, views: Sequence[Mapping[str, Tensor]], shards: Shards) -> Iterator[Piece]:
    for segment, parts in zip(files.segments, views, strict=True):
        for part in segment.parts:
            for source in part.sources:
                stored = _taken(files.tensors[source.tensor], source)
                rows = parts[part.name].view(rows_of(part.shape), -1) if len(part.shape) > 2 else parts[part.name]
                place = _arranged(rows[source.row : source.row + source.num_rows], source.arrangement, files.config)
                shard = shards.open(stored)
                if place.dtype == STORED_DTYPES[stored.stored_dtype]:
                    yield from _read_into_place(shard, stored, place)
                else:
                    yield from _read_and_convert(shard, stored, place)


def _taken(stored: StoredTensor, source: Source) -> StoredTensor:
    """The rows of a stored tensor that a source takes, as if they were stored by themselves."""
    row_bytes = stored.size_bytes // rows_of(stored.shape)
    first, end = source.stored_rows
    return replace(stored, start=stored.start + first * row_bytes, size_bytes=(end - first) * row_bytes)


def _read_into_place(shard: Shard, stored: StoredTensor, place: Tensor) -> Iterator[Piece]:
    """Read a tensor straight to where it stays: whole, or scattered where its order is another."""
    runs = _runs(place)
    if not runs:
        yield from _read_and_convert(shard, stored, place)
        return
    run_bytes = runs[0].nbytes
    start = stored.start
    if len(runs) == 1:
        for first in range(0, run_bytes, PIECE_BYTES):
            yield _read(shard, [runs[0][first : first + PIECE_BYTES]], start + first)
        return
    step = max(1, min(PIECE_BYTES // run_bytes, MAX_SCATTER))
    for idx in range(0, len(runs), step):
        yield _read(shard, runs[idx : idx + step], start + idx * run_bytes)


def _read(shard: Shard, targets: list[memoryview], start: int) -> Piece:
    return Piece(sum(target.nbytes for target in targets), lambda: shard.read(targets, start), source=(shard.name, start))


def _runs(place: Tensor) -> list[memoryview]:
    """The memory of a tensor in its own order, in runs without a gap; none if they would be too short to be read one by one."""
    num_whole = place.dim()  # dimensions from here on lie one behind the other
    size = 1
    while num_whole and (place.stride(num_whole - 1) == size or place.shape[num_whole - 1] == 1):
        num_whole -= 1
        size *= place.shape[num_whole]
    if num_whole and size * place.element_size() < MIN_RUN_BYTES:
        return []
    outer = place.shape[:num_whole]
    places = (place[index] for index in itertools.product(*map(range, outer))) if outer else [place]
    return [bytes_of(each) for each in places]


def _read_and_convert(shard: Shard, stored: StoredTensor, place: Tensor) -> Iterator[Piece]:
    """Read rows of a tensor aside, and copy them into place as what they are to be."""
    lead = place.shape[0]
    row_bytes = stored.size_bytes // lead
    step = max(1, PIECE_BYTES // row_bytes)
    for first in range(0, lead, step):
        yield _converted(shard, stored, place[first : first + step], stored.start + first * row_bytes)


def _converted(shard: Shard, stored: StoredTensor, rows: Tensor, start: int) -> Piece:
    dtype = STORED_DTYPES[stored.stored_dtype]
    size_bytes = rows.numel() * rows.element_size()
    if dtype == rows.dtype:  # the order alone is another: any thread may do that
        place = rows.view(torch.int32 if dtype.itemsize == 4 else torch.int16).numpy()

        def move_all() -> int:
            values = np.empty(place.shape, place.dtype)
            num_read = shard.read([values.reshape(-1).view(np.uint8).data], start)
            np.copyto(place, values)
            return num_read

        return Piece(size_bytes, move_all, source=(shard.name, start))
    aside: list[Tensor] = []

    def move() -> int:
        aside.append(torch.empty(rows.shape, dtype=dtype))
        return shard.read([bytes_of(aside[0])], start)

    def finish(_num_read: int) -> None:
        rows.copy_(aside.pop())

    return Piece(size_bytes, move, finish, (shard.name, start))


def _arranged(rows: Tensor, arrangement: Arrangement, config: DecoderConfig) -> Tensor:
    """A view of the target rows whose plain order is the order of the stored tensor."""
    queries, kv_heads, head_dim = config.num_queries_per_kv, config.num_kv_heads, config.head_dim
    if arrangement is Arrangement.QUERY_ROWS:
        return rows.view(queries, kv_heads, head_dim, *rows.shape[1:]).transpose(0, 1)
    if arrangement is Arrangement.OUTPUT_COLUMNS:
        return rows.view(rows.shape[0], queries, kv_heads, head_dim).transpose(1, 2)
    if arrangement is Arrangement.TRANSPOSED:
        return rows.t()
    return rows
