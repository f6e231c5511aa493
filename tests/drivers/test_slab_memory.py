"""Both kinds of slab memory under the same rules; what only one of them has comes behind."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drivers.errors import DeviceLost, DeviceOutOfMemory, DriverUnavailable, PlanRejected
from drivers.slab_memory import PlainMemory, SlabMemory
from drivers.vmm import ACCESS_TRIES, CudaDriver, VirtualMemory
from tests.drivers.fake_cuda import GRANULARITY, FakeCuda

NUM_SLABS = 6
SLAB_BYTES = mmap.PAGESIZE
SLABS = st.lists(st.integers(0, NUM_SLABS - 1), unique=True, max_size=NUM_SLABS)


@dataclass
class Kind:
    """A memory, and how a test looks into it."""

    memory: SlabMemory
    view: Callable[[int], memoryview]


def plain() -> Kind:
    """Ordinary memory."""
    memory = PlainMemory(NUM_SLABS, SLAB_BYTES)
    return Kind(memory, lambda slab: memoryview(memory.buffer)[slab * SLAB_BYTES : (slab + 1) * SLAB_BYTES])


def virtual(cuda: FakeCuda | None = None) -> Kind:
    """CUDA virtual memory on a fake driver."""
    calls = cuda or FakeCuda(NUM_SLABS * SLAB_BYTES)
    memory = VirtualMemory(calls, NUM_SLABS, SLAB_BYTES)
    return Kind(memory, lambda slab: memoryview(calls.view(memory.base + slab * SLAB_BYTES)))


class SlabMachine(RuleBasedStateMachine):
    """Slabs are given back, taken and written in any order."""

    kind: Kind
    make: Callable[[], Kind]

    @initialize()
    def open(self) -> None:
        """A new memory, all of it held."""
        self.kind = type(self).make()
        self.base = self.kind.memory.base
        self.held = set(range(NUM_SLABS))
        self.written: dict[int, int] = {}

    @rule(slabs=SLABS)
    def give_back(self, slabs: list[int]) -> None:
        """All held, or refused."""
        if set(slabs) <= self.held:
            self.kind.memory.give_back(slabs)
            self.held -= set(slabs)
            for slab in slabs:
                self.written.pop(slab, None)
        else:
            with pytest.raises(PlanRejected, match="not held"):
                self.kind.memory.give_back(slabs)

    @rule(slabs=SLABS)
    def take(self, slabs: list[int]) -> None:
        """All away, or refused."""
        if self.held.isdisjoint(slabs):
            self.kind.memory.take(slabs)
            self.held |= set(slabs)
        else:
            with pytest.raises(PlanRejected, match="held already"):
                self.kind.memory.take(slabs)

    @rule(slab=st.integers(0, NUM_SLABS - 1), content=st.integers(0, 255))
    def write(self, slab: int, content: int) -> None:
        """Fill a held slab."""
        if slab in self.held:
            self.kind.view(slab)[:] = bytes([content]) * SLAB_BYTES
            self.written[slab] = content

    @invariant()
    def holds(self) -> None:
        """Invariants 1, 2 and 4."""
        memory = self.kind.memory
        assert memory.base == self.base
        assert memory.held_bytes == len(self.held) * SLAB_BYTES
        assert {slab for slab in range(NUM_SLABS) if memory.is_held(slab)} == self.held
        for slab, content in self.written.items():
            assert bytes(self.kind.view(slab)) == bytes([content]) * SLAB_BYTES

    def teardown(self) -> None:
        """Nothing is held after a close."""
        self.kind.memory.close()
        self.kind.memory.close()
        assert self.kind.memory.held_bytes == 0


class PlainMachine(SlabMachine):
    """Over ordinary memory."""

    make = staticmethod(plain)


class VirtualMachine(SlabMachine):
    """Over the fake driver, which allows nothing illegal and leaks nothing."""

    @staticmethod
    def make() -> Kind:
        """With a fake of its own."""
        VirtualMachine.cuda = FakeCuda(NUM_SLABS * SLAB_BYTES)
        return virtual(VirtualMachine.cuda)

    cuda: FakeCuda

    @rule(count=st.integers(0, ACCESS_TRIES - 1))
    def be_busy(self, count: int) -> None:
        """The next accesses are not ready at once."""
        self.cuda.not_ready = count

    @rule(slab=st.integers(0, NUM_SLABS - 1))
    def queue(self, slab: int) -> None:
        """Work is on its way to a slab."""
        if slab in self.held:
            self.cuda.queue(self.base + slab * SLAB_BYTES)

    @invariant()
    def has_a_handle_for_each_held_slab(self) -> None:
        """Invariant 1 of `drivers.vmm`."""
        assert len(self.cuda.handles) == len(self.cuda.mapped) == len(self.held)
        assert all(found.has_access for found in self.cuda.mapped.values())

    def teardown(self) -> None:
        """Addresses are given back too."""
        super().teardown()
        assert (self.cuda.handles, self.cuda.mapped, self.cuda.reserved) == ({}, {}, {})


TestPlainMemory = PlainMachine.TestCase
TestVirtualMemory = VirtualMachine.TestCase
for _case in (TestPlainMemory, TestVirtualMemory):
    _case.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("slabs", [[1, 1], [-1], [NUM_SLABS]])
@pytest.mark.parametrize("make", [plain, virtual])
def test_slabs_that_do_not_exist_are_refused(make: Callable[[], Kind], slabs: list[int]) -> None:
    memory = make().memory
    with pytest.raises(PlanRejected, match="once each"):
        memory.give_back(slabs)
    assert memory.held_bytes == NUM_SLABS * SLAB_BYTES


def test_given_back_memory_leaves_the_process() -> None:
    slab_bytes = 8 << 20
    memory = PlainMemory(8, slab_bytes)
    memory.buffer[:] = b"\x01" * len(memory.buffer)
    process = psutil.Process()
    full = process.memory_info().rss
    memory.give_back([1, 2, 3, 4, 5])
    assert full - process.memory_info().rss >= 5 * slab_bytes * 0.99
    memory.take([1, 2, 3, 4, 5])
    assert full - process.memory_info().rss <= slab_bytes // 4
    assert memory.buffer[:slab_bytes] == b"\x01" * slab_bytes


def test_memory_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(DeviceOutOfMemory):
        PlainMemory(1 << 20, 1 << 40)


def test_slabs_of_odd_size_cannot_be_given_back() -> None:
    memory = PlainMemory(4, 1000)
    with pytest.raises(PlanRejected, match="whole pages"):
        memory.give_back([0])


@given(room=st.integers(0, NUM_SLABS - 1))
def test_a_device_that_is_too_small_is_left_as_it_was(room: int) -> None:
    cuda = FakeCuda(room * SLAB_BYTES)
    with pytest.raises(DeviceOutOfMemory):
        virtual(cuda)
    assert (cuda.handles, cuda.mapped, cuda.reserved) == ({}, {}, {})


def test_a_take_that_fails_half_way_changes_nothing() -> None:
    cuda = FakeCuda(NUM_SLABS * SLAB_BYTES)
    kind = virtual(cuda)
    kind.memory.give_back([1, 2, 3])
    cuda.memory_bytes -= SLAB_BYTES
    with pytest.raises(DeviceOutOfMemory):
        kind.memory.take([1, 2, 3])
    assert kind.memory.held_bytes == 3 * SLAB_BYTES
    kind.memory.take([1, 2])


def test_a_device_that_never_rests_is_lost_and_nothing_is_left_over() -> None:
    cuda = FakeCuda(NUM_SLABS * SLAB_BYTES)
    kind = virtual(cuda)
    kind.memory.give_back([4])
    cuda.not_ready = ACCESS_TRIES
    with pytest.raises(DeviceLost, match="does not come to rest"):
        kind.memory.take([4])
    assert len(cuda.handles) == len(cuda.mapped) == NUM_SLABS - 1


def test_memory_taken_again_may_hold_anything() -> None:
    kind = virtual()
    kind.view(2)[:] = bytes(SLAB_BYTES)
    kind.memory.give_back([2])
    kind.memory.take([2])
    assert any(kind.view(2))


def test_slabs_are_multiples_of_what_the_device_maps() -> None:
    with pytest.raises(PlanRejected, match="no multiple"):
        VirtualMemory(FakeCuda(1 << 20), 2, GRANULARITY + 1)


def test_a_held_slab_can_be_exported() -> None:
    memory = VirtualMemory(FakeCuda(4 * SLAB_BYTES), 4, SLAB_BYTES)
    fd = memory.export(2)
    try:
        assert os.fstat(fd).st_size == SLAB_BYTES
    finally:
        os.close(fd)
    memory.give_back([2])
    with pytest.raises(PlanRejected, match="not held"):
        memory.export(2)


def test_the_driver_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)  # as on a machine without the library
    with pytest.raises(DriverUnavailable, match="pip install cuda-bindings"):
        CudaDriver(0)
