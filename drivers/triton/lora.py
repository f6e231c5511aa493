"""Adapters: what changes of low rank add to a linear, each to the tokens of its own rows.

    x [tokens of a tile, in] --shrink--> four sums over parts of the columns --expand--> added to y [tokens of a tile, out]
                              A [rank, in]                               B^T [rank, out]

Where a row's A and B lie, and of what rank they are, stands in a table by row slot (drivers.triton.layout), so a captured decode step goes
on being right when other rows take its lanes; programs of rows without an adapter end at once, and touch nothing. Sums are rounded to the
dtype of `x` between the two products and before they are added, as `drivers.ops.reference.lora` does it. How many parts the columns have
does not depend on the step: neither does what a token gets.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drivers.models.storage import ALIGN_BYTES
from drivers.triton.language import dot, padded
from drivers.triton.layout import LORA_COLUMNS, LoraPlaces, StepRows

SPLITS = 4  # parts of the columns: one token of one row keeps so many programs busy
RANKS = 64  # at once
OUTPUTS, COLUMNS = 64, 64
ALIGN = tl.constexpr(ALIGN_BYTES // 4)  # items of which A and B begin at a multiple, the widest ones


@triton.jit
def _span(row_ptr, tile_ptr, table_ptr, tile_tokens, STRIDE: tl.constexpr):
    """The first of a tile's tokens in the step, how many they are, and the adapter of their row."""
    tile = tile_ptr + tl.program_id(0) * 2
    row, first = row_ptr + tl.load(tile) * 4, tl.load(tile + 1)
    adapter = table_ptr + tl.load(row).to(tl.int64) * STRIDE
    num = tl.minimum(tl.load(row + 2) - first, tile_tokens)
    down, up = tl.multiple_of(tl.load(adapter), ALIGN), tl.multiple_of(tl.load(adapter + 1), ALIGN)
    return tl.load(row + 1) + first, num, down, up, tl.load(adapter + 2).to(tl.int32)


@triton.jit(do_not_specialize=["tokens", "tile_tokens"])  # they differ from step to step, and a kernel is not built within one
def _shrink(
    x_ptr, arena_ptr, row_ptr, tile_ptr, table_ptr, sum_ptr, tokens, columns, x_stride, width, tile_tokens,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """Program (tile, part of the columns): `sums [SPLITS, tokens, width] f32`."""
    start, num, down, _up, rank = _span(row_ptr, tile_ptr, table_ptr, tile_tokens, STRIDE)
    if (rank == 0) | (num <= 0):
        return
    m, split = tl.arange(0, TOKENS), tl.program_id(1)
    part = tl.cdiv(tl.cdiv(columns, SPLITS), COLUMNS) * COLUMNS
    low, high = split * part, tl.minimum(split * part + part, columns)
    here = x_ptr + (start + m).to(tl.int64)[:, None] * x_stride
    for base_rank in range(0, rank, RANKS):
        r = base_rank + tl.arange(0, RANKS)
        matrix = arena_ptr + down + r.to(tl.int64)[:, None] * columns
        acc = tl.zeros([TOKENS, RANKS], tl.float32)
        for base in range(low, high, COLUMNS):
            k = base + tl.arange(0, COLUMNS)
            x = tl.load(here + k[None, :], mask=(m < num)[:, None] & (k < high)[None, :], other=0.0)
            a = tl.load(matrix + k[None, :], mask=(r < rank)[:, None] & (k < high)[None, :], other=0.0)
            acc = dot(x, tl.trans(a), acc)
        place = sum_ptr + (split.to(tl.int64) * tokens + start + m)[:, None] * width + r[None, :]
        tl.store(place, acc, mask=(m < num)[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["tokens", "tile_tokens"])
def _expand(
    sum_ptr, arena_ptr, row_ptr, tile_ptr, table_ptr, y_ptr, tokens, rows, y_stride, width, tile_tokens,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, OUTPUTS: tl.constexpr, SPLITS: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """Program (tile, outputs): adds to `y`, in place."""
    start, num, _down, up, rank = _span(row_ptr, tile_ptr, table_ptr, tile_tokens, STRIDE)
    if (rank == 0) | (num <= 0):
        return
    m, n = tl.arange(0, TOKENS), tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for base_rank in range(0, rank, RANKS):
        r = base_rank + tl.arange(0, RANKS)
        is_sum = (m < num)[:, None] & (r < rank)[None, :]
        sums = tl.zeros([TOKENS, RANKS], tl.float32)
        for split in tl.static_range(SPLITS):
            place = sum_ptr + (start + m + tokens * split).to(tl.int64)[:, None] * width + r[None, :]
            sums += tl.load(place, mask=is_sum, other=0.0)
        matrix = arena_ptr + up + r.to(tl.int64)[:, None] * rows
        b = tl.load(matrix + n[None, :], mask=(r < rank)[:, None] & (n < rows)[None, :], other=0.0)
        acc = dot(sums.to(b.dtype), b, acc)
    place = y_ptr + (start + m).to(tl.int64)[:, None] * y_stride + n[None, :]
    mask = (m < num)[:, None] & (n < rows)[None, :]
    y = tl.load(place, mask=mask, other=0.0)
    change = acc.to(y.dtype).to(tl.float32)
    tl.store(place, (y.to(tl.float32) + change).to(y.dtype), mask=mask)


def lora(y: Tensor, x: Tensor, places: LoraPlaces, step: StepRows) -> None:
    """See `definitions.lora`."""
    (tokens, columns), num_tiles, rows = x.shape, step.tiles.shape[0], y.shape[1]
    sums = torch.empty((SPLITS, tokens, places.width), dtype=torch.float32, device=x.device)
    found = (places.arena, step.rows, step.tiles, places.table)
    how = {"tile_tokens": step.tile_tokens, "TOKENS": padded(step.tile_tokens), "RANKS": RANKS, "SPLITS": SPLITS, "STRIDE": LORA_COLUMNS}
    _shrink[(num_tiles, SPLITS)](x, *found, sums, tokens, columns, x.stride(0), places.width, COLUMNS=COLUMNS, num_warps=4, **how)
    _expand[(num_tiles, triton.cdiv(rows, OUTPUTS))](
        sums, *found, y, tokens, rows, y.stride(0), places.width, OUTPUTS=OUTPUTS, num_warps=4, num_stages=1, **how
    )  # seldom are there more ranks than one turn of the loop adds: nothing is fetched ahead
