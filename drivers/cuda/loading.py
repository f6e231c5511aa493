"""A load: weights into place, then everything that would otherwise be built in the first step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from drivers.contract import LoadedModel, LoadSpec, OpReport
from drivers.cuda.adapters import CudaAdapter, width_for
from drivers.cuda.decoder import CudaDecoder
from drivers.cuda.graphs import DecodeGraphs
from drivers.cuda.model import CudaFiles, CudaModel, build_model, check_places, only
from drivers.cuda.ops import StepAdapters
from drivers.cuda.options import Options
from drivers.cuda.runtime import DeviceArena, Event, Runtime
from drivers.cuda.weights import Progress, WeightCourier
from drivers.ops.fusion import Choice
from drivers.triton.layout import StepRows, tile_tokens

TRIAL_TOKENS = 512
QUANTIZED_OPS = ("embed", "linear")
FEW_TOKENS = (1, 16, 32, 64)  # linears of quantized weights have a kernel for each
MANY_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)  # and experts, whose tiles are as high as their company is large
Limits = tuple[tuple[int, int], Options]  # (row slots, tokens of a step), and the options


def load_model(
    files: CudaFiles,
    spec: LoadSpec,
    device: tuple[Runtime, DeviceArena, WeightCourier],
    limits: Limits,
    progress: Progress,
) -> tuple[CudaModel, LoadedModel]:
    """Load a model. Raises: see `CudaDriver.load`."""
    began = time.perf_counter()
    runtime, arena, courier = device
    (max_rows, max_tokens), options = limits
    check_places(files.files, spec, arena.bytes.numel())
    sizes = [segment.size_bytes for segment in files.files.segments]
    bad: list[int] = []
    if spec.host_offsets:
        bad = courier.bring(spec, sizes, progress)
        if bad:
            courier.load(only(files, bad), [spec.offsets[idx] for idx in bad], files.pages.dtype, _nothing)
    else:
        courier.load(files.files, spec.offsets, files.pages.dtype, progress)
    copy_s = time.perf_counter() - began
    model = built(files, spec, arena, runtime, max_rows)
    pace = warm_up(runtime, model, (max_tokens, files.pages.granule_bytes))
    model.graphs.capture(is_captured=options.graphs)
    told = LoadedModel(
        spec.model_id,
        sum(sizes),
        time.perf_counter() - began,
        host_bytes=sum(sizes) - sum(sizes[idx] for idx in bad) if spec.host_offsets else 0,
        copy_s=copy_s,
        num_corrupt=len(bad),
        prefill_s=pace,
        runs_on=f"{runtime.facts().name}, decode steps {'captured' if options.graphs else 'kernel by kernel'}, {options.run_ahead} ahead",
        ops=op_reports(files),
    )
    return model, told


def make_ready(runtime: Runtime, model: CudaModel, adapters: Sequence[CudaAdapter], limits: Limits) -> None:
    """Build kernels and capture decode steps for rows that run with one of these, unless there are some with room for them."""
    (max_rows, max_tokens), options = limits
    width, seats, box = width_for(adapters) if adapters else 0, model.adapters, list[DecodeGraphs]()
    if width <= seats.width:
        return
    told, most = seats.of_step(width), min(max_tokens, model.limit.max_positions)
    for num_tokens in (most, 1):
        runtime.compute.run(lambda num_tokens=num_tokens: _prefill(runtime, model, num_tokens, told))  # type: ignore[misc]
    runtime.compute.run(lambda: box.append(DecodeGraphs(runtime, model.decoder, model.seats, max_rows, told)))
    runtime.compute.record().wait()
    box[0].capture(is_captured=options.graphs)
    seats.graphs, seats.width = box[0], width


def op_reports(files: CudaFiles, segments: Collection[int] | None = None) -> tuple[OpReport, ...]:
    """A line for each op and what runs it, in the order of a forward pass; `segments`: those that are run here, None: all."""
    here = [idx for idx in range(len(files.cover.lists)) if segments is None or idx in segments]
    counted = Counter(choice.implementation for idx in here for choice in _run_in(files, idx, here) if choice.implementation is not None)
    quant = files.spec.quant
    return tuple(
        OpReport(each.op, each.name, each.covers, num, f"of {quant} weights, our kernels" if quant and each.op in QUANTIZED_OPS else "")
        for each, num in counted.items()
    )


def _run_in(files: CudaFiles, idx: int, here: Collection[int]) -> Sequence[Choice]:
    """What runs of one list, where those `here` are run one behind the other."""
    choices = files.cover.lists[idx]
    entry = files.borders[idx - 1] if files.borders and idx - 1 in here else None
    leaves = bool(files.borders) and idx + 1 in here and files.borders[idx] is not None
    return (*(() if entry is None else (entry,)), *choices[entry is not None : len(choices) - leaves])


def built(files: CudaFiles, spec: LoadSpec, arena: DeviceArena, runtime: Runtime, max_rows: int) -> CudaModel:
    """The model, its tables made on the stream that reads them."""
    box: list[CudaModel] = []
    runtime.compute.run(lambda: box.append(build_model(files, spec, arena, runtime, max_rows)))
    runtime.compute.record().wait()
    return box[0]


def warm_up(runtime: Runtime, model: CudaModel, sizes: tuple[int, int]) -> float:
    """Run prefills of every kind, so that kernels are built and memory for the largest is had; answers seconds per token.

    `sizes` are tokens of a step and bytes of a granule. Tokens have no slot, so nothing is written to any page; what is read is in bounds,
    and means nothing. Kernels that touch pages run on memory of their own.
    """
    max_tokens, granule_bytes = sizes
    most = min(max_tokens, model.limit.max_positions)
    trial = min(TRIAL_TOKENS, most)
    events: list[Event] = []
    for num_tokens in (*sizes_of(model.decoder, most), trial, trial):
        events.append(runtime.compute.record())
        runtime.compute.run(lambda num_tokens=num_tokens: _prefill(runtime, model, num_tokens))  # type: ignore[misc]
    end = runtime.compute.record()
    runtime.copies.run(lambda: _touch_pages(runtime, model, granule_bytes))
    end.wait()
    runtime.copies.record().wait()
    return end.seconds_since(events[-1]) / trial


def sizes_of(decoder: CudaDecoder, most: int) -> tuple[int, ...]:
    """Numbers of tokens that have kernels of their own, the largest first."""
    counts = (*FEW_TOKENS, *MANY_TOKENS) if decoder.has_experts else FEW_TOKENS
    return (most, *(count for count in counts if count < most))


def _touch_pages(runtime: Runtime, model: CudaModel, granule_bytes: int) -> None:
    kernels, sent = runtime.kernels, runtime.sent
    for form in model.frames:
        scratch = torch.zeros(2 * form.size_bytes, dtype=torch.uint8, device=runtime.device)
        second = form.size_bytes // granule_bytes
        kernels.copy_frames(scratch, granule_bytes, form.size_bytes, sent(np.array([[0, second]], dtype=np.int64)))
        kernels.zero_frames(scratch, granule_bytes, form.size_bytes, sent(np.array([second], dtype=np.int64)))
        kernels.clear_tails(scratch, granule_bytes, form.layer, form.num_layers, sent(np.array([[0, 1]], dtype=np.int64)))


def idle_step(runtime: Runtime, num_queries_per_kv: int, num_tokens: int, seats: tuple[int, tuple[Tensor, ...]]) -> StepRows:
    """A step of one row that is nobody's and writes nothing; `seats`: where it stands in the tables, and these."""
    sent, (nobody, tables) = runtime.sent, seats
    at_once = tile_tokens(num_queries_per_kv, is_decode=num_tokens == 1)
    firsts = np.arange(0, num_tokens, at_once, dtype=np.int32)
    return StepRows(
        tokens=torch.zeros(num_tokens, dtype=torch.int64, device=runtime.device),
        positions=sent(np.arange(num_tokens, dtype=np.int64)),
        slots=torch.full((num_tokens,), -1, dtype=torch.int32, device=runtime.device),
        rows=sent(np.array([[nobody, 0, num_tokens, 0]], dtype=np.int32)),
        tiles=sent(np.stack((np.zeros_like(firsts), firsts), axis=1)),
        tile_tokens=at_once,
        tables=tables,
    )


def _prefill(runtime: Runtime, model: CudaModel, num_tokens: int, adapters: StepAdapters | None = None) -> None:
    step = idle_step(runtime, model.decoder.heads.num_queries_per_kv, num_tokens, (model.seats.nobody, model.seats.tables))
    model.decoder.logits(model.decoder.forward(step, adapters)[-1:], step)


def _nothing(_done: int, _total: int) -> None:
    """Progress that was told already."""
