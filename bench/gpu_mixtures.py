"""Experts and adapters on the device: do they agree with their definitions, how fast are weights read, and what rows with adapters add."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_ground import boxed, relative_error, seconds
from bench.gpu_kernels import EIGHT_B_HEADS, TOLERANCES, Case, copy_rate, make_matrix, make_pages
from bench.report import Figure, at_most
from drivers.cuda.runtime import Runtime
from drivers.ops.calls import Activation, ExpertSettings
from drivers.ops.experts import route
from drivers.triton.layout import LORA_COLUMNS, Heads, LoraPlaces, StepRows
from drivers.triton.matrix import Stack, Stacks
from drivers.triton.table import DEFINITIONS, KernelTable


@dataclass(frozen=True, slots=True)
class MixtureShape:
    """The feed-forward block of a model."""

    name: str
    num_experts: int
    top_k: int
    hidden: int
    inner: int

    @property
    def settings(self) -> ExpertSettings:
        """As both families have it."""
        return ExpertSettings(self.num_experts, self.top_k, True, Activation.SILU)


MIXTRAL, QWEN3 = MixtureShape("Mixtral 8x7B", 8, 2, 4096, 14336), MixtureShape("Qwen3 30B", 128, 8, 2048, 768)


@dataclass(frozen=True, slots=True)
class MixtureSizes:
    """How large the cases are."""

    shapes: tuple[MixtureShape, ...] = (QWEN3, MIXTRAL)
    tokens: tuple[int, ...] = (1, 33, 512)
    heads: Heads = EIGHT_B_HEADS
    product: tuple[int, int] = (6144, 4096)  # out, in
    ranks: tuple[int, ...] = (48, 0, 24, 192)  # of the adapters of rows, one after the other
    rows: tuple[int, ...] = (1, 32, 256)
    copy_bytes: int = 1 << 30


def mixture_figures(runtime: Runtime, sizes: MixtureSizes) -> Iterator[Figure]:
    """Errors, then times."""
    rate = copy_rate(runtime, sizes.copy_bytes)
    for shape in sizes.shapes:
        yield from _expert_figures(runtime, shape, sizes, rate)
    for rows, count in ((33, 1), (3, 70)):
        case = _adapted(runtime, sizes, (rows, count))
        yield _error(f"adapters, {rows} rows of {count} tokens", runtime, torch.bfloat16, case.run)
    for rows in sizes.rows:
        yield _adapter_time(runtime, sizes, rows)


def _error(name: str, runtime: Runtime, dtype: torch.dtype, run: Case) -> Figure:
    found, expected = (boxed(partial(run, table), runtime) for table in (runtime.kernels, DEFINITIONS))
    return at_most(f"{name}, error", relative_error(found, expected), TOLERANCES[dtype], "of the largest value")


def _expert_figures(runtime: Runtime, shape: MixtureShape, sizes: MixtureSizes, rate: float) -> Iterator[Figure]:
    """In bfloat16, and one case of each form of integers."""
    dtype = torch.bfloat16
    router = torch.randn(shape.num_experts, shape.hidden, device=runtime.device).to(dtype) / shape.hidden**0.5
    matrices = [(2 * shape.inner, shape.hidden), (shape.hidden, shape.inner)]
    for bits in (16, 8, 4):
        gate_up, down = (_stack(runtime, shape.num_experts, matrix, bits) for matrix in matrices)
        for tokens in sizes.tokens if bits == 16 else sizes.tokens[1:2]:
            x = torch.randn(tokens, shape.hidden, device=runtime.device).to(dtype)
            run = partial(_run_experts, x, router, (gate_up, down), shape.settings)
            name = f"experts of {shape.name}, {bits} bits, {tokens} tokens"
            yield _error(name, runtime, dtype, run)
            chosen = int(route(x, router, shape.settings).any(0).sum())
            read = chosen * sum(rows * columns for rows, columns in matrices) * bits // 8
            took = seconds(runtime, lambda run=run: _discard(run(runtime.kernels)))  # type: ignore[misc]
            yield Figure(
                name, read / took / 1e9, "GB/s", note=f"{1e6 * took:.0f} us, {chosen} experts, {read / took / rate:.0%} of the copy's"
            )


def _run_experts(x: Tensor, router: Tensor, stacks: Stacks, settings: ExpertSettings, table: KernelTable) -> Tensor:
    return table.experts(x, router, stacks, settings, None)


def _stack(runtime: Runtime, num: int, shape: tuple[int, int], bits: int) -> Stack:
    rows, columns = shape
    if bits != 16:
        return make_matrix(runtime, (num * rows, columns), bits, 32 if bits == 4 else 0)
    weights = torch.empty(num, rows, columns, dtype=torch.bfloat16, device=runtime.device)
    for matrix in weights:
        matrix.normal_(0.0, columns**-0.5)
    return weights


@dataclass(frozen=True, slots=True)
class Adapted:
    """A product, and the adapters of the rows that it is of."""

    x: Tensor
    y: Tensor
    weight: Tensor
    places: LoraPlaces
    step: StepRows

    def run(self, table: KernelTable) -> Tensor:
        """What the adapters make of it."""
        y = self.y.clone()
        table.lora(y, self.x, self.places, self.step)
        return y


def _adapted(runtime: Runtime, sizes: MixtureSizes, lengths: tuple[int, int]) -> Adapted:
    """`lengths`: rows, and tokens of each. Adapters lie apart, one for each row."""
    (rows, count), (out, columns), dtype = lengths, sizes.product, torch.bfloat16
    step = make_pages(runtime, sizes.heads, (rows, count, 0), (dtype, dtype)).step
    most = max(sizes.ranks)
    table = torch.zeros(rows + 1, LORA_COLUMNS, dtype=torch.int64)
    for row in range(rows):
        first = row * most * (columns + out)
        table[row, :3] = torch.tensor([first, first + most * columns, sizes.ranks[row % len(sizes.ranks)]])
    arena = torch.empty(rows * most * (columns + out), dtype=dtype, device=runtime.device).normal_(0.0, columns**-0.5)
    places = LoraPlaces(arena, table.to(runtime.device), max(64, 1 << (most - 1).bit_length()))
    x, y = (torch.randn(rows * count, width, device=runtime.device).to(dtype) for width in (columns, out))
    return Adapted(x, y, torch.randn(out, columns, device=runtime.device).to(dtype), places, step)


def _adapter_time(runtime: Runtime, sizes: MixtureSizes, rows: int) -> Figure:
    """Of rows that compute one token, each with an adapter of its own or with none."""
    case = _adapted(runtime, sizes, (rows, 1))
    plain = seconds(runtime, lambda: _discard(F.linear(case.x, case.weight)))
    added = seconds(runtime, lambda: runtime.kernels.lora(case.y, case.x, case.places, case.step))
    ranks = ", ".join(map(str, sizes.ranks))
    return Figure(
        f"adapters of {rows} rows, one product", 1e6 * added, "us", note=f"ranks {ranks} in turn; the product {1e6 * plain:.0f} us"
    )


def _discard(_value: object) -> None:
    """What is timed is not looked at."""
