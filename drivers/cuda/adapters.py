"""LoRA adapters on the device: one segment each (drivers.models.adapter), and where steps of a model find those of their rows.

    load    files --> pinned memory --> arena, or host tier --> arena; decode steps of rows with adapters are captured then, not before
    step    rows whose adapter is not the one that stands in their seat are seated again, by the host, before the step is queued

The table on the device is by row slot, not by adapter: any number of adapters can be loaded, and a captured step serves whatever rows are
in its lanes. A step without adapters is the one of a model that has none: nothing is asked of the table there.

Invariants
1. What stands in the seat of a row that runs is where its adapter lies now; that of a row without one is of rank 0.
2. No adapter of a model is of a higher rank than its captured steps have room for: a load that brings one captures them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from drivers.contract import LoadedModel, LoadSpec
from drivers.cuda.graphs import DecodeGraphs
from drivers.cuda.ops import StepAdapters
from drivers.cuda.runtime import DeviceArena, Runtime
from drivers.cuda.weights import Progress, WeightCourier
from drivers.errors import PlanRejected
from drivers.models.adaptable import products_of
from drivers.models.adapter import AdapterFiles, load_adapter, open_adapter
from drivers.models.config import DecoderConfig
from drivers.models.loader import Target
from drivers.models.storage import ALIGN_BYTES
from drivers.rows import Row
from drivers.triton.layout import LORA_COLUMNS

LEAST_WIDTH = 64  # of ranks


@dataclass(frozen=True, slots=True)
class CudaAdapter:
    """A loaded adapter. Frozen: a load makes one."""

    base_id: int
    seat: np.ndarray  # [products, 4] int64: what stands in the seat of its rows
    places: tuple[tuple[int, int], ...]  # offset and size of its one segment

    @property
    def rank(self) -> int:
        """The highest of a product."""
        return int(self.seat[:, 2].max())


Adapters = Mapping[int, CudaAdapter]


class AdapterSeats:
    """The adapters of one model's rows, and its decode steps of rows that have some."""

    def __init__(self, runtime: Runtime, config: DecoderConfig, num_slots: int, arena: DeviceArena, dtype: torch.dtype) -> None:
        self._runtime = runtime
        self._arena = arena.bytes.view(dtype)
        self._products = {(product.layer, product.place): idx for idx, product in enumerate(products_of(config))}
        self._table = torch.zeros(len(self._products), num_slots + 1, LORA_COLUMNS, dtype=torch.int64, device=runtime.device)
        self._seated: dict[int, CudaAdapter] = {}  # by row slot
        self.width = 0  # of ranks; 0: no adapter was loaded yet
        self.graphs: DecodeGraphs | None = None

    def of_step(self, width: int = 0) -> StepAdapters:
        """What a step of rows with adapters is told; `width`: as if so many ranks were needed."""
        return StepAdapters(self._arena, self._table, self._products, width or self.width)

    def seat(self, rows: Sequence[Row], adapters: Adapters) -> bool:
        """Queue which adapters rows run with from here on (invariant 1); answers whether some row has one."""
        wanted = {row.slot: adapters[row.adapter_id] if row.adapter_id else None for row in rows}
        changed = [slot for slot, adapter in wanted.items() if self._seated.get(slot) is not adapter]
        if changed:
            seats = np.zeros((self._table.shape[0], len(changed), LORA_COLUMNS), dtype=np.int64)
            for idx, slot in enumerate(changed):
                adapter = wanted[slot]
                self._seated.pop(slot, None)
                if adapter is not None:
                    self._seated[slot] = adapter
                    seats[:, idx] = adapter.seat
            self._runtime.compute.run(lambda: self._write(np.array(changed, dtype=np.int64), seats))
        return any(adapter is not None for adapter in wanted.values())

    def _write(self, slots: np.ndarray, seats: np.ndarray) -> None:
        self._table[:, self._runtime.sent(slots)] = self._runtime.sent(seats)


def width_for(adapters: Sequence[CudaAdapter]) -> int:
    """Room for the ranks of these: a power of two."""
    return max(LEAST_WIDTH, 1 << (max(adapter.rank for adapter in adapters) - 1).bit_length())


def load_cuda_adapter(
    spec: LoadSpec, device: tuple[DeviceArena, WeightCourier], dtype: torch.dtype, progress: Progress
) -> tuple[CudaAdapter, LoadedModel]:
    """Copy an adapter into place. Raises: PlanRejected, if the offset does not fit it; ModelCorrupt; ModelUnsupported."""
    began, (arena, courier) = perf_counter(), device
    files = open_adapter(spec.source, dtype)
    size_bytes = files.size_bytes
    is_placed = len(spec.offsets) == 1 and not spec.space_ids and not spec.slots
    if not is_placed or spec.offsets[0] % ALIGN_BYTES or not 0 <= spec.offsets[0] <= arena.bytes.numel() - size_bytes:
        raise PlanRejected(f"Adapter {spec.model_id} has one segment of {size_bytes} bytes, aligned to {ALIGN_BYTES}, and no spaces.")
    num_corrupt = len(courier.bring(spec, [size_bytes], progress)) if spec.host_offsets else 0
    is_from_host = bool(spec.host_offsets) and not num_corrupt
    if not is_from_host:
        courier.write(size_bytes, spec.offsets[0], lambda memory: load_adapter(files, Target(memory, (0,), dtype), progress))
    seconds = perf_counter() - began
    adapter = CudaAdapter(spec.base_id, _seat(files, spec.offsets[0], dtype), ((spec.offsets[0], size_bytes),))
    host_bytes = size_bytes if is_from_host else 0
    return adapter, LoadedModel(spec.model_id, size_bytes, seconds, host_bytes=host_bytes, copy_s=seconds, num_corrupt=num_corrupt)


def _seat(files: AdapterFiles, offset: int, dtype: torch.dtype) -> np.ndarray:
    products = [(product.layer, product.place) for product in products_of(files.base)]
    seat = np.zeros((len(products), LORA_COLUMNS), dtype=np.int64)
    for stack in files.stacks:
        starts = [(offset + start) // dtype.itemsize for start in (stack.down_bytes, stack.up_bytes)]
        seat[products.index((stack.product.layer, stack.product.place)), :3] = (*starts, stack.rank)
    return seat
