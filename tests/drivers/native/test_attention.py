"""Paged attention against its definition in float64, and that a query's bits depend on nothing but itself and its keys."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.native.attention import NativeAttention, layer_part_bytes, native_attention
from drivers.native.build import cpu_library
from drivers.native.isa import AVX512, levels
from drivers.ops.ragged import HeadShape, RowSpan
from tests.drivers.native.attention_rig import Bed, Context

KINDS = (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn)
# Of the exact result over the same rounded keys. int8: queries are rounded to 16 bits, and a quotient at .5 may go either way.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.int8: 2e-3, torch.float8_e4m3fn: 3e-6}
ROUNDED_WEIGHTS = 6e-3  # bfloat16 at level avx512, where weights are bfloat16, too
LITTLE = HeadShape(6, 2, 32)


@pytest.fixture(params=levels())
def native(request: pytest.FixtureRequest) -> NativeAttention:
    return loaded(request.param)


def loaded(level: str) -> NativeAttention:
    found = native_attention(level)
    assert found is not None
    return found


def tolerance(native: NativeAttention, dtype: torch.dtype) -> float:
    are_rounded = dtype in (torch.bfloat16, torch.float8_e4m3fn) and AVX512 in levels() and native is loaded(AVX512)
    return ROUNDED_WEIGHTS if are_rounded else TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(
    ("heads", "num_tokens", "options"),
    [
        (HeadShape(9, 3, 64), 150, (16, 0, 0.0)),
        (HeadShape(4, 4, 80), 200, (32, 50, 0.0)),
        (HeadShape(16, 1, 128), 90, (16, 0, 5.0)),
        (HeadShape(8, 2, 256), 100, (64, 1, 0.0)),
        (HeadShape(7, 1, 16), 140, (48, 33, 2.0)),
        (HeadShape(2, 2, 96), 1100, (16, 0, 0.0)),
        (HeadShape(2, 2, 32), 100, (16, 2, 0.0)),  # no key that all queries of a tile see
    ],
)
def test_attention_equals_its_definition(
    native: NativeAttention, dtype: torch.dtype, heads: HeadShape, num_tokens: int, options: tuple[int, int, float]
) -> None:
    bed = Bed(native, dtype, heads, *options)
    context = bed.context(num_tokens)
    first = max(0, num_tokens - 160)
    queries = bed.queries(num_tokens - first)
    for found, exact in zip(bed.attend([(context, first, queries)])[0], bed.exact(context, first, queries), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance(native, dtype))


@settings(max_examples=40)
@given(
    level=st.sampled_from(levels()),
    dtype=st.sampled_from(KINDS),
    rows=st.lists(st.tuples(st.sampled_from([1, 1, 2, 7, 40]), st.integers(0, 200)), min_size=1, max_size=5),
    window=st.sampled_from([0, 0, 1, 5, 64, 130]),
    group=st.integers(1, 9),
)
def test_rows_of_a_step_are_attended_as_if_each_were_alone(
    level: str, dtype: torch.dtype, rows: list[tuple[int, int]], window: int, group: int
) -> None:
    bed = Bed(loaded(level), dtype, HeadShape(2 * group, 2, 16), window=window)
    parts = [(bed.context(position + count), position, bed.queries(count)) for count, position in rows]
    for part, (out, lse) in zip(parts, bed.attend(parts, cut_for=2), strict=True):
        alone, alone_lse = bed.attend([part])[0]
        assert torch.equal(out, alone)
        assert torch.equal(lse, alone_lse)
        torch.testing.assert_close(out.double(), bed.exact(*part)[0], rtol=0, atol=tolerance(bed.native, dtype))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("window", [0, 3, 100, 1000])
def test_a_decoded_token_has_the_bits_of_a_prefilled_one(native: NativeAttention, dtype: torch.dtype, window: int) -> None:
    """Over three partitions: the whole in one step, in chunks, and token by token."""
    bed = Bed(native, dtype, LITTLE, window=window)
    context = bed.context(2120)
    start = 940
    queries = bed.queries(2120 - start)
    whole, whole_lse = bed.attend([(context, start, queries)])[0]
    edges = [start, 941, 960, 1023, 1024, 1025, 1088, 1500, 2047, 2050, 2120]
    for first, end in pairwise(edges):
        asked = slice(first - start, end - start)
        out, lse = bed.attend([(context, first, queries[asked])])[0]
        assert torch.equal(out, whole[asked])
        assert torch.equal(lse, whole_lse[asked])
    for position in (940, 963, 1023, 1024, 1025, 1100, 1984, 2048, 2119):
        asked = slice(position - start, position - start + 1)
        assert torch.equal(bed.attend([(context, position, queries[asked])])[0][0], whole[asked])


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("window", [0, 1500])
@pytest.mark.parametrize("count", [1, 5, 30])
def test_how_a_step_is_cut_and_in_which_order_changes_no_bit(native: NativeAttention, dtype: torch.dtype, window: int, count: int) -> None:
    bed = Bed(native, dtype, LITTLE, window=window, num_frames=300)
    context, other = bed.context(4000), bed.context(33)
    step = [(other, 32, bed.queries(1)), (context, 4000 - count, bed.queries(count))]
    expected = bed.attend(step, cut_for=1)
    for cut_for in (2, -2, 16, -16):
        for found, wanted in zip(bed.attend(step, cut_for), expected, strict=True):
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("level", levels())
def test_threads_that_share_a_long_row_find_the_bits_of_one(level: str, dtype: torch.dtype) -> None:
    """The last of them merges; ten times, as their order is another each time."""
    library = cpu_library(level).library
    assert library is not None
    native = NativeAttention(library, num_threads=3)
    try:
        bed = Bed(native, dtype, LITTLE, num_frames=400)
        step = [(bed.context(5000), 4990, bed.queries(10)), (bed.context(40), 39, bed.queries(1))]
        bed.native = loaded(level)
        expected = bed.attend(step)
        bed.native = native
        for _ in range(10):
            for found, wanted in zip(bed.attend(step, cut_for=3), expected, strict=True):
                assert torch.equal(found[0], wanted[0])
    finally:
        native.close()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_a_query_does_not_see_cannot_touch_it(native: NativeAttention, dtype: torch.dtype, value: float) -> None:
    """Later tokens of the same step, and those that have left the window, are not numbers."""
    bed = Bed(native, dtype, LITTLE, window=20)
    context = bed.context(100)
    queries = bed.queries(40)
    clean = bed.attend([(context, 50, queries)])[0][0]
    for spoilt in ([29, 30, 12], [71, 80, 89]):  # before the window of the token at 50, and after the token at 70
        keys, values = context.keys.clone(), context.values.clone()
        keys[spoilt], values[spoilt] = value, value
        frames = context.frames
        native.write(bed.pages, [RowSpan(0, 100, 0, frames)], keys, values)
        found = bed.attend([(context, 50, queries)])[0][0]
        reached = [any(spoil in range(at - 19, at + 1) for spoil in spoilt) for at in range(50, 90)]
        for query, is_reached in enumerate(reached):
            if is_reached:
                assert not found[query].isfinite().any()
            else:
                assert torch.equal(found[query], clean[query])
        native.write(bed.pages, [RowSpan(0, 100, 0, frames)], context.keys, context.values)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_query_that_is_not_a_number_spoils_itself_alone(native: NativeAttention, dtype: torch.dtype) -> None:
    bed = Bed(native, dtype, LITTLE)
    context, queries = bed.context(70), bed.queries(20)
    clean = bed.attend([(context, 50, queries)])[0][0]
    spoilt = queries.clone()
    spoilt[7, 3, 5] = float("nan")
    found = bed.attend([(context, 50, spoilt)])[0][0]
    assert found[7, 3].isnan().all()
    found[7, 3] = clean[7, 3]
    assert torch.equal(found, clean)


@pytest.mark.parametrize("dtype", KINDS)
def test_equal_values_mix_to_themselves_however_weights_are_rounded(native: NativeAttention, dtype: torch.dtype) -> None:
    bed = Bed(native, dtype, LITTLE)
    context, value = bed.context(1500), bed.numbers(1, 2, 32).bfloat16().float()
    native.write(bed.pages, [RowSpan(0, 1500, 0, context.frames)], context.keys, value.expand(1500, -1, -1).contiguous())
    out, _ = bed.attend([(context, 1490, bed.queries(10))])[0]
    step = value.abs().amax() / 127 if dtype is torch.int8 else 0.0
    torch.testing.assert_close(out.double(), bed.held(value).repeat(10, 3, 1), rtol=0, atol=1e-5 + float(step))


def test_int8_pages_keep_half_a_step_of_the_greatest_of_a_head(native: NativeAttention) -> None:
    """A context of one token mixes to its value, and its log-sum-exp is its score."""
    bed = Bed(native, torch.int8, HeadShape(4, 4, 64))
    for _ in range(20):
        context, queries = bed.context(1), bed.queries(1)
        out, lse = bed.attend([(context, 0, queries)])[0]
        step = context.values.abs().amax(-1, keepdim=True) / 127
        assert ((out - context.values).abs() <= step * 0.501).all()
        score = (queries * context.keys).sum(-1) / 8
        bound = queries.abs().sum(-1) * context.keys.abs().amax(-1) / 127 * 0.51 / 8
        assert ((lse - score).abs() <= bound).all()


def e4m3_page(native: NativeAttention, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of one head of 256 values: its bytes in a page, and what a query finds."""
    bed = Bed(native, torch.float8_e4m3fn, HeadShape(1, 1, 256), layer_bytes=0)
    native.write(bed.pages, [RowSpan(0, 1, 0, np.array([0]))], bed.numbers(1, 1, 256), values.view(1, 1, 256))
    out = bed.attend([(Context(values, values, np.array([0])), 0, bed.queries(1))])[0][0]
    return bed.pages.arena[16 * 256 :][:256], out.view(256)


