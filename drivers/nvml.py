"""What the NVIDIA driver says of a device: memory and who has it, heat, power, what holds its clocks down, faults that were counted.

NVML needs no CUDA context, takes no device memory, and answers when a process has lost the device. A fact that a device or driver does not
give is None. NVML counts all devices of the machine, CUDA those that a process may see: who means a device of CUDA names it by its UUID.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

from drivers.errors import DeviceLost, DriverUnavailable

T = TypeVar("T")
HOT, POWER = "heat", "power"
# What slows a device down against its owner's will; other reasons (idle, a clock that somebody set) are no trouble.
THROTTLES = {
    "nvmlClocksEventReasonSwPowerCap": POWER,
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": POWER,
    "nvmlClocksEventReasonSwThermalSlowdown": HOT,
    "nvmlClocksThrottleReasonHwThermalSlowdown": HOT,
    "nvmlClocksThrottleReasonHwSlowdown": "its hardware",
}


@dataclass(frozen=True, slots=True)
class NvmlFacts:
    """One device, now."""

    name: str
    uuid: str
    driver_version: str
    total_bytes: int
    used_bytes: int  # by everybody, the driver's own part included
    own_bytes: int | None  # by this process
    capability: tuple[int, int] | None
    temperature_c: int | None
    power_w: float | None
    power_limit_w: float | None
    utilization_percent: int | None
    throttles: tuple[str, ...]  # what holds its clocks down
    uncorrected_errors: int | None  # of memory, since the driver was loaded
    pending_rows: bool | None  # of memory, that are replaced at the next reset

    @property
    def foreign_bytes(self) -> int:
        """Memory that others hold."""
        return max(0, self.used_bytes - (self.own_bytes or 0))

    @property
    def complaints(self) -> tuple[str, ...]:
        """What a person should look at."""
        found = [f"its clocks are held down by {reason}" for reason in self.throttles]
        if self.uncorrected_errors:
            found.append(f"{self.uncorrected_errors} memory errors were not corrected; see `dmesg | grep Xid`")
        if self.pending_rows:
            found.append("rows of its memory wait to be replaced; reset it (nvidia-smi --gpu-reset) when it is free")
        return tuple(found)


@contextmanager
def _session() -> Iterator[None]:
    """Raises: DriverUnavailable, DeviceLost."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DriverUnavailable(f"NVML does not start: {error}. Is the NVIDIA driver installed and loaded (nvidia-smi)?") from error
    try:
        yield
    except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired) as error:
        raise DeviceLost(f"NVML says: {error}. Reset it (nvidia-smi --gpu-reset) or the machine; see `dmesg | grep Xid`.") from error
    except pynvml.NVMLError as error:
        raise DriverUnavailable(f"NVML says: {error}.") from error
    finally:
        pynvml.nvmlShutdown()


def num_devices() -> int:
    """How many there are; 0 where no NVIDIA driver is installed. Raises: DriverUnavailable, if it is, and does not answer."""
    try:
        with _session():
            return int(pynvml.nvmlDeviceGetCount())
    except DriverUnavailable as error:
        if isinstance(error.__cause__, pynvml.NVMLError_LibraryNotFound):
            return 0
        raise


def read_facts(device: int | str) -> NvmlFacts:
    """What is known of a device, by its number here or its UUID. Raises: DriverUnavailable, if there is none such; DeviceLost."""
    with _session():
        find = pynvml.nvmlDeviceGetHandleByIndex if isinstance(device, int) else pynvml.nvmlDeviceGetHandleByUUID
        handle = find(device)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        milliwatts, limit = _told(pynvml.nvmlDeviceGetPowerUsage, handle), _told(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        utilization = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
        return NvmlFacts(
            name=str(pynvml.nvmlDeviceGetName(handle)),
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            driver_version=str(pynvml.nvmlSystemGetDriverVersion()),
            total_bytes=int(memory.total),
            used_bytes=int(memory.used),
            own_bytes=_own_bytes(handle),
            capability=_told(lambda: tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
            temperature_c=_told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1e3,
            power_limit_w=None if limit is None else limit / 1e3,
            utilization_percent=None if utilization is None else int(utilization.gpu),
            throttles=_throttles(handle),
            uncorrected_errors=_told(
                pynvml.nvmlDeviceGetTotalEccErrors, handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            ),
            pending_rows=_told(lambda: bool(pynvml.nvmlDeviceGetRemappedRows(handle)[2])),
        )


def health(device: int | str) -> str:
    """What NVML adds to an error of the device, as a sentence; "" if that is nothing."""
    try:
        facts = read_facts(device)
    except (DeviceLost, DriverUnavailable) as error:
        return error.detail
    return f"NVML says of it: {'; '.join(facts.complaints)}." if facts.complaints else ""


def others(device: int | str) -> str:
    """Who else has memory of the device, as a sentence; "" if nobody has, or it cannot be said."""
    try:
        foreign = read_facts(device).foreign_bytes
    except (DeviceLost, DriverUnavailable):
        return ""
    return f"Other processes and the driver hold {foreign} bytes; nvidia-smi names them." if foreign else ""


def _told(call: Callable[..., T], *arguments: Any) -> T | None:
    """What a call answers; None where the device or the driver has no such fact. Raises: NVMLError_GpuIsLost and its like."""
    try:
        return call(*arguments)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NoPermission):
        return None


def _own_bytes(handle: Any) -> int | None:
    """Memory of this process; in a container the driver may not know it by our number, or not say."""
    processes = _told(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    used = [process.usedGpuMemory for process in processes or () if process.pid == os.getpid()]
    return int(used[0]) if used and used[0] is not None else None


def _throttles(handle: Any) -> tuple[str, ...]:
    reasons = _told(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:
        return ()
    return tuple(dict.fromkeys(why for name, why in THROTTLES.items() if reasons & int(getattr(pynvml, name, 0))))
