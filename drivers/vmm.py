"""CUDA virtual memory as the memory of an arena: one range of addresses, in which slabs are mapped to physical memory one by one.

    reserve ---> |  slab 0  |  slab 1  |   away   |  slab 3  |        addresses, kept until `close`
                      |          |                     |
                 create+map+set access            unmap+release       physical memory: a handle for each held slab

Because a slab comes back at its old address, tensors and captured graphs that name it stay good.

Invariants, beside those of `drivers.slab_memory`
1. A held slab has one handle, mapped once, with access set after the map; an away slab has none.
2. Nothing is unmapped before the device has finished what was queued (`synchronize`); that nothing prepared but not yet queued names
   the slab is the caller's part.
3. A call that fails half way undoes what it did: no handle is left over.

Setting access can say NOT_READY while another thread queues work: the device is brought to rest, and the call tried again, a few times.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from drivers.errors import DeviceLost, DeviceOutOfMemory, DriverUnavailable, PlanRejected
from drivers.slab_memory import check_slabs

ACCESS_TRIES = 4


class NotReady(Exception):
    """The device is busy with something that the call has to wait for."""


class CudaCalls(Protocol):
    """What is asked of the CUDA driver, on one device and in its context. Sizes and addresses are multiples of `granularity`."""

    def granularity(self) -> int:
        """Bytes of which every size is a multiple."""

    def free_bytes(self) -> int:
        """Memory of the device that nobody holds."""

    def reserve(self, size_bytes: int) -> int:
        """Reserve addresses. Raises: DeviceOutOfMemory."""

    def unreserve(self, address: int, size_bytes: int) -> None:
        """Give addresses back; nothing is mapped there."""

    def create(self, size_bytes: int) -> int:
        """Take physical memory; answers its handle. What it holds is not said. Raises: DeviceOutOfMemory."""

    def release(self, handle: int) -> None:
        """Give up a handle; its memory goes back once it is mapped nowhere."""

    def map(self, address: int, size_bytes: int, handle: int) -> None:
        """Map a handle at reserved addresses where nothing is mapped."""

    def unmap(self, address: int, size_bytes: int) -> None:
        """Unmap what was mapped at an address."""

    def set_access(self, address: int, size_bytes: int) -> None:
        """Let the device read and write what is mapped. Raises: NotReady."""

    def export(self, handle: int) -> int:
        """A file descriptor of the memory behind a handle; the caller closes it."""

    def synchronize(self) -> None:
        """Wait until everything that was queued has finished."""


class VirtualMemory:
    """See `drivers.slab_memory.SlabMemory`."""

    def __init__(self, cuda: CudaCalls, num_slabs: int, slab_bytes: int) -> None:
        """Reserve the addresses and take every slab. Raises: DeviceOutOfMemory, PlanRejected; nothing is left behind."""
        granularity = cuda.granularity()
        if slab_bytes % granularity:
            raise PlanRejected(f"Slabs of {slab_bytes} bytes are no multiple of the {granularity} of this device; see memory.slab_bytes.")
        self.num_slabs = num_slabs
        self.slab_bytes = slab_bytes
        self._cuda = cuda
        self._handles: dict[int, int] = {}
        self._base = cuda.reserve(num_slabs * slab_bytes)
        self._is_open = True
        try:
            self.take(range(num_slabs))
        except BaseException:
            self.close()
            raise

    @property
    def base(self) -> int:
        """Address of slab 0."""
        return self._base

    @property
    def held_bytes(self) -> int:
        """Bytes of physical memory."""
        return len(self._handles) * self.slab_bytes

    def is_held(self, slab: int) -> bool:
        """Whether a slab may be used."""
        return slab in self._handles

    def take(self, slabs: Sequence[int]) -> None:
        """Map new memory at these slabs. Raises: DeviceOutOfMemory, DeviceLost, PlanRejected; nothing is changed."""
        check_slabs(self, slabs, are_held=False)
        taken: list[int] = []
        try:
            for slab in slabs:
                self._handles[slab] = self._new(self._base + slab * self.slab_bytes)
                taken.append(slab)
        except BaseException:
            self._drop(taken)
            raise

    def give_back(self, slabs: Sequence[int]) -> None:
        """Bring the device to rest, and give the memory of these slabs back. Raises: PlanRejected; nothing is changed."""
        check_slabs(self, slabs, are_held=True)
        self._drop(slabs)

    def export(self, slab: int) -> int:
        """A file descriptor by which another process maps a slab; the caller closes it.

        The memory lives on as long as any process holds it, also after `give_back`. Raises: PlanRejected, if the slab is not held.
        """
        check_slabs(self, (slab,), are_held=True)
        return self._cuda.export(self._handles[slab])

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        if self._is_open:
            self._is_open = False
            self._drop(list(self._handles))
            self._cuda.unreserve(self._base, self.num_slabs * self.slab_bytes)

    def _new(self, address: int) -> int:
        """Memory mapped at an address (invariants 1 and 3)."""
        handle = self._cuda.create(self.slab_bytes)
        try:
            self._cuda.map(address, self.slab_bytes, handle)
            try:
                self._allow(address)
            except BaseException:
                self._cuda.unmap(address, self.slab_bytes)
                raise
        except BaseException:
            self._cuda.release(handle)
            raise
        return handle

    def _allow(self, address: int) -> None:
        for _ in range(ACCESS_TRIES):
            try:
                self._cuda.set_access(address, self.slab_bytes)
            except NotReady:
                self._cuda.synchronize()
            else:
                return
        raise DeviceLost(f"Access to the slab at {address:#x} could not be set in {ACCESS_TRIES} tries: the device does not come to rest.")

    def _drop(self, slabs: Sequence[int]) -> None:
        if slabs:
            self._cuda.synchronize()  # invariant 2
        for slab in slabs:
            self._cuda.unmap(self._base + slab * self.slab_bytes, self.slab_bytes)
            self._cuda.release(self._handles.pop(slab))


class CudaDriver:
    """`CudaCalls` through cuda-bindings. The device's context is current in every thread that calls."""

    def __init__(self, device_idx: int) -> None:
        """Raises: DriverUnavailable, if cuda-bindings or the CUDA driver is missing."""
        try:
            self._api: Any = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise DriverUnavailable("cuda-bindings is missing: pip install cuda-bindings.") from error
        api = self._api
        self._properties = api.CUmemAllocationProp()
        self._properties.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._properties.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._properties.location.id = device_idx
        self._descriptor = api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self._properties.requestedHandleTypes = self._descriptor
        self._access = api.CUmemAccessDesc()
        self._access.location = self._properties.location
        self._access.flags = api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE

    def granularity(self) -> int:
        """Bytes of which every size is a multiple."""
        smallest = self._api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        return int(self._call(self._api.cuMemGetAllocationGranularity, self._properties, smallest))

    def free_bytes(self) -> int:
        """Memory of the device that nobody holds."""
        error, free, _total = self._api.cuMemGetInfo()
        self._check(error, "cuMemGetInfo", 0)
        return int(free)

    def reserve(self, size_bytes: int) -> int:
        """Reserve addresses. Raises: DeviceOutOfMemory, DeviceLost."""
        return int(self._call(self._api.cuMemAddressReserve, size_bytes, 0, 0, 0, wanted_bytes=size_bytes))

    def unreserve(self, address: int, size_bytes: int) -> None:
        """Give addresses back. Raises: DeviceLost."""
        self._call(self._api.cuMemAddressFree, address, size_bytes)

    def create(self, size_bytes: int) -> int:
        """Take physical memory. Raises: DeviceOutOfMemory, DeviceLost."""
        return int(self._call(self._api.cuMemCreate, size_bytes, self._properties, 0, wanted_bytes=size_bytes))

    def release(self, handle: int) -> None:
        """Give up a handle. Raises: DeviceLost."""
        self._call(self._api.cuMemRelease, handle)

    def map(self, address: int, size_bytes: int, handle: int) -> None:
        """Map a handle. Raises: DeviceOutOfMemory, DeviceLost."""
        self._call(self._api.cuMemMap, address, size_bytes, 0, handle, 0, wanted_bytes=size_bytes)

    def unmap(self, address: int, size_bytes: int) -> None:
        """Unmap what was mapped at an address. Raises: DeviceLost."""
        self._call(self._api.cuMemUnmap, address, size_bytes)

    def set_access(self, address: int, size_bytes: int) -> None:
        """Let the device read and write. Raises: NotReady, DeviceLost."""
        self._call(self._api.cuMemSetAccess, address, size_bytes, [self._access], 1)

    def export(self, handle: int) -> int:
        """A file descriptor of the memory. Raises: DeviceLost."""
        return int(self._call(self._api.cuMemExportToShareableHandle, handle, self._descriptor, 0))

    def synchronize(self) -> None:
        """Wait until everything that was queued has finished. Raises: DeviceLost."""
        self._call(self._api.cuCtxSynchronize)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: object, wanted_bytes: int = 0) -> Any:
        error, *answers = function(*arguments)
        self._check(error, function.__name__, wanted_bytes)
        return answers[0] if answers else None

    def _check(self, error: Any, name: str, wanted_bytes: int) -> None:
        results = self._api.CUresult
        if error == results.CUDA_SUCCESS:
            return
        if error == results.CUDA_ERROR_NOT_READY:
            raise NotReady(name)
        if error == results.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceOutOfMemory(wanted_bytes, self.free_bytes(), name)
        raise DeviceLost(f"{name} answered {error!s}.")
