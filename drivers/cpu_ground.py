"""What models on the CPU are built on: the arena, the engine, and who decides what runs them."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field

import torch

from drivers.arena import Arena
from drivers.contract import OpenSpec
from drivers.copier import Copier
from drivers.cpu_ops import OpChooser, open_engine
from drivers.cpu_options import CpuOptions
from drivers.errors import OptionUnknown, PlanRejected
from drivers.hostmem import HostMemory
from drivers.models.loader import PageShape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRANULE_ALIGN = 64
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, slots=True)
class Ground:
    """What a model is built on."""

    arena: Arena
    ops: OpChooser
    max_tokens: int  # of one step
    host: HostMemory | None = None
    copier: Copier = field(default_factory=Copier)
    is_batch_invariant: bool = False  # native code always is; torch then computes token by token

    def close(self) -> None:
        """Give everything back."""
        if self.ops.engine is not None:
            self.ops.engine.close()
        self.arena.close()
        if self.host is not None:
            self.host.close()


def open_ground(spec: OpenSpec, host_fd: int | None) -> Ground:
    """Take and touch the arena, map the host tier, and open the engine. Raises: DeviceOutOfMemory, OptionUnknown, PlanRejected."""
    options = CpuOptions.read(spec.options)
    _check_open(spec, options)
    _keep_freed_memory()
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)  # threads that torch makes from now on inherit it
    num_threads = spec.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(num_threads)
    pages = PageShape(spec.page_tokens, spec.granule_bytes, DTYPES[spec.dtype])
    arena = Arena(spec.num_slabs * spec.slab_bytes, spec.granule_bytes, spec.slab_bytes)
    host = None if host_fd is None or spec.host_bytes == 0 else HostMemory(host_fd, spec.host_bytes, spec.granule_bytes)
    ops = OpChooser(pages, *open_engine(options, num_threads), disagreeing=options.disagree)
    return Ground(arena, ops, spec.max_step_tokens, host, Copier(torch.get_num_threads()), spec.batch_invariant)


def _check_open(spec: OpenSpec, options: CpuOptions) -> None:
    if spec.dtype not in DTYPES:
        raise OptionUnknown(f"dtype is {spec.dtype!r}; the cpu driver computes in {', '.join(DTYPES)}.")
    if options.cpus and spec.threads > len(options.cpus):
        raise OptionUnknown(
            f"cpus names {len(options.cpus)} processors for {spec.threads} threads; give each thread one, or ask for fewer."
        )
    if spec.granule_bytes <= 0 or spec.granule_bytes % GRANULE_ALIGN or spec.num_slabs <= 0 or spec.slab_bytes <= 0:
        raise PlanRejected(f"The arena needs slabs, and granules that are a multiple of {GRANULE_ALIGN} bytes.")


def _keep_freed_memory() -> None:
    """Have the allocator keep what a step frees: touching 1 MB of fresh pages costs ten times the op that fills them (norm of 512 tokens:
    1.2 ms, 0.13 ms with this)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 512 << 20)
