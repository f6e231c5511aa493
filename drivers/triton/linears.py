"""Linears of few tokens over weights of 8 or 4 bits: weights are read once, and become floats in registers.

    y[m, n] = sum_k x[m, k] * (scale[n, k // group] * q[n, k] - offset[n, k // group])      q unsigned; no offset: scale * 2^(bits - 1)

Weights lie row by row (drivers.models.storage); int4 has the even column in the lower half of a byte. Even and odd columns are multiplied
apart, against the even and the odd columns of `x`: nothing has to be interleaved. Above `FEW_TOKENS`, `dequantize` writes the matrix
out once and the library multiplies: no kernel of this kind keeps up with it there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drivers.triton.language import dot
from drivers.triton.matrix import QuantMatrix

FEW_TOKENS = 64
ROWS = 32  # of weights, at once


@triton.jit
def weights_of(value_ptr, scale_ptr, offset_ptr, n, k, num_rows, columns, groups, GROUP: tl.constexpr, HALF: tl.constexpr,
               HAS_OFFSETS: tl.constexpr, IS_4_BIT: tl.constexpr, IS_SCALED: tl.constexpr):  # fmt: skip
    """Weights `[n, k]` as float32; of 4 bits, columns `2 k + HALF` of the matrix. Not IS_SCALED: `q` around zero."""
    is_row = n < num_rows
    column = k
    if IS_4_BIT:
        column = 2 * k + HALF
    mask = is_row[:, None] & (column < columns)[None, :]
    width = columns
    if IS_4_BIT:
        width = (columns + 1) // 2
    q = tl.load(value_ptr + n.to(tl.int64)[:, None] * width + k[None, :], mask=mask, other=0).to(tl.int32)
    zero = 128.0
    if IS_4_BIT:
        q = (q >> (4 * HALF)) & 15
        zero = 8.0
    at = n.to(tl.int64)[:, None] * groups + tl.zeros_like(column)[None, :]
    if GROUP > 0:
        at = n.to(tl.int64)[:, None] * groups + (column // GROUP)[None, :]
    scale = tl.load(scale_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if not IS_SCALED:
        return q.to(tl.float32) - zero
    if HAS_OFFSETS:
        return q.to(tl.float32) * scale - tl.load(offset_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return (q.to(tl.float32) - zero) * scale


@triton.jit(do_not_specialize=["tokens"])  # it differs from step to step, and a kernel is not built within one
def _linear(
    x_ptr, value_ptr, scale_ptr, offset_ptr, bias_ptr, y_ptr, tokens, rows, columns, groups, x_stride,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, HAS_OFFSETS: tl.constexpr,
    IS_4_BIT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Program (rows of weights, tokens)."""
    n, m = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    here = x_ptr + m.to(tl.int64)[:, None] * x_stride
    acc = tl.zeros([TOKENS, ROWS], tl.float32)
    halves: tl.constexpr = 2 if IS_4_BIT else 1
    is_scaled: tl.constexpr = GROUP > 0 or HAS_OFFSETS
    for base in range(0, tl.cdiv(columns, halves), COLUMNS):
        k = base + tl.arange(0, COLUMNS)
        for half in tl.static_range(halves):
            column = k * halves + half
            x = tl.load(here + column[None, :], mask=(m < tokens)[:, None] & (column < columns)[None, :], other=0.0)
            w = weights_of(value_ptr, scale_ptr, offset_ptr, n, k, rows, columns, groups, GROUP, half, HAS_OFFSETS, IS_4_BIT, is_scaled)
            acc = dot(x, tl.trans(w.to(x.dtype)), acc)
    if not is_scaled:
        acc *= tl.load(scale_ptr + n, mask=n < rows, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < rows, other=0.0).to(tl.float32)[None, :]
    place = y_ptr + m.to(tl.int64)[:, None] * rows + n[None, :]
    tl.store(place, acc.to(y_ptr.dtype.element_ty), mask=(m < tokens)[:, None] & (n < rows)[None, :])


@triton.jit
def _dequantize(value_ptr, scale_ptr, offset_ptr, index_ptr, out_ptr, rows, columns, groups, PIECE: tl.constexpr, GROUP: tl.constexpr,
                HAS_OFFSETS: tl.constexpr, IS_4_BIT: tl.constexpr, IS_INDEXED: tl.constexpr):  # fmt: skip
    """Program (row, piece of columns): a row of the matrix as floats; IS_INDEXED: row `index[program]`."""
    out_row = tl.program_id(0).to(tl.int64)
    row = out_row
    if IS_INDEXED:
        row = tl.load(index_ptr + out_row)
    n, k = row + tl.zeros([1], tl.int64), tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    halves: tl.constexpr = 2 if IS_4_BIT else 1
    for half in tl.static_range(halves):
        w = weights_of(value_ptr, scale_ptr, offset_ptr, n, k, rows, columns, groups, GROUP, half, HAS_OFFSETS, IS_4_BIT, True)
        column = k * halves + half
        tl.store(out_ptr + out_row * columns + column[None, :], w.to(out_ptr.dtype.element_ty), mask=(column < columns)[None, :])


def tiling(matrix: QuantMatrix, item_bytes: int) -> tuple[int, int]:
    """Columns at once, and warps: as many as registers and 99 KiB of shared memory hold. Items are those of `x`."""
    if item_bytes > 2:
        return 32, 8
    return (128, 4) if matrix.bits == 8 and matrix.offsets is None else (64, 8)


def quant_linear(x: Tensor, matrix: QuantMatrix, bias: Tensor | None) -> Tensor:
    """See `definitions.quant_linear`, of any number of tokens."""
    tokens = x.shape[0]
    return multiplied(x, matrix, bias, 16 if tokens <= 16 else 32 if tokens <= 32 else 64)


def multiplied(x: Tensor, matrix: QuantMatrix, bias: Tensor | None, at_once: int) -> Tensor:
    """The same, in tiles of so many tokens."""
    tokens = x.shape[0]
    y = torch.empty((tokens, matrix.rows), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(matrix.rows, ROWS), triton.cdiv(tokens, at_once))
    offsets = matrix.scales if matrix.offsets is None else matrix.offsets
    columns_at_once, warps = tiling(matrix, x.dtype.itemsize)
    _linear[grid](
        x, matrix.values, matrix.scales, offsets, y if bias is None else bias, y, tokens, matrix.rows, matrix.columns, matrix.num_groups,
        x.stride(0), TOKENS=at_once, ROWS=ROWS, COLUMNS=columns_at_once, GROUP=matrix.group, HAS_OFFSETS=matrix.offsets is not None,
        IS_4_BIT=matrix.bits == 4, HAS_BIAS=bias is not None, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return y


def dequantize(matrix: QuantMatrix, dtype: torch.dtype, index: Tensor | None = None) -> Tensor:
    """See `definitions.dequantize`."""
    num_rows = matrix.rows if index is None else index.shape[0]
    out = torch.empty((num_rows, matrix.columns), dtype=dtype, device=matrix.values.device)
    piece = min(1024, triton.next_power_of_2(matrix.columns))
    offsets = matrix.scales if matrix.offsets is None else matrix.offsets
    _dequantize[(num_rows, triton.cdiv(matrix.columns, piece * (2 if matrix.bits == 4 else 1)))](
        matrix.values, matrix.scales, offsets, matrix.values if index is None else index, out, matrix.rows, matrix.columns,
        matrix.num_groups, PIECE=piece, GROUP=matrix.group, HAS_OFFSETS=matrix.offsets is not None, IS_4_BIT=matrix.bits == 4,
        IS_INDEXED=index is not None,
    )  # fmt: skip
    return out
