"""Several devices as one: each holds some layers of every model, and their part of every page.

Memory is shared out by granules (`drivers.split.shares`), so the front sees one arena, and a page of a context is on all stages or on none.
A step goes through the stages one behind the other; rows, draws and the host tier are here. What a stage is, is in `drivers.split.stage`.

Invariants
1. Of the page that holds a row's position, everything at and beyond it is zero before a stage reads it that asks for that (`drivers.cpu`).
2. `_models` and `_spaces` are replaced, never changed: a load in another thread is seen by steps wholly or not at all.
3. A plan is checked before anything of it is carried out; pages that fail to arrive leave the rows as they were.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see `drivers.cpu`

import msgspec
import torch

from drivers.contract import Capabilities, CopyTimes, InspectSpec, LoadedModel, LoadSpec, ModelSpec, OpenSpec, Plan, RowResult, StepResult
from drivers.copier import Copier
from drivers.drafting import MOST_STEP_TOKENS, Drafter
from drivers.errors import DeviceLost, PlanRejected, UnknownModel
from drivers.hostmem import HostMemory
from drivers.load_check import check_ids
from drivers.ops.table import fused_table
from drivers.plan_check import check_rows
from drivers.rows import RowTable, StepRows
from drivers.split.images import Places, park_bundles
from drivers.split.loading import Tiers, load_model
from drivers.split.memory import SplitMemory
from drivers.split.model import SplitModel
from drivers.split.options import SplitOptions
from drivers.split.pages import SplitFrame, SplitMover
from drivers.split.plan import SplitPlan, plan_of
from drivers.split.shares import Shares
from drivers.split.stage import Stage
from drivers.split.stages import make_stage
from drivers.stepping import answer_rows
from drivers.tails import clear_ahead, clear_opened

VERSION = "1"
NO_OPTIONS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Opened:
    """What `open` takes."""

    memory: SplitMemory
    host: HostMemory | None
    mover: SplitMover
    rows: RowTable
    drafter: Drafter
    copier: Copier  # of weights, to and from the host tier


class SplitDriver:
    """See `drivers.contract.Driver`."""

    def __init__(self, make: Callable[[str], Stage] = make_stage, options: Mapping[str, str] = NO_OPTIONS) -> None:
        """`make`: a stage by the name of its driver. `options`: those of an open that names no parts."""
        self._make = make
        self._options = options
        self._device: Opened | None = None
        self._chosen = SplitOptions.read(options)
        self._stages = tuple(make(part) for part in self._chosen.parts)  # that `probe` speaks of until others are opened
        self._models: Mapping[int, SplitModel] = {}
        self._spaces: Mapping[int, SplitFrame] = {}  # those of unloaded models stay: their pages may still be moved
        self._publishing = threading.Lock()  # two writers at most: a load in its thread, an unload in the worker's

    def probe(self) -> Capabilities:
        """Say what the parts offer together, without taking anything. Raises: DriverUnavailable."""
        told = [stage.probe() for stage in self._stages]
        return Capabilities(
            driver="split",
            version="+".join((VERSION, *(f"{each.driver} {each.version}" for each in told))),
            device_name=" + ".join(each.device_name for each in told),
            memory_bytes=sum({device: each.memory_bytes for device, each in zip(self._chosen.devices, told, strict=True)}.values()),
            dtypes=_common(each.dtypes for each in told),
            ops=tuple(sorted({op for each in told for op in each.ops})),
            quantizations=_common(each.quantizations for each in told),
            kv_quantizations=_common(each.kv_quantizations for each in told),
            batch_invariant=all(each.batch_invariant for each in told),
            gives_back=all(each.gives_back for each in told),
            drafts=True,
            isa=next((each.isa for each in told if each.isa), ""),
        )

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        """Take memory on every part, and map the host tier. Raises: DeviceOutOfMemory, OptionUnknown, PlanRejected, DriverUnavailable."""
        if self._device is not None:
            raise PlanRejected("The driver is open already.")
        options = SplitOptions.read({**self._options, **spec.options})
        shares = _shares(spec, options)
        stages = tuple(self._make(part) for part in options.parts)
        memory = SplitMemory(stages, shares, spec.num_slabs * (spec.slab_bytes // spec.granule_bytes))
        try:
            _open_stages(spec, options, memory)
            host = None if host_fd is None or spec.host_bytes == 0 else HostMemory(host_fd, spec.host_bytes, spec.granule_bytes)
        except BaseException:
            memory.close()
            raise
        rows = RowTable(spec.max_rows, spec.max_step_tokens, spec.page_tokens)
        self._chosen, self._stages = options, stages
        self._device = Opened(memory, host, SplitMover(memory, host), rows, Drafter(dict, spec.granule_bytes), Copier())

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        """Read config and headers of a model, and share its layers out. Raises: ModelUnsupported, ModelCorrupt."""
        with torch.inference_mode():
            return self._plan(spec).told

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        """Copy the weights into place on every part. Raises: ModelUnsupported, ModelCorrupt, PlanRejected, DeviceOutOfMemory."""
        device = self._opened()
        check_ids(spec, {model_id: model.space_ids for model_id, model in self._models.items()})
        with torch.inference_mode():
            model, told = load_model(self._plan(spec.source), spec, Tiers(device.memory, device.host, device.copier), progress)
        with self._publishing:  # invariant 2
            self._spaces = {**self._spaces, **dict(zip(spec.space_ids, model.frames, strict=True))}
            self._models = {**self._models, spec.model_id: model}
        return told

    def unload(self, model_id: int) -> None:
        """Forget a model. Raises: UnknownModel."""
        with self._publishing:
            model = self._model(model_id)
            self._models = {other: each for other, each in self._models.items() if other != model_id}
            model.close()

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy a model to the host tier; see the contract. Raises: UnknownModel, PlanRejected."""
        device, model = self._opened(), self._model(model_id)
        if device.host is None:
            raise PlanRejected("The driver was opened without a host tier.")
        return park_bundles(Places(model.plan.sizes, model.offsets, host_offsets), device.memory, device.host, device.copier)

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Let the devices have the memory of free slabs. Raises: PlanRejected."""
        self._opened().memory.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have the memory of slabs again. Raises: DeviceOutOfMemory, PlanRejected."""
        self._opened().memory.take(slabs)

    def apply(self, plan: Plan) -> None:
        """Carry out a plan but for its steps. Raises: PlanRejected, before anything changed; PageCorrupt, see the contract."""
        device, spaces, models = self._opened(), self._spaces, self._models
        device.mover.check(plan, spaces)  # invariant 3
        check_rows(plan, device.rows, {model_id: model.limit for model_id, model in models.items()})
        with torch.inference_mode():
            device.mover.carry_out(plan, spaces)
            for row in device.rows.apply(plan):
                clear_ahead(models[row.model_id].tails, row, row.position, device.rows.page_tokens)  # invariant 1

    def copied(self) -> CopyTimes:
        """What pages were copied since this was asked last, and how long it took."""
        return self._opened().mover.copied()

    def step(self, step_idx: int) -> StepResult:
        """Run one step of the plan applied last. Raises: PlanRejected, if it is not the next one, or its model was unloaded."""
        device, began = self._opened(), time.perf_counter()
        results: list[RowResult] = []
        num_tokens = 0
        with torch.inference_mode(), device.copier.pacer.step():
            for share in device.rows.take(step_idx, device.drafter.guess, MOST_STEP_TOKENS):
                num_tokens += len(share.tokens)
                results += self._run(share, device)
        return StepResult(tuple(results), time.perf_counter() - began, num_tokens)

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        device, self._device = self._device, None
        models, self._models, self._spaces = self._models, {}, {}
        for model in models.values():
            model.close()
        if device is not None:
            device.drafter.close()
            device.memory.close()
            if device.host is not None:
                device.host.close()

    def _run(self, share: StepRows, device: Opened) -> list[RowResult]:
        """One model's share of a step."""
        model, page_tokens = self._models.get(share.model_id), device.rows.page_tokens
        if model is None:
            raise PlanRejected(f"Model {share.model_id} was unloaded under a plan that runs it.")
        clear_opened(model.tails, share, page_tokens)  # invariant 1
        results = answer_rows(model, model.forward(share), share, device.rows, fused_table().sample)
        for row, result in zip(share.rows, results, strict=True):
            if result.num_drafted:
                device.drafter.heard(row, result.num_drafted, result.num_drafted - result.num_rejected)
                clear_ahead(model.tails, row, row.position, page_tokens)  # invariant 1: guesses that were wrong
        return results

    def _plan(self, source: InspectSpec) -> SplitPlan:
        device = self._opened()
        return plan_of(source, device.memory.stages, device.memory.shares, device.rows.page_tokens)

    def _model(self, model_id: int) -> SplitModel:
        if model_id not in self._models:
            raise UnknownModel(f"It has id {model_id}.")
        return self._models[model_id]

    def _opened(self) -> Opened:
        if self._device is None:
            raise DeviceLost("The driver is not open.")
        return self._device


