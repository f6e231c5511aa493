"""A real NVIDIA device, through torch, Triton and cuda-bindings. Never run on one yet.

Errors of the device become ours at one place, `translated`: memory that is not there is DeviceOutOfMemory and leaves the device whole; any
other CUDA error means that the process cannot use the device any more (DeviceLost), and NVML is asked what became of it.
"""

from __future__ import annotations

import importlib.util
import logging
import mmap
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drivers import vmm
from drivers.cuda.runtime import DeviceArena, DeviceFacts, Event, Work
from drivers.errors import DeviceLost, DeviceOutOfMemory, DriverUnavailable
from drivers.nvml import health, others
from drivers.slab_memory import SlabMemory
from drivers.triton.table import kernels

logger = logging.getLogger(__name__)

OLDEST = (8, 0)  # compute capability: bfloat16 in matrix units, asynchronous copies to shared memory
FP8 = (8, 9)
EXACT_BYTES = 1 << 20  # torch rounds pinned memory up to powers of two: large buffers are mapped and registered instead
PORTABLE = 1  # cudaHostRegisterPortable: good in whatever context a thread has
WARM_UPS = 2  # runs before a capture: libraries build and choose kernels in them


def check_device(device_idx: int) -> None:
    """Whether everything that the driver needs is there. Raises: DriverUnavailable, saying what to install."""
    if torch.version.cuda is None:
        raise DriverUnavailable(
            f"torch {torch.__version__} is built without CUDA. Install the build for your CUDA version (see pytorch.org/get-started), "
            "and then kerneld[cuda]."
        )
    if importlib.util.find_spec("triton") is None:
        raise DriverUnavailable("triton is missing: pip install 'kerneld[cuda]'.")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        raise DriverUnavailable(
            f"CUDA does not start: {error} torch was built for CUDA {torch.version.cuda}; nvidia-smi shows the driver's."
        ) from error
    if torch.cuda.device_count() <= device_idx:
        raise DriverUnavailable(f"There are {torch.cuda.device_count()} CUDA devices; number {device_idx} was asked for.")
    capability = torch.cuda.get_device_capability(device_idx)
    if capability < OLDEST:
        raise DriverUnavailable(f"The device has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0 (A100) or newer.")


