"""Small models on the CUDA driver over a device that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from drivers.contract import InspectSpec, LoadSpec, OpenSpec
from drivers.cuda.driver import CudaDriver
from drivers.triton.table import DEFINITIONS, KernelTable
from tests.drivers.cpu_rig import GRANULE_BYTES, PAGE_TOKENS, CpuRig
from tests.drivers.cuda.late_runtime import LateRuntime


class CudaRig(CpuRig):
    """See `CpuRig`. `source` may say how weights and pages are quantized."""

    def __init__(
        self,
        directory: Path,
        seed: int = 0,
        kernels: KernelTable = DEFINITIONS,
        options: Mapping[str, str] | None = None,
        max_step_tokens: int = 512,
        *,
        batch_invariant: bool = False,
        **source: str,
    ) -> None:
        """Open a driver on a device with that order of work, and load the model."""
        self.device = LateRuntime(seed, kernels)
        self.driver = CudaDriver(lambda _device: self.device)
        self.num_slabs, self.page_tokens, self.seq = 8, PAGE_TOKENS, 0
        self.source = InspectSpec(str(directory), **source)
        asked = OpenSpec(8, 1 << 20, GRANULE_BYTES, PAGE_TOKENS, 8, max_step_tokens, options=dict(options or {}))
        self.driver.open(msgspec.structs.replace(asked, batch_invariant=batch_invariant), None)
        self.adopt()

    def adopt(self) -> None:
        """Load the model into the open driver."""
        self.spec = self.driver.inspect(self.source)
        offsets, end = [], 0
        for segment in self.spec.segments:
            offsets.append(end)
            end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        self.space_ids = tuple(range(10, 10 + len(self.spec.groups)))
        self.loaded = self.driver.load(LoadSpec(1, self.source, self.space_ids, tuple(offsets)), lambda done, total: None)
        self.free = self._frames(end // GRANULE_BYTES)