def test_every_e4m3_value_is_kept_as_it_is(native: NativeAttention) -> None:
    """Where the greatest of a head is 448 its scale is one: normal and subnormal numbers, and both zeros."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0  # NaN
    values = codes.view(torch.float8_e4m3fn).float()
    kept, found = e4m3_page(native, values)
    assert torch.equal(kept, codes)
    assert torch.equal(found, values)


def test_e4m3_is_rounded_to_nearest_and_ties_to_even(native: NativeAttention) -> None:
    codes = torch.arange(0x7E, dtype=torch.uint8)
    below, above = codes.view(torch.float8_e4m3fn).float(), (codes + 1).view(torch.float8_e4m3fn).float()
    halves = torch.cat([(below + above) / 2, -(below + above) / 2, torch.tensor([448.0, 1e-9, -1e-9, 2.0**-10])])
    random = torch.Generator().manual_seed(5)
    sizes = 448 * 2 ** (-20 * torch.rand(256, generator=random))
    for values in (halves, halves * (1 + 2**-22), halves * (1 - 2**-22), sizes * torch.randn(256, generator=random).sign()):
        values[-4] = 448.0
        assert torch.equal(e4m3_page(native, values)[0], values.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-3, 1e5, 1e38])
def test_e4m3_pages_have_a_scale_for_every_size(native: NativeAttention, size: float) -> None:
    values = size * (1 + torch.rand(256, generator=torch.Generator().manual_seed(6))) / 2
    found = e4m3_page(native, values)[1]
    assert ((found - values).abs() <= 0.065 * values + 2**-100).all()


@pytest.mark.parametrize("size", [1e-42, 1e-36])
def test_e4m3_of_heads_next_to_nothing_is_zeros(native: NativeAttention, size: float) -> None:
    """448 over the greatest would be no number."""
    assert not e4m3_page(native, torch.full((256,), size))[0].any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_scaled_pages_of_zeros_are_zeros(native: NativeAttention, dtype: torch.dtype) -> None:
    bed = Bed(native, dtype, LITTLE)
    context = bed.context(1)
    native.write(bed.pages, [RowSpan(0, 1, 0, context.frames)], torch.zeros(1, 2, 32), torch.zeros(1, 2, 32))
    out, lse = bed.attend([(context, 0, bed.queries(1))])[0]
    assert not out.any()
    assert not lse.any()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("num_tokens", [0, 1, 15, 16, 31])
def test_a_cleared_tail_is_zero_in_every_layer_and_the_rest_is_as_it_was(
    native: NativeAttention, dtype: torch.dtype, num_tokens: int
) -> None:
    heads, layers = HeadShape(6, 2, 48), 3
    part = layer_part_bytes(dtype, 32, heads)
    bed = Bed(native, dtype, heads, page_tokens=32, layer_bytes=0)
    arena = torch.zeros(4 * (layers * part // 1024 + 1) * 1024, dtype=torch.uint8)
    keys, values = bed.numbers(32, 2, 48), bed.numbers(32, 2, 48)

    def written(count: int) -> torch.Tensor:
        page = torch.zeros_like(arena)
        for layer in range(layers):
            one = replace(bed.pages, arena=page, layer_bytes=layer * part)
            native.write(one, [RowSpan(0, count, 0, np.array([2]))], keys[:count] + layer, values[:count] - layer)
        return page

    full = written(32)
    native.clear_tail(replace(bed.pages, arena=full, layer_bytes=0), 2, num_tokens, layers)
    assert torch.equal(full, written(num_tokens))
    assert not full[2 * 1024 + layers * part :].any()
