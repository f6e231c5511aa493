"""One NVIDIA device as a driver.

    apply(plan)   pages on the copy stream, rows and tables on the compute stream; nothing is waited for but what a page check needs
    step(k)       `drivers.cuda.steps`: queued ahead, answered in order

The host keeps the same `RowTable` as the CPU driver: it is the truth of rows, and the device's tables follow it. Never run on a device yet.

Invariants
1. `_loaded` is replaced, never changed in place: a load in another thread is seen by steps wholly or not at all.
2. A plan is checked before anything of it is carried out; pages that fail to arrive leave the rows as they were.
3. Memory changes its owner only behind the last step that was queued (`_quiet`): an unload, a load and a slab wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from drivers.contract import Capabilities, CopyTimes, InspectSpec, LoadedModel, LoadSpec, ModelSpec, OpenSpec, Plan, RowResult, StepResult
from drivers.copier import Copier
from drivers.cuda.adapters import load_cuda_adapter
from drivers.cuda.answers import answers
from drivers.cuda.loaded import Loaded
from drivers.cuda.loading import Limits, load_model, make_ready
from drivers.cuda.model import open_files
from drivers.cuda.options import Options
from drivers.cuda.pages import CudaMover
from drivers.cuda.runtime import DeviceArena, Runtime
from drivers.cuda.steps import StepQueue
from drivers.cuda.weights import WeightCourier
from drivers.errors import DeviceLost, ModelUnsupported, OptionUnknown, PlanRejected
from drivers.hostmem import HostMemory
from drivers.models.adapter import inspect_adapter
from drivers.models.loader import PageShape
from drivers.plan_check import check_rows
from drivers.rows import RowTable

VERSION = "1"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GRANULE_ALIGN = 64
COPY_THREADS = 4  # that read weights, unless said


def nvidia_runtime(device_idx: int) -> Runtime:
    """A device that this process sees. Raises: DriverUnavailable."""
    from drivers.cuda.device import CudaRuntime

    return CudaRuntime(device_idx)


@dataclass(frozen=True, slots=True)
class Opened:
    """What `open` takes."""

    runtime: Runtime
    arena: DeviceArena
    host: HostMemory | None
    pages: PageShape
    mover: CudaMover
    rows: RowTable
    courier: WeightCourier
    options: Options
    max_rows: int
    max_step_tokens: int
    is_fixed: bool  # no bit may depend on the batch

    @property
    def limits(self) -> Limits:
        """What loads are told of steps."""
        return (self.max_rows, self.max_step_tokens), self.options


class CudaDriver:
    """See `drivers.contract.Driver`."""

    def __init__(self, make_runtime: Callable[[int], Runtime] = nvidia_runtime) -> None:
        self._make_runtime = make_runtime
        self._opened_as: Opened | None = None
        self._loaded = Loaded()
        self._publishing = threading.Lock()
        self._num_steps = 0  # of the plan applied last

    def probe(self) -> Capabilities:
        """Say what the first device offers, until one is opened, without taking anything. Raises: DriverUnavailable."""
        runtime = self._make_runtime(0) if self._opened_as is None else self._opened_as.runtime
        facts = runtime.facts()
        return Capabilities(
            driver="cuda",
            version=VERSION,
            device_name=facts.name,
            memory_bytes=facts.memory_bytes,
            dtypes=tuple(DTYPES),
            quantizations=("int8", "int4"),
            kv_quantizations=kv_quants_of(runtime),
            graph=True,
            batch_invariant=True,
            gives_back=facts.gives_back,
        )

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        """Take the arena, and map and pin the host tier. Raises: DeviceOutOfMemory, OptionUnknown, PlanRejected, DriverUnavailable."""
        if self._opened_as is not None:
            raise PlanRejected("The driver is open already.")
        options = check_open(spec)
        runtime = self._make_runtime(options.device)
        try:
            self._opened_as = _take(spec, runtime, host_fd, options)
        except BaseException:
            runtime.close()
            raise

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        """Read config and headers of a model or an adapter. Raises: ModelUnsupported, ModelCorrupt."""
        device = self._opened()
        if spec.base:
            _check_adapted(device)
            return inspect_adapter(spec, device.pages)
        return open_files(spec, device.pages, kv_quants_of(device.runtime), is_fixed=device.is_fixed).spec

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        """Copy the weights of a model or an adapter into place, build kernels and capture decode steps.

        Raises: ModelUnsupported, ModelCorrupt, PlanRejected, UnknownModel, DeviceOutOfMemory.
        """
        device = self._opened()
        self._loaded.check_free(spec)
        self._quiet()  # invariant 3
        with torch.inference_mode():
            return self._load_adapter(spec, device, progress) if spec.base_id else self._load_model(spec, device, progress)

    def _load_model(self, spec: LoadSpec, device: Opened, progress: Callable[[int, int], None]) -> LoadedModel:
        files = open_files(spec.source, device.pages, kv_quants_of(device.runtime), is_fixed=device.is_fixed)
        model, told = load_model(files, spec, (device.runtime, device.arena, device.courier), device.limits, progress)
        make_ready(device.runtime, model, self._loaded.adapters_of(spec.model_id), device.limits)
        queue = StepQueue(device.runtime, model, device.options.run_ahead, device.max_rows)
        with self._publishing:
            self._loaded = self._loaded.with_model(spec.model_id, model, queue)  # invariant 1
        return told

    def _load_adapter(self, spec: LoadSpec, device: Opened, progress: Callable[[int, int], None]) -> LoadedModel:
        _check_adapted(device)
        adapter, told = load_cuda_adapter(spec, (device.arena, device.courier), device.pages.dtype, progress)
        make_ready(device.runtime, self._loaded.models[spec.base_id], [adapter], device.limits)
        with self._publishing:
            self._loaded = self._loaded.with_adapter(spec.model_id, adapter)  # invariant 1
        return told

    def unload(self, model_id: int) -> None:
        """Forget a model or an adapter. Raises: UnknownModel."""
        with self._publishing:
            less = self._loaded.without(model_id)
            self._quiet()  # invariant 3
            self._loaded = less

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy a model or an adapter to the host tier; see the contract. Raises: UnknownModel, PlanRejected."""
        return self._opened().courier.park(self._loaded.places(model_id), host_offsets)

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Let the device have the memory of free slabs. Raises: PlanRejected."""
        self._quiet()  # invariant 3
        self._opened().arena.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have the memory of slabs again. Raises: DeviceOutOfMemory, PlanRejected."""
        self._opened().arena.take(slabs)

    def apply(self, plan: Plan) -> None:
        """Carry out a plan but for its steps. Raises: PlanRejected, before anything changed; PageCorrupt, see the contract."""
        device, loaded = self._opened(), self._loaded
        device.mover.check(plan, loaded.spaces)  # invariant 2
        check_rows(plan, device.rows, loaded.limits())
        for queue in loaded.queues.values():
            queue.forget()
        with torch.inference_mode():
            device.mover.carry_out(plan, loaded.spaces)
            started = device.rows.apply(plan)
            patched = {patch.slot: row.model_id for patch in plan.patches if (row := device.rows.row(patch.slot)) is not None}
            for model_id, model in loaded.models.items():
                rows = [row for row in started if row.model_id == model_id]
                if rows:
                    model.seats.start(rows)
                model.seats.patch([patch for patch in plan.patches if patched.get(patch.slot) == model_id])
            if plan.num_steps == 0:
                device.mover.settle()
        self._num_steps = plan.num_steps

    def copied(self) -> CopyTimes:
        """What pages were copied since this was asked last, and how long it took."""
        return self._opened().mover.copied()

    def step(self, step_idx: int) -> StepResult:
        """Answer one step of the plan applied last. Raises: PlanRejected, if it is not the next one; DeviceLost."""
        device, loaded = self._opened(), self._loaded
        began = time.perf_counter()
        results: list[RowResult] = []
        num_tokens = 0
        with torch.inference_mode():
            shares = device.rows.take(step_idx)
            flights = [loaded.take(share, step_idx, self._num_steps) for share in shares]
            device.mover.settle()  # beside the step
            for share, flight in zip(shares, flights, strict=True):
                flight.event.wait()
                num_tokens += len(share.tokens)
                results += answers(share, flight, device.rows)
        return StepResult(tuple(results), time.perf_counter() - began, num_tokens)

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        device, self._opened_as = self._opened_as, None
        self._loaded = Loaded()
        if device is not None:
            device.runtime.close()
            if device.host is not None:
                device.host.close()

    def _quiet(self) -> None:
        """Everything that was queued has happened."""
        runtime = self._opened().runtime
        runtime.compute.record().wait()
        runtime.copies.record().wait()

    def _opened(self) -> Opened:
        if self._opened_as is None:
            raise DeviceLost("The driver is not open.")
        return self._opened_as


