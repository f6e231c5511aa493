"""What a decode step does to the rows of a model, which lie on the device (drivers.triton.layout), without being told by the host.

    prepare   lanes --> tokens, positions, slots and rows of a step         append   the drawn tokens --> ints

A row that is done computes on in its lane, reads and writes no page, and draws nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from drivers.triton import layout
from drivers.triton.layout import INT_COLUMNS, STOP_COLUMNS, StepRows

TOKEN, POSITION, IS_DONE = tl.constexpr(layout.TOKEN), tl.constexpr(layout.POSITION), tl.constexpr(layout.IS_DONE)
TOP_K, SEED = tl.constexpr(layout.TOP_K), tl.constexpr(layout.SEED)
TEMPERATURE, TOP_P, MIN_P = tl.constexpr(layout.TEMPERATURE), tl.constexpr(layout.TOP_P), tl.constexpr(layout.MIN_P)


@triton.jit
def _prepare(lane_ptr, int_ptr, token_ptr, position_ptr, slot_ptr, row_ptr, INTS: tl.constexpr):
    """One lane."""
    lane = tl.program_id(0)
    slot = tl.load(lane_ptr + lane)
    ints = int_ptr + slot.to(tl.int64) * INTS
    is_live = tl.load(ints + IS_DONE) == 0
    token, position = tl.load(ints + TOKEN), tl.load(ints + POSITION)
    tl.store(token_ptr + lane, tl.where(is_live, token, 0))
    tl.store(position_ptr + lane, tl.where(is_live, position, 0))
    tl.store(slot_ptr + lane, tl.where(is_live, slot, -1))
    row = row_ptr + lane * 4
    tl.store(row, slot)
    tl.store(row + 1, lane)
    tl.store(row + 2, is_live.to(tl.int32))
    tl.store(row + 3, tl.where(is_live, position, 0).to(tl.int32))


@triton.jit
def _append(lane_ptr, drawn_ptr, int_ptr, stop_ptr, INTS: tl.constexpr, STOPS: tl.constexpr):
    """One lane."""
    lane = tl.program_id(0)
    drawn, slot = tl.load(drawn_ptr + lane).to(tl.int64), tl.load(lane_ptr + lane).to(tl.int64)
    ints = int_ptr + slot * INTS
    if tl.load(ints + IS_DONE) == 0:
        stops = tl.load(stop_ptr + slot * STOPS + tl.arange(0, STOPS))
        is_over = (tl.max((stops == drawn).to(tl.int32), 0) > 0) | (drawn < 0)
        tl.store(ints + TOKEN, tl.maximum(drawn, 0))
        tl.store(ints + POSITION, tl.load(ints + POSITION) + 1)
        tl.store(ints + IS_DONE, is_over.to(tl.int64))


def prepare(lanes: Tensor, ints: Tensor, step: StepRows) -> None:
    """See `definitions.prepare`."""
    _prepare[(lanes.shape[0],)](lanes, ints, step.tokens, step.positions, step.slots, step.rows, INTS=INT_COLUMNS, num_warps=1)


def append(lanes: Tensor, drawn: Tensor, ints: Tensor, stops: Tensor) -> None:
    """See `definitions.append`."""
    _append[(lanes.shape[0],)](lanes, drawn, ints, stops, INTS=INT_COLUMNS, STOPS=STOP_COLUMNS, num_warps=1)
