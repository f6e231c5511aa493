"""Norms and activations: one program for each token, its whole row at a time in pieces."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from drivers.ops.calls import Activation
from drivers.triton.language import activated

PIECE = 2048
FUNCTIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2}


@triton.jit
def _rms_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, stride, columns, eps, ADDS: tl.constexpr, HAS_OFFSET: tl.constexpr, PIECE: tl.constexpr
):
    """`out = rms_norm(x)`; with ADDS, `residual += x` first, and the norm is that of the sum."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([PIECE], tl.float32)
    for base in range(0, columns, PIECE):
        c = base + tl.arange(0, PIECE)
        x = tl.load(x_ptr + row * stride + c, mask=c < columns, other=0.0)
        if ADDS:
            x = (x.to(tl.float32) + tl.load(residual_ptr + row * columns + c, mask=c < columns, other=0.0).to(tl.float32)).to(x.dtype)
            tl.store(residual_ptr + row * columns + c, x, mask=c < columns)
        squares += x.to(tl.float32) * x.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(squares, 0) / columns + eps)
    for base in range(0, columns, PIECE):
        c = base + tl.arange(0, PIECE)
        if ADDS:
            x = tl.load(residual_ptr + row * columns + c, mask=c < columns, other=0.0)  # written by the same threads just now
        else:
            x = tl.load(x_ptr + row * stride + c, mask=c < columns, other=0.0)
        weight = tl.load(weight_ptr + c, mask=c < columns, other=0.0).to(tl.float32)
        if HAS_OFFSET:
            weight += 1.0
        tl.store(out_ptr + row * columns + c, (x.to(tl.float32) * scale * weight).to(out_ptr.dtype.element_ty), mask=c < columns)


@triton.jit
def _act_mul(x_ptr, out_ptr, inner, FUNCTION: tl.constexpr, PIECE: tl.constexpr):
    """`f(gate) * up`, gate first."""
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    gate = tl.load(x_ptr + row * 2 * inner + c, mask=c < inner, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * inner + inner + c, mask=c < inner, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * inner + c, (activated(gate, FUNCTION) * up).to(out_ptr.dtype.element_ty), mask=c < inner)


def rms_norm(x: Tensor, weight: Tensor, eps: float, has_unit_offset: bool) -> Tensor:
    """See `definitions.rms_norm`."""
    out = x.new_empty(x.shape)
    piece = min(PIECE, triton.next_power_of_2(x.shape[1]))
    _rms_norm[(x.shape[0],)](
        x, x, weight, out, x.stride(0), x.shape[1], eps, ADDS=False, HAS_OFFSET=has_unit_offset, PIECE=piece, num_warps=8
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, settings: tuple[float, bool]) -> Tensor:
    """See `definitions.add_rms_norm`."""
    out = x.new_empty(x.shape)
    eps, has_offset = settings
    piece = min(PIECE, triton.next_power_of_2(x.shape[1]))
    _rms_norm[(x.shape[0],)](
        x, residual, weight, out, x.stride(0), x.shape[1], eps, ADDS=True, HAS_OFFSET=has_offset, PIECE=piece, num_warps=8
    )
    return out


def act_mul(gate_up: Tensor, function: Activation) -> Tensor:
    """See `definitions.act_mul`."""
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, inner))
    piece = min(PIECE, triton.next_power_of_2(inner))
    _act_mul[(tokens, triton.cdiv(inner, piece))](gate_up, out, inner, FUNCTION=FUNCTIONS[function], PIECE=piece)
    return out