@contextmanager
def translated(uuid: str, wanted_bytes: int = 0) -> Iterator[None]:
    """Errors of the device with that UUID as ours. Raises: DeviceOutOfMemory, DeviceLost."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        detail = f"{str(error).splitlines()[0]} {others(uuid)}".strip()
        raise DeviceOutOfMemory(wanted_bytes, _free_bytes(), detail) from error
    except torch.AcceleratorError as error:
        raise DeviceLost(f"{str(error).splitlines()[0]} {health(uuid)}".strip()) from error
    except RuntimeError as error:
        if not str(error).startswith("Triton Error [CUDA]"):
            raise
        raise DeviceLost(f"{error} {health(uuid)}".strip()) from error


def _free_bytes() -> int:
    """What the device says is left; 0, if it says nothing."""
    try:
        return torch.cuda.mem_get_info()[0]
    except (RuntimeError, AssertionError):
        return 0


class CudaEvent:
    """See `drivers.cuda.runtime.Event`."""

    def __init__(self, stream: torch.cuda.Stream, uuid: str) -> None:
        self._uuid = uuid
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self) -> None:
        """Wait for it. Raises: DeviceLost."""
        with translated(self._uuid):
            self.event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        """Device time between."""
        assert isinstance(earlier, CudaEvent)
        return float(earlier.event.elapsed_time(self.event)) / 1e3


@dataclass(frozen=True, slots=True)
class CudaStream:
    """See `drivers.cuda.runtime.Stream`."""

    stream: torch.cuda.Stream
    uuid: str

    def run(self, work: Work) -> None:
        """Queue work. Raises: DeviceOutOfMemory, DeviceLost."""
        with translated(self.uuid), torch.inference_mode(), torch.cuda.stream(self.stream):
            work()

    def record(self) -> CudaEvent:
        """The point behind all that was queued."""
        with translated(self.uuid):
            return CudaEvent(self.stream, self.uuid)

    def after(self, event: Event) -> None:
        """Go on behind an event."""
        assert isinstance(event, CudaEvent)
        self.stream.wait_event(event.event)


class _Mapped:
    """Memory that torch did not allocate, as it takes it."""

    def __init__(self, memory: SlabMemory, size_bytes: int) -> None:
        self.memory = memory
        data = (memory.base, False)
        self.__cuda_array_interface__ = {"shape": (size_bytes,), "typestr": "|u1", "data": data, "version": 3, "strides": None}


class CudaRuntime:
    """See `drivers.cuda.runtime.Runtime`."""

    def __init__(self, device_idx: int) -> None:
        """Raises: DriverUnavailable."""
        check_device(device_idx)
        self.device = torch.device("cuda", device_idx)
        torch.cuda.set_device(self.device)
        self._idx = device_idx
        self._uuid = f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
        self.kernels = kernels()
        self.compute = self._stream()
        self.copies = self._stream()
        self._captures = self._stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._pinned: dict[int, int] = {}  # address -> bytes, registered
        self._memory: SlabMemory | None = None

    def facts(self) -> DeviceFacts:
        """What the library says of it."""
        told = torch.cuda.get_device_properties(self.device)
        return DeviceFacts(told.name, told.total_memory, (told.major, told.minor) >= FP8, _has_bindings())

    def arena(self, num_slabs: int, slab_bytes: int) -> DeviceArena:
        """Virtual memory in slabs, or one plain piece where slabs are too small for that. Raises: DeviceOutOfMemory."""
        size_bytes = num_slabs * slab_bytes
        torch.zeros(1, device=self.device)  # the context of the device is current from here on
        if _has_bindings():
            calls = vmm.CudaDriver(self._idx)
            if slab_bytes % calls.granularity() == 0:
                self._memory = vmm.VirtualMemory(calls, num_slabs, slab_bytes)
                return DeviceArena(torch.as_tensor(_Mapped(self._memory, size_bytes), device=self.device), self._memory)
        with translated(self._uuid, size_bytes):
            return DeviceArena(torch.empty(size_bytes, dtype=torch.uint8, device=self.device), None)

    def pinned(self, size_bytes: int) -> Tensor:
        """Host memory for copies, of exactly that size if it is large. Raises: DeviceOutOfMemory."""
        if size_bytes < EXACT_BYTES:
            with translated(self._uuid, size_bytes):
                return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
        mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        array = np.frombuffer(mapping, dtype=np.uint8)
        address = array.ctypes.data
        self._register(address, size_bytes)
        weakref.finalize(array, self._unregister, address)  # the tensor holds the array
        return torch.from_numpy(array)

    def pin(self, memory: memoryview) -> None:
        """Register memory that is mapped and present. Raises: DeviceOutOfMemory."""
        self._register(np.frombuffer(memory, dtype=np.uint8).ctypes.data, memory.nbytes)

    def unpin(self, memory: memoryview) -> None:
        """Take that back."""
        self._unregister(np.frombuffer(memory, dtype=np.uint8).ctypes.data)

    def sent(self, values: np.ndarray) -> Tensor:
        """Through fresh pinned memory, which torch keeps until the copy has happened."""
        return torch.from_numpy(values).pin_memory().to(self.device, non_blocking=True)

    def capture(self, work: Work) -> Work:
        """A graph, in memory that all graphs of the device share: they never run at the same time. Raises: DeviceOutOfMemory."""
        for _ in range(WARM_UPS):
            self._captures.run(work)
        self._captures.record().wait()
        graph = torch.cuda.CUDAGraph()
        with (
            translated(self._uuid),
            torch.inference_mode(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._captures.stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay

    def close(self) -> None:
        """Unregister memory on every orderly way out: a kill with much of it registered takes tens of seconds to be gone."""
        try:
            with translated(self._uuid):
                torch.cuda.synchronize(self.device)
        except DeviceLost as error:
            logger.warning("The device was lost before it was closed", extra={"reason": str(error)})
        for address in list(self._pinned):
            self._unregister(address)
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def _stream(self) -> CudaStream:
        return CudaStream(torch.cuda.Stream(self.device), self._uuid)  # type: ignore[no-untyped-call]

    def _register(self, address: int, size_bytes: int) -> None:
        code = int(torch.cuda.cudart().cudaHostRegister(address, size_bytes, PORTABLE))  # type: ignore[no-untyped-call]
        if code:
            raise DeviceOutOfMemory(size_bytes, 0, f"cudaHostRegister answered {code}; see `ulimit -l` and the memory of the machine.")
        self._pinned[address] = size_bytes

    def _unregister(self, address: int) -> None:
        if self._pinned.pop(address, None) is not None:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def _has_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings.driver") is not None
    except ModuleNotFoundError:
        return False
