"""Copies of pages and what they cost running rows, measured on the driver itself: no daemon, no socket."""

from __future__ import annotations

import ctypes
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.report import Figure, at_least, at_most
from bench.shapes import HEAD_DIM, KV_HEADS, LAYERS, prompt
from drivers.arena import Arena, FrameShape
from drivers.contract import CopyTimes, InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.native.pages import native_pages
from drivers.ops.table import fused_table
from drivers.page_header import HEADER_BYTES
from drivers.pages import PageMover
from memory.costs import Costs, Link
from memory.page import Move, Tier

GRANULE = 4096
SPACE = 7
KEY = b"a key of a page."
SHAPE = FrameShape(LAYERS, 16, KV_HEADS, HEAD_DIM, LAYERS * 16 * 2 * KV_HEADS * HEAD_DIM * 2, torch.bfloat16)
HOST_BYTES = host_frame_bytes(SHAPE.size_bytes, GRANULE)
PLAN_PAGES = 64  # a context of 1,000 tokens
POOL_PAGES = 8 * PLAN_PAGES  # 188 MB on each side: caches hold no part of it worth speaking of
ROUNDS = 25

SLAB = 1 << 20
ARENA_SLABS = 700
ROWS, ROW_TOKENS, ROW_STEPS = 8, 256, 300


class Ground:
    """An arena and a host tier, both full of pages."""

    def __init__(self) -> None:
        self.arena = Arena(POOL_PAGES * SHAPE.size_bytes, GRANULE)
        self.host = HostMemory.create(POOL_PAGES * HOST_BYTES, GRANULE)
        self.arena.bytes.random_(0, 255)
        self.checked = PageMover(self.arena, self.host, fused_table(), native_pages())
        self.plain = PageMover(self.arena, self.host, fused_table(), native_pages(), checks=False)
        self.host_at, self.arena_at = self.checked.addresses()
        self.checked.carry_out(moves(range(POOL_PAGES), is_up=False), {SPACE: SHAPE})

    def memcpy(self, pages: list[int], *, is_up: bool) -> None:
        """The same bytes between the same places, one call of the C library per page."""
        copy = ctypes.CDLL(None).memcpy
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        for page in pages:
            ends = self.host_at + page * HOST_BYTES + HEADER_BYTES, self.arena_at + page * SHAPE.size_bytes
            copy(*(reversed(ends) if is_up else ends), SHAPE.size_bytes)


def moves(pages: range | list[int], *, is_up: bool) -> Plan:
    """A plan that copies these pages between the tiers."""
    granules, host_granules = SHAPE.size_bytes // GRANULE, HOST_BYTES // GRANULE
    up = (Move(SPACE, Tier.HOST, page * host_granules, Tier.DEVICE, page * granules, KEY, 16) for page in pages)
    down = (Move(SPACE, Tier.DEVICE, page * granules, Tier.HOST, page * host_granules, KEY, 16) for page in pages)
    return Plan(1, 1, moves=tuple(up if is_up else down))


def measure_copies() -> list[Figure]:
    """GB/s of memcpy and of page moves, a plan of 64 pages at a time, in turns; ratios round by round."""
    ground = Ground()
    speeds: dict[tuple[str, bool], list[float]] = {}

    def timed(name: str, is_up: bool, work: Callable[[], None]) -> None:
        started_at = time.perf_counter()
        work()
        speeds.setdefault((name, is_up), []).append(PLAN_PAGES * SHAPE.size_bytes / (time.perf_counter() - started_at) / 1e9)

    chosen = random.Random(0)
    for _ in range(ROUNDS):
        for is_up in (False, True):
            pages = chosen.sample(range(POOL_PAGES), PLAN_PAGES)
            plan = moves(pages, is_up=is_up)
            works: dict[str, Callable[[], None]] = {
                "memcpy": lambda pages=pages, is_up=is_up: ground.memcpy(pages, is_up=is_up),  # type: ignore[misc]
                "checked": lambda plan=plan: _carry(ground.checked, plan),  # type: ignore[misc]
                "plain": lambda plan=plan: _carry(ground.plain, plan),  # type: ignore[misc]
            }
            for name in chosen.sample(sorted(works), len(works)):
                # The one before has the caches full of these very pages: each finds other ones there.
                ground.memcpy(chosen.sample(range(POOL_PAGES), PLAN_PAGES), is_up=is_up)
                timed(name, is_up, works[name])
            if not is_up:
                _carry(ground.checked, plan)  # what was copied without checksums must hold again when it is read
    ground.host.close()
    return _copy_figures(speeds)


def _carry(mover: PageMover, plan: Plan) -> None:
    mover.check(plan, {SPACE: SHAPE})
    mover.carry_out(plan, {SPACE: SHAPE})


