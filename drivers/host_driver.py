"""A driver but for its model: everything that the contract asks of one whose arena is memory of the host, whatever it computes.

An author derives from `HostDriver` and writes three methods:

    probe     what the driver can do
    describe  what a model needs: which of its files are read, how large its pages are         (`Described`)
    build     from the weights in their places, what computes a step                           (`HostModel`)

Arena and host tier, moves, loading, parking, row slots, draws, scores and refusals are here; what `probe` does not state is refused before
`describe` is asked. No adapters, no drafts, nothing streamed.

Invariant
1. `_models` and `_frames` are replaced, never changed: a load in another thread is seen by steps wholly or not at all.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from drivers.arena import Arena, FrameShape
from drivers.arrival import Parts, Tiers, bring_weights, check_places
from drivers.contract import Capabilities, CopyTimes, InspectSpec, LoadedModel, LoadSpec, ModelSpec, OpenSpec, Plan, RowResult, StepResult
from drivers.copier import Copier
from drivers.errors import DeviceLost, ModelUnsupported, OptionUnknown, PlanRejected, UnknownModel
from drivers.hostmem import HostMemory
from drivers.load_check import check_ids
from drivers.models.loader import ModelFiles, PageShape, Target
from drivers.ops.table import OpTable
from drivers.pages import PageMover
from drivers.plan_check import check_rows
from drivers.rows import GroupLimit, ModelLimit, RowTable, StepRows
from drivers.stepping import Head, answer_rows
from drivers.weight_image import park_segments


class HostModel(Head, Protocol):
    """What computes a loaded model. `Head` asks for logits beside it."""

    @property
    def runs_on(self) -> str:
        """How, in words; shown to people."""

    def forward(self, share: StepRows) -> Tensor:
        """Compute the tokens of a step, `share.counts[i]` of row i, and keep in its frames what later ones need.

        Answers `[num_tokens, ...]`, of which logits are asked for by token. Frames hold anything behind a row's tokens, NaN included.
        """


@dataclass(frozen=True, slots=True)
class Described:
    """A model before it is loaded."""

    told: ModelSpec
    files: ModelFiles  # what is read: as many segments as are told
    frames: tuple[FrameShape, ...]  # one for each KV group that is told


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: HostModel
    limit: ModelLimit
    places: tuple[tuple[int, int], ...]  # offset and size of each segment
    space_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Opened:
    arena: Arena
    host: HostMemory | None
    pages: PageShape
    mover: PageMover
    rows: RowTable
    copier: Copier


class HostDriver(ABC):
    """See `drivers.contract.Driver`."""

    def __init__(self) -> None:
        self._device: _Opened | None = None
        self._models: dict[int, _Loaded] = {}
        self._frames: dict[int, FrameShape] = {}  # by space; pages of a model may stay behind when it is unloaded
        self._publishing = threading.Lock()  # two writers at most: a load in its thread, an unload in the worker's

    @abstractmethod
    def probe(self) -> Capabilities:
        """Say what this driver can do, without taking anything."""

    @abstractmethod
    def describe(self, source: InspectSpec, pages: PageShape) -> Described:
        """Read config and headers of a model. Raises: ModelUnsupported, ModelCorrupt."""

    @abstractmethod
    def build(self, described: Described, weights: Parts, arena: Arena) -> HostModel:
        """What computes the model whose parts lie in the arena, by segment and name."""

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        """Take and touch the arena, and map the host tier. Raises: DeviceOutOfMemory, OptionUnknown, PlanRejected, HostTierInvalid."""
        if self._device is not None:
            raise PlanRejected("The driver is open already.")
        known = self.probe()
        if spec.options or spec.dtype not in known.dtypes:
            options = ", ".join(spec.options) or "none"
            raise OptionUnknown(f"The {known.driver} driver takes no options ({options} given) and computes in {', '.join(known.dtypes)}.")
        if spec.batch_invariant and not known.batch_invariant:
            raise OptionUnknown(f"batch_invariant is true; the {known.driver} driver cannot promise it.")
        if spec.threads:
            torch.set_num_threads(spec.threads)
        arena = Arena(spec.num_slabs * spec.slab_bytes, spec.granule_bytes, spec.slab_bytes)
        host = None if host_fd is None or spec.host_bytes == 0 else HostMemory(host_fd, spec.host_bytes, spec.granule_bytes)
        pages = PageShape(spec.page_tokens, spec.granule_bytes, getattr(torch, spec.dtype))
        rows = RowTable(spec.max_rows, spec.max_step_tokens, spec.page_tokens)
        self._device = _Opened(arena, host, pages, PageMover(arena, host, OpTable()), rows, Copier())

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        """What a model needs. Raises: ModelUnsupported, ModelCorrupt."""
        return self._described(spec).told

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        """Copy the weights into place. Raises: ModelUnsupported, ModelCorrupt, PlanRejected."""
        began = time.perf_counter()
        device = self._opened()
        described = self._described(spec.source)
        check_ids(spec, {model_id: loaded.space_ids for model_id, loaded in self._models.items()})
        if spec.slots:
            raise PlanRejected(f"Model {spec.model_id}: the {self.probe().driver} driver streams no segments.")
        told, segments = described.told, described.files.segments
        check_places(segments, len(told.groups), spec, device.arena.size_bytes)
        target = Target(device.arena.bytes, spec.offsets, device.pages.dtype, device.copier)
        with torch.inference_mode():
            weights, came = bring_weights(described.files, target, Tiers(device.arena, device.host), spec, progress)
            model = self.build(described, weights, device.arena)
        sizes = [segment.size_bytes for segment in segments]
        limits = tuple(GroupLimit(device.arena.num_frames(group.frame_bytes), group.window) for group in told.groups)
        limit = ModelLimit(told.vocab_size, told.max_positions, limits)
        loaded = _Loaded(model, limit, tuple(zip(spec.offsets, sizes, strict=True)), spec.space_ids)
        with self._publishing:
            self._frames = {**self._frames, **dict(zip(spec.space_ids, described.frames, strict=True))}
            self._models = {**self._models, spec.model_id: loaded}
        return LoadedModel(
            spec.model_id,
            sum(sizes),
            time.perf_counter() - began,
            host_bytes=came.host_bytes,
            copy_s=came.copy_s,
            num_corrupt=came.num_corrupt,
            runs_on=model.runs_on,
        )

    def unload(self, model_id: int) -> None:
        """Forget a model. Raises: UnknownModel."""
        with self._publishing:
            self._model(model_id)
            self._models = {other: loaded for other, loaded in self._models.items() if other != model_id}

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy a model to the host tier; see the contract. Raises: UnknownModel, PlanRejected."""
        device, loaded = self._opened(), self._model(model_id)
        if device.host is None:
            raise PlanRejected("The driver was opened without a host tier.")
        return park_segments(device.arena, device.host, loaded.places, host_offsets, device.copier)

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Let the machine have the memory of free slabs. Raises: PlanRejected."""
        self._opened().arena.memory.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have the memory of slabs again. Raises: DeviceOutOfMemory, PlanRejected."""
        self._opened().arena.memory.take(slabs)

    def apply(self, plan: Plan) -> None:
        """Carry out a plan but for its steps. Raises: PlanRejected, before anything changed; PageCorrupt, see the contract."""
        device, frames = self._opened(), self._frames
        device.mover.check(plan, frames)
        check_rows(plan, device.rows, {model_id: loaded.limit for model_id, loaded in self._models.items()})
        with torch.inference_mode():
            device.mover.carry_out(plan, frames)
        device.rows.apply(plan)

    def copied(self) -> CopyTimes:
        """What pages were copied since this was asked last, and how long it took."""
        return self._opened().mover.copied()

    def step(self, step_idx: int) -> StepResult:
        """Run one step of the plan applied last. Raises: PlanRejected, if it is not the next one, or its model was unloaded."""
        device, models = self._opened(), self._models
        began = time.perf_counter()
        results: list[RowResult] = []
        num_tokens = 0
        with torch.inference_mode(), device.copier.pacer.step():
            for share in device.rows.take(step_idx):
                if share.model_id not in models:
                    raise PlanRejected(f"Model {share.model_id} was unloaded under a plan that runs it.")
                model = models[share.model_id].model
                results += answer_rows(model, model.forward(share), share, device.rows, OpTable().sample)
                num_tokens += len(share.tokens)
        return StepResult(tuple(results), time.perf_counter() - began, num_tokens)

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        device, self._device = self._device, None
        self._models, self._frames = {}, {}
        if device is not None:
            device.arena.close()
            if device.host is not None:
                device.host.close()

    def _described(self, source: InspectSpec) -> Described:
        pages, known = self._opened().pages, self.probe()
        if source.base:
            raise ModelUnsupported(f"The {known.driver} driver runs no adapters; leave base out.")
        for name, asked, offered in (("quant", source.quant, known.quantizations), ("kv_quant", source.kv_quant, known.kv_quantizations)):
            if asked and asked not in offered:
                raise ModelUnsupported(f"{name} is {asked!r}; of those the {known.driver} driver has {', '.join(offered) or 'none'}.")
        return self.describe(source, pages)

    def _opened(self) -> _Opened:
        if self._device is None:
            raise DeviceLost("The driver is not open.")
        return self._device

    def _model(self, model_id: int) -> _Loaded:
        if model_id not in self._models:
            raise UnknownModel(f"It has id {model_id}.")
        return self._models[model_id]
