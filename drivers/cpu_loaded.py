"""What the CPU driver has loaded: models, and the adapters that change them. One value, so that a step sees a load wholly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch

from drivers.arena import FrameShape
from drivers.arrival import Arrival
from drivers.contract import LoadedModel, LoadSpec
from drivers.cpu_ground import Ground
from drivers.cpu_model import CpuModel
from drivers.cpu_runners import StepLora
from drivers.errors import PlanRejected, UnknownModel
from drivers.load_check import check_ids
from drivers.models.adapter import AdapterWeights, LoraBatch, load_adapter, open_adapter, view_adapter
from drivers.models.loader import Target
from drivers.models.storage import ALIGN_BYTES
from drivers.native.step import adapter_table
from drivers.ops.reference import LoraRows
from drivers.rows import ModelLimit, StepRows
from drivers.streamed_weights import StreamedWeights
from drivers.weight_image import bring_segments


@dataclass(frozen=True, slots=True)
class CpuAdapter:
    """A loaded adapter. Frozen, like a model."""

    base_id: int
    weights: AdapterWeights
    size_bytes: int
    places: tuple[tuple[int, int], ...]  # offset and size of its one segment
    arrival: Arrival
    table: np.ndarray  # how native code is told of `weights`

    def loaded(self, adapter_id: int, seconds: float) -> LoadedModel:
        """What its load left behind."""
        came = self.arrival
        return LoadedModel(
            adapter_id, self.size_bytes, seconds, host_bytes=came.host_bytes, copy_s=came.copy_s, num_corrupt=came.num_corrupt
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that loads and unloads change."""

    models: Mapping[int, CpuModel] = field(default_factory=dict)
    # Frames by space; those of unloaded models stay, because their pages may still be moved and zeroed, until a load names the space again.
    spaces: Mapping[int, FrameShape] = field(default_factory=dict)
    adapters: Mapping[int, CpuAdapter] = field(default_factory=dict)

    def check_free(self, spec: LoadSpec) -> None:
        """Whether the ids of a load are free, and the base of an adapter is there. Raises: PlanRejected, UnknownModel."""
        check_ids(spec, {model_id: model.space_ids for model_id, model in self.models.items()}, self.adapters)

    def with_model(self, model_id: int, model: CpuModel) -> Loaded:
        """The same with one model more."""
        spaces = dict(zip(model.space_ids, model.frames, strict=True))
        return replace(self, models={**self.models, model_id: model}, spaces={**self.spaces, **spaces})

    def with_adapter(self, adapter_id: int, adapter: CpuAdapter) -> Loaded:
        """The same with one adapter more."""
        return replace(self, adapters={**self.adapters, adapter_id: adapter})

    def without(self, model_id: int) -> Loaded:
        """The same without a model or an adapter. Raises: UnknownModel."""
        if model_id in self.adapters:
            return replace(self, adapters={other: adapter for other, adapter in self.adapters.items() if other != model_id})
        if model_id not in self.models:
            raise UnknownModel(f"It has id {model_id}.")
        return replace(self, models={other: model for other, model in self.models.items() if other != model_id})

    def streamed(self, model_id: int) -> StreamedWeights | None:
        """The weights of a model that is streamed."""
        model = self.models.get(model_id)
        return model.streamed if model is not None else None

    def places(self, model_id: int) -> tuple[tuple[int, int], ...]:
        """Offset and size of each segment of a model or an adapter. Raises: UnknownModel."""
        held = self.models.get(model_id) or self.adapters.get(model_id)
        if held is None:
            raise UnknownModel(f"It has id {model_id}.")
        return held.places

    def limits(self) -> dict[int, ModelLimit]:
        """What rows of each model may hold, and the adapters that they may name."""
        limits = {model_id: model.limit for model_id, model in self.models.items()}
        for adapter_id, adapter in self.adapters.items():
            limit = limits.get(adapter.base_id)
            if limit is not None:
                limits[adapter.base_id] = replace(limit, adapter_ids=limit.adapter_ids | {adapter_id})
        return limits

    def lora_of(self, share: StepRows) -> StepLora | None:
        """The adapters of a step's rows; None if no row has one. Raises: PlanRejected, if one was unloaded meanwhile."""
        spans: dict[int, list[np.ndarray]] = {}
        for row, start, count in zip(share.rows, share.starts, share.counts, strict=True):
            if row.adapter_id:
                spans.setdefault(row.adapter_id, []).append(np.arange(start, start + count))
        if not spans:
            return None
        gone = spans.keys() - self.adapters.keys()
        if gone:
            raise PlanRejected(f"Adapter {min(gone)} was unloaded under a plan that runs it.")
        tokens = np.concatenate([span for parts in spans.values() for span in parts])
        counts = tuple(sum(map(len, parts)) for parts in spans.values())
        adapters = [self.adapters[adapter_id] for adapter_id in spans]
        batch = LoraBatch(LoraRows(torch.from_numpy(tokens), counts), [adapter.weights for adapter in adapters])
        return StepLora(batch, tuple(adapter.table for adapter in adapters))


def load_cpu_adapter(spec: LoadSpec, ground: Ground, progress: Callable[[int, int], None]) -> CpuAdapter:
    """Copy an adapter into place. Raises: PlanRejected, if the offset does not fit it; ModelCorrupt; ModelUnsupported."""
    files = open_adapter(spec.source, ground.ops.pages.dtype)
    is_placed = len(spec.offsets) == 1 and not spec.space_ids and not spec.slots
    if not is_placed or spec.offsets[0] % ALIGN_BYTES or not 0 <= spec.offsets[0] <= ground.arena.size_bytes - files.size_bytes:
        raise PlanRejected(f"Adapter {spec.model_id} has one segment of {files.size_bytes} bytes, aligned to {ALIGN_BYTES}, and no spaces.")
    began, places = perf_counter(), ((spec.offsets[0], files.size_bytes),)
    target = Target(ground.arena.bytes, spec.offsets, ground.ops.pages.dtype)
    num_corrupt = 0
    if spec.host_offsets and ground.host is not None:
        num_corrupt = len(bring_segments(ground.arena, ground.host, spec, [files.size_bytes], (ground.copier, progress)))
        if not num_corrupt:
            arrival = Arrival(files.size_bytes, perf_counter() - began)
            return _adapter(spec, view_adapter(files, target), places, arrival)
    weights = load_adapter(files, target, progress)
    return _adapter(spec, weights, places, Arrival(0, perf_counter() - began, num_corrupt))


def _adapter(spec: LoadSpec, weights: AdapterWeights, places: tuple[tuple[int, int], ...], arrival: Arrival) -> CpuAdapter:
    [(_, size_bytes)] = places
    return CpuAdapter(spec.base_id, weights, size_bytes, places, arrival, adapter_table(weights))
