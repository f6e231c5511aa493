"""Frames copied, zeroed and cut, many at a time: what a plan does to pages inside the device is one or two launches."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from drivers.triton.layout import SCALE_BYTES, KvShape

PIECE = 8192  # bytes that a program copies; frames are whole granules, and those multiples of 64


@triton.jit
def _copy(arena_ptr, pair_ptr, granule, words, PIECE: tl.constexpr, IS_ZERO: tl.constexpr):
    """8-byte words of a frame; IS_ZERO: to the target only."""
    c = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    source, target = tl.load(pair_ptr + tl.program_id(0) * 2), tl.load(pair_ptr + tl.program_id(0) * 2 + 1)
    if IS_ZERO:
        tl.store(arena_ptr + target * granule + c, tl.zeros([PIECE], tl.int64), mask=c < words)
    else:
        tl.store(arena_ptr + target * granule + c, tl.load(arena_ptr + source * granule + c, mask=c < words), mask=c < words)


@triton.jit
def _clear_tail(arena_ptr, cut_ptr, granule, layer_bytes, head_bytes, token_bytes, P: tl.constexpr, PIECE: tl.constexpr):
    """Zero the bytes of tokens [first, P) of one head's run; program (cut, layer, head)."""
    frame, first = tl.load(cut_ptr + tl.program_id(0) * 2), tl.load(cut_ptr + tl.program_id(0) * 2 + 1)
    base = frame * granule + tl.program_id(1).to(tl.int64) * layer_bytes + tl.program_id(2) * head_bytes
    for start in range(first * token_bytes, P * token_bytes, PIECE):
        c = start + tl.arange(0, PIECE)
        tl.store(arena_ptr + base + c, tl.zeros([PIECE], tl.uint8), mask=c < P * token_bytes)


def copy_frames(arena: Tensor, granule_bytes: int, frame_bytes: int, pairs: Tensor) -> None:
    """See `definitions.copy_frames`."""
    _launch(arena, granule_bytes, frame_bytes, pairs, is_zero=False)


def zero_frames(arena: Tensor, granule_bytes: int, frame_bytes: int, frames: Tensor) -> None:
    """See `definitions.zero_frames`."""
    _launch(arena, granule_bytes, frame_bytes, frames.unsqueeze(1).expand(-1, 2).contiguous(), is_zero=True)


def _launch(arena: Tensor, granule_bytes: int, frame_bytes: int, pairs: Tensor, *, is_zero: bool) -> None:
    words = frame_bytes // 8
    piece = min(PIECE // 8, triton.next_power_of_2(words))
    grid = (pairs.shape[0], triton.cdiv(words, piece))
    _copy[grid](arena.view(pairs.dtype), pairs, granule_bytes // 8, words, PIECE=piece, IS_ZERO=is_zero)


def clear_tails(arena: Tensor, granule_bytes: int, shape: KvShape, num_layers: int, cuts: Tensor) -> None:
    """See `definitions.clear_tails`."""
    token_bytes = shape.head_dim * shape.dtype.itemsize
    grid = (cuts.shape[0], num_layers, 2 * shape.num_kv_heads)
    head_bytes = shape.page_tokens * token_bytes
    _clear_tail[grid](arena, cuts, granule_bytes, shape.layer_bytes, head_bytes, token_bytes, P=shape.page_tokens, PIECE=1024)
    if shape.is_quantized:
        head_bytes = shape.page_tokens * SCALE_BYTES
        _clear_tail[grid](
            arena[shape.values_bytes :], cuts, granule_bytes, shape.layer_bytes, head_bytes, SCALE_BYTES,
            P=shape.page_tokens, PIECE=64,
        )  # fmt: skip
