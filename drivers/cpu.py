"""The host CPU as a device: the driver that every machine has.

Pages and weights lie in one arena (`drivers.arena`), rows are kept in `drivers.rows`. A model's forward pass is native code, or torch where
that does not cover it (`drivers.cpu_ops`); which of the two decides how its weights and pages lie. The host tier is a separate memory
region, and pages move to it by real copies, as they would from any other device.

Invariants
1. Of the page that holds a row's `position`, everything at and beyond it is zero before torch reads it: what is masked out must be
   finite, and a frame may hold the leavings of a page that was cut, forked or lost. Native code reads nothing that it does not see.
2. `_loaded` is replaced, never changed in place: a load in another thread is seen by steps wholly or not at all.
3. A plan is checked before anything of it is carried out; pages that fail to arrive leave the rows as they were.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# Read when torch loads its thread library. Threads that wait have to sleep: spinning, two of them on two cores with one busy neighbour
# made 1.6 tokens/s of the 135M shape; sleeping, 25 to 44.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from drivers.arena import device_bytes
from drivers.contract import (
    Capabilities,
    CopyTimes,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    OpenSpec,
    Plan,
    RowResult,
    StepResult,
)
from drivers.cpu_ground import DTYPES, Ground, open_ground
from drivers.cpu_loaded import Loaded, load_cpu_adapter
from drivers.cpu_model import inspect_cpu_model, load_model
from drivers.cpu_report import op_reports, runs_on
from drivers.drafting import MOST_STEP_TOKENS, Drafter
from drivers.errors import DeviceLost, PlanRejected, StreamBroken
from drivers.models.adapter import inspect_adapter
from drivers.models.runtime import KV_QUANTIZATIONS, QUANTIZATIONS
from drivers.native.isa import levels
from drivers.native.offers import NATIVE
from drivers.ops.implementation import op_names
from drivers.pages import PageMover, fastest_mover
from drivers.plan_check import check_rows
from drivers.rows import RowTable, StepRows
from drivers.stepping import answer_rows, fail_row
from drivers.tails import clear_ahead, clear_opened
from drivers.trial import Pages, prefill_pace
from drivers.weight_image import park_segments

VERSION = "2"


@dataclass(frozen=True, slots=True)
class Device:
    """What `open` takes."""

    mover: PageMover
    rows: RowTable
    ground: Ground
    drafter: Drafter


class CpuDriver:
    """See `drivers.contract.Driver`."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._loaded = Loaded()
        self._paces: dict[InspectSpec, float] = {}  # seconds per token of prefill, by model: tried with its first load
        self._publishing = threading.Lock()  # two writers of `_loaded` at most: a load in its thread, an unload in the worker's

    def probe(self) -> Capabilities:
        """Say what this machine offers, without taking anything."""
        return Capabilities(
            driver="cpu",
            version=VERSION,
            device_name=f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} threads",
            memory_bytes=device_bytes(),
            dtypes=tuple(DTYPES),
            ops=tuple(sorted({*op_names(), *(offer.op for offer in NATIVE), "head_sample"})),
            quantizations=QUANTIZATIONS,
            kv_quantizations=KV_QUANTIZATIONS,
            batch_invariant=True,
            gives_back=True,
            streams=True,
            drafts=True,
            isa=levels()[0],
        )

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        """Take and touch the arena, and map the host tier. Raises: DeviceOutOfMemory, OptionUnknown, PlanRejected."""
        if self._device is not None:
            raise PlanRejected("The driver is open already.")
        ground = open_ground(spec, host_fd)
        self._device = Device(
            mover=fastest_mover(ground.arena, ground.host, ground.ops.table),
            rows=RowTable(spec.max_rows, spec.max_step_tokens, spec.page_tokens),
            ground=ground,
            drafter=Drafter(lambda: self._loaded.models, spec.granule_bytes),
        )

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        """Read config and headers of a model, and decide what runs it. Raises: ModelUnsupported, ModelCorrupt."""
        ground = self._opened().ground
        with torch.inference_mode():
            return inspect_adapter(spec, ground.ops.pages) if spec.base else inspect_cpu_model(spec, ground)

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        """Copy the weights into place; see the contract. Raises: ModelUnsupported, ModelCorrupt, PlanRejected, UnknownModel."""
        ground = self._opened().ground
        began = time.perf_counter()
        self._loaded.check_free(spec)
        with torch.inference_mode():
            if spec.base_id:
                adapter = load_cpu_adapter(spec, ground, progress)
                with self._publishing:
                    self._loaded = self._loaded.with_adapter(spec.model_id, adapter)  # invariant 2
                return adapter.loaded(spec.model_id, time.perf_counter() - began)
            model = load_model(ground.ops.decide(spec.source), spec, ground, progress)
            if model.stream is None and spec.source not in self._paces:
                pages = Pages(model.frames, ground.ops.pages.granule_bytes, model.limit.max_positions, model.limit.vocab_size)
                self._paces[spec.source] = prefill_pace(model.runner, pages, lambda trial, share: trial.forward(share))
        with self._publishing:
            self._loaded = self._loaded.with_model(spec.model_id, model)  # invariant 2
        sizes = [segment.size_bytes for segment in model.decision.files.segments]
        streamed_bytes = sum(size for size, offset in zip(sizes, spec.offsets, strict=True) if offset < 0)
        rate = model.stream.rate if model.stream is not None else 0.0
        return LoadedModel(
            spec.model_id,
            sum(sizes) - streamed_bytes,
            time.perf_counter() - began,
            streamed_bytes,
            rate,
            model.arrival.host_bytes,
            model.arrival.copy_s,
            model.arrival.num_corrupt,
            prefill_s=self._paces.get(spec.source, 0.0),
            runs_on=runs_on(model.decision, ground.ops),
            ops=op_reports(model.decision, ground.ops),
        )

    def unload(self, model_id: int) -> None:
        """Forget a model or an adapter. Raises: UnknownModel."""
        with self._publishing:
            model = self._loaded.models.get(model_id)
            self._loaded = self._loaded.without(model_id)
            self._opened().drafter.forget(model_id)
            if model is not None:
                model.close()

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy a model or an adapter to the host tier; see the contract. Raises: UnknownModel, PlanRejected."""
        ground = self._opened().ground
        if ground.host is None:
            raise PlanRejected("The driver was opened without a host tier.")
        streamed, places = self._loaded.streamed(model_id), self._loaded.places(model_id)
        park = park_segments if streamed is None else streamed.park
        return park(ground.arena, ground.host, places, host_offsets, ground.copier)

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Let the machine have the memory of free slabs. Raises: PlanRejected."""
        self._opened().ground.arena.memory.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have the memory of slabs again. Raises: DeviceOutOfMemory, PlanRejected."""
        self._opened().ground.arena.memory.take(slabs)

    def apply(self, plan: Plan) -> None:
        """Carry out a plan but for its steps. Raises: PlanRejected, before anything changed; PageCorrupt, see the contract."""
        device, loaded = self._opened(), self._loaded
        device.mover.check(plan, loaded.spaces)  # invariant 3
        check_rows(plan, device.rows, loaded.limits())
        with torch.inference_mode():
            device.mover.carry_out(plan, loaded.spaces)
            for row in device.rows.apply(plan):
                clear_ahead(loaded.models[row.model_id].tails, row, row.position, device.rows.page_tokens)  # invariant 1

    def copied(self) -> CopyTimes:
        """What pages were copied since this was asked last, and how long it took."""
        return self._opened().mover.copied()

    def step(self, step_idx: int) -> StepResult:
        """Run one step of the plan applied last. Raises: PlanRejected, if it is not the next one."""
        device = self._opened()
        began = time.perf_counter()
        results: list[RowResult] = []
        failed: dict[int, str] = {}
        num_tokens = 0
        with torch.inference_mode(), device.ground.copier.pacer.step():
            for share in device.rows.take(step_idx, device.drafter.guess, MOST_STEP_TOKENS):
                num_tokens += len(share.tokens)
                try:
                    results += self._run(share)
                except StreamBroken as error:  # it costs this model's rows; nothing of them has moved on
                    results += [fail_row(row, str(error), device.rows) for row in share.rows]
                    failed[share.model_id] = str(error)
        workspace = device.drafter.workspace()
        return StepResult(tuple(results), time.perf_counter() - began, num_tokens, failed, workspace=workspace)

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        device, self._device = self._device, None
        if device is not None:
            device.drafter.close()
        for model in self._loaded.models.values():
            model.close()
        self._loaded = Loaded()
        if device is not None:
            device.ground.close()

    def _opened(self) -> Device:
        if self._device is None:
            raise DeviceLost("The driver is not open.")
        return self._device

    def _run(self, share: StepRows) -> list[RowResult]:
        """One model's share of a step."""
        loaded, rows = self._loaded, self._opened().rows
        model = loaded.models.get(share.model_id)
        if model is None:
            raise PlanRejected(f"Model {share.model_id} was unloaded under a plan that runs it.")
        clear_opened(model.tails, share, rows.page_tokens)  # invariant 1
        hidden = model.runner.forward(share, loaded.lora_of(share))
        results = answer_rows(model.runner, hidden, share, rows, model.decision.table.sample)
        for row, result in zip(share.rows, results, strict=True):
            if result.num_drafted:
                self._opened().drafter.heard(row, result.num_drafted, result.num_drafted - result.num_rejected)
                clear_ahead(model.tails, row, row.position, rows.page_tokens)  # invariant 1: guesses that were wrong
        return results