def _shares(spec: OpenSpec, options: SplitOptions) -> Shares:
    """How granules are shared out. Raises: PlanRejected."""
    if spec.granule_bytes <= 0 or spec.slab_bytes <= 0 or spec.slab_bytes % spec.granule_bytes or spec.num_slabs <= 0:
        raise PlanRejected(f"The arena needs slabs of whole granules; they are of {spec.slab_bytes} and {spec.granule_bytes} bytes.")
    try:
        return Shares.of(options.shares, spec.granule_bytes)
    except ValueError as error:
        raise PlanRejected(f"A granule of {spec.granule_bytes} bytes cannot be shared out: {error}") from error


def _open_stages(spec: OpenSpec, options: SplitOptions, memory: SplitMemory) -> None:
    """Open each with its share. Where some are kept to certain processors, this thread, which computes for all, is kept to those of any."""
    everywhere, chosen = os.sched_getaffinity(0), set[int]()
    slab_granules = spec.slab_bytes // spec.granule_bytes
    try:
        for stage, granule, own in zip(memory.stages, memory.shares.granule_bytes, options.options, strict=True):
            size_bytes = slab_granules * granule
            stage.open(msgspec.structs.replace(spec, slab_bytes=size_bytes, granule_bytes=granule, host_bytes=0, options=dict(own)))
            mine = os.sched_getaffinity(0)
            if mine != everywhere:
                chosen |= mine
                os.sched_setaffinity(0, everywhere)  # the next may have others
    finally:
        os.sched_setaffinity(0, chosen or everywhere)


def _common(offers: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """What all parts have, in the order of the first."""
    first, *others = offers
    return tuple(each for each in first if all(each in other for other in others))
