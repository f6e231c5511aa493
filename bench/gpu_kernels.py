"""Kernels on the device: do they agree with their definitions, and how much of the memory's rate do they reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_ground import GRANULE_BYTES, PAGE_TOKENS, boxed, relative_error, seconds
from bench.report import Figure, at_most
from drivers.cuda.runtime import Runtime
from drivers.ops.calls import Activation
from drivers.triton.layout import CUT_COLUMNS, INT_COLUMNS, AttentionShape, Heads, KvShape, LayerKv, StepRows, tile_tokens
from drivers.triton.matrix import QuantMatrix
from drivers.triton.table import DEFINITIONS, KernelTable

Case = Callable[[KernelTable], Tensor]
EIGHT_B_HEADS = Heads(32, 8, 128)
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class KernelSizes:
    """How large the cases are."""

    heads: Heads = EIGHT_B_HEADS
    rows: tuple[int, ...] = (1, 32, 256)
    keys: tuple[int, ...] = (1024, 8192)
    hidden: int = 4096
    inner: int = 14336
    vocabulary: int = 128256
    copy_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Pages:
    """Rows of one length over scattered pages of one layer, which hold random numbers."""

    kv: LayerKv
    table: Tensor
    step: StepRows
    queries: Tensor
    shape: AttentionShape


def make_pages(runtime: Runtime, heads: Heads, lengths: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> Pages:
    """`lengths`: rows, tokens that each computes, tokens before those. `dtypes`: of queries, of pages."""
    rows, count, before = lengths
    layer = KvShape(PAGE_TOKENS, heads.num_kv_heads, heads.head_dim, dtypes[1])
    granules = -(-layer.layer_bytes // GRANULE_BYTES)
    num_pages = -(-(before + count) // PAGE_TOKENS)
    arena = torch.empty(rows * num_pages * granules * GRANULE_BYTES, dtype=torch.uint8, device=runtime.device)
    kv = LayerKv(arena, GRANULE_BYTES, 0, layer)
    frames = np.random.default_rng(1).permutation(rows * num_pages).reshape(rows, num_pages) * granules
    table = torch.from_numpy(frames.astype(np.int32)).to(runtime.device)
    at_once = tile_tokens(heads.num_queries_per_kv, is_decode=count == 1)
    tiles = [(row, first) for row in range(rows) for first in range(0, count, at_once)]
    positions = np.tile(np.arange(before, before + count), rows)
    facts = (
        np.zeros(rows * count, dtype=np.int64),
        positions.astype(np.int64),
        np.repeat(np.arange(rows, dtype=np.int32), count),
        np.array([(row, row * count, count, before) for row in range(rows)], dtype=np.int32),
        np.array(tiles, dtype=np.int32),
    )
    tokens, where, slots, spans, cut = (torch.from_numpy(fact).to(runtime.device) for fact in facts)
    step = StepRows(tokens, where, slots, spans, cut, at_once, (table,))
    queries = torch.randn(rows * count, heads.num_heads, heads.head_dim, device=runtime.device).to(dtypes[0])
    runtime.compute.run(lambda: _fill(kv))
    return Pages(kv, table, step, queries, AttentionShape(heads, heads.head_dim**-0.5))


def _fill(kv: LayerKv) -> None:
    items, _, _ = kv.items()
    if kv.shape.is_quantized:  # scales lie between the values: bytes that are finite, and not large, whatever they are read as
        kv.arena.random_(0x34, 0x40)
        return
    items.normal_()


def copy_rate(runtime: Runtime, size_bytes: int) -> float:
    """Bytes per second that a copy inside the device reads and writes."""
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=runtime.device)
    target = torch.empty_like(source)
    return 2 * size_bytes / seconds(runtime, lambda: _copy(target, source))


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def check_kernels(runtime: Runtime, sizes: KernelSizes) -> Iterator[Figure]:
    """The error of every kernel against its definition, on the device."""
    for name, dtype, run in _cases(runtime, sizes):
        found, expected = (boxed(partial(run, table), runtime) for table in (runtime.kernels, DEFINITIONS))
        yield at_most(f"{name}, error", relative_error(found, expected), TOLERANCES[dtype], "of the largest value")
    yield Figure("draws that differ", float(_differing_draws(runtime, sizes)), "of 64 rows", "0", None, "may be 1 at the border of a cut")


def _cases(runtime: Runtime, sizes: KernelSizes) -> Iterator[tuple[str, torch.dtype, Case]]:
    device, bf16 = runtime.device, torch.bfloat16
    kinds = [(torch.float32, torch.float32), (bf16, bf16), (bf16, torch.int8)]
    kinds += [(bf16, torch.float8_e4m3fn)] if runtime.facts().has_fp8 else []
    for dtypes in kinds:
        for lengths in ((4, 1, 700), (2, 70, 130)):
            case = make_pages(runtime, sizes.heads, lengths, dtypes)
            run = lambda table, case=case: table.paged_attention(case.queries, case.kv, case.table, case.step, case.shape)[0]  # noqa: E731
            yield f"attention, {dtypes[1]}, {'decode' if lengths[1] == 1 else 'prefill'}".replace("torch.", ""), dtypes[0], run
            yield f"rope and write, {dtypes[1]}, {lengths[1]} tokens".replace("torch.", ""), dtypes[0], _rope_case(case)
    x, weight = torch.randn(33, sizes.hidden, device=device).to(bf16), torch.randn(sizes.hidden, device=device).to(bf16)
    yield "rms_norm", bf16, lambda table: table.rms_norm(x, weight, 1e-5, False)
    yield "add_rms_norm", bf16, lambda table: table.add_rms_norm(x, x.flip(0).contiguous(), weight, (1e-5, True))
    gate_up = torch.randn(33, 2 * sizes.inner, device=device).to(bf16)
    for function in Activation:
        yield f"act_mul {function.value}", bf16, lambda table, function=function: table.act_mul(gate_up, function)
    for dtype in (bf16, torch.float32):
        case, square = x.to(dtype), torch.randn(sizes.hidden, sizes.hidden, device=device).to(dtype)
        run = lambda table, case=case, square=square: table.fixed_linear(case, square, case[0])  # noqa: E731
        yield f"fixed linear, {dtype}".replace("torch.", ""), dtype, run
    for bits, group in ((8, 0), (4, 32), (4, 128)):
        matrix = make_matrix(runtime, (sizes.hidden, sizes.hidden), bits, group)
        yield f"linear int{bits}, groups of {group}", bf16, lambda table, matrix=matrix: table.quant_linear(x, matrix, None)
        yield f"fixed linear int{bits}, groups of {group}", bf16, lambda table, matrix=matrix: table.fixed_linear(x, matrix, None)
        yield f"dequantize int{bits}, groups of {group}", bf16, lambda table, matrix=matrix: table.dequantize(matrix, bf16, None)


def _rope_case(case: Pages) -> Case:
    heads, kv = case.shape.heads, case.kv
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    qkv = torch.randn(case.queries.shape[0], width, device=case.queries.device).to(case.queries.dtype)
    turns = torch.randn(1024, heads.head_dim // 2, device=qkv.device)

    def run(table: KernelTable) -> Tensor:
        mine = qkv.clone()
        table.rope_kv_write(mine, (turns.cos(), turns.sin()), None, kv, (heads, case.table, case.step))
        out = DEFINITIONS.paged_attention(case.queries, kv, case.table, case.step, case.shape)[0]  # of what was written
        return torch.cat((mine[:, : heads.num_heads * heads.head_dim], out.flatten(1)), dim=1)

    return run


def make_matrix(runtime: Runtime, shape: tuple[int, int], bits: int, group: int) -> QuantMatrix:
    """Random weights."""
    rows, columns = shape
    values = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8, device=runtime.device)
    groups, dtype = (columns // group, torch.float16) if group else (1, torch.float32)
    return QuantMatrix(values, (0.01 * torch.rand(rows, groups, device=runtime.device)).to(dtype), None, columns, group, bits)


def _sampling_tables(runtime: Runtime, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    ints, cuts = torch.zeros(rows, INT_COLUMNS, dtype=torch.int64), torch.zeros(rows, CUT_COLUMNS, dtype=torch.float64)
    ints[:, 1], ints[:, 3], ints[:, 4] = torch.arange(rows), torch.arange(rows) % 3 * 40, torch.arange(rows) * 7919
    cuts[:, 0], cuts[:, 1], cuts[:, 2] = 0.8, 0.9, 0.01
    return tuple(part.to(runtime.device) for part in (torch.arange(rows, dtype=torch.int32), ints, cuts))  # type: ignore[return-value]


def _differing_draws(runtime: Runtime, sizes: KernelSizes) -> int:
    logits, tables = 4 * torch.randn(64, sizes.vocabulary, device=runtime.device), _sampling_tables(runtime, 64)

    def draw(table: KernelTable) -> Tensor:
        out = torch.empty(64, dtype=torch.int32, device=runtime.device)
        table.sample(logits, *tables, out)
        return out

    found, expected = (boxed(partial(draw, table), runtime) for table in (runtime.kernels, DEFINITIONS))
    return int((found != expected).sum())


def kernel_rates(runtime: Runtime, sizes: KernelSizes) -> Iterator[Figure]:
    """Rates of decode attention, linears and sampling."""
    rate = copy_rate(runtime, sizes.copy_bytes)
    yield Figure("copy inside the device", rate / 1e9, "GB/s")
    for rows in sizes.rows:
        for keys in sizes.keys:
            yield _attention_rate(runtime, sizes, (rows, keys), rate)
    yield from _linear_rates(runtime, sizes, rate)
    logits = torch.randn(32, sizes.vocabulary, device=runtime.device).to(torch.bfloat16)
    tables, out = _sampling_tables(runtime, 32), torch.empty(32, dtype=torch.int32, device=runtime.device)
    yield Figure("sampling, 32 rows, all cuts", 1e6 * seconds(runtime, lambda: runtime.kernels.sample(logits, *tables, out)), "us")
    tables[2][:, 0] = 0.0
    yield Figure("sampling, 32 rows, greedy", 1e6 * seconds(runtime, lambda: runtime.kernels.sample(logits, *tables, out)), "us")


def _attention_rate(runtime: Runtime, sizes: KernelSizes, case: tuple[int, int], rate: float) -> Figure:
    rows, keys = case
    pages = make_pages(runtime, sizes.heads, (rows, 1, keys - 1), (torch.bfloat16, torch.bfloat16))
    took = seconds(
        runtime, lambda: _discard(runtime.kernels.paged_attention(pages.queries, pages.kv, pages.table, pages.step, pages.shape))
    )
    read = rows * keys * 2 * sizes.heads.num_kv_heads * sizes.heads.head_dim * 2
    what, note = f"decode attention, {rows} rows of {keys} tokens", f"{read / took / rate:.0%} of the copy's; small ones stay in the cache"
    return Figure(what, read / took / 1e9, "GB/s", note=note)


def _linear_rates(runtime: Runtime, sizes: KernelSizes, rate: float) -> Iterator[Figure]:
    shape = (2 * sizes.inner, sizes.hidden)
    weight = torch.randn(shape, device=runtime.device).to(torch.bfloat16)
    kinds: Sequence[tuple[str, QuantMatrix | None]] = (
        ("bf16", None),
        ("int8", make_matrix(runtime, shape, 8, 0)),
        ("int4", make_matrix(runtime, shape, 4, 32)),
    )
    for name, matrix in kinds:
        size = weight.nbytes if matrix is None else matrix.values.nbytes + matrix.scales.nbytes
        for tokens in (1, 16, 64):
            x = torch.randn(tokens, sizes.hidden, device=runtime.device).to(torch.bfloat16)
            if matrix is None:
                took = seconds(runtime, lambda x=x: _discard(F.linear(x, weight)))  # type: ignore[misc]
                yield _fixed_cost(runtime, x, weight, took)
            else:
                took = seconds(runtime, lambda x=x, matrix=matrix: _discard(runtime.kernels.quant_linear(x, matrix, None)))  # type: ignore[misc]
            yield Figure(f"gate and up, {name}, {tokens} tokens", size / took / 1e9, "GB/s", note=f"{size / took / rate:.0%} of the copy's")


def _fixed_cost(runtime: Runtime, x: Tensor, weight: Tensor, took: float) -> Figure:
    """The linear whose bits do not depend on the batch, beside the library's."""
    fixed = seconds(runtime, lambda: _discard(runtime.kernels.fixed_linear(x, weight, None)))
    return Figure(f"gate and up, batch_invariant, {x.shape[0]} tokens", fixed / took, "times as long as the library's")


def _discard(_value: object) -> None:
    """What is timed is not looked at."""
