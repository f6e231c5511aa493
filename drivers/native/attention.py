"""`cpu/attention.cc`, `kv.cc` and `rope.cc` as Python sees them: pages in the lane order of native code, written and read.

The engine calls the same functions from its own threads; this is for what stands beside it: the check of a model at load, cleared pages,
tests. Rows are those of a step (`drivers.ops.ragged.RowSpan`), values are float32. Results are those of the engine, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from drivers.native.build import cpu_library
from drivers.ops.ragged import HeadShape, RowSpan

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 4}  # enum Kind in cpu/kernels.h
WORD_BYTES = 4


class Pages(ctypes.Structure):
    """`struct Pages` in cpu/kernels.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("page_tokens", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("granule_bytes", ctypes.c_int64),
        ("arena", ctypes.c_void_p),
        ("layer_bytes", ctypes.c_int64),
    )


class AttentionRow(ctypes.Structure):
    """`struct AttentionRow`."""

    _fields_ = (
        ("start", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("position", ctypes.c_int32),
        ("first_page", ctypes.c_int32),
        ("frames", ctypes.c_void_p),
    )


class AttentionSettings(ctypes.Structure):
    """`struct AttentionSettings`; `softcap` and `window` are 0 where there is none."""

    _fields_ = (("scale", ctypes.c_float), ("softcap", ctypes.c_float), ("window", ctypes.c_int32), ("num_heads", ctypes.c_int32))


class AttentionValues(ctypes.Structure):
    """`struct AttentionValues`."""

    _fields_ = (
        ("queries", ctypes.c_void_p),
        ("q_stride", ctypes.c_size_t),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_size_t),
        ("lse", ctypes.c_void_p),
    )


class RopeSettings(ctypes.Structure):
    """`struct RopeSettings`."""

    _fields_ = (
        ("num_heads", ctypes.c_int32),
        ("num_dims", ctypes.c_int32),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("is_over_all_heads", ctypes.c_bool),
    )


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Norm of queries and keys before they are turned; weights are float32 and hold the unit offset where the model has one."""

    query: Tensor  # [head_dim], or [num_heads * head_dim]
    key: Tensor
    eps: float
    is_over_all_heads: bool = False


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's part of the frames of an arena: the layer's part begins `layer_bytes` behind the start of each frame."""

    arena: Tensor  # uint8
    granule_bytes: int
    page_tokens: int
    heads: HeadShape
    dtype: torch.dtype  # float32, bfloat16; int8, float8_e4m3fn: with float32 scales by token and head
    layer_bytes: int = 0

    def record(self) -> Pages:
        """As the library is told of it."""
        heads = (self.heads.num_kv_heads, self.heads.head_dim)
        return Pages(KINDS[self.dtype], self.page_tokens, *heads, self.granule_bytes, self.arena.data_ptr(), self.layer_bytes)


def layer_part_bytes(dtype: torch.dtype, page_tokens: int, heads: HeadShape) -> int:
    """Bytes of one layer in one page: `layer_part_bytes` in cpu/kv.cc."""
    slots = 2 * page_tokens * heads.num_kv_heads
    return slots * heads.head_dim * dtype.itemsize + (slots * WORD_BYTES if dtype.itemsize == 1 else 0)


