"""A mixture of experts: each expert is multiplied once with all tokens that chose it, in tiles, without a word from the host.

    logits --route--> chosen, shares [T, k]    the k likeliest, in the order of their numbers
    chosen --sort---> order [tiles, ROWS], expert of each tile          a counting sort: pairs (token, choice) of one expert side by side

      order   | pairs of expert 0 | .. -1 | pairs of expert 3 | pairs of expert 3 .. -1 |  not used  |
      experts |         0         |   3   |         3         |     -1     |     -1     |

    x --gate_up--> inner [pairs, inner] --down--> parts [pairs, hidden] --combine--> y = sum of share * part, in that order

How many tiles there are is known on the device only; there is room for the most that there can be, and programs of those that are not used
end at once: so a decode step is captured whole. Nothing is added by atomics, and what a token gets does not depend on its company but for
the tile's height. Weights of 8 or 4 bits become floats of the dtype of `x` in registers (drivers.triton.linears).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from drivers.ops.calls import ExpertSettings
from drivers.triton.language import activated, dot
from drivers.triton.layout import expert_tile
from drivers.triton.linears import weights_of
from drivers.triton.matrix import QuantMatrix, Stack, Stacks
from drivers.triton.rowwise import FUNCTIONS

PIECE = 1024  # of pairs that are sorted, and of columns that are summed


@triton.jit
def _route(
    logit_ptr, chosen_ptr, share_ptr, lane_ptr, num_experts, top_k, EXPERTS: tl.constexpr, IS_NORMALIZED: tl.constexpr,
    HAS_LANES: tl.constexpr,
):  # fmt: skip
    """One token; that of a lane that nobody uses chooses no expert: weights would be read for it.

    What is not a number is chosen last but for what is not there, and stays in the shares: the step then says so.
    """
    token, expert = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    logits = tl.load(logit_ptr + token * num_experts + expert, mask=expert < num_experts, other=float("-inf")).to(tl.float32)
    mass = tl.exp(logits - tl.max(logits, 0))
    likely = mass / tl.sum(mass, 0)
    left = tl.where(expert < num_experts, tl.where(likely >= 0.0, likely, -1.0), -3.0)
    for _ in range(top_k):
        first = tl.min(tl.where(left == tl.max(left, 0), expert, EXPERTS), 0)
        left = tl.where(expert == first, -2.0, left)
    is_chosen = left == -2.0
    if IS_NORMALIZED:
        likely = likely / tl.sum(tl.where(is_chosen, likely, 0.0), 0)
    choice = expert
    if HAS_LANES:
        is_used = tl.load(lane_ptr + token * 4 + 2) > 0
        choice, likely = tl.where(is_used, expert, num_experts), tl.where(is_used, likely, 0.0)
    place = token * top_k + tl.cumsum(is_chosen.to(tl.int32), 0) - 1
    tl.store(chosen_ptr + place, choice, mask=is_chosen)
    tl.store(share_ptr + place, likely, mask=is_chosen)


@triton.jit(do_not_specialize=["num_pairs", "max_tiles"])  # they differ from step to step, and a kernel is not built within one
def _sort(chosen_ptr, order_ptr, tile_ptr, num_pairs, max_tiles, num_experts, BINS: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr):
    """One expert: its tiles come behind those of all experts before it; the last expert also marks the tiles that nobody uses."""
    mine, bins, piece = tl.program_id(0), tl.arange(0, BINS), tl.arange(0, PIECE)
    counts = tl.zeros([BINS], tl.int32)
    for base in range(0, num_pairs, PIECE):
        expert = tl.load(chosen_ptr + base + piece, mask=base + piece < num_pairs, other=BINS - 1)
        counts += tl.histogram(expert, BINS)
    tiles = (counts + ROWS - 1) // ROWS
    first, num_tiles = tl.sum(tl.where(bins < mine, tiles, 0), 0), tl.sum(tl.where(bins == mine, tiles, 0), 0)
    num_placed = 0
    for base in range(0, num_pairs, PIECE):
        pair = base + piece
        is_mine = tl.load(chosen_ptr + pair, mask=pair < num_pairs, other=BINS - 1) == mine
        rank = num_placed + tl.cumsum(is_mine.to(tl.int32), 0) - 1
        tl.store(order_ptr + first * ROWS + rank, pair, mask=is_mine)
        num_placed += tl.sum(is_mine.to(tl.int32), 0)
    free = num_placed + tl.arange(0, ROWS)
    tl.store(order_ptr + first * ROWS + free, tl.full([ROWS], -1, tl.int32), mask=free < num_tiles * ROWS)
    for base in range(0, num_tiles, PIECE):
        tl.store(tile_ptr + first + base + piece, tl.zeros([PIECE], tl.int32) + mine, mask=base + piece < num_tiles)
    if mine == num_experts - 1:
        for base in range(first + num_tiles, max_tiles, PIECE):
            tl.store(tile_ptr + base + piece, tl.full([PIECE], -1, tl.int32), mask=base + piece < max_tiles)


@triton.jit
def _rows_of(value_ptr, scale_ptr, offset_ptr, n, end, k, columns, groups, BITS: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr,
             HAS_OFFSETS: tl.constexpr):  # fmt: skip
    """Weights `[n, k]`, of rows before `end`; of 4 bits, columns `2 k + HALF`."""
    if BITS == 0:
        mask = (n < end)[:, None] & (k < columns)[None, :]
        w = tl.load(value_ptr + n.to(tl.int64)[:, None] * columns + k[None, :], mask=mask, other=0.0)
    else:
        w = weights_of(value_ptr, scale_ptr, offset_ptr, n, k, end, columns, groups, GROUP, HALF, HAS_OFFSETS, BITS == 4, True)
    return w


@triton.jit
def _gate_up(
    x_ptr, value_ptr, scale_ptr, offset_ptr, order_ptr, tile_ptr, out_ptr, top_k, inner, columns, groups, FUNCTION: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, HAS_OFFSETS: tl.constexpr,
):  # fmt: skip
    """Program (tile, outputs): `f(gate) * up` of its pairs, gate first."""
    expert = tl.load(tile_ptr + tl.program_id(0))
    if expert < 0:
        return
    pair = tl.load(order_ptr + tl.program_id(0) * ROWS + tl.arange(0, ROWS))
    here = x_ptr + (tl.maximum(pair, 0) // top_k).to(tl.int64)[:, None] * columns
    n, first = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS), expert * 2 * inner
    gate, up = tl.zeros([ROWS, OUTPUTS], tl.float32), tl.zeros([ROWS, OUTPUTS], tl.float32)
    halves: tl.constexpr = 2 if BITS == 4 else 1
    for base in range(0, tl.cdiv(columns, halves), COLUMNS):
        k = base + tl.arange(0, COLUMNS)
        for half in tl.static_range(halves):
            column = k * halves + half
            x = tl.load(here + column[None, :], mask=(pair >= 0)[:, None] & (column < columns)[None, :], other=0.0)
            w = _rows_of(value_ptr, scale_ptr, offset_ptr, first + n, first + inner, k, columns, groups, BITS, GROUP, half, HAS_OFFSETS)
            gate = dot(x, tl.trans(w.to(x.dtype)), gate)
            w = _rows_of(value_ptr, scale_ptr, offset_ptr, first + inner + n, first + 2 * inner, k, columns, groups, BITS, GROUP, half,
                         HAS_OFFSETS)  # fmt: skip
            up = dot(x, tl.trans(w.to(x.dtype)), up)
    place = out_ptr + pair.to(tl.int64)[:, None] * inner + n[None, :]
    tl.store(place, (activated(gate, FUNCTION) * up).to(out_ptr.dtype.element_ty), mask=(pair >= 0)[:, None] & (n < inner)[None, :])


@triton.jit
def _down(
    inner_ptr, value_ptr, scale_ptr, offset_ptr, order_ptr, tile_ptr, out_ptr, hidden, columns, groups, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, HAS_OFFSETS: tl.constexpr,
):  # fmt: skip
    """Program (tile, outputs): what the expert makes of its pairs, not weighed yet."""
    expert = tl.load(tile_ptr + tl.program_id(0))
    if expert < 0:
        return
    pair = tl.load(order_ptr + tl.program_id(0) * ROWS + tl.arange(0, ROWS))
    here = inner_ptr + tl.maximum(pair, 0).to(tl.int64)[:, None] * columns
    n, first = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS), expert * hidden
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    halves: tl.constexpr = 2 if BITS == 4 else 1
    for base in range(0, tl.cdiv(columns, halves), COLUMNS):
        k = base + tl.arange(0, COLUMNS)
        for half in tl.static_range(halves):
            column = k * halves + half
            x = tl.load(here + column[None, :], mask=(pair >= 0)[:, None] & (column < columns)[None, :], other=0.0)
            w = _rows_of(value_ptr, scale_ptr, offset_ptr, first + n, first + hidden, k, columns, groups, BITS, GROUP, half, HAS_OFFSETS)
            acc = dot(x, tl.trans(w.to(x.dtype)), acc)
    place = out_ptr + pair.to(tl.int64)[:, None] * hidden + n[None, :]
    tl.store(place, acc.to(out_ptr.dtype.element_ty), mask=(pair >= 0)[:, None] & (n < hidden)[None, :])


@triton.jit
def _combine(part_ptr, share_ptr, out_ptr, top_k, hidden, PIECE: tl.constexpr):
    """Program (token, columns). An expert without a share adds nothing, whatever it computed."""
    token, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    acc = tl.zeros([PIECE], tl.float32)
    for choice in range(top_k):
        share = tl.load(share_ptr + token * top_k + choice)
        part = tl.load(part_ptr + (token * top_k + choice) * hidden + c, mask=c < hidden, other=0.0).to(tl.float32)
        acc += tl.where(share == 0.0, 0.0, share * part)
    tl.store(out_ptr + token * hidden + c, acc.to(out_ptr.dtype.element_ty), mask=c < hidden)


def routed(logits: Tensor, settings: ExpertSettings, lanes: Tensor | None) -> tuple[Tensor, Tensor]:
    """The experts that each token chooses `[T * k] int32`, in the order of their numbers, and their shares `[T * k] f32`; the number of
    experts stands for none."""
    tokens, num = logits.shape
    chosen = torch.empty(tokens * settings.top_k, dtype=torch.int32, device=logits.device)
    shares = torch.empty(chosen.shape, dtype=torch.float32, device=logits.device)
    _route[(tokens,)](
        logits, chosen, shares, chosen if lanes is None else lanes, num, settings.top_k, EXPERTS=triton.next_power_of_2(num),
        IS_NORMALIZED=settings.is_normalized, HAS_LANES=lanes is not None,
    )  # fmt: skip
    return chosen, shares


def experts(x: Tensor, router: Tensor, stacks: Stacks, settings: ExpertSettings, lanes: Tensor | None) -> Tensor:
    """See `definitions.experts`."""
    gate_up, down = stacks
    (tokens, hidden), num, top_k = x.shape, settings.num_experts, settings.top_k
    chosen, shares = routed(F.linear(x, router), settings, lanes)
    pairs = tokens * top_k
    rows = expert_tile(pairs, num)
    max_tiles = pairs // rows + min(pairs, num)
    order = torch.empty(max_tiles * rows, dtype=torch.int32, device=x.device)
    tiles = torch.empty(max_tiles, dtype=torch.int32, device=x.device)
    _sort[(num,)](chosen, order, tiles, pairs, max_tiles, num, BINS=triton.next_power_of_2(num + 1), ROWS=rows, PIECE=PIECE)
    width = _columns(down)
    inner, parts, y = x.new_empty((pairs, width)), x.new_empty((pairs, hidden)), torch.empty_like(x)
    how = _tiling(gate_up, x.element_size())
    _gate_up[(max_tiles, triton.cdiv(width, how["OUTPUTS"]))](
        x, *_pointers(gate_up), order, tiles, inner, top_k, width, hidden, _num_groups(gate_up), FUNCTION=FUNCTIONS[settings.function],
        ROWS=rows, **_form(gate_up), **how,
    )  # fmt: skip
    how = _tiling(down, x.element_size())
    _down[(max_tiles, triton.cdiv(hidden, how["OUTPUTS"]))](
        inner, *_pointers(down), order, tiles, parts, hidden, width, _num_groups(down), ROWS=rows, **_form(down), **how
    )
    piece = min(PIECE, triton.next_power_of_2(hidden))
    _combine[(tokens, triton.cdiv(hidden, piece))](parts, shares, y, top_k, hidden, PIECE=piece)
    return y


def _columns(stack: Stack) -> int:
    return stack.columns if isinstance(stack, QuantMatrix) else stack.shape[-1]


def _num_groups(stack: Stack) -> int:
    return stack.num_groups if isinstance(stack, QuantMatrix) else 0


def _pointers(stack: Stack) -> tuple[Tensor, Tensor, Tensor]:
    """Values, scales and offsets; of floats, and where there are no offsets, something in their place."""
    if isinstance(stack, Tensor):
        return stack, stack, stack
    return stack.values, stack.scales, stack.scales if stack.offsets is None else stack.offsets


def _form(stack: Stack) -> dict[str, int | bool]:
    if isinstance(stack, Tensor):
        return {"BITS": 0, "GROUP": 0, "HAS_OFFSETS": False}
    return {"BITS": stack.bits, "GROUP": stack.group, "HAS_OFFSETS": stack.offsets is not None}


def _tiling(stack: Stack, item_bytes: int) -> dict[str, int]:
    """How much is multiplied at once: with larger tiles of float32, or of weights that are made of integers, values spill to memory."""
    bits = 0 if isinstance(stack, Tensor) else stack.bits
    if item_bytes == 2 and not bits:
        return {"OUTPUTS": 64, "COLUMNS": 64, "num_warps": 4, "num_stages": 3}
    return {"OUTPUTS": 32, "COLUMNS": 16 if item_bytes == 4 and bits == 4 else 32, "num_warps": 8, "num_stages": 2}
