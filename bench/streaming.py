"""How fast does a model of twice the arena run? Its layers are streamed through slots, from a disk and from the host tier.

The driver alone, no daemon, one row. What a step can take at least is the longer of two: the streamed bytes over the bandwidth at which
they come, and the arithmetic of the same model wholly resident. From a disk (the page cache is emptied before each step) the bytes are the
longer one; from the host tier, on a CPU whose cores do both, they are about equal. Goal: 70 % of the speed that this allows.
Without prefetch (one slot) copies and arithmetic take turns. Bandwidths are taken again in every round, right before the steps.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.report import Figure, at_least, json_path, publish
from bench.shapes import make_wide
from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver
from drivers.hostmem import HostMemory
from memory.config import MemoryConfig
from memory.streaming import placed_bytes, plan_for
from memory.weights import packed

SLAB_BYTES, GRANULE_BYTES, PAGE_TOKENS = 4 << 20, 4096, 16
PROMPT_TOKENS, STEPS, ROUNDS = 16, 4, 7
MAX_TOKENS = PROMPT_TOKENS + 2 * STEPS * ROUNDS + 2
GOAL = 0.7


class Bench:
    """A driver with one model, streamed or wholly resident."""

    def __init__(self, path: Path, num_slots: int, *, from_host: bool = False) -> None:
        """No slots: wholly resident."""
        self.driver = CpuDriver()
        self._file = path / "model.safetensors"
        source = InspectSpec(str(path))
        sizes = segment_sizes(source)
        arena_bytes = (sum(sizes) // 2 if num_slots else sum(sizes) * 2) // SLAB_BYTES * SLAB_BYTES
        config = MemoryConfig(device_bytes=arena_bytes, slab_bytes=SLAB_BYTES, granule_bytes=GRANULE_BYTES)
        plan = plan_for(config, sizes)
        offsets, slots = plan.offsets(packed(plan.places, GRANULE_BYTES))
        self._first_frame = placed_bytes(plan.places, GRANULE_BYTES) // GRANULE_BYTES + 1
        host_bytes = (sum(sizes) // SLAB_BYTES + 2) * SLAB_BYTES if from_host else 0
        host = HostMemory.create(host_bytes, GRANULE_BYTES) if from_host else None
        spec = OpenSpec(arena_bytes // SLAB_BYTES, SLAB_BYTES, GRANULE_BYTES, PAGE_TOKENS, 1, 512, host_bytes=host_bytes)
        self.driver.open(spec, os.dup(host.fd) if host is not None else None)
        order = LoadSpec(1, source, (1,), offsets, slots[:num_slots])
        self.streamed_bytes = self.driver.load(order, lambda _done, _total: None).streamed_bytes
        if host is not None:
            self.driver.park(1, tuple(packed(sizes, GRANULE_BYTES)))
            host.close()
        self._frame_granules = self.driver.inspect(source).groups[0].frame_bytes // GRANULE_BYTES
        self._seq = 0
        frames = tuple(self._first_frame + idx * self._frame_granules for idx in range(-(-MAX_TOKENS // PAGE_TOKENS)))
        start = RowStart(0, 1, 0, tuple(range(3, 3 + PROMPT_TOKENS)), (frames,), Sampling(0.0))
        self._run(PROMPT_TOKENS, 1, (start,))

    def step_s(self, num_steps: int, *, is_cold: bool = False) -> float:
        """Seconds of a step, on average; `is_cold`: whose files are on the disk alone."""
        return self._run(1, num_steps, is_cold=is_cold) / num_steps

    def _run(self, count: int, num_steps: int, starts: tuple[RowStart, ...] = (), *, is_cold: bool = False) -> float:
        self._seq += 1
        self.driver.apply(Plan(1, self._seq, starts=starts, runs=(RowRun(0, count),), num_steps=num_steps))
        took = 0.0
        for idx in range(num_steps):
            if is_cold:
                forget(self._file)
            began = time.perf_counter()
            self.driver.step(idx)
            took += time.perf_counter() - began
        return took


def segment_sizes(source: InspectSpec) -> list[int]:
    """Bytes of each segment in the arena."""
    driver = CpuDriver()
    driver.open(OpenSpec(1, SLAB_BYTES, GRANULE_BYTES, PAGE_TOKENS, 1, 512), None)
    sizes = [segment.size_bytes for segment in driver.inspect(source).segments]
    driver.close()
    return sizes


@contextmanager
def opened(path: Path, num_slots: int, *, from_host: bool = False) -> Iterator[Bench]:
    """A model, closed at the end."""
    bench = Bench(path, num_slots, from_host=from_host)
    try:
        yield bench
    finally:
        bench.driver.close()


def forget(file: Path) -> None:
    """Empty the page cache of a file."""
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def copy_rate() -> float:
    """Bytes per second of a copy between two buffers larger than the caches."""
    source, target = np.ones(256 << 20, dtype=np.uint8), np.zeros(256 << 20, dtype=np.uint8)
    began = time.perf_counter()
    np.copyto(target, source)
    return source.nbytes / (time.perf_counter() - began)


def disk_rate(file: Path) -> float:
    """Bytes per second of reading a file that is on the disk alone, a megabyte at a time."""
    target = memoryview(bytearray(1 << 20))
    size, done = file.stat().st_size, 0
    forget(file)
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while done < size:
            done += os.preadv(stream.fileno(), [target], done)
    return size / (time.perf_counter() - began)


def measure(path: Path, resident: Bench, place: str) -> list[Figure]:
    """With prefetch and without, from one place."""
    is_cold = place == "disk"
    rates, resident_s, ahead_s, alone_s, shares = [], [], [], [], []
    with opened(path, 2, from_host=not is_cold) as ahead, opened(path, 1, from_host=not is_cold) as alone:
        for _ in range(ROUNDS):
            rates.append(disk_rate(path / "model.safetensors") if is_cold else copy_rate())
            resident_s.append(resident.step_s(STEPS))
            ahead_s.append(ahead.step_s(STEPS, is_cold=is_cold))
            alone_s.append(alone.step_s(STEPS, is_cold=is_cold))
            shares.append(max(ahead.streamed_bytes / rates[-1], resident_s[-1]) / ahead_s[-1])
        mib = ahead.streamed_bytes >> 20
    rate, took_s = statistics.median(rates), statistics.median(ahead_s)
    return [
        Figure(f"bandwidth, {place}", rate / (1 << 30), "GiB/s"),
        Figure(f"bytes / bandwidth, {place}", (mib << 20) / rate * 1e3, "ms/step", note=f"{mib} MiB in each step"),
        Figure(f"arithmetic, wholly resident, beside {place}", statistics.median(resident_s) * 1e3, "ms/step"),
        Figure(f"streamed, {place}", took_s * 1e3, "ms/step", note=f"{1 / took_s:.1f} tok/s"),
        at_least(f"of the speed that bytes and arithmetic allow, {place}", statistics.median(shares), GOAL, "x"),
        Figure(f"streamed without prefetch, {place}", statistics.median(alone_s) * 1e3, "ms/step"),
    ]


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        path = make_wide(Path(name))
        with opened(path, 0) as resident:
            figures = measure(path, resident, "disk") + measure(path, resident, "host tier")
    publish("streaming", "A model of twice the arena, one row, in float32", figures, json_path())


if __name__ == "__main__":
    main()
