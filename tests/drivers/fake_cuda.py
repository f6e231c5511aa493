"""The CUDA driver's virtual memory calls without a device: real bytes behind handles, and no call that the driver would not allow.

Fresh memory holds garbage, as hardware may leave it. What is illegal is an AssertionError, never an answer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from drivers.errors import DeviceOutOfMemory
from drivers.vmm import NotReady

GRANULARITY = 256
FIRST_ADDRESS = 1 << 32


@dataclass
class Mapped:
    """A handle at an address."""

    handle: int
    size_bytes: int
    has_access: bool = False


@dataclass
class FakeCuda:
    """See `drivers.vmm.CudaCalls`."""

    memory_bytes: int
    not_ready: int = 0  # so many of the next `set_access` say NOT_READY, each until the device is brought to rest
    queued: set[int] = field(default_factory=set)  # addresses that queued work may touch
    garbage: int = 0xA5
    handles: dict[int, bytearray] = field(default_factory=dict)
    mapped: dict[int, Mapped] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)
    is_busy: bool = False
    num_made: int = 0

    def granularity(self) -> int:
        """Bytes of which every size is a multiple."""
        return GRANULARITY

    def free_bytes(self) -> int:
        """Memory that nobody holds."""
        return self.memory_bytes - sum(len(held) for held in self.handles.values())

    def reserve(self, size_bytes: int) -> int:
        """Reserve addresses."""
        assert size_bytes > 0
        assert size_bytes % GRANULARITY == 0
        address = max((start + size for start, size in self.reserved.items()), default=FIRST_ADDRESS)
        self.reserved[address] = size_bytes
        return address

    def unreserve(self, address: int, size_bytes: int) -> None:
        """Give addresses back."""
        assert self.reserved.get(address) == size_bytes, "not what was reserved"
        assert not any(address <= other < address + size_bytes for other in self.mapped), "something is still mapped"
        del self.reserved[address]

    def create(self, size_bytes: int) -> int:
        """Take memory, full of garbage."""
        assert size_bytes > 0
        assert size_bytes % GRANULARITY == 0
        if size_bytes > self.free_bytes():
            raise DeviceOutOfMemory(size_bytes, self.free_bytes())
        self.num_made += 1
        self.garbage = self.garbage * 5 % 251 or 1
        self.handles[self.num_made] = bytearray([self.garbage]) * size_bytes
        return self.num_made

    def release(self, handle: int) -> None:
        """Give up a handle."""
        assert handle in self.handles, "released twice, or never created"
        assert all(found.handle != handle for found in self.mapped.values()), "released while it is mapped"
        del self.handles[handle]

    def map(self, address: int, size_bytes: int, handle: int) -> None:
        """Map a handle."""
        assert handle in self.handles, "mapped after its release"
        assert all(found.handle != handle for found in self.mapped.values()), "mapped twice"
        assert len(self.handles[handle]) == size_bytes
        assert any(start <= address and address + size_bytes <= start + size for start, size in self.reserved.items()), "not reserved"
        ends = ((other, other + found.size_bytes) for other, found in self.mapped.items())
        assert all(end <= address or other >= address + size_bytes for other, end in ends), "something is mapped there"
        self.mapped[address] = Mapped(handle, size_bytes)

    def unmap(self, address: int, size_bytes: int) -> None:
        """Unmap."""
        assert address in self.mapped, "nothing is mapped there"
        assert self.mapped[address].size_bytes == size_bytes
        assert address not in self.queued, "queued work may still touch it"
        del self.mapped[address]

    def set_access(self, address: int, size_bytes: int) -> None:
        """Let the device read and write."""
        assert address in self.mapped, "access is set after the map"
        assert self.mapped[address].size_bytes == size_bytes
        if self.not_ready:
            self.not_ready -= 1
            self.is_busy = True
        if self.is_busy:
            raise NotReady
        self.mapped[address].has_access = True

    def export(self, handle: int) -> int:
        """A descriptor of a file that holds what the memory holds."""
        assert handle in self.handles
        fd = os.memfd_create("slab")
        os.pwrite(fd, bytes(self.handles[handle]), 0)
        return fd

    def synchronize(self) -> None:
        """Everything that was queued has finished."""
        self.is_busy = False
        self.queued.clear()

    def queue(self, address: int) -> None:
        """Work that touches an address is on its way."""
        self.queued.add(address)

    def view(self, address: int) -> bytearray:
        """The bytes that the device sees at the address of a mapping."""
        found = self.mapped[address]
        assert found.has_access, "no access"
        return self.handles[found.handle]
