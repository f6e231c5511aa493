"""The row kernels of `cpu/rows.cc` as Python sees them: norms, activations and choices over `[rows, width] f32`, each row by itself.

The engine calls the same functions; this is for the check of a model at load, and for tests. Tensors are contiguous.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from drivers.native.build import cpu_library
from drivers.native.records import ACTIVATIONS
from drivers.ops.calls import Activation

OPS = ("rms_norm", "layer_norm", "norm_add", "add", "act", "act_mul", "softcap", "exp", "tanh", "erf")  # enum RowOp in cpu/calls.cc


class RowCall(ctypes.Structure):
    """`struct RowCall` in cpu/calls.cc."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("number", ctypes.c_float),
        ("function", ctypes.c_int32),
    )


class NativeRows:
    """The library, loaded."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._loaded = loaded
        loaded.kd_row.argtypes = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        loaded.kd_row.restype = None
        loaded.kd_argmax.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
        loaded.kd_argmax.restype = None
        loaded.kd_top_experts.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 3, ctypes.c_bool, *[ctypes.c_void_p] * 2]
        loaded.kd_top_experts.restype = None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Over the root mean square of each row, times `weight [width]`."""
        return self._row("rms_norm", x, torch.empty_like(x), RowCall(other=weight.data_ptr(), number=eps))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Less the mean of each row, over its standard deviation, times weight, plus bias."""
        call = RowCall(other=weight.data_ptr(), bias=None if bias is None else bias.data_ptr(), number=eps)
        return self._row("layer_norm", x, torch.empty_like(x), call)

    def norm_add(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
        """Add the `rms_norm` of x to the residual, in place."""
        return self._row("norm_add", x, residual, RowCall(other=weight.data_ptr(), number=eps))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add x to the residual, in place."""
        return self._row("add", x, residual, RowCall())

    def act(self, function: Activation, x: Tensor) -> Tensor:
        """An activation of each value."""
        return self._row("act", x, torch.empty_like(x), RowCall(function=ACTIVATIONS[function]))

    def act_mul(self, function: Activation, gate: Tensor, up: Tensor) -> Tensor:
        """An activation of `gate`, times `up`."""
        return self._row("act_mul", gate, torch.empty_like(gate), RowCall(other=up.data_ptr(), function=ACTIVATIONS[function]))

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """`cap * tanh(x / cap)`, in place."""
        return self._row("softcap", x, x, RowCall(number=cap))

    def function(self, name: str, x: Tensor) -> Tensor:
        """`exp`, `tanh` or `erf` of each value."""
        return self._row(name, x, torch.empty_like(x), RowCall())

    def argmax(self, logits: Tensor) -> Tensor:
        """The greatest of each row, the first of equals `[rows] int32`; -1 where one is NaN or the greatest is infinite."""
        found = torch.empty(logits.shape[0], dtype=torch.int32)
        self._loaded.kd_argmax(logits.data_ptr(), *logits.shape, found.data_ptr())
        return found

    def top_experts(self, logits: Tensor, top_k: int, is_normalized: bool) -> tuple[Tensor, Tensor]:
        """The likeliest experts of each token `[rows, top_k] int32`, best first, and their shares of the softmax."""
        experts = torch.empty((logits.shape[0], top_k), dtype=torch.int32)
        shares = torch.empty((logits.shape[0], top_k), dtype=torch.float32)
        self._loaded.kd_top_experts(logits.data_ptr(), *logits.shape, top_k, is_normalized, experts.data_ptr(), shares.data_ptr())
        return experts, shares

    def _row(self, op: str, x: Tensor, y: Tensor, call: RowCall) -> Tensor:
        call.x, call.y = x.data_ptr(), y.data_ptr()
        self._loaded.kd_row(OPS.index(op), ctypes.byref(call), x.numel() // x.shape[-1], x.shape[-1])
        return y


@cache
def native_rows(level: str = "") -> NativeRows | None:
    """The library of a level (`drivers.native.isa`), or None where it cannot be built."""
    loaded = cpu_library(level).library
    return None if loaded is None else NativeRows(loaded)
