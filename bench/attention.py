"""How much of the memory's speed does native attention reach, and how much faster is it than the library's? Op by op, without a model.

The 135M shape on as many threads as the machine has cores, pages of 16 tokens in no order, twelve layers or more one behind the other so
that nothing is in a cache. Goals: decode rows read their keys and values at 70 % of what a plain sum over as many bytes reads, and a chunk
of 512 tokens takes half of what torch's attention takes or less. Each is measured in turn with what it is held against; ratios are those
of the medians.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

# As the driver has it: threads of the library that spin when they have summed would take a core from ours.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from torch import Tensor

from bench.report import Figure, at_least, json_path, publish
from bench.shapes import HEAD_DIM, HEADS, KV_HEADS
from drivers.native.attention import AttentionSettings, LayerPages, NativeAttention, layer_part_bytes
from drivers.native.build import cpu_library
from drivers.ops import fused
from drivers.ops.ragged import AttentionShape, HeadShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv
from drivers.slab_memory import PlainMemory

PAGE_TOKENS, GRANULE = 16, 4096
SHAPE = HeadShape(HEADS, KV_HEADS, HEAD_DIM)
SETTINGS = AttentionSettings(HEAD_DIM**-0.5, 0.0, 0, HEADS)
BYTES_AT_ONCE = 400 << 20  # of keys and values in a round, at least
ROUNDS, CHUNK = 7, 512
WORKSPACE_PAGES = 1024
GB = 1e9


@dataclass(frozen=True, slots=True)
class Bed:
    """Some rows of one length, in pages of several layers."""

    pages: LayerPages
    rows: list[RowSpan]
    queries: Tensor
    num_layers: int
    read_bytes: int

    @classmethod
    def of(cls, dtype: torch.dtype, num_rows: int, num_keys: int, count: int) -> Bed:
        """`count`: queries of each row, at the end of its keys. What the bytes of keys and values say does not matter to the clock."""
        num_pages = num_keys // PAGE_TOKENS
        part = layer_part_bytes(dtype, PAGE_TOKENS, SHAPE)
        num_layers = -(-BYTES_AT_ONCE // (part * num_pages * num_rows)) if count == 1 else 1
        granules = -(-part * num_layers // GRANULE)
        memory = PlainMemory(1, num_rows * num_pages * granules * GRANULE)
        arena = torch.frombuffer(memory.buffer, dtype=torch.uint8)
        arena.fill_(1)
        frames = np.random.default_rng(1).permutation(num_rows * num_pages) * granules
        tables = frames.reshape(num_rows, num_pages)
        rows = [RowSpan(idx * count, count, num_keys - count, tables[idx]) for idx in range(num_rows)]
        queries = torch.randn(num_rows * count, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
        pages = LayerPages(arena, GRANULE, PAGE_TOKENS, SHAPE, dtype)
        return cls(pages, rows, queries, num_layers, part * num_pages * num_rows * num_layers)

    def attending(self, native: NativeAttention, num_threads: int) -> Callable[[], None]:
        """All layers, one after the other. What Python has to say of them is said before: a step of the engine is one call."""
        part = layer_part_bytes(self.pages.dtype, PAGE_TOKENS, SHAPE)
        layers = [
            native.prepared(replace(self.pages, layer_bytes=layer * part), self.rows, self.queries, SETTINGS, num_threads)
            for layer in range(self.num_layers)
        ]

        def attend() -> None:
            for layer in layers:
                layer()

        return attend


def medians(*works: Callable[[], object]) -> list[float]:
    """Seconds of each, measured in turn."""
    took: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, seconds in zip(works, took, strict=True):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in took]


def measure_decode(native: NativeAttention, num_threads: int) -> list[Figure]:
    """One token of each row over all that came before it."""
    plain = torch.ones(BYTES_AT_ONCE // 4)
    figures: list[Figure] = []
    for dtype in (torch.bfloat16, torch.int8):
        for num_rows, num_keys in ((8, 4096), (1, 16384)):
            bed = Bed.of(dtype, num_rows, num_keys, 1)
            attend = bed.attending(native, num_threads)
            attend()
            attending_s, reading_s = medians(attend, plain.sum)
            read, limit = bed.read_bytes / attending_s / GB, BYTES_AT_ONCE / reading_s / GB
            what = f"decode, {num_rows} x {num_keys} keys, {str(dtype).removeprefix('torch.')}"
            figures.append(at_least(what, 100 * read / limit, 70, "%", f"of the read bandwidth: {read:.1f} of {limit:.1f} GB/s"))
    return figures


def measure_prefill(native: NativeAttention, num_threads: int) -> list[Figure]:
    """A chunk of one row, at its beginning and behind 3,584 tokens, against torch's attention over gathered pages."""
    figures: list[Figure] = []
    for position in (0, 3584):
        bed = Bed.of(torch.bfloat16, 1, position + CHUNK, CHUNK)
        num_pages = (position + CHUNK) // PAGE_TOKENS
        kv = LayerKv(torch.ones(num_pages, PAGE_TOKENS, 2, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16), SHAPE)
        workspace = torch.empty(WORKSPACE_PAGES * PAGE_TOKENS, 2, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16)
        row = RowSpan(0, CHUNK, position, np.random.default_rng(1).permutation(num_pages))
        batch = plan_attention(AttentionShape(PAGE_TOKENS, None, workspace), [row])
        queries = bed.queries.bfloat16()

        def library(queries: Tensor = queries, kv: LayerKv = kv, batch: object = batch) -> None:
            fused.paged_attention(queries, kv, batch, SETTINGS.scale)  # type: ignore[arg-type]

        native_s, library_s = medians(bed.attending(native, num_threads), library)
        note = f"{native_s * 1e3:.2f} ms, torch {library_s * 1e3:.2f} ms, bfloat16, one layer"
        figures.append(at_least(f"chunk of {CHUNK} tokens at {position}, torch's time over ours", library_s / native_s, 2, "x", note))
    return figures


def main() -> None:
    """Measure, print and keep."""
    num_threads = os.cpu_count() or 1
    torch.set_num_threads(num_threads)
    found = cpu_library()
    if found.library is None:
        raise SystemExit(f"There is no native code here: {found.why}")
    native = NativeAttention(found.library, num_threads)
    try:
        with torch.inference_mode():
            figures = measure_decode(native, num_threads) + measure_prefill(native, num_threads)
    finally:
        native.close()
    publish("attention", f"Native attention, 135M shape, {num_threads} threads, {found.level}", figures, json_path())


if __name__ == "__main__":
    main()