def _copy_figures(speeds: dict[tuple[str, bool], list[float]]) -> list[Figure]:
    figures = []
    for is_up, name in ((False, "out"), (True, "in")):
        figures.append(Figure(f"memcpy, as swap {name}, 1 thread", statistics.median(speeds["memcpy", is_up]), "GB/s"))
        for kind, words, goal in (("plain", "without checksums", 80.0), ("checked", "with checksums", 50.0)):
            pairs = zip(speeds[kind, is_up], speeds["memcpy", is_up], strict=True)
            figures.append(Figure(f"swap {name} {words}", statistics.median(speeds[kind, is_up]), "GB/s"))
            share = 100 * statistics.median(ours / theirs for ours, theirs in pairs)
            figures.append(at_least(f"swap {name} {words}, of memcpy", share, goal, "%"))
    return figures


# ---------------------------------------------------------------------------------------------------------------------- beside rows


class Bed:
    """The 135M shape on the CPU driver with `ROWS` rows that generate, and room for a pool of idle pages."""

    def __init__(self, model: Path) -> None:
        self.host = HostMemory.create(PLAN_PAGES * 4 * HOST_BYTES, GRANULE)
        self.driver = CpuDriver()
        spec = OpenSpec(ARENA_SLABS, SLAB, GRANULE, 16, ROWS, 512, "bfloat16", host_bytes=self.host.size_bytes)
        self.driver.open(spec, self.host.fd)
        self.costs = Costs()
        self._learn(self.driver.copied())
        source = InspectSpec(str(model))
        offsets, end = [], 0
        for segment in self.driver.inspect(source).segments:
            offsets.append(end)
            end += -(-segment.size_bytes // GRANULE) * GRANULE
        self.driver.load(LoadSpec(1, source, (SPACE,), tuple(offsets)), lambda _done, _total: None)
        granules = SHAPE.size_bytes // GRANULE
        self._frames = list(range(end // GRANULE, ARENA_SLABS * SLAB // GRANULE - granules + 1, granules))
        self._pool: list[Move] = []
        self._seq = 0

    def close(self) -> None:
        """Give everything back."""
        self.driver.close()

    def seat(self) -> None:
        """Prefill every row, and leave the other frames to the pool of idle pages."""
        num_pages = (ROW_TOKENS + ROW_STEPS) // 16 + 1
        for slot in range(ROWS):
            table = tuple(self._frames.pop() for _ in range(num_pages))
            sampling = Sampling(temperature=0.0)
            start = RowStart(slot, 1, 0, tuple(prompt(slot, ROW_TOKENS)), (table,), sampling)
            self._apply(starts=(start,), runs=(RowRun(slot, ROW_TOKENS),), num_steps=1)
        host_granules = HOST_BYTES // GRANULE
        self._pool = [
            Move(SPACE, Tier.DEVICE, frame, Tier.HOST, idx * host_granules, KEY, 16)
            for idx, frame in enumerate(self._frames[: PLAN_PAGES * 4])
        ]

    def step(self, *, with_copies: bool) -> tuple[float, int]:
        """Seconds of a plan of one step over all rows, with as many copies as the pace allows; and bytes copied."""
        chosen: list[Move] = []
        allowance = self.costs.allowance(0, has_rows=True)
        while with_copies and allowance.is_left:
            chosen.append(self._pool[len(chosen) % len(self._pool)])
            allowance.spend(SHAPE.size_bytes)
        self._pool = self._pool[len(chosen) :] + self._pool[: len(chosen)]
        started_at = time.perf_counter()
        copies, steps_s = self._apply(moves=tuple(chosen), runs=tuple(RowRun(slot, 1) for slot in range(ROWS)), num_steps=1)
        seconds = time.perf_counter() - started_at
        if with_copies or not self.costs.pace.has_learned:
            self.costs.pace.note_plan(steps_s, copies.up_s + copies.down_s)
        self._learn(copies)
        return seconds, copies.down_bytes

    def _apply(self, **parts: object) -> tuple[CopyTimes, float]:
        self._seq += 1
        plan = Plan(1, self._seq, **parts)  # type: ignore[arg-type]
        self.driver.apply(plan)
        return self.driver.copied(), sum(self.driver.step(idx).compute_s for idx in range(plan.num_steps))

    def _learn(self, copies: CopyTimes) -> None:
        self.costs.note_copy(Link.DEVICE_TO_HOST, copies.down_bytes, copies.down_s)


def measure_slowdown(model: Path) -> list[Figure]:
    """How much slower rows get while pages are copied beside them without end, throttled; steps with and without in turn."""
    bed = Bed(model)
    bed.seat()
    bed.step(with_copies=False)
    with_copies, without, copied = [], [], 0
    for _ in range(ROW_STEPS // 2):
        without.append(bed.step(with_copies=False)[0])
        seconds, num_bytes = bed.step(with_copies=True)
        with_copies.append(seconds)
        copied += num_bytes
    bed.close()
    slower = 100 * (statistics.median(loaded / free for loaded, free in zip(with_copies, without, strict=True)) - 1)
    return [
        Figure(f"step of {ROWS} rows", 1e3 * statistics.median(without), "ms"),
        at_most(f"{ROWS} rows slower beside endless copies, throttled", slower, 15.0, "%"),
        Figure("copied beside them", copied / sum(with_copies) / 1e9, "GB/s"),
    ]
