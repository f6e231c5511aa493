"""Compares the ops that are no calls with their definitions: what adapters add, and draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from drivers.native.lora import record_of
from drivers.ops.check import SEED, TOLERANCES, worst_error
from drivers.ops.drawing import Cuts
from drivers.ops.fused import NATIVE_TOKENS
from drivers.ops.reference import LoraPair, LoraRows
from drivers.ops.table import OpTable

Case = Callable[[OpTable], Tensor]
Linears = Sequence[tuple[int, int]]  # of a layer: rows and columns


def disagreements(table: OpTable, linears: Linears, vocab_size: int, dtype: torch.dtype) -> dict[str, float]:
    """The ops of `table` that differ from their definitions beyond the tolerance of the dtype, with their error."""
    random = torch.Generator().manual_seed(SEED)
    plain = OpTable()
    errors: dict[str, float] = {}
    for name, made in {"lora": _lora_cases(linears, dtype, random), "sample": [_sample_case(vocab_size, random)]}.items():
        if made and getattr(table, name) is not getattr(plain, name):
            errors[name] = max(worst_error([case(table)], [case(plain)]) for case in made)
    return {name: error for name, error in errors.items() if not error <= TOLERANCES[dtype]}


def _lora_cases(linears: Linears, dtype: torch.dtype, random: torch.Generator) -> list[Case]:
    """Three adapters, one of which leaves the linear alone, on five of seven tokens and on most of many, for a layer's linears."""
    few, many = LoraRows(torch.tensor([5, 0, 2, 6, 3]), (2, 1, 2)), LoraRows(torch.arange(NATIVE_TOKENS + 1), (NATIVE_TOKENS - 8, 1, 8))
    cases: list[Case] = []
    for out, columns in dict.fromkeys(linears):
        first, second = _lora_pair((columns, 8, out), random, dtype), _lora_pair((columns, 3, out), random, dtype)
        for rows, num_tokens in ((few, 7), (many, NATIVE_TOKENS + 2)):
            x = torch.randn(num_tokens, columns, generator=random).to(dtype)
            y = torch.randn(num_tokens, out, generator=random).to(dtype)
            cases.append(_lora_case(x, y, rows, (first, None, second)))
    return cases


def _lora_pair(sizes: tuple[int, int, int], random: torch.Generator, dtype: torch.dtype) -> LoraPair:
    """A pair of matrices (in, rank, out)."""
    columns, rank, out = sizes
    down = torch.randn(rank, columns, generator=random).to(dtype)
    up = (torch.randn(rank, out, generator=random) / columns**0.5).to(dtype)
    return LoraPair(down.t(), up, record_of(down, up, [(0, rank, 0, out)]))


def _lora_case(x: Tensor, y: Tensor, rows: LoraRows, pairs: Sequence[LoraPair | None]) -> Case:
    return lambda ops: ops.lora(y.clone(), x, rows, pairs)


def _sample_case(vocab_size: int, random: torch.Generator) -> Case:
    logits = 4 * torch.randn(4, min(vocab_size, 512), generator=random)
    cuts = Cuts(
        temperature=torch.tensor([1.0, 0.7, 1.3, 0.9]),
        top_k=torch.tensor([0, 5, 0, 40]),
        top_p=torch.tensor([1.0, 1.0, 0.8, 0.9], dtype=torch.float64),
        min_p=torch.tensor([0.0, 0.1, 0.0, 0.05]),
    )
    numbers = torch.rand(4, generator=random, dtype=torch.float64)
    return lambda ops: ops.sample(logits, cuts, numbers).double()