def kv_quants_of(runtime: Runtime) -> tuple[str, ...]:
    """How pages can be quantized on a device."""
    return ("int8", "fp8") if runtime.facts().has_fp8 else ("int8",)


def _check_adapted(device: Opened) -> None:
    if device.is_fixed:
        raise ModelUnsupported("With batch_invariant the cuda driver runs no adapters: their tiles go by the step. The cpu driver does.")


def _take(spec: OpenSpec, runtime: Runtime, host_fd: int | None, options: Options) -> Opened:
    arena = runtime.arena(spec.num_slabs, spec.slab_bytes)
    host = None if host_fd is None or spec.host_bytes == 0 else HostMemory(host_fd, spec.host_bytes, spec.granule_bytes)
    if host is not None:
        runtime.pin(host.span(0, host.size_bytes))
    return Opened(
        runtime=runtime,
        arena=arena,
        host=host,
        pages=PageShape(spec.page_tokens, spec.granule_bytes, DTYPES[spec.dtype]),
        mover=CudaMover(runtime, arena, host, spec.granule_bytes),
        rows=RowTable(spec.max_rows, spec.max_step_tokens, spec.page_tokens),
        courier=WeightCourier(runtime, arena.bytes, host, Copier(spec.threads or COPY_THREADS)),
        options=options,
        max_rows=spec.max_rows,
        max_step_tokens=spec.max_step_tokens,
        is_fixed=spec.batch_invariant,
    )


def check_open(spec: OpenSpec) -> Options:
    """The options of an open that the driver can do. Raises: OptionUnknown, PlanRejected."""
    options = Options.read(spec.options)
    if spec.dtype not in DTYPES:
        raise OptionUnknown(f"dtype is {spec.dtype!r}; the cuda driver computes in {', '.join(DTYPES)}.")
    if spec.granule_bytes <= 0 or spec.granule_bytes % GRANULE_ALIGN or spec.num_slabs <= 0 or spec.slab_bytes <= 0:
        raise PlanRejected(f"The arena needs slabs, and granules that are a multiple of {GRANULE_ALIGN} bytes.")
    return options
