"""The native ops as implementations that the fusion pass may choose (`drivers.ops.implementation`)."""

from __future__ import annotations

from drivers.models.storage import PANEL_ROWS
from drivers.native.lowering import MAX_HEAD_DIM
from drivers.native.program import NATIVE_OPS, NativeOp
from drivers.ops.calls import Call
from drivers.ops.implementation import Implementation, Shapes

COST, COST_OF_ANOTHER = 1.0, 0.25  # of an op, and of each one that is done with it


def _pages(_call: Call, shapes: Shapes) -> str:
    if shapes.heads.head_dim % PANEL_ROWS or shapes.heads.head_dim > MAX_HEAD_DIM:
        return f"head_dim is {shapes.heads.head_dim}, not a multiple of {PANEL_ROWS} up to {MAX_HEAD_DIM}"
    if shapes.page_tokens % PANEL_ROWS:
        return f"pages are of {shapes.page_tokens} tokens, not a multiple of {PANEL_ROWS}"
    return ""


def _halves(call: Call, shapes: Shapes) -> str:
    rows = next(shapes.parts[each.parts[0]][0] for each in call.stands_for if each.op == "linear")
    return f"half of {rows} rows is not a multiple of {PANEL_ROWS}" if rows % (2 * PANEL_ROWS) else ""


def _experts(call: Call, shapes: Shapes) -> str:
    inner, hidden = shapes.parts[call.parts[2]][-1], shapes.parts[call.parts[2]][-2]
    if inner % PANEL_ROWS or hidden % PANEL_ROWS:
        return f"experts of {hidden} x {inner}, not multiples of {PANEL_ROWS}"
    return ""


def _offer(op: NativeOp) -> Implementation:
    cost = COST + COST_OF_ANOTHER * (len(op.covers) - 1)
    if op.covers[-1] in ("kv_write", "paged_attention"):
        # What was turned stays to be read: keys and values go to their pages, and hand on nothing.
        seen = -2 if len(op.covers) > 1 else -1
        return Implementation(op.name, op.covers, "native", cost, supports=_pages, visible=(seen,))
    if op.covers[-1] == "act_mul" and len(op.covers) > 1:
        return Implementation(op.name, op.covers, "native", cost, supports=_halves)
    if op.covers == ("experts",):
        return Implementation(op.name, op.covers, "native", cost, supports=_experts)
    return Implementation(op.name, op.covers, "native", cost)


NATIVE = tuple(map(_offer, NATIVE_OPS))
