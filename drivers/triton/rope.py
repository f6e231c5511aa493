"""Queries and keys normed and turned, keys and values written to their pages: one program for each token and head.

    head   0 .. H-1 queries, in place      H .. H+J-1 keys, to the page      H+J .. H+2J-1 values, to the page

Where pages hold 8-bit numbers, each head's keys (or values) of a token get one scale, their largest value over the largest of the kind.
A token of an unused lane (slot -1) is written nowhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drivers.triton.language import padded
from drivers.triton.layout import QUANTIZED, Angles, LayerKv, Norms, Place


@triton.jit
def _normed(x, other, norm_ptr, d, partner, is_there, eps, D: tl.constexpr, HAS_OFFSET: tl.constexpr):
    """RMS norm of a head, and of the same head seen through `partner`."""
    scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, 0) / D + eps)
    one = tl.load(norm_ptr + d, mask=is_there, other=0.0).to(tl.float32)
    two = tl.load(norm_ptr + partner, mask=is_there, other=0.0).to(tl.float32)
    if HAS_OFFSET:
        one += 1.0
        two += 1.0
    return x * scale * one, other * scale * two


@triton.jit
def _store(kv_ptr, scale_ptr, at, scale_at, x, d, is_there, LARGEST: tl.constexpr, IS_INTEGER: tl.constexpr):
    """Write one head of one token, quantized where LARGEST says so."""
    if LARGEST > 0.0:
        scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / LARGEST
        tl.store(scale_ptr + scale_at, scale)
        x = x / scale
        if IS_INTEGER:
            x = tl.floor(x + 0.5)
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    tl.store(kv_ptr + at + d, x.to(kv_ptr.dtype.element_ty), mask=is_there)


@triton.jit
def _rope_kv_write(
    qkv_ptr, kv_ptr, scale_ptr, cos_ptr, sin_ptr, query_norm_ptr, key_norm_ptr, position_ptr, slot_ptr, table_ptr, qkv_stride,
    table_stride, granule, layer, scale_granule, scale_layer, eps,
    H: tl.constexpr, J: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr, TURNED: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_OFFSET: tl.constexpr, LARGEST: tl.constexpr, IS_INTEGER: tl.constexpr,
):  # fmt: skip
    """See the head of the file. `cos` and `sin [positions, TURNED / 2] f32`."""
    token, head, d = tl.program_id(0), tl.program_id(1), tl.arange(0, DP)
    position, slot = tl.load(position_ptr + token), tl.load(slot_ptr + token)
    here = qkv_ptr + token.to(tl.int64) * qkv_stride + head * D
    is_there = d < D
    partner = tl.where(d < TURNED // 2, d + TURNED // 2, tl.where(d < TURNED, d - TURNED // 2, d))
    x = tl.load(here + d, mask=is_there, other=0.0).to(tl.float32)
    other = tl.load(here + partner, mask=is_there, other=0.0).to(tl.float32)
    if head < H + J:
        if HAS_NORM:
            norm_ptr = query_norm_ptr
            if head >= H:
                norm_ptr = key_norm_ptr
            x, other = _normed(x, other, norm_ptr, d, partner, is_there, eps, D, HAS_OFFSET)
        angle = position * (TURNED // 2) + d % (TURNED // 2)
        cos = tl.load(cos_ptr + angle, mask=d < TURNED, other=1.0)
        sin = tl.load(sin_ptr + angle, mask=d < TURNED, other=0.0)
        x = x * cos + tl.where(d < TURNED // 2, -other, other) * sin
    if head < H:
        tl.debug_barrier()  # every half was read
        tl.store(here + d, x.to(qkv_ptr.dtype.element_ty), mask=is_there)
    elif slot >= 0:
        frame = tl.load(table_ptr + slot.to(tl.int64) * table_stride + position // P).to(tl.int64)
        kv_head = (head - H) % J
        is_value = (head - H) // J
        at = frame * granule + layer + is_value * (J * P * D) + kv_head * (P * D) + position % P * D
        scale_at = frame * scale_granule + scale_layer + is_value * (J * P) + kv_head * P + position % P
        _store(kv_ptr, scale_ptr, at, scale_at, x, d, is_there, LARGEST, IS_INTEGER)


def rope_kv_write(qkv: Tensor, angles: Angles, norms: Norms | None, kv: LayerKv, place: Place) -> None:
    """See `definitions.rope_kv_write`."""
    heads, table, step = place
    items, granule, layer = kv.items()
    scales, scale_granule, scale_layer = kv.scales()
    query_norm, key_norm, eps, has_offset = norms if norms is not None else (qkv, qkv, 0.0, False)
    cos, sin = angles
    _rope_kv_write[(qkv.shape[0], heads.num_heads + 2 * heads.num_kv_heads)](
        qkv, items, scales, cos, sin, query_norm, key_norm, step.positions, step.slots, table, qkv.stride(0), table.stride(0), granule,
        layer, scale_granule, scale_layer, eps,
        H=heads.num_heads, J=heads.num_kv_heads, D=heads.head_dim, DP=padded(heads.head_dim), P=kv.shape.page_tokens,
        TURNED=2 * cos.shape[1], HAS_NORM=norms is not None, HAS_OFFSET=has_offset, LARGEST=QUANTIZED.get(kv.shape.dtype, 0.0),
        IS_INTEGER=kv.shape.dtype == torch.int8, num_warps=1,
    )  # fmt: skip
