"""How fast do weights come and go? Loads from the host tier and from files, a switch between two models, and what running rows notice.

On the driver itself: no daemon, no socket. Goals: a warm load at 80 % of what `memcpy` does with the same bytes, a cold one at 80 % of
what the disk gives, a warm switch within 1.3 times bytes / memcpy, and steps of running rows no more than twice as long during a load.
Loads are measured in turn with what they are held against, and the ratio is taken round by round.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.report import Figure, at_least, at_most, json_path, publish
from bench.shapes import HEAD_DIM, KV_HEADS, LAYERS, make_135m, make_wide, prompt
from drivers.contract import InspectSpec, LoadedModel, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver
from drivers.hostmem import HostMemory

SLAB, GRANULE, PAGE_TOKENS = 4 << 20, 4096, 16
ROUNDS = 7
ROWS, ROW_TOKENS = 8, 128
READ_BYTES = 4 << 20
FRAME_BYTES = LAYERS * PAGE_TOKENS * 2 * KV_HEADS * HEAD_DIM * 4
GB = 1e9


class Bed:
    """A driver with room for one large model, the small one, and the pages of its rows; and a host tier for the large one."""

    def __init__(self, wide: Path, small: Path) -> None:
        self.driver = CpuDriver()
        self.host = HostMemory.create(260 * SLAB, GRANULE)
        self.driver.open(
            OpenSpec(500, SLAB, GRANULE, PAGE_TOKENS, ROWS, 512, "float32", host_bytes=self.host.size_bytes), os.dup(self.host.fd)
        )
        self.wide, self.small = InspectSpec(str(wide)), InspectSpec(str(small))
        self.sizes = [segment.size_bytes for segment in self.driver.inspect(self.wide).segments]
        self.offsets = _placed(self.sizes, 0)
        self.wide_bytes = sum(self.sizes)
        self.small_offsets = _placed([segment.size_bytes for segment in self.driver.inspect(self.small).segments], 260 * SLAB)
        self.checksums: tuple[int, ...] = ()
        self._seq = 0

    def load(self, model_id: int, *, is_warm: bool) -> LoadedModel:
        """Load the large model to its place, where another one under another id may have been."""
        image = (self.offsets, self.checksums) if is_warm else ((), ())
        spec = LoadSpec(model_id, self.wide, (10 * model_id,), self.offsets, host_offsets=image[0], checksums=image[1])
        return self.driver.load(spec, lambda _done, _total: None)

    def memcpy(self, num_threads: int) -> float:
        """Bytes per second of copying the large model's bytes from the host tier to its place, segment by segment."""
        copy = ctypes.CDLL(None).memcpy
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        device = self.driver._opened().ground.arena
        ends = [
            (_address(device.span(offset, size)), _address(self.host.span(offset, size)), size)
            for offset, size in zip(self.offsets, self.sizes, strict=True)
        ]
        began = time.perf_counter()
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(lambda end: copy(*end), ends))
        return self.wide_bytes / (time.perf_counter() - began)

    def seat(self) -> None:
        """Load the small model, and prefill every row."""
        self.driver.load(LoadSpec(1, self.small, (1,), self.small_offsets), lambda _done, _total: None)
        frame, granules = 400 * SLAB // GRANULE, FRAME_BYTES // GRANULE
        for slot in range(ROWS):
            table = tuple(range(frame, frame + 40 * granules, granules))
            frame += 40 * granules
            start = RowStart(slot, 1, 0, tuple(prompt(slot, ROW_TOKENS)), (table,), Sampling(temperature=0.0))
            self._apply(starts=(start,), runs=(RowRun(slot, ROW_TOKENS),), num_steps=1)

    def step(self) -> None:
        """One token for every row."""
        self._apply(runs=tuple(RowRun(slot, 1) for slot in range(ROWS)), num_steps=1)

    def _apply(self, *, starts: tuple[RowStart, ...] = (), runs: tuple[RowRun, ...] = (), num_steps: int = 0) -> None:
        self._seq += 1
        self.driver.apply(Plan(1, self._seq, starts=starts, runs=runs, num_steps=num_steps))
        for step_idx in range(num_steps):
            self.driver.step(step_idx)


def _placed(sizes: list[int], start: int) -> tuple[int, ...]:
    offsets = []
    for size in sizes:
        offsets.append(start)
        start += -(-size // GRANULE) * GRANULE
    return tuple(offsets)


def _address(span: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(span))


def read_all(file: Path, place: memoryview, num_threads: int) -> float:
    """Bytes per second of reading a file to a place in large pieces, on so many threads."""
    size = min(file.stat().st_size, place.nbytes)
    with file.open("rb", buffering=0) as stream:

        def read(thread: int) -> None:
            for start in range(thread * READ_BYTES, size, num_threads * READ_BYTES):
                os.preadv(stream.fileno(), [place[start : min(start + READ_BYTES, size)]], start)

        began = time.perf_counter()
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(read, range(num_threads)))
        return size / (time.perf_counter() - began)


