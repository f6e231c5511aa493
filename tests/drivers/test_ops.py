"""Faster ops against their definitions, and the shapes of ragged batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import OpUnsupported
from drivers.native.lora import native_lora, record_of
from drivers.ops import drawing, fused, reference
from drivers.ops.check import TOLERANCES
from drivers.ops.check_table import disagreements
from drivers.ops.ragged import AttentionShape, HeadShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv, LoraPair, LoraRows
from drivers.ops.table import FusedOp, fused_table


def spans(page_tokens: int, lengths: Sequence[tuple[int, int]]) -> tuple[list[RowSpan], int]:
    """Rows of (count, position) in batch order with shuffled frames, and how many frames there are."""
    ordered = sorted(lengths)
    pages = [(position + count - 1) // page_tokens + 1 for count, position in ordered]
    frames = np.random.default_rng(3).permutation(sum(pages))
    rows, start, first = [], 0, 0
    for (count, position), num_pages in zip(ordered, pages, strict=True):
        rows.append(RowSpan(start, count, position, frames[first : first + num_pages]))
        start, first = start + count, first + num_pages
    return rows, sum(pages)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 7, 20]), st.integers(0, 60)), min_size=1, max_size=7),
    window=st.sampled_from([None, 1, 5, 16, 40]),
    workspace_pages=st.sampled_from([1, 3, 64]),
)
def test_paged_attention_equals_its_definition(lengths: list[tuple[int, int]], window: int | None, workspace_pages: int) -> None:
    heads = HeadShape(num_heads=6, num_kv_heads=2, head_dim=8)
    rows, num_frames = spans(4, lengths)
    random = torch.Generator().manual_seed(1)
    shape = AttentionShape(4, window, torch.full((4 * workspace_pages, 2, 2, 8), float("nan")))
    kv = LayerKv(torch.randn(num_frames, 4, 2, 2, 8, generator=random), heads)
    queries = torch.randn(sum(row.count for row in rows), 6, 8, generator=random)
    batch = plan_attention(shape, rows)
    for found, expected in zip(
        fused.paged_attention(queries, kv, batch, 0.3), reference.paged_attention(queries, kv, batch, 0.3), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def lora_pair(rank: int, columns: int, width: int, random: torch.Generator, is_native: bool) -> LoraPair:
    """A pair whose first rank changes the first outputs alone, as the parts of a stack do."""
    down, up = torch.randn(rank, columns, generator=random), torch.randn(rank, width, generator=random)
    blocks = [(0, 1, 0, 7), (1, rank, 7, width)]
    up[0, 7:], up[1:, :7] = 0.0, 0.0
    return LoraPair(down.t(), up, record_of(down, up, blocks) if is_native else b"")


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    ranks=st.lists(st.sampled_from([None, 1, 3, 8]), min_size=5, max_size=5),
    columns=st.sampled_from([12, 40, 64]),
    is_native=st.booleans(),
)
def test_adapters_change_their_own_rows_and_no_other_bit(counts: list[int], ranks: list[int | None], columns: int, is_native: bool) -> None:
    random = torch.Generator().manual_seed(5)
    tokens = torch.randperm(sum(counts) + 3, generator=random)[: sum(counts)]
    x, y = torch.randn(sum(counts) + 3, columns, generator=random), torch.randn(sum(counts) + 3, 20, generator=random)
    pairs = [None if rank is None else lora_pair(rank, columns, 20, random, is_native) for rank in ranks[: len(counts)]]
    rows = LoraRows(tokens, tuple(counts))
    expected = y.clone()
    for part, pair in zip(tokens.split(counts), pairs, strict=True):
        if pair is not None:
            expected[part] += (x[part].double() @ pair.down.double() @ pair.up.double()).float()
    for implementation in (reference.lora, fused.lora):
        found = implementation(y.clone(), x, rows, pairs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        others = [token for token in range(len(y)) if token not in tokens.tolist()]
        assert torch.equal(found[others], y[others])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_native_adapters_agree_with_wide_arithmetic(dtype: torch.dtype, tolerance: float) -> None:
    native = native_lora()
    assert native is not None, "the C compiler of the tests' machine builds it"
    random = torch.Generator().manual_seed(6)
    down, up = (torch.randn(5, size, generator=random).to(dtype) for size in (83, 131))
    x, y = (torch.randn(4, size, generator=random).to(dtype) for size in (83, 131))
    expected = y.double()
    expected[[2, 0]] += x[[2, 0]].double() @ down.double().t() @ up.double()
    assert native.covers(y, x)
    native.add(y, x, LoraRows(torch.tensor([2, 0]), (2,)), [record_of(down, up, [(0, 5, 0, 131)])])
    assert float((y.double() - expected).abs().max() / expected.abs().max()) <= tolerance
    assert not native.covers(y.half(), x.half())
    assert not native.covers(y.float(), x.bfloat16()), "it would read beyond x"
    assert record_of(down, up, [(0, 1, 0, 1)] * 4) == b""


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_what_adapters_add_and_what_is_drawn_agree_with_their_definitions(dtype: torch.dtype) -> None:
    assert disagreements(fused_table(), ((160, 48), (48, 80)), 300, dtype) == {}


def test_a_draw_that_disagrees_is_found() -> None:
    table = fused_table((FusedOp("sample", lambda logits, cuts, numbers: drawing.sample(logits, cuts, numbers) + 1),))
    assert list(disagreements(table, ((48, 48),), 300, torch.float32)) == ["sample"]


def test_an_op_that_this_machine_cannot_run_is_not_chosen() -> None:
    table = fused_table((FusedOp("sample", fused.sample, lambda: False),))
    assert table.sample is drawing.sample


def test_an_op_nobody_asks_for_is_refused() -> None:
    with pytest.raises(OpUnsupported, match="warp_drive"):
        fused_table((FusedOp("warp_drive", fused.sample),))


def test_merging_two_halves_equals_attention_over_both() -> None:
    random = torch.Generator().manual_seed(2)
    scores, values = torch.randn(3, 10, generator=random), torch.randn(10, 4, generator=random)
    halves = [(scores[:, part].softmax(-1) @ values[part], scores[:, part].logsumexp(-1)) for part in (slice(0, 4), slice(4, 10))]
    out, lse = fused.merge(halves[0], halves[1])
    torch.testing.assert_close(out, scores.softmax(-1) @ values)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_rows_of_like_length_share_a_bucket_and_a_long_one_stands_alone() -> None:
    rows, _ = spans(16, [(1, 2000), (1, 100), (1, 110), (1, 120)])
    batch = plan_attention(AttentionShape(16, None, torch.empty(8192, 2, 1, 4)), rows)
    assert sorted(bucket.num_rows for bucket in batch.buckets) == [1, 3]


def test_a_bucket_never_needs_more_than_the_workspace() -> None:
    rows, _ = spans(16, [(1, 500)] * 8)
    batch = plan_attention(AttentionShape(16, None, torch.empty(1024, 2, 1, 4)), rows)
    assert all(bucket.frames.shape[0] * 16 <= 1024 for bucket in batch.buckets)
    assert sum(bucket.num_rows for bucket in batch.buckets) == 8


def test_pages_before_the_window_are_never_read() -> None:
    frames = np.array([-1, -1, 5, 6])
    batch = plan_attention(AttentionShape(4, 4, torch.empty(64, 2, 1, 4)), [RowSpan(0, 1, 14, frames)])
    assert batch.buckets[0].frames.tolist() == [5, 6]


def test_page_copy_and_page_zero_touch_one_frame_of_overlapping_views() -> None:
    memory = torch.arange(40, dtype=torch.uint8)
    pages = memory.as_strided((8, 12), (4, 1))
    reference.page_copy(pages, 0, 3)
    reference.page_zero(pages, 6)
    assert memory.tolist() == [*range(12), *range(12), *([0] * 12), *range(36, 40)]
