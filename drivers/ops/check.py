"""Compares fused ops with their definitions, on small batches of a model's own shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drivers.native.lora import record_of
from drivers.ops.fused import NATIVE_TOKENS
from drivers.ops.ragged import AttentionShape, HeadShape, RaggedBatch, RowSpan, plan_attention
from drivers.ops.reference import Cuts, LayerKv, LoraPair, LoraRows, Rotation
from drivers.ops.table import OpTable

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 6e-3}  # largest error over largest value
SEED = 20111112


@dataclass(frozen=True, slots=True)
class CheckShape:
    """The shapes of a model that its ops will see."""

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    heads: HeadShape
    page_tokens: int
    windows: tuple[int | None, ...]  # one per KV group
    dtype: torch.dtype


def disagreements(table: OpTable, shape: CheckShape) -> dict[str, float]:
    """The ops of `table` that differ from their definitions beyond the tolerance of the dtype, with their error."""
    random = torch.Generator().manual_seed(SEED)
    plain = OpTable()
    errors: dict[str, float] = {}
    for name, calls in _cases(shape, random).items():
        if getattr(table, name) is not getattr(plain, name):
            errors[name] = max(_error(call(table), call(plain)) for call in calls)
    return {name: error for name, error in errors.items() if not error <= TOLERANCES[shape.dtype]}


Case = Callable[[OpTable], Sequence[Tensor]]


def _cases(shape: CheckShape, random: torch.Generator) -> dict[str, list[Case]]:
    hidden = torch.randn(5, shape.hidden_size, generator=random).to(shape.dtype)
    weight = torch.randn(shape.hidden_size, generator=random).to(shape.dtype)
    gate_up = torch.randn(5, 2 * shape.intermediate_size, generator=random).to(shape.dtype)
    cases: dict[str, list[Case]] = {
        "lora": _lora_cases(shape, random),
        "rms_norm": [lambda ops: [ops.rms_norm(hidden, weight, 1e-5)]],
        "add_rms_norm": [lambda ops: _add_rms_norm(ops, hidden, weight)],
        "swiglu": [lambda ops: [ops.swiglu(gate_up.clone())]],
        "sample": [_sample_case(shape, random)],
        "rope_kv_write": [],
        "paged_attention": [],
    }
    for window in dict.fromkeys(shape.windows):
        kv, batch = _attention_batch(shape, window, random)
        cases["rope_kv_write"].append(_rope_case(shape, kv, batch, random))
        cases["paged_attention"].append(_attention_case(shape, kv, batch, random))
    return cases


def _lora_cases(shape: CheckShape, random: torch.Generator) -> list[Case]:
    """Three adapters, one of which leaves the linear alone, on five of seven tokens and on most of many, for a layer's linears."""
    few, many = LoraRows(torch.tensor([5, 0, 2, 6, 3]), (2, 1, 2)), LoraRows(torch.arange(NATIVE_TOKENS + 1), (NATIVE_TOKENS - 8, 1, 8))
    widths = (shape.hidden_size, shape.heads.num_heads * shape.heads.head_dim, shape.intermediate_size)
    cases: list[Case] = []
    for columns, out in zip(widths, (2 * shape.intermediate_size, shape.hidden_size, shape.hidden_size), strict=True):
        first, second = _lora_pair((columns, 8, out), random, shape.dtype), _lora_pair((columns, 3, out), random, shape.dtype)
        for rows, num_tokens in ((few, 7), (many, NATIVE_TOKENS + 2)):
            x = torch.randn(num_tokens, columns, generator=random).to(shape.dtype)
            y = torch.randn(num_tokens, out, generator=random).to(shape.dtype)
            cases.append(_lora_case(x, y, rows, (first, None, second)))
    return cases


def _lora_pair(sizes: tuple[int, int, int], random: torch.Generator, dtype: torch.dtype) -> LoraPair:
    """A pair of matrices (in, rank, out)."""
    columns, rank, out = sizes
    down = torch.randn(rank, columns, generator=random).to(dtype)
    up = (torch.randn(rank, out, generator=random) / columns**0.5).to(dtype)
    return LoraPair(down.t(), up, record_of(down, up, [(0, rank, 0, out)]))


def _lora_case(x: Tensor, y: Tensor, rows: LoraRows, pairs: Sequence[LoraPair | None]) -> Case:
    return lambda ops: [ops.lora(y.clone(), x, rows, pairs)]


def _add_rms_norm(ops: OpTable, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    residual = hidden.flip(0)
    return [ops.add_rms_norm(hidden, residual, weight, 1e-5), residual]


def _sample_case(shape: CheckShape, random: torch.Generator) -> Case:
    logits = 4 * torch.randn(4, min(shape.vocab_size, 512), generator=random)
    cuts = Cuts(
        temperature=torch.tensor([1.0, 0.7, 1.3, 0.9]),
        top_k=torch.tensor([0, 5, 0, 40]),
        top_p=torch.tensor([1.0, 1.0, 0.8, 0.9], dtype=torch.float64),
        min_p=torch.tensor([0.0, 0.1, 0.0, 0.05]),
    )
    numbers = torch.rand(4, generator=random, dtype=torch.float64)
    return lambda ops: [ops.sample(logits, cuts, numbers).double()]


def _attention_batch(shape: CheckShape, window: int | None, random: torch.Generator) -> tuple[LayerKv, RaggedBatch]:
    """Two decode rows, a first chunk and a later chunk, with a workspace so small that the later one is cut in pieces."""
    page = shape.page_tokens
    lengths = [(1, page // 2), (1, 2 * page + 3), (page + 1, 0), (5, 7 * page - 2)]
    rows, start, frame = [], 0, 0
    for count, position in lengths:
        num_pages = (position + count - 1) // page + 1
        rows.append(RowSpan(start, count, position, np.arange(frame, frame + num_pages)[::-1].copy()))
        start, frame = start + count, frame + num_pages
    heads = shape.heads
    pages = torch.randn(frame, page, 2, heads.num_kv_heads, heads.head_dim, generator=random).to(shape.dtype)
    workspace = torch.empty(6 * page, 2, heads.num_kv_heads, heads.head_dim, dtype=shape.dtype)
    return LayerKv(pages, heads), plan_attention(AttentionShape(page, window, workspace), rows)


def _rope_case(shape: CheckShape, kv: LayerKv, batch: RaggedBatch, random: torch.Generator) -> Case:
    heads = shape.heads
    num_tokens = batch.write_frames.shape[0]
    qkv = torch.randn(num_tokens, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim, generator=random).to(shape.dtype)
    angles = torch.randn(num_tokens, 1, heads.head_dim, generator=random)
    rotation = Rotation(angles.cos().to(shape.dtype), angles.sin().to(shape.dtype))

    def run(ops: OpTable) -> list[Tensor]:
        pages = LayerKv(torch.zeros_like(kv.pages), heads)
        return [ops.rope_kv_write(qkv.clone(), rotation, pages, batch), pages.pages]

    return run


def _attention_case(shape: CheckShape, kv: LayerKv, batch: RaggedBatch, random: torch.Generator) -> Case:
    queries = torch.randn(batch.write_frames.shape[0], shape.heads.num_heads, shape.heads.head_dim, generator=random).to(shape.dtype)
    return lambda ops: ops.paged_attention(queries, kv, batch)


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over the largest expected value; NaN where something is not finite."""
    errors = [
        ((one.float() - two.float()).abs().max() / two.float().abs().max().clamp_min(1e-9)).item()
        for one, two in zip(found, expected, strict=True)
    ]
    return float("nan") if any(map(math.isnan, errors)) else max(errors)
