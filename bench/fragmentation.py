"""How much memory do partly filled slabs hold? 64 rows of staggered lengths grow side by side, and the long ones are left.

The pager alone: plans are made and committed, nothing is computed. Held are the slabs of KV, packed is what its pages would need if they
lay one behind the other; the ratio is taken after every plan while 8 packed slabs or more are in use. Goal: 1.1 with compaction (a slab
that is being emptied counts until its plan has ended). The shape is that of the 135M model in bf16, 23 KiB of KV per token.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass

from bench.report import Figure, at_most, json_path, publish
from drivers.hostmem import host_frame_bytes
from memory.config import MemoryConfig
from memory.page import Space, Tier
from memory.pager import Pager, Want
from memory.table import PageTable

GRANULE, SLAB, PAGE_TOKENS = 4096, 4 << 20, 16
FRAME_BYTES = 30 * PAGE_TOKENS * 2 * 3 * 64 * 2
ROWS, REQUESTS, MAX_TOKENS = 64, 512, 2048
LEAST_SLABS = 8
GOAL = 1.1


@dataclass
class Run:
    """What one workload came to."""

    ratios: list[float]
    peak_bytes: int
    copied_bytes: int
    plan_us: float


def simulate(compact_ratio: float, seed: int) -> Run:
    """Serve requests of staggered lengths, ROWS at a time; when none is left to begin, the long ones go on alone."""
    draw = random.Random(seed)
    pager = Pager(
        MemoryConfig(
            device_bytes=4 << 30,
            host_bytes=0,
            slab_bytes=SLAB,
            granule_bytes=GRANULE,
            page_tokens=PAGE_TOKENS,
            compact_ratio=compact_ratio,
        )
    )
    pager.open_space(Space(1, PAGE_TOKENS, FRAME_BYTES, host_frame_bytes(FRAME_BYTES, GRANULE)))
    arena = pager._mapping.arenas[Tier.DEVICE]
    per_slab = SLAB // FRAME_BYTES
    lengths = [int(256 * 2 ** draw.uniform(0, 3)) for _ in range(REQUESTS)]
    rows: list[tuple[PageTable, int, int]] = []
    run, seq, times = Run([], 0, 0, 0.0), 0, []
    while rows or lengths:
        for table, length, end in rows:
            if length >= end:
                pager.drop(table)
        rows = [(table, length, end) for table, length, end in rows if length < end]
        while lengths and len(rows) < ROWS:
            rows.append((pager.new_table("ann", (1,)), 0, lengths.pop()))
        seq += 1
        began = time.perf_counter()
        plan = pager.plan(seq, [Want(table, length, min(length + 8 if length else 128, end)) for table, length, end in rows])
        times.append(time.perf_counter() - began)
        pager.commit(seq)
        rows = [(table, min(length + 8 if length else 128, end), end) for table, length, end in rows]
        held = arena.num_slabs - arena.num_free
        packed = -(-sum(len(table.pages[0]) for table, _length, _end in rows) // per_slab)
        run.copied_bytes += len(plan.moves) * FRAME_BYTES
        run.peak_bytes = max(run.peak_bytes, held * SLAB)
        if packed >= LEAST_SLABS:
            run.ratios.append(held / packed)
    run.plan_us = statistics.median(times) * 1e6
    return run


def main() -> None:
    """Measure, print and keep."""
    figures: list[Figure] = []
    for name, ratio in (("without compaction", 0.0), ("with compaction", GOAL)):
        runs = [simulate(ratio, seed) for seed in range(3)]
        worst, mean = max(max(run.ratios) for run in runs), statistics.mean(statistics.mean(run.ratios) for run in runs)
        late = statistics.mean(statistics.mean(run.ratios[-len(run.ratios) // 10 :]) for run in runs)
        copied = sum(run.copied_bytes for run in runs) / 3 / (1 << 30)
        figures += [
            at_most(f"held / packed, mean, {name}", mean, GOAL, "x") if ratio else Figure(f"held / packed, mean, {name}", mean, "x"),
            Figure(f"held / packed, last tenth, {name}", late, "x"),
            Figure(f"held / packed, worst, {name}", worst, "x"),
            Figure(f"copied device to device, {name}", copied, "GiB"),
            Figure(f"plan, median, {name}", statistics.median(run.plan_us for run in runs), "us", note=f"{ROWS} rows"),
        ]
    waste = 1 - SLAB // FRAME_BYTES * FRAME_BYTES / SLAB
    figures.append(
        Figure("behind the last frame of a slab", 100 * waste, "%", note=f"frames of {FRAME_BYTES >> 10} KiB, slabs of {SLAB >> 20} MiB")
    )
    publish("fragmentation", "Slabs held by contexts of staggered lengths", figures, json_path())


if __name__ == "__main__":
    main()