class NativeAttention:
    """The library, loaded. Every tensor is contiguous and on the CPU; frames are the caller's to check."""

    def __init__(self, loaded: ctypes.CDLL, num_threads: int = 0) -> None:
        """`num_threads`: attend on so many threads of its own, which `close` ends; 0: on the caller's."""
        self._loaded = loaded
        loaded.kd_threads_open.argtypes = [ctypes.c_int, ctypes.c_void_p]
        loaded.kd_threads_open.restype = ctypes.c_void_p
        loaded.kd_threads_close.argtypes = [ctypes.c_void_p]
        loaded.kd_threads_close.restype = None
        self._threads = loaded.kd_threads_open(num_threads, None) if num_threads else None
        loaded.kd_kv_write.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        loaded.kd_kv_write.restype = None
        loaded.kd_clear_tail.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
        loaded.kd_clear_tail.restype = None
        loaded.kd_attention.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int, ctypes.c_void_p, *[ctypes.c_int] * 2, ctypes.c_void_p]
        loaded.kd_attention.restype = ctypes.c_int
        loaded.kd_rope_kv_write.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int, *[ctypes.c_void_p] * 3]
        loaded.kd_rope_kv_write.restype = None

    def write(self, pages: LayerPages, rows: Sequence[RowSpan], keys: Tensor, values: Tensor) -> None:
        """Put keys and values `[T, J, D] f32` of a step's tokens into their pages."""
        told, kept = _rows(rows, pages.page_tokens, 0)
        stride = pages.heads.num_kv_heads * pages.heads.head_dim
        self._loaded.kd_kv_write(ctypes.byref(pages.record()), told, len(rows), keys.data_ptr(), values.data_ptr(), stride)
        del kept

    def rope_kv_write(
        self, pages: LayerPages, rows: Sequence[RowSpan], qkv: Tensor, angles: tuple[Tensor, Tensor], norm: HeadNorm | None = None
    ) -> None:
        """Norm and turn queries and keys of `qkv [T, (H + 2 J) * D] f32`, in place, and put keys and values into their pages.

        `angles`: cosines and sines `[T, dims / 2] f32`; the first `dims` of each head are turned, half against half.
        """
        told, kept = _rows(rows, pages.page_tokens, 0)
        cos, sin = angles
        settings = RopeSettings(pages.heads.num_heads, 2 * cos.shape[-1])
        if norm is not None:
            settings.query_norm, settings.key_norm = norm.query.data_ptr(), norm.key.data_ptr()
            settings.eps, settings.is_over_all_heads = norm.eps, norm.is_over_all_heads
        record = pages.record()
        self._loaded.kd_rope_kv_write(
            ctypes.byref(record), ctypes.byref(settings), told, len(rows), cos.data_ptr(), sin.data_ptr(), qkv.data_ptr()
        )
        del kept

    def attend(
        self, pages: LayerPages, rows: Sequence[RowSpan], queries: Tensor, settings: AttentionSettings, cut_for: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Attention of queries `[T, H, D] f32` over their rows' pages: the mixed values, and the log-sum-exp `[T, H]` of the scores.

        `cut_for`: so many threads as the step is cut for; negative: one thread takes every third item at a time. It changes no bit.
        """
        return self.prepared(pages, rows, queries, settings, cut_for)()

    def prepared(
        self, pages: LayerPages, rows: Sequence[RowSpan], queries: Tensor, settings: AttentionSettings, cut_for: int = 1
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """`attend`, told of everything and not begun; what it answers is the same memory every time."""
        told, kept = _rows(rows, pages.page_tokens, settings.window)
        out = torch.empty_like(queries)
        lse = torch.empty(queries.shape[:2], dtype=torch.float32)
        stride = queries.shape[1] * queries.shape[2]
        values = AttentionValues(queries.data_ptr(), stride, out.data_ptr(), stride, lse.data_ptr())
        alive = (pages.record(), settings, told, values, kept, queries)
        records = (ctypes.byref(alive[0]), ctypes.byref(settings), told, len(rows), ctypes.byref(values))
        how = (abs(cut_for), 1 if cut_for > 0 else 3, self._threads)

        def run() -> tuple[Tensor, Tensor]:
            num_items = self._loaded.kd_attention(*records, *how)
            assert num_items >= 0, "an item of attention was not computed, or twice"
            assert alive, "what the records point to"
            return out, lse

        return run

    def close(self) -> None:
        """End its threads. Safe to call twice."""
        if self._threads is not None:
            self._loaded.kd_threads_close(self._threads)
            self._threads = None

    def clear_tail(self, pages: LayerPages, frame: int, num_tokens: int, num_layers: int = 1) -> None:
        """Zero what lies behind the first `num_tokens` tokens of a page, in so many layers from this one on."""
        self._loaded.kd_clear_tail(ctypes.byref(pages.record()), frame, num_tokens, num_layers)


def _rows(rows: Sequence[RowSpan], page_tokens: int, window: int) -> tuple[ctypes.Array[AttentionRow], list[np.ndarray]]:
    """The rows as the library is told of them, and what has to live as long."""
    frames = [np.ascontiguousarray(row.frames, dtype=np.int64) for row in rows]
    told = (AttentionRow * len(rows))()
    for one, row, table in zip(told, rows, frames, strict=True):
        one.start, one.count, one.position, one.frames = row.start, row.count, row.position, table.ctypes.data
        one.first_page = max(0, row.position - window + 1) // page_tokens if window else 0
    return told, frames


@cache
def native_attention(level: str = "") -> NativeAttention | None:
    """The library of a level (`drivers.native.isa`), or None where it cannot be built."""
    loaded = cpu_library(level).library
    return None if loaded is None else NativeAttention(loaded)
