"""A device without memory: tensors have shapes and nothing else, and all work happens at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drivers.cuda.runtime import DeviceArena, DeviceFacts, Event, Work
from drivers.triton.table import KernelTable, kernels

FP8 = 89  # the architecture that has 8-bit floats first


@dataclass
class MetaEvent:
    """See `drivers.cuda.runtime.Event`."""

    def wait(self) -> None:
        """It has happened."""

    def seconds_since(self, earlier: Event) -> float:
        """Any time."""
        return 1.0


@dataclass
class MetaStream:
    """See `drivers.cuda.runtime.Stream`."""

    def run(self, work: Work) -> None:
        """Do it."""
        work()

    def record(self) -> MetaEvent:
        """A point that has passed."""
        return MetaEvent()

    def after(self, event: Event) -> None:
        """It has happened."""


class MetaRuntime:
    """See `drivers.cuda.runtime.Runtime`. Kernels are the real ones, to be launched where launches are written down."""

    def __init__(self, architecture: int) -> None:
        self.device = torch.device("meta")
        self.kernels: KernelTable = kernels()
        self.compute = MetaStream()
        self.copies = MetaStream()
        self.has_fp8 = architecture >= FP8

    def facts(self) -> DeviceFacts:
        """What of the architecture the driver decides by."""
        return DeviceFacts("a device without memory", 1 << 40, self.has_fp8, gives_back=False)

    def arena(self, num_slabs: int, slab_bytes: int) -> DeviceArena:
        """Bytes that nobody has."""
        return DeviceArena(torch.empty(num_slabs * slab_bytes, dtype=torch.uint8, device=self.device), None)

    def pinned(self, size_bytes: int) -> Tensor:
        """The same."""
        return torch.empty(size_bytes, dtype=torch.uint8, device=self.device)

    def pin(self, memory: memoryview) -> None:
        """Nothing to do."""

    def unpin(self, memory: memoryview) -> None:
        """Nothing to do."""

    def sent(self, values: np.ndarray) -> Tensor:
        """Their shape."""
        return torch.from_numpy(values).to(self.device)

    def capture(self, work: Work) -> Work:
        """Do it once."""
        work()
        return work

    def close(self) -> None:
        """Nothing to do."""
