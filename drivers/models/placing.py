"""How a stored tensor becomes rows of a part: which rows of a tile go where, and the pieces in which a load is copied.

What is stored as it is to lie is read straight to where it stays. All else is read aside, a few rows at a time, turned into the kind of
numbers that the part has, and written row by row or as panels:

    file --rows_at_once--> tile --convert--> tile --runs--> | rows of head 0 | rows of head 3 | ...        of the part

Tiles are few and small (`PIECE_BYTES`), but for the formats that only give all rows together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from drivers.copier import Piece
from drivers.models.config import DecoderConfig
from drivers.models.layout import Part
from drivers.models.panels import Region
from drivers.models.parts import Arrangement, Source, rows_of
from drivers.models.shards import Shard, Shards, StoredTensor
from drivers.models.storage import BITS, PANEL_ROWS, Kind, places_of
from drivers.models.stored import PlainTensor, Stored
from drivers.models.tiles import Array, Tile, check_finite, convert
from drivers.models.weight import DTYPES
from drivers.native.linears import Panels, native_linears

PIECE_BYTES = 4 << 20
MIN_RUN_BYTES = 4096  # shorter ones cost more to read one by one than to copy
MAX_SCATTER = 512  # runs of one read; the system allows 1024


@dataclass(frozen=True, slots=True)
class Placed:
    """A part in the arena."""

    part: Part
    bytes: Tensor  # [size_bytes] uint8

    @property
    def region(self) -> Region:
        """As rows to write. A vector is written as a matrix of one column."""
        shape = self.part.shape if len(self.part.shape) > 1 else (*self.part.shape, 1)
        return Region(places_of(self.part.storage, shape), self.bytes.numpy())


@dataclass(frozen=True, slots=True)
class Placing:
    """A stored tensor on its way into rows of a part."""

    placed: Placed
    source: Source
    stored: Stored
    config: DecoderConfig
    shards: Shards

    def pieces(self) -> Iterator[Piece]:
        """What copies it."""
        if isinstance(self.stored, PlainTensor) and self.stored.form == self.placed.part.storage:
            runs = self._runs()
            if runs:
                yield from self._read_into_place(self.stored.stored, runs)
                return
        yield from self._read_aside()

    # -------------------------------------------------------------------------------------------------------- straight to where it stays

    def _runs(self) -> list[memoryview]:
        """The memory of its rows in the order in which they are stored; none if that is in too many runs, or turned."""
        source, part = self.source, self.placed.part
        if source.arrangement is Arrangement.TRANSPOSED:
            return []
        values = self.placed.bytes.view(DTYPES[part.storage.kind]).view(rows_of(part.shape), *part.shape[-1:] * (len(part.shape) > 1))
        return _runs(_arranged(values[source.row : source.row + source.num_rows], source.arrangement, self.config))

    def _read_into_place(self, stored: StoredTensor, runs: list[memoryview]) -> Iterator[Piece]:
        shard, run_bytes = self.shards.open(stored), runs[0].nbytes
        start = stored.start + self.source.stored_rows[0] * (stored.size_bytes // rows_of(stored.shape))
        if len(runs) == 1:
            for first in range(0, run_bytes, PIECE_BYTES):
                yield _read(shard, [runs[0][first : first + PIECE_BYTES]], start + first)
            return
        step = max(1, min(PIECE_BYTES // run_bytes, MAX_SCATTER))
        for idx in range(0, len(runs), step):
            yield _read(shard, runs[idx : idx + step], start + idx * run_bytes)

    # ------------------------------------------------------------------------------------------------------------------ aside, and turned

    def _read_aside(self) -> Iterator[Piece]:
        num_rows, step, (name, start) = self.source.num_rows, self._step(), self.stored.source
        region, stored_bytes = self.placed.region, math.prod(self.stored.shape) * BITS[self.stored.form.kind] // 8
        for first in range(0, num_rows, step):
            end = min(num_rows, first + step)
            size_bytes = self._bytes_before(end) - self._bytes_before(first)
            place = start + first * stored_bytes // num_rows
            yield Piece(size_bytes, partial(self._move, region, first, end), source=(name, place))

    def _move(self, region: Region, first: int, end: int) -> int:
        """Read rows [first, end) of those that it fills, and write them to where they belong."""
        storage, name = self.placed.part.storage, self.source.tensor
        tile = self._tile(first, end)
        if tile.scales is not None:
            tile = convert(tile, storage, name)
        if self.source.arrangement is Arrangement.OUTPUT_COLUMNS:
            tile = _columns_arranged(tile, self.config)
        rows, runs = rows_of(self.placed.part.shape[-2:]), list(self._row_runs(first, end))
        packer = native_linears() if storage.is_panels and storage.is_quantized and tile.scales is None else None
        if packer is not None:  # quantizes and packs in one pass, and finds better scales in less time
            floats = _tensor_of(tile, name)
            for row, target, count in runs:
                panels = Panels(storage, self.placed.part.shape, self.placed.bytes, target // rows)
                packer.pack(panels, floats[row - first : row - first + count], target % rows)
            return 0
        tile = convert(tile, storage, name)
        for row, target, count in runs:
            region.put(tile.part(row - first, row - first + count), *divmod(target, rows))
        return 0

    def _tile(self, first: int, end: int) -> Tile:
        if self.source.arrangement is Arrangement.TRANSPOSED:
            tile = self.stored.tile(self.shards, 0, self.stored.shape[0])
            return replace(tile, values=np.ascontiguousarray(tile.values.T[first:end]))
        start = self.source.stored_rows[0]
        return self.stored.tile(self.shards, start + first, start + end)

    def _row_runs(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Rows that stay together: the first of them, where it goes in the part, and how many they are."""
        heads, config = self.source.arrangement is Arrangement.QUERY_ROWS, self.config
        rows = rows_of(self.placed.part.shape[-2:])
        while first < end:
            target = first
            count = end - first
            if heads:
                head, within = divmod(first, config.head_dim)
                kv_head, query = divmod(head, config.num_queries_per_kv)
                target = (query * config.num_kv_heads + kv_head) * config.head_dim + within
                count = min(count, config.head_dim - within)
            target += self.source.row
            count = min(count, rows - target % rows)
            yield first, target, count
            first += count

    def _step(self) -> int:
        """Rows of one piece: as they are stored together, and whole heads and panels of them."""
        if self.source.arrangement is Arrangement.TRANSPOSED or not self.stored.rows_at_once:
            return self.source.num_rows
        unit = self.stored.rows_at_once
        if self.source.arrangement is Arrangement.QUERY_ROWS:
            unit = math.lcm(unit, self.config.head_dim)
        if self.placed.part.storage.is_panels:
            unit = math.lcm(unit, PANEL_ROWS)
        columns = self.stored.shape[-1] if len(self.stored.shape) > 1 else 1
        return max(1, PIECE_BYTES * 8 // (columns * BITS[self.stored.form.kind]) // unit) * unit

    def _bytes_before(self, row: int) -> int:
        """Bytes of the part before one of the rows that it fills, scales and all spread evenly: they are only for progress."""
        return self.placed.part.places.size_bytes * (self.source.row + row) // rows_of(self.placed.part.shape)


def _tensor_of(tile: Tile, name: str) -> Tensor:
    """Floats as a tensor. Raises: ModelCorrupt, if one is not finite: there is no scale for it."""
    check_finite(tile, name)
    if tile.kind is Kind.BFLOAT16:
        return torch.from_numpy(tile.values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tile.values)


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


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor that lies in one piece, writable."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _arranged(rows: Tensor, arrangement: Arrangement, config: DecoderConfig) -> Tensor:
    """A view of the target rows whose plain order is the order of the stored tensor."""
    queries, kv_heads, head_dim = config.num_queries_per_kv, config.num_kv_heads, config.head_dim
    if arrangement is Arrangement.QUERY_ROWS:
        return rows.view(queries, kv_heads, head_dim, *rows.shape[1:]).transpose(0, 1)
    if arrangement is Arrangement.OUTPUT_COLUMNS:
        return rows.view(rows.shape[0], queries, kv_heads, head_dim).transpose(1, 2)
    return rows


def _columns_arranged(tile: Tile, config: DecoderConfig) -> Tile:
    """Columns in the order of our heads; scales of groups, which are parts of a head, with them."""

    def turned(values: Array | None) -> Array | None:
        if values is None or values.shape[1] == 1:
            return values
        heads = values.reshape(len(values), config.num_kv_heads, config.num_queries_per_kv, -1)
        return heads.transpose(0, 2, 1, 3).reshape(values.shape)

    values = turned(tile.values)
    assert values is not None
    return replace(tile, values=values, scales=turned(tile.scales), offsets=turned(tile.offsets))
