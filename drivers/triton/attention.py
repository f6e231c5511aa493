"""Attention of a step's tokens over the pages of their rows: one kernel for prefill, decode, and both together.

    tile      some tokens of one row, times the query heads that share a KV head: the rows of one `dot`
    splits    the keys of a tile, cut into at most SPLITS runs, so that few rows with many keys still fill the device

    program (tile, kv head, split) --> part of the sum, its log-sum-exp --> `_merge` (token, head)

How many splits a row has is decided on the device, from its length: a captured graph replays the same grid, and programs without keys end
at once. With `fixed_chunk` the borders between splits depend on nothing but the position of a key, there are as many of them for every
step, and tiles are of one shape in prefill and in decode: one kernel does all, and a token's bits do not depend on what it is batched with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from drivers.triton.language import LN2, LOG2E, dot, padded, tanh
from drivers.triton.layout import FIXED_SPLITS, PREFILL_TILE, AttentionShape, LayerKv, StepRows

DECODE_TILE = 16  # rows of a tile where rows have one token
KEYS_AT_ONCE = 64  # fewer where heads are wider than 128: devices with 99 KiB of shared memory have to hold a tile too
LEAST_WIDTH = 64  # of a head in a tile: hardly any model has narrower ones, and each width is a kernel to be built
MAX_SPLITS = 32
PROGRAMS = 528  # wanted: four for each of the 132 multiprocessors of an H100


@triton.jit
def _span(row_ptr, tile, splits, fixed_chunk, TILE_TOKENS: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """The row of a tile, and the keys [low, high) of this program's split; `begin` is the first key that any query of the tile sees."""
    row = tl.load(tile)
    first = tl.load(tile + 1)
    slot, start = tl.load(row_ptr + row * 4), tl.load(row_ptr + row * 4 + 1)
    count, position = tl.load(row_ptr + row * 4 + 2), tl.load(row_ptr + row * 4 + 3)
    end = tl.where(count > first, position + tl.minimum(first + TILE_TOKENS, count), 0)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(0, position + first - WINDOW + 1)
    base = begin // KEYS * KEYS
    chunk = fixed_chunk
    if fixed_chunk == 0:
        chunk = tl.maximum(1, tl.cdiv(tl.cdiv(end - base, splits), KEYS)) * KEYS
    else:
        base = 0
    low = base + tl.program_id(2) * chunk
    high = tl.minimum(low + chunk, end)
    if WINDOW > 0:
        low = tl.maximum(low, begin // KEYS * KEYS)
    return slot, start, count, position, first, begin, low, high


@triton.jit
def _scores(q, k, key_scale, asked, keys, is_seen, scale, softcap, WINDOW: tl.constexpr, HAS_CAP: tl.constexpr):
    """Scores of a tile against some keys, in powers of two; -inf where a query does not see a key."""
    s = dot(q, k, tl.zeros([q.shape[0], k.shape[1]], tl.float32)) * (key_scale * scale)[None, :]
    if HAS_CAP:
        s = softcap * tanh(s / softcap)
    is_seen = is_seen[None, :] & (keys[None, :] <= asked[:, None])
    if WINDOW > 0:
        is_seen &= keys[None, :] > asked[:, None] - WINDOW
    return tl.where(is_seen, s * LOG2E, -float("inf"))


@triton.jit
def _tile(kv_ptr, scale_ptr, table_ptr, keys, is_seen, head, granule, layer, scale_granule, scale_layer, J: tl.constexpr, D: tl.constexpr,
          P: tl.constexpr, DP: tl.constexpr, IS_QUANTIZED: tl.constexpr):  # fmt: skip
    """Keys `[DP, KEYS]` and values `[KEYS, DP]` of one head at some positions, and their scales."""
    d = tl.arange(0, DP)
    frame = tl.load(table_ptr + keys // P, mask=is_seen, other=0).to(tl.int64)
    at = frame * granule + layer + head * (P * D) + keys % P * D
    k = tl.load(kv_ptr + at[None, :] + d[:, None], mask=is_seen[None, :] & (d < D)[:, None], other=0.0)
    v = tl.load(kv_ptr + at[:, None] + J * P * D + d[None, :], mask=is_seen[:, None] & (d < D)[None, :], other=0.0)
    key_scale = tl.full(keys.shape, 1.0, tl.float32)
    value_scale = tl.full(keys.shape, 1.0, tl.float32)
    if IS_QUANTIZED:
        scale_at = frame * scale_granule + scale_layer + head * P + keys % P
        key_scale = tl.load(scale_ptr + scale_at, mask=is_seen, other=0.0)
        value_scale = tl.load(scale_ptr + scale_at + J * P, mask=is_seen, other=0.0)
        k, v = k.to(tl.float32), v.to(tl.float32)  # the interpreter turns int8 straight into bfloat16 wrongly
    return k, v, key_scale, value_scale


@triton.jit(do_not_specialize=["splits"])  # one kernel for any number of them, but for one
def _attend(
    q_ptr, kv_ptr, scale_ptr, table_ptr, row_ptr, tile_ptr, out_ptr, lse_ptr, q_stride, table_stride, granule, layer, scale_granule,
    scale_layer, scale, softcap, fixed_chunk, splits,
    J: tl.constexpr, G: tl.constexpr, D: tl.constexpr, P: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, IS_SPLIT: tl.constexpr, WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, IS_QUANTIZED: tl.constexpr,
):  # fmt: skip
    """See the head of the file. `out [T, H, splits, D]`, `lse [T, H, splits]`; ROWS = tokens of a tile * GP, or more."""
    head, split = tl.program_id(1), tl.program_id(2)
    slot, start, count, position, first, begin, low, high = _span(
        row_ptr, tile_ptr + tl.program_id(0) * 2, splits, fixed_chunk, ROWS // GP, WINDOW, KEYS
    )
    m, d = tl.arange(0, ROWS), tl.arange(0, DP)
    token, group = first + m // GP, m % GP
    is_query = (token < count) & (group < G)
    place = ((start + token).to(tl.int64) * (J * G) + group * J + head) * splits + split
    if IS_SPLIT:  # noqa: SIM102  (known when it is compiled)
        if low >= high:
            tl.store(lse_ptr + place, tl.full([ROWS], -float("inf"), tl.float32), mask=is_query)
            return
    query = (start + token).to(tl.int64) * q_stride + (group * J + head) * D
    q = tl.load(q_ptr + query[:, None] + d[None, :], mask=is_query[:, None] & (d < D)[None, :], other=0.0)
    table = table_ptr + slot.to(tl.int64) * table_stride
    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DP], tl.float32)
    for base in range(low, high, KEYS):
        keys = base + tl.arange(0, KEYS)
        is_seen = (keys < high) & (keys >= begin)
        k, v, key_scale, value_scale = _tile(
            kv_ptr, scale_ptr, table, keys, is_seen, head, granule, layer, scale_granule, scale_layer, J, D, P, DP, IS_QUANTIZED
        )
        s = _scores(q, k.to(q.dtype), key_scale, position + token, keys, is_seen, scale, softcap, WINDOW, HAS_CAP)
        new = tl.maximum(most, tl.max(s, 1))
        ground = tl.where(new == -float("inf"), 0.0, new)  # a query that sees none of these keys
        p = tl.exp2(s - ground[:, None])
        alpha = tl.exp2(most - ground)
        total = total * alpha + tl.sum(p, 1)
        acc = dot((p * value_scale[None, :]).to(q.dtype), v.to(q.dtype), acc * alpha[:, None])
        most = new
    some = tl.where(total == 0.0, 1.0, total)
    tl.store(lse_ptr + place, (most + tl.log2(some)) * LN2, mask=is_query)
    is_told = is_query & ((not IS_SPLIT) | (total > 0.0))
    out = (acc / some[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place[:, None] * D + d[None, :], out, mask=is_told[:, None] & (d < D)[None, :])


@triton.jit
def _merge(part_ptr, part_lse_ptr, slot_ptr, out_ptr, lse_ptr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr):
    """Join the splits of one token's head. Parts without keys were not written, and are not read; an unused lane becomes zeros."""
    at, d, s = tl.program_id(0).to(tl.int64), tl.arange(0, DP), tl.arange(0, SPLITS)
    is_used = tl.load(slot_ptr + at // H) >= 0
    lse = tl.load(part_lse_ptr + at * SPLITS + s, mask=is_used & (s < SPLITS), other=-float("inf"))
    most = tl.max(lse, 0)
    ground = tl.where(most == -float("inf"), 0.0, most)
    weight = tl.exp2((lse - ground) * LOG2E)
    total = tl.sum(weight, 0)
    mask = (lse > -float("inf"))[:, None] & (d < D)[None, :]
    part = tl.load(part_ptr + (at * SPLITS + s)[:, None] * D + d[None, :], mask=mask, other=0.0)
    some = tl.where(total == 0.0, 1.0, total)
    out = tl.sum(part * weight[:, None], 0) / some
    tl.store(out_ptr + at * D + d, out.to(out_ptr.dtype.element_ty), mask=d < D)
    tl.store(lse_ptr + at, most + tl.log2(some) * LN2)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a tile is cut: chosen by the width of heads, by the bytes of an item and by the kind of step, and by nothing else."""

    rows: int  # tokens times queries of a KV head
    keys: int
    warps: int
    stages: int


def tiling(head_dim: int, num_rows: int, item_bytes: int) -> Tiling:
    """`num_rows` that a tile needs; items are those that are multiplied.

    Products of float32 are no work of matrix units: with larger tiles the compiler runs out of registers (kilobytes of them in memory).
    """
    rows, is_wide = DECODE_TILE if num_rows <= DECODE_TILE else PREFILL_TILE, padded(head_dim, LEAST_WIDTH) > 128
    if item_bytes > 2:
        return Tiling(rows, KEYS_AT_ONCE // 4, 8, 1 if padded(head_dim, LEAST_WIDTH) > 64 else 2)
    return Tiling(rows, KEYS_AT_ONCE // (2 if is_wide else 1), 8 if is_wide and rows == PREFILL_TILE else 4, 2 if is_wide else 3)


def num_splits(num_tiles: int, num_kv_heads: int) -> int:
    """Splits of a step: as many as fill the device, a power of two."""
    return min(MAX_SPLITS, triton.next_power_of_2(max(1, PROGRAMS // (num_tiles * num_kv_heads))))


def paged_attention(queries: Tensor, kv: LayerKv, table: Tensor, step: StepRows, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    """See `definitions.paged_attention`. `queries [T, H, D]` may be a view of wider rows."""
    heads, (num_tokens, num_heads, dim) = shape.heads, queries.shape
    items, granule, layer = kv.items()
    scales, scale_granule, scale_layer = kv.scales()
    gp = triton.next_power_of_2(heads.num_queries_per_kv)
    tile = tiling(dim, PREFILL_TILE if shape.fixed_chunk else step.tile_tokens * gp, queries.dtype.itemsize)
    splits = _splits_of(step, shape, table.shape[1] * kv.shape.page_tokens)
    out = torch.empty((num_tokens, num_heads, dim), dtype=queries.dtype, device=queries.device)
    lse = torch.empty((num_tokens, num_heads), dtype=torch.float32, device=queries.device)
    part, part_lse = out, lse
    if splits > 1:
        part = torch.empty((num_tokens, num_heads, splits, dim), dtype=torch.float32, device=queries.device)
        part_lse = torch.empty((num_tokens, num_heads, splits), dtype=torch.float32, device=queries.device)  # every split writes its own
    _attend[(step.tiles.shape[0], heads.num_kv_heads, splits)](
        queries, items, scales, table, step.rows, step.tiles, part, part_lse, queries.stride(0), table.stride(0), granule, layer,
        scale_granule, scale_layer, shape.scale, shape.softcap, shape.fixed_chunk, splits,
        J=heads.num_kv_heads, G=heads.num_queries_per_kv, D=dim, P=kv.shape.page_tokens, GP=gp, DP=padded(dim, LEAST_WIDTH), ROWS=tile.rows,
        KEYS=tile.keys, IS_SPLIT=splits > 1, WINDOW=shape.window, HAS_CAP=shape.softcap > 0.0, IS_QUANTIZED=kv.shape.is_quantized,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        programs = (num_tokens * num_heads,)
        _merge[programs](part, part_lse, step.slots, out, lse, H=num_heads, D=dim, DP=padded(dim, LEAST_WIDTH), SPLITS=splits)
    return out, lse


def _splits_of(step: StepRows, shape: AttentionShape, most_keys: int) -> int:
    if shape.fixed_chunk:
        return max(FIXED_SPLITS, triton.next_power_of_2(-(-most_keys // shape.fixed_chunk)))
    return 1 if step.tile_tokens > 1 else num_splits(step.tiles.shape[0], shape.heads.num_kv_heads)