def forget(file: Path) -> None:
    """Have the system keep nothing of a file in memory."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_loads(bed: Bed, file: Path) -> list[Figure]:
    """Warm and cold loads, and switches, each beside what bounds it."""
    threads = len(os.sched_getaffinity(0))
    first = bed.load(100, is_warm=False)
    bed.checksums = bed.driver.park(100, bed.offsets)
    place = bed.driver._opened().ground.arena.span(0, bed.wide_bytes)
    rounds: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rounds.setdefault(name, []).append(value)

    for model_id in range(101, 101 + ROUNDS):
        note("memcpy", bed.memcpy(1))
        note("memcpy on all", bed.memcpy(threads))
        began = time.perf_counter()
        bed.driver.unload(model_id - 1)
        warm = bed.load(model_id, is_warm=True)
        note("switch", time.perf_counter() - began)
        note("warm", bed.wide_bytes / warm.copy_s)
        if warm.num_corrupt or warm.host_bytes != bed.wide_bytes:
            raise RuntimeError("the image in the host tier was not used")
    for model_id in range(201, 201 + ROUNDS):
        bed.driver.unload(model_id - 1 if model_id > 201 else 100 + ROUNDS)
        note("page cache", read_all(file, place, threads))
        cached = bed.load(model_id, is_warm=False)
        note("cached", bed.wide_bytes / cached.copy_s)
    for model_id in range(301, 304):
        bed.driver.unload(model_id - 1 if model_id > 301 else 200 + ROUNDS)
        forget(file)
        note("disk", read_all(file, place, threads))
        forget(file)
        cold = bed.load(model_id, is_warm=False)
        note("cold", bed.wide_bytes / cold.copy_s)
    bed.driver.unload(303)
    return _load_figures(rounds, bed.wide_bytes, first)


def _load_figures(rounds: dict[str, list[float]], size_bytes: int, first: LoadedModel) -> list[Figure]:
    def median(name: str) -> float:
        return statistics.median(rounds[name])

    def share(ours: str, theirs: str) -> float:
        return 100 * statistics.median(a / b for a, b in zip(rounds[ours], rounds[theirs], strict=True))

    switch = statistics.median(seconds / (size_bytes / rate) for seconds, rate in zip(rounds["switch"], rounds["memcpy"], strict=True))
    return [
        Figure("weights", size_bytes / GB, "GB"),
        Figure("memcpy, host tier to device, 1 thread", median("memcpy") / GB, "GB/s"),
        Figure("memcpy, all threads", median("memcpy on all") / GB, "GB/s"),
        Figure("warm load, checksums included", median("warm") / GB, "GB/s"),
        at_least("warm load, of memcpy", share("warm", "memcpy"), 80, "%"),
        Figure("warm load, of memcpy on all threads", share("warm", "memcpy on all"), "%"),
        Figure("read of the file, page cache cold", median("disk") / GB, "GB/s"),
        Figure("cold load", median("cold") / GB, "GB/s"),
        at_least("cold load, of the read", share("cold", "disk"), 80, "%"),
        Figure("read of the file, page cache warm", median("page cache") / GB, "GB/s"),
        Figure("load, page cache warm", median("cached") / GB, "GB/s"),
        at_least("load, page cache warm, of the read", share("cached", "page cache"), 80, "%"),
        Figure("first load: checks of ops and warming up", first.seconds - first.copy_s, "s"),
        Figure("warm switch: unload, load, ready", median("switch"), "s"),
        at_most("warm switch, of bytes / memcpy", switch, 1.3, "x"),
    ]


def measure_rows(bed: Bed, file: Path) -> list[Figure]:
    """Seconds between tokens of rows that run, without a load and beside one."""
    bed.seat()
    for _ in range(10):
        bed.step()
    before = [_timed(bed.step) for _ in range(60)]
    figures = [Figure(f"time between tokens, {ROWS} rows, no load", 1000 * statistics.median(before), "ms")]
    for name, is_warm in (("warm", True), ("cold", False)):
        if not is_warm:
            forget(file)
        loaded: list[LoadedModel] = []
        model_id = 400 + is_warm
        loader = threading.Thread(target=lambda: loaded.append(bed.load(model_id, is_warm=is_warm)))  # noqa: B023 - it ends in this turn
        loader.start()
        during = []
        while loader.is_alive() and len(during) < 300:
            during.append(_timed(bed.step))
        loader.join()
        bed.driver.unload(model_id)
        ratio = statistics.median(during) / statistics.median(before)
        figures.append(at_most(f"time between tokens during a {name} load, of that without", ratio, 2.0, "x", f"{len(during)} steps"))
        figures.append(Figure(f"{name} load beside running rows", bed.wide_bytes / loaded[0].seconds / GB, "GB/s"))
    return figures


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and keep."""
    disk = Path(__file__).parent / "results"  # the system's folder for temporary files may be memory
    disk.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-", dir=disk) as name:
        folder = Path(name)
        wide, small = make_wide(folder), make_135m(folder)
        file = wide / "model.safetensors"
        bed = Bed(wide, small)
        figures = measure_loads(bed, file) + measure_rows(bed, file)
        bed.driver.close()
        bed.host.close()
    publish("weights", "Weights that come and go: 16 layers of 58 MiB in float32", figures, json_path())


if __name__ == "__main__":
    main()
