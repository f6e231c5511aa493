"""From logits to a token, one program for each row: the draw that `drivers.ops.reference.sample` defines, without sorting.

Logits become integers of the same order (`_key`). A cut is then a border among the integers: everything above it is kept, and of those at
the border itself the first `quota` in the order of their ids. Borders are found by halving, 33 passes over a row that stays in the cache.

    top_k   smallest border with fewer than k above it
    top_p   smallest border, not below the first, above which lies less than top_p of the mass
    min_p   a border outright

The draw inverts the cumulated mass of what is kept in the order of ids, with the number that `drivers.philox` gives for (seed, position).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from drivers.triton import layout
from drivers.triton.layout import CUT_COLUMNS, INT_COLUMNS
from drivers.triton.slots import IS_DONE, MIN_P, POSITION, SEED, TEMPERATURE, TOP_K, TOP_P

PIECE = 4096
LOWEST = tl.constexpr(-(1 << 31) - 1)  # below every key
NOT_FINITE = tl.constexpr(layout.NOT_FINITE)
UNUSED = tl.constexpr(layout.UNUSED)


@triton.jit
def _key(x):
    """An int64 in the order of float32; -0.0 counts as 0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _value(key):
    """The float32 of a key."""
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _load(logit_ptr, base, vocab, temperature, PIECE: tl.constexpr):
    """Ids, scores over temperature, and which of them exist."""
    ids = base + tl.arange(0, PIECE)
    x = tl.load(logit_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
    return ids, tl.div_rn(x, tl.zeros([PIECE], tl.float32) + temperature), ids < vocab


@triton.jit
def _likeliest(logit_ptr, vocab, PIECE: tl.constexpr):
    """The largest logit and the first id that has it; NaN counts as largest."""
    most, best = -float("inf"), 0
    is_nan = 0
    for base in range(0, vocab, PIECE):
        ids = base + tl.arange(0, PIECE)
        x = tl.load(logit_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
        is_nan = tl.maximum(is_nan, tl.max((x != x).to(tl.int32), 0))  # noqa: PLR0124
        top = tl.max(x, 0)
        at = base + tl.argmax(x, 0)
        best = tl.where(top > most, at, best)
        most = tl.maximum(most, top)
    return most, best, is_nan


@triton.jit
def _above(logit_ptr, vocab, temperature, most, border, PIECE: tl.constexpr):
    """How many keys lie above a border, and their mass, relative to the likeliest."""
    count, mass = tl.zeros([], tl.int64), tl.zeros([], tl.float64)
    for base in range(0, vocab, PIECE):
        _ids, x, is_there = _load(logit_ptr, base, vocab, temperature, PIECE)
        above = is_there & (_key(x) > border)
        count += tl.sum(above.to(tl.int64), 0)
        mass += tl.sum(tl.where(above, tl.exp(x - most), 0.0).to(tl.float64), 0)
    return count, mass


@triton.jit
def _border(logit_ptr, vocab, temperature, most, low, wanted, BY_MASS: tl.constexpr, PIECE: tl.constexpr):
    """The smallest border, not below `low`, above which lie fewer than `wanted` keys, or less than that mass; and what lies above."""
    count, mass = _above(logit_ptr, vocab, temperature, most, low, PIECE)
    found = mass
    if not BY_MASS:
        found = count.to(tl.float64)
    high, at_high = _key(most), tl.zeros([], tl.float64)
    if found < wanted:
        high, at_high = low, found
    for _ in range(33):
        if high - low > 1:
            middle = (low + high) >> 1
            count, mass = _above(logit_ptr, vocab, temperature, most, middle, PIECE)
            found = mass
            if not BY_MASS:
                found = count.to(tl.float64)
            if found < wanted:
                high, at_high = middle, found
            else:
                low = middle
    return high, at_high


@triton.jit
def _cut(logit_ptr, vocab, temperature, most, top_k, top_p, min_p, PIECE: tl.constexpr):
    """The border of what is kept, and how many of those at it."""
    border = tl.zeros([], tl.int64) + LOWEST
    quota = tl.zeros([], tl.float64)
    if (top_k > 0) & (top_k < vocab):
        wanted = top_k.to(tl.float64)
        border, above = _border(logit_ptr, vocab, temperature, most, border, wanted, False, PIECE)
        quota = wanted - above
    if top_p < 1.0:
        _count, mass = _above(logit_ptr, vocab, temperature, most, border, PIECE)
        if border > LOWEST:
            mass += quota * tl.exp(_value(border) - most).to(tl.float64)
        wanted = tl.maximum(top_p * mass, 1e-300)
        tighter, above = _border(logit_ptr, vocab, temperature, most, border, wanted, True, PIECE)
        fitting = tl.ceil((wanted - above) / tl.maximum(tl.exp(_value(tighter) - most).to(tl.float64), 1e-300))
        quota = tl.where(tighter > border, fitting, tl.minimum(quota, fitting))
        border = tighter
    if min_p > 0.0:
        likely = _key(tl.minimum(most + tl.log(min_p.to(tl.float32)), most)) - 1
        if likely > border:
            border, quota = likely, tl.zeros([], tl.float64)
    return border, quota


@triton.jit
def _keep(logit_ptr, base, vocab, temperature, most, border, quota, num_ties, PIECE: tl.constexpr):
    """Ids of a piece, the mass of those that are kept, and how many stood at the border so far."""
    ids, x, is_there = _load(logit_ptr, base, vocab, temperature, PIECE)
    key = _key(x)
    ties = (is_there & (key == border)).to(tl.int64)
    rank = num_ties + tl.cumsum(ties, 0) - ties
    is_kept = is_there & ((key > border) | ((ties == 1) & (rank.to(tl.float64) < quota)))
    return ids, tl.where(is_kept, tl.exp(x - most), 0.0).to(tl.float64), num_ties + tl.sum(ties, 0)


@triton.jit
def _draw(logit_ptr, vocab, temperature, most, border, quota, uniform, PIECE: tl.constexpr):
    """The first id whose cumulated mass exceeds `uniform` of the total; never one without mass."""
    total, num_ties = tl.zeros([], tl.float64), tl.zeros([], tl.int64)
    for base in range(0, vocab, PIECE):
        _ids, mass, num_ties = _keep(logit_ptr, base, vocab, temperature, most, border, quota, num_ties, PIECE)
        total += tl.sum(mass, 0)
    before, num_ties = tl.zeros([], tl.float64), tl.zeros([], tl.int64)
    chosen, last = vocab, 0
    for base in range(0, vocab, PIECE):
        ids, mass, num_ties = _keep(logit_ptr, base, vocab, temperature, most, border, quota, num_ties, PIECE)
        summed = before + tl.cumsum(mass, 0)
        hits = (mass > 0.0) & (summed > uniform * total)
        chosen = tl.minimum(chosen, tl.min(tl.where(hits, ids, vocab), 0))
        last = tl.maximum(last, tl.max(tl.where(mass > 0.0, ids, 0), 0))
        before += tl.sum(mass, 0)
    return tl.minimum(chosen, last)


@triton.jit
def _uniform(seed, position):
    """A number in [0, 1) with 53 bits; see `drivers.philox.uniforms`."""
    zero = position.to(tl.uint32) * 0
    high = (position.to(tl.uint64) >> 32).to(tl.uint32)
    one, two, _three, _four = tl.philox(seed.to(tl.uint64), position.to(tl.uint32), high, zero, zero)
    bits = ((one.to(tl.int64) >> 5) << 26) | (two.to(tl.int64) >> 6)
    return bits.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _sample(logit_ptr, lane_ptr, int_ptr, cut_ptr, out_ptr, stride, vocab, INTS: tl.constexpr, CUTS: tl.constexpr, PIECE: tl.constexpr):
    """One lane. What it writes: a token, UNUSED, or NOT_FINITE."""
    lane = tl.program_id(0)
    slot = tl.load(lane_ptr + lane).to(tl.int64)
    ints, cuts, logits = int_ptr + slot * INTS, cut_ptr + slot * CUTS, logit_ptr + lane.to(tl.int64) * stride
    chosen = tl.zeros([], tl.int32) + UNUSED
    if tl.load(ints + IS_DONE) == 0:
        most, best, is_nan = _likeliest(logits, vocab, PIECE)
        temperature = tl.load(cuts + TEMPERATURE).to(tl.float32)
        if (is_nan > 0) | (most == float("inf")) | (most == -float("inf")):
            chosen = tl.zeros([], tl.int32) + NOT_FINITE
        elif temperature == 0.0:
            chosen = best.to(tl.int32)
        else:
            temperature = tl.maximum(temperature, 1e-5)
            most = tl.div_rn(most, temperature)
            border, quota = _cut(
                logits, vocab, temperature, most, tl.load(ints + TOP_K), tl.load(cuts + TOP_P), tl.load(cuts + MIN_P), PIECE
            )
            uniform = _uniform(tl.load(ints + SEED), tl.load(ints + POSITION) + 1)
            chosen = _draw(logits, vocab, temperature, most, border, quota, uniform, PIECE).to(tl.int32)
    tl.store(out_ptr + lane, chosen)


def sample(logits: Tensor, lanes: Tensor, ints: Tensor, cuts: Tensor, out: Tensor) -> None:
    """See `definitions.sample`."""
    vocab = logits.shape[1]
    piece = min(PIECE, triton.next_power_of_2(vocab))
    _sample[(lanes.shape[0],)](
        logits, lanes, ints, cuts, out, logits.stride(0), vocab, INTS=INT_COLUMNS, CUTS=CUT_COLUMNS, PIECE=piece, num_warps=8
    )
