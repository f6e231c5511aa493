"""What an open of several parts does to the process, and says of the devices."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest

from drivers import registry
from drivers.conformance_bench import open_spec
from drivers.contract import OpenSpec
from drivers.errors import HostTierInvalid, OptionUnknown
from drivers.hostmem import HostMemory
from drivers.split.cpu_stage import CpuStage
from drivers.split.cuda_stage import CudaStage
from drivers.split.driver import SplitDriver
from drivers.split.stage import Stage
from tests.drivers.cuda.late_runtime import LateRuntime


def spec_of(**options: str) -> OpenSpec:
    """A small arena; names of options have dots where these have underscores."""
    return msgspec.structs.replace(open_spec(4), options={name.replace("_", ".").lstrip("."): value for name, value in options.items()})


@pytest.fixture
def processors() -> Iterator[tuple[int, int]]:
    """Two that the process may use; it may use all that it could afterwards."""
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        pytest.skip("there is one processor alone")
    first, second, *_others = sorted(usable)
    yield first, second
    os.sched_setaffinity(0, usable)


def test_parts_are_kept_to_processors_of_their_own(processors: tuple[int, int]) -> None:
    driver = SplitDriver()
    driver.open(spec_of(_0_cpus=str(processors[0]), _1_cpus=str(processors[1])), None)
    assert os.sched_getaffinity(0) == set(processors)
    driver.close()


def test_the_thread_that_computes_is_kept_to_the_processors_that_are_named(processors: tuple[int, int]) -> None:
    driver = SplitDriver()
    driver.open(spec_of(parts="cpu,cpu,cpu", _1_cpus=str(processors[1])), None)
    assert os.sched_getaffinity(0) == {processors[1]}
    driver.close()


def test_an_open_that_fails_half_way_leaves_a_driver_that_can_be_opened() -> None:
    driver, (reader, writer) = SplitDriver(), os.pipe()
    with pytest.raises(OptionUnknown, match="isa is"):
        driver.open(spec_of(_1_isa="none"), None)
    with pytest.raises(HostTierInvalid):
        driver.open(msgspec.structs.replace(open_spec(4), host_bytes=1 << 20), reader)
    os.close(reader)  # still the caller's
    os.close(writer)
    driver.open(open_spec(4), None)
    driver.close()
    driver.close()


@pytest.mark.parametrize("name", ["cpu", "split"])
def test_the_descriptor_of_the_host_tier_is_closed_with_the_driver(name: str) -> None:
    host = HostMemory.create(1 << 20, open_spec(1).granule_bytes)
    driver, descriptor = registry.create(name), os.dup(host.fd)
    driver.open(open_spec(4, host.size_bytes), descriptor)
    driver.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    host.close()


class Ended(CpuStage):
    """A part that says how often it was closed."""

    def __init__(self, closed: list[bool]) -> None:
        super().__init__()
        self._closed = closed

    def close(self) -> None:
        self._closed.append(self._ground is not None)
        super().close()


def test_parts_that_were_opened_are_closed_when_another_cannot_be() -> None:
    closed: list[bool] = []
    driver = SplitDriver(lambda _name: Ended(closed))
    with pytest.raises(HostTierInvalid):
        driver.open(msgspec.structs.replace(open_spec(4), host_bytes=1 << 20), os.open(os.devnull, os.O_RDONLY))
    assert closed == [True, True]


def on_two_devices(**options: str) -> SplitDriver:
    """Parts on NVIDIA devices that are played and have one name."""
    given = {name.replace("_", ".").lstrip("."): value for name, value in options.items()}
    runtimes: dict[int, LateRuntime] = {}

    def make(_name: str) -> Stage:
        return CudaStage(lambda device: runtimes.setdefault(device, LateRuntime(0)))

    return SplitDriver(make, {"parts": "cuda,cuda", **given})


def test_memory_of_a_device_counts_once_and_of_two_that_have_one_name_twice() -> None:
    alone = on_two_devices().probe().memory_bytes
    assert on_two_devices(_1_device="1").probe().memory_bytes == 2 * alone
    assert SplitDriver().probe().memory_bytes == registry.create("cpu").probe().memory_bytes


def test_a_part_that_has_instructions_tells_them() -> None:
    driver = SplitDriver(lambda name: CpuStage() if name == "cpu" else CudaStage(lambda _device: LateRuntime(0)), {"parts": "cuda,cpu"})
    assert driver.probe().isa == registry.create("cpu").probe().isa != ""


def test_a_driver_can_be_asked_of_the_parts_that_it_is_going_to_have() -> None:
    assert registry.create("split", {"parts": "cpu,cpu,cpu"}).probe().version.count("cpu") == 3
    with pytest.raises(OptionUnknown):
        registry.create("split", {"parts": "cpu"})
