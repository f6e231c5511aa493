"""What the CUDA driver asks of a device: streams, events, graphs, memory. `drivers.cuda.device` is the real one.

Everything that the device does is queued as work on a stream; nothing else may touch its tensors. Work on one stream happens in order, on
two streams in any, unless one waits for an event of the other. The host waits only for events. That makes a device that is not there easy
to play: the tests keep work back and let it happen late, in any order that the streams allow.

    compute   prefill, decode steps, what they are told of rows
    copies    pages and weights, up and down; zeros
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from drivers.errors import PlanRejected
from drivers.slab_memory import SlabMemory
from drivers.triton.table import KernelTable

Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device, as far as the driver decides by it."""

    name: str
    memory_bytes: int
    has_fp8: bool  # 8-bit floats: sm_89 and newer
    gives_back: bool  # memory of single slabs


@dataclass(frozen=True, slots=True)
class DeviceArena:
    """The arena: its bytes, and its slabs where they can be given back."""

    bytes: Tensor  # [num_slabs * slab_bytes] uint8, on the device
    memory: SlabMemory | None

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Let the device have the memory of slabs that nothing names. Raises: PlanRejected."""
        self._slabs().give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have the memory of slabs again. Raises: DeviceOutOfMemory, PlanRejected."""
        self._slabs().take(slabs)

    def _slabs(self) -> SlabMemory:
        if self.memory is None:
            raise PlanRejected("This device's arena is of one piece; its slabs are never given back.")
        return self.memory


class Event(Protocol):
    """A point in the work of a stream."""

    def wait(self) -> None:
        """Wait until everything before it has happened. Raises: DeviceLost."""

    def seconds_since(self, earlier: Event) -> float:
        """Device time between two points that have both passed."""


class Stream(Protocol):
    """Work in order."""

    def run(self, work: Work) -> None:
        """Queue work. Raises: DeviceOutOfMemory, DeviceLost."""

    def record(self) -> Event:
        """The point behind all that was queued so far."""

    def after(self, event: Event) -> None:
        """What is queued from here on happens behind an event of another stream."""


class Runtime(Protocol):
    """One device."""

    device: torch.device
    kernels: KernelTable

    @property
    def compute(self) -> Stream:
        """Steps, and what they are told of rows."""

    @property
    def copies(self) -> Stream:
        """Pages and weights."""

    def facts(self) -> DeviceFacts:
        """Say what it is."""

    def arena(self, num_slabs: int, slab_bytes: int) -> DeviceArena:
        """Take memory. Raises: DeviceOutOfMemory, PlanRejected."""

    def pinned(self, size_bytes: int) -> Tensor:
        """Host memory `[size_bytes] uint8` that copies can work on while the host goes on. Raises: DeviceOutOfMemory."""

    def pin(self, memory: memoryview) -> None:
        """Make present memory of the host like that, until `unpin`. Raises: DeviceOutOfMemory."""

    def unpin(self, memory: memoryview) -> None:
        """Let it be ordinary memory again."""

    def sent(self, values: np.ndarray) -> Tensor:
        """Inside of work: the same values on the device. `values` are not changed afterwards."""

    def capture(self, work: Work) -> Work:
        """Record work that asks nothing of the host, and answer what replays it. Tensors that it makes stay its own."""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
