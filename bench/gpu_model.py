"""Whole models with random weights on the device: a decode step against what memory allows, prefill against what matrix units do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.gpu_ground import EIGHT_B, ONE_B, BenchModel, ModelShape, make_model, seat, seconds
from bench.gpu_kernels import copy_rate
from bench.report import Figure, at_least
from drivers.contract import Plan, RowRun
from drivers.cuda.answers import answers
from drivers.cuda.runtime import Runtime
from drivers.cuda.steps import StepQueue, step_of
from drivers.rows import RowTable

GOALS = {"8B": 0.65, "1B": 0.50}  # of the floor


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What is run."""

    shapes: tuple[ModelShape, ...] = (ONE_B, EIGHT_B)
    rows: tuple[int, ...] = (1, 32, 128)
    tokens: int = 1024
    prefill: int = 2048
    steps: int = 48
    peak: int = 8192  # of a square product
    dtype: torch.dtype = torch.bfloat16
    copy_bytes: int = 1 << 30


def model_figures(runtime: Runtime, sizes: ModelSizes) -> Iterator[Figure]:
    """Decode, the host's share of it, and prefill."""
    rate, peak = copy_rate(runtime, sizes.copy_bytes), matrix_peak(runtime, sizes)
    yield Figure("square product", peak / 1e12, "TFLOP/s")
    for shape in sizes.shapes:
        for rows in sizes.rows:
            room = rows, max(sizes.tokens + 3 * sizes.steps, sizes.prefill)
            bench = make_model(runtime, shape, sizes.dtype, room)
            bench.model.graphs.capture((rows,))
            yield from _decode(runtime, bench, (rows, sizes), rate)
            step = _replays(runtime, bench, rows, sizes.steps)
            prefill = [_prefill(runtime, bench, sizes, peak)] if rows == 1 else []
            yield from prefill
            del bench  # its memory, before the next
            bench = make_model(runtime, shape, sizes.dtype, room, is_fixed=True)
            bench.model.graphs.capture((rows,))
            yield _cost_of_fixed(_replays(runtime, bench, rows, sizes.steps), step, f"decode step, {shape.name}, {rows} rows")
            for figure in prefill:
                fixed = _prefill(runtime, bench, sizes, peak)
                yield _cost_of_fixed(1 / fixed.value, 1 / figure.value, figure.what)
            del bench


def matrix_peak(runtime: Runtime, sizes: ModelSizes) -> float:
    """Floating point operations per second of the library's product."""
    one = torch.randn(sizes.peak, sizes.peak, device=runtime.device).to(sizes.dtype)
    out = torch.empty_like(one)
    return 2 * sizes.peak**3 / seconds(runtime, lambda: _product(one, out), 10)


def _product(one: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(one, one, out=out)


def _decode(runtime: Runtime, bench: BenchModel, what: tuple[int, ModelSizes], rate: float) -> Iterator[Figure]:
    rows, sizes = what
    table = RowTable(rows, rows, 16)
    starts = tuple(seat(bench, slot, sizes.tokens) for slot in range(rows))
    runs = tuple(RowRun(slot, 1) for slot in range(rows))
    bench.model.seats.start(table.apply(Plan(1, 1, starts=starts, runs=runs, num_steps=sizes.steps)))
    queue = StepQueue(runtime, bench.model, 2, rows)
    begin = runtime.compute.record()
    began = time.perf_counter()
    for idx in range(sizes.steps):
        [share] = table.take(idx)
        flight = queue.take(share, idx, sizes.steps)
        flight.event.wait()
        answers(share, flight, table)
    wall = (time.perf_counter() - began) / sizes.steps
    end = runtime.compute.record()
    end.wait()
    through = end.seconds_since(begin) / sizes.steps
    alone = _replays(runtime, bench, rows, sizes.steps)
    floor = (bench.weight_bytes + rows * sizes.tokens * bench.kv_token_bytes) / rate
    name = f"{bench.shape.name}, {rows} rows of {sizes.tokens} tokens"
    goal = GOALS.get(bench.shape.name)
    share_of_floor, note = floor / alone, f"{1e3 * alone:.3g} ms, floor {1e3 * floor:.3g} ms, {rows / alone:.0f} tokens/s"
    if goal is None:
        yield Figure(f"decode step, {name}", share_of_floor, "of the floor", note=note)
    else:
        yield at_least(f"decode step, {name}", share_of_floor, goal, "of the floor", note)
    yield Figure(f"what the host adds to a step, {name}", 1e6 * (max(wall, through) - alone), "us", note="queued two steps ahead")


def _cost_of_fixed(took: float, without: float, what: str) -> Figure:
    return Figure(f"batch_invariant, {what}", took / without, "times as long")


def _replays(runtime: Runtime, bench: BenchModel, rows: int, steps: int) -> float:
    """Device time of a step, replayed without the host."""
    size = bench.model.graphs.size_for(rows)
    begin = runtime.compute.record()
    for _ in range(steps):
        bench.model.graphs.run(size)
    end = runtime.compute.record()
    end.wait()
    return max(end.seconds_since(begin), 1e-9) / steps


def _prefill(runtime: Runtime, bench: BenchModel, sizes: ModelSizes, peak: float) -> Figure:
    table = RowTable(2, sizes.prefill, 16)
    start = seat(bench, 0, 0)
    start = type(start)(0, 1, 0, (5,) * sizes.prefill, start.frames, start.sampling)
    bench.model.seats.start(table.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, sizes.prefill),), num_steps=1)))
    [share] = table.take(0)
    decoder = bench.model.decoder

    def work() -> None:
        step = step_of(share, [row.slot for row in share.rows], decoder.heads.num_queries_per_kv, runtime, bench.model.seats.tables)
        decoder.forward(step)

    took = seconds(runtime, work, 5)
    done = 2 * bench.num_parameters * sizes.prefill
    note = f"{1e3 * took:.3g} ms, {sizes.prefill / took:.0f} tokens/s; attention is not counted"
    return Figure(f"prefill, {bench.shape.name}, {sizes.prefill} tokens", done / took / peak, "of the square product's rate", note=note)
