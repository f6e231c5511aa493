"""What memory of a GPU costs to move: copies by size, over pinned memory of either kind; virtual memory; replays of graphs."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.gpu_ground import seconds
from bench.report import Figure
from drivers.cuda.runtime import Runtime
from drivers.vmm import CudaCalls

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemorySizes:
    """What is copied and mapped."""

    copies: tuple[int, ...] = (64 << 10, 256 << 10, MIB, 4 * MIB, 16 * MIB)
    total: int = 256 * MIB  # of one round
    slabs: tuple[int, ...] = (2 * MIB, 32 * MIB, 64 * MIB)
    maps: int = 8
    replays: int = 200


def copy_figures(runtime: Runtime, sizes: MemorySizes) -> Iterator[Figure]:
    """Bytes per second by the size of a copy, one way and both."""
    device = torch.empty(2 * sizes.total, dtype=torch.uint8, device=runtime.device)
    fd = os.memfd_create("bench")
    os.ftruncate(fd, sizes.total)
    mapping = mmap.mmap(fd, sizes.total, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    began = time.perf_counter()
    runtime.pin(memoryview(mapping))
    yield Figure("pinning a memfd", sizes.total / (time.perf_counter() - began) / 1e9, "GB/s")
    hosts = {"a pinned memfd": torch.frombuffer(mapping, dtype=torch.uint8), "pinned by the library": runtime.pinned(sizes.total)}
    for kind, host in hosts.items():
        for size in sizes.copies:
            for way in ("up", "down"):
                pairs = (device[: sizes.total], host) if way == "up" else (host, device[: sizes.total])
                took = seconds(runtime, lambda pairs=pairs, size=size: _copies(*pairs, size), 3, 1)  # type: ignore[misc]
                yield Figure(f"{way}, {size >> 10} KiB a copy, {kind}", sizes.total / took / 1e9, "GB/s")
    host = hosts["pinned by the library"]
    yield Figure("up and down at once", _both_ways(runtime, device, (host, host.clone()), sizes) / 1e9, "GB/s", note="largest copies")
    runtime.unpin(memoryview(mapping))
    os.close(fd)


def _copies(target: Tensor, source: Tensor, size: int) -> None:
    for start in range(0, target.numel(), size):
        target[start : start + size].copy_(source[start : start + size], non_blocking=True)


def _both_ways(runtime: Runtime, device: Tensor, hosts: tuple[Tensor, Tensor], sizes: MemorySizes) -> float:
    size, half = max(sizes.copies), sizes.total
    target = runtime.pinned(half)
    began = time.perf_counter()
    runtime.compute.run(lambda: _copies(device[:half], hosts[0], size))
    runtime.copies.run(lambda: _copies(target, device[half:], size))
    runtime.compute.record().wait()
    runtime.copies.record().wait()
    return 2 * half / (time.perf_counter() - began)


def virtual_memory_figures(cuda: CudaCalls, sizes: MemorySizes) -> Iterator[Figure]:
    """Each call on slabs of some size, in microseconds."""
    for size in sizes.slabs:
        for name, total in _mapped(cuda, size, sizes.maps).items():
            yield Figure(f"{name}, slabs of {size >> 20} MiB", 1e6 * total / sizes.maps, "us")


def _mapped(cuda: CudaCalls, size: int, num: int) -> dict[str, float]:
    """Seconds in each call, over `num` slabs that come and go."""
    took = dict.fromkeys(("create", "map", "set access", "unmap", "release"), 0.0)
    base = cuda.reserve(size * num)
    for idx in range(num):
        at = base + idx * size
        handle = _timed(took, "create", partial(cuda.create, size))
        _timed(took, "map", partial(cuda.map, at, size, handle))
        _timed(took, "set access", partial(cuda.set_access, at, size))
        cuda.synchronize()
        _timed(took, "unmap", partial(cuda.unmap, at, size))
        _timed(took, "release", partial(cuda.release, handle))
    cuda.unreserve(base, size * num)
    return took


def _timed(took: dict[str, float], name: str, call: Callable[[], int | None]) -> int:
    began = time.perf_counter()
    answer = call()
    took[name] += time.perf_counter() - began
    return answer or 0


def replay_figures(runtime: Runtime, sizes: MemorySizes) -> Iterator[Figure]:
    """What a replay costs the host and the device, for a graph of one small kernel and of two hundred."""
    small = torch.zeros(64, device=runtime.device)
    for num in (1, 200):
        replay = runtime.capture(lambda num=num: _touch(small, num))  # type: ignore[misc]
        began = time.perf_counter()
        device_s = seconds(runtime, replay, sizes.replays)
        host_s = (time.perf_counter() - began) / sizes.replays
        yield Figure(f"replay of {num} kernels", 1e6 * device_s, "us", note=f"{1e6 * host_s:.3g} us with the host's part")


def _touch(values: Tensor, num: int) -> None:
    for _ in range(num):
        values.add_(1.0)
