"""Decode steps of one model, captured: one graph for each number of lanes, from tables to the drawn tokens and back to the tables.

    lanes --prepare--> tokens, positions, rows --decoder--> logits --sample--> drawn --append--> tables of the next step

A replay asks nothing of the host, so any number of them can be queued one behind the other. Rows fill the lanes of the smallest graph that
has as many; the other lanes name the seat that is nobody's. All graphs are captured in a load, largest first, so that the memory of the
largest serves them all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drivers.cuda.decoder import CudaDecoder
from drivers.cuda.ops import StepAdapters
from drivers.cuda.runtime import Runtime, Work
from drivers.cuda.seats import Seats
from drivers.triton.layout import UNUSED, StepRows

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What a graph of some size reads and writes."""

    lanes: Tensor  # [B] int32
    step: StepRows
    drawn: Tensor  # [B] int32


def sizes_of(max_rows: int) -> tuple[int, ...]:
    """Numbers of lanes that are captured."""
    return (*(size for size in SIZES if size < max_rows), max_rows)


def body_of(decoder: CudaDecoder, seats: Seats, mine: DecodeStep, adapters: StepAdapters | None = None) -> Work:
    """One decode step; with adapters, of rows of which some have one."""

    def work() -> None:
        kernels = decoder.kernels
        kernels.prepare(mine.lanes, seats.ints, mine.step)
        logits = decoder.all_logits(mine.step, adapters)
        kernels.sample(logits, mine.lanes, seats.ints, seats.cuts, mine.drawn)
        kernels.append(mine.lanes, mine.drawn, seats.ints, seats.stops)

    return work


class DecodeGraphs:
    """The captured steps of one model."""

    def __init__(self, runtime: Runtime, decoder: CudaDecoder, seats: Seats, max_rows: int, adapters: StepAdapters | None = None) -> None:
        self.sizes = sizes_of(max_rows)
        self._runtime = runtime
        self._seats = seats
        self._bodies: dict[int, Work] = {}
        self._steps = {size: _step_of(size, seats, runtime.device) for size in self.sizes}
        self._plain = {size: body_of(decoder, seats, step, adapters) for size, step in self._steps.items()}

    def capture(self, sizes: Sequence[int] = (), *, is_captured: bool = True) -> None:
        """Capture these sizes (none: all); not `is_captured`: steps are queued kernel by kernel. Raises: DeviceOutOfMemory."""
        for size in sorted(sizes or self.sizes, reverse=True):
            self._bodies[size] = self._runtime.capture(self._plain[size]) if is_captured else self._plain[size]

    def size_for(self, num_rows: int) -> int:
        """The smallest graph that has a lane for each row."""
        return self.sizes[bisect_left(self.sizes, num_rows)]

    def fill(self, slots: Sequence[int]) -> int:
        """Queue which rows the next steps run; answers the size of their graph."""
        size = self.size_for(len(slots))
        lanes = np.full(size, self._seats.nobody, dtype=np.int32)
        lanes[: len(slots)] = slots
        target = self._steps[size].lanes
        self._runtime.compute.run(lambda: _copy(target, self._runtime.sent(lanes)))
        return size

    def run(self, size: int) -> Tensor:
        """Queue one step; answers where its drawn tokens will be until the next."""
        self._runtime.compute.run(self._bodies[size])
        return self._steps[size].drawn


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _step_of(size: int, seats: Seats, device: torch.device) -> DecodeStep:
    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    order = torch.arange(size, dtype=torch.int32, device=device)
    step = StepRows(
        tokens=zeros(size, dtype=torch.int64),
        positions=zeros(size, dtype=torch.int64),
        slots=zeros(size, dtype=torch.int32),
        rows=zeros(size, 4, dtype=torch.int32),
        tiles=torch.stack((order, torch.zeros_like(order)), dim=1),
        tile_tokens=1,
        tables=seats.tables,
    )
    lanes = torch.full((size,), seats.nobody, dtype=torch.int32, device=device)
    return DecodeStep(lanes, step, torch.full((size,), UNUSED, dtype=torch.int32, device=device))
