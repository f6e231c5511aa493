"""What the kernels share. `INTERPRET` is set where Triton's interpreter runs them, on tensors of ordinary memory.

The interpreter's `tl.dot` of bfloat16 gives garbage without an error (it multiplies the bits), and goes through NumPy's library, where the
order of a sum depends on the row that it is of; so products are written out there. The variable
TRITON_INTERPRET has to be set before this file is imported.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
INTERPRET = tl.constexpr(IS_INTERPRETED)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MIN_DOT = 16  # tl.dot wants at least that many rows, columns and sums


@triton.jit
def dot(a, b, acc):
    """`acc + a @ b` in float32; float32 operands are multiplied as such, not rounded to TF32."""
    if INTERPRET:
        return acc + tl.sum(a.to(tl.float64)[:, :, None] * b.to(tl.float64)[None, :, :], 1).to(tl.float32)
    if a.dtype == tl.float32:
        return tl.dot(a, b, acc, input_precision="ieee")
    return tl.dot(a, b, acc)


@triton.jit
def tanh(x):
    """Hyperbolic tangent, good for any finite x."""
    small = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0.0, -1.0, 1.0) * (1.0 - small) / (1.0 + small)


@triton.jit
def activated(gate, FUNCTION: tl.constexpr):
    """The function of a feed-forward block, by its number in `drivers.triton.rowwise`."""
    if FUNCTION == 0:
        return gate / (1.0 + tl.exp(tl.minimum(-gate, 80.0)))
    if FUNCTION == 1:
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    return 0.5 * gate * (1.0 + tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)))


def padded(size: int, least: int = MIN_DOT) -> int:
    """The next power of two, at least `least`."""
    return max(least, triton.next_power_of_2(size))
