"""`lora.c` as Python sees it: what the adapters of a step add to one linear, for steps with few tokens of each adapter."""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from drivers.native.build import library

MAX_BLOCKS = 3
BLOCK = struct.Struct("<IIII")  # first and end rank, first and end row: `struct block` in lora.c
PAIR = struct.Struct("<QQQ")  # address of down, of up, number of blocks: `struct pair`, its blocks follow
RECORD_BYTES = PAIR.size + MAX_BLOCKS * BLOCK.size
NOTHING = bytes(RECORD_BYTES)  # a linear that an adapter leaves alone

Block = tuple[int, int, int, int]


class Rows(Protocol):
    """The tokens of a step that run with adapters; see `drivers.ops.reference.LoraRows`."""

    @property
    def tokens(self) -> Tensor:
        """int64, those of one adapter side by side."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Of each adapter."""


def record_of(down: Tensor, up: Tensor, blocks: Sequence[Block]) -> bytes:
    """How the library is told of `down [rank, in]` and `up [rank, out]`, which is zero outside of `blocks`; empty: they are too many."""
    if len(blocks) > MAX_BLOCKS:
        return b""
    told = PAIR.pack(down.data_ptr(), up.data_ptr(), len(blocks)) + b"".join(BLOCK.pack(*block) for block in blocks)
    return told.ljust(RECORD_BYTES, b"\0")


class NativeLora:
    """The library, loaded. It is called without the interpreter's lock."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._functions = {torch.float32: loaded.kd_lora_f32, torch.bfloat16: loaded.kd_lora_bf16}
        for function in self._functions.values():
            function.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_size_t] * 3, ctypes.c_void_p]
            function.restype = None

    def covers(self, y: Tensor, x: Tensor) -> bool:
        """Whether it can work on these."""
        return y.dtype in self._functions and x.dtype == y.dtype and y.is_contiguous() and x.is_contiguous()

    def add(self, y: Tensor, x: Tensor, rows: Rows, records: Sequence[bytes]) -> None:
        """Add to `y [T, out]`, in place; there is a record for each adapter."""
        columns, width = x.shape[-1], y.shape[-1]
        scratch = torch.empty(columns + width, dtype=torch.float32)
        self._functions[y.dtype](
            y.data_ptr(),
            x.data_ptr(),
            rows.tokens.data_ptr(),
            array("q", rows.counts).tobytes(),
            b"".join(records),
            len(records),
            columns,
            width,
            scratch.data_ptr(),
        )


@cache
def native_lora() -> NativeLora | None:
    """The library, or None where it cannot be built."""
    loaded = library("lora")
    return NativeLora(loaded) if loaded is not None else None
