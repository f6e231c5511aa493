"""Linears whose bits do not depend on the batch: one tile, one order of sums, whatever the number of tokens.

    y[m, n] = sum over k in steps of COLUMNS, first to last, of x[m, k .. k + COLUMNS) . w[n, k .. k + COLUMNS)

The library picks a kernel by the number of tokens, and may cut the sums into parts that are added later. Here every product of a matrix is
the same binary with the same tile for one token and for thousands (`tokens` is no constant of it), and nothing is cut: which row of a tile
a token has is all that its company decides, and the rows of a matrix instruction are computed alike. Widths of tiles go by the matrix.
Quantized weights are multiplied as they are, in tiles of `TOKENS` too, for any number of tokens. Never run on a device yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from drivers.triton.language import dot
from drivers.triton.linears import multiplied
from drivers.triton.matrix import QuantMatrix

TOKENS = 64  # of a tile; few tokens leave matrix units idle, which memory leaves idle anyway
MANY_ROWS = 16384  # of a matrix, from which on wide tiles are still more than there are multiprocessors


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the product with a matrix is cut: chosen by the matrix alone."""

    rows: int
    columns: int
    warps: int
    stages: int


def tiling(num_rows: int, item_bytes: int) -> Tiling:
    """`num_rows` of the matrix; items of `item_bytes` (products of float32 are no work of matrix units)."""
    if item_bytes > 2:
        return Tiling(32, 32, 8, 2)
    return Tiling(128, 64, 4, 4) if num_rows >= MANY_ROWS else Tiling(64, 64, 4, 4)


@triton.jit(do_not_specialize=["tokens"])  # one binary for any number of them
def _fixed_linear(
    x_ptr, w_ptr, bias_ptr, y_ptr, tokens, rows, columns, x_stride, w_stride,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Program (tokens, rows of the matrix): tiles that share weights run side by side."""
    m, n = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x_row, w_row = x_ptr + m.to(tl.int64)[:, None] * x_stride, w_ptr + n.to(tl.int64)[None, :] * w_stride
    acc = tl.zeros([TOKENS, ROWS], tl.float32)
    for base in range(0, columns, COLUMNS):
        k = base + tl.arange(0, COLUMNS)
        x = tl.load(x_row + k[None, :], mask=(m < tokens)[:, None] & (k < columns)[None, :], other=0.0)
        w = tl.load(w_row + k[:, None], mask=(n < rows)[None, :] & (k < columns)[:, None], other=0.0)
        acc = dot(x, w, acc)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < rows, other=0.0).to(tl.float32)[None, :]
    place = y_ptr + m.to(tl.int64)[:, None] * rows + n[None, :]
    tl.store(place, acc.to(y_ptr.dtype.element_ty), mask=(m < tokens)[:, None] & (n < rows)[None, :])


def fixed_linear(x: Tensor, weight: Tensor | QuantMatrix, bias: Tensor | None) -> Tensor:
    """See `definitions.fixed_linear`."""
    if isinstance(weight, QuantMatrix):
        return multiplied(x, weight, bias, TOKENS)
    (rows, columns), tokens = weight.shape, x.shape[0]
    tile = tiling(rows, x.dtype.itemsize)
    y = torch.empty((tokens, rows), dtype=x.dtype, device=x.device)
    _fixed_linear[(triton.cdiv(tokens, TOKENS), triton.cdiv(rows, tile.rows))](
        x, weight, y if bias is None else bias, y, tokens, rows, columns, x.stride(0), weight.stride(0), TOKENS=TOKENS, ROWS=tile.rows,
        COLUMNS=tile.columns, HAS_BIAS=bias is not None, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
