"""How close to the machine's limits does the whole daemon come, and what does it cost when there is nothing to do?

One stream reads all weights for every token, so the limit is the bandwidth of memory over the bytes of the weights. On a machine that is
shared the bandwidth wavers within seconds, between 55 and 95 GB/s on that of RESULTS.md: it is measured right before and right after each
stretch of decoding, with as many threads, as the median of some sums over memory of the same kind (huge pages, which read 8 % faster than
others), and each stretch has its own limit. Goals, 360M shape: 85 % of the limit in bf16, 65 % in int8; what is not forward pass at most
5 % of the time at 1, 8 and 32 rows of the 135M shape; nothing while idle.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from bench.daemon import running_daemon
from bench.engine import METRICS, PROMPT_TOKENS, infer_once, measure_daemon
from bench.report import Figure, at_least, at_most, json_path, publish
from bench.shapes import make_135m, make_360m, prompt
from drivers.slab_memory import PlainMemory
from kerneld_client import aio

KINDS = {"": ("bf16", 85.0), "int8": ("int8", 65.0), "int4": ("int4", 0.0)}  # name, goal in per cent
OUTPUT_TOKENS = 128
ROUNDS = 5
TURNS = 9  # of one stream: each kind of weights once
SUMS = 5  # before a stretch, and after it
ROWS = (1, 8, 32)
IDLE_S = 5.0
BANDWIDTH_BYTES = 1 << 30  # far more than any cache


class Memory:
    """What is read to learn the bandwidth: as large as the weights of a model, and taken like an arena."""

    def __init__(self) -> None:
        """Take and touch it."""
        self._values = torch.frombuffer(PlainMemory(1, BANDWIDTH_BYTES).buffer, dtype=torch.float32)
        self._values.fill_(1)

    def bandwidths(self) -> list[float]:
        """Bytes per second at which all threads together read it, some times."""
        found = []
        for _ in range(SUMS):
            began = time.perf_counter()
            self._values.sum()
            found.append(self._values.nbytes / (time.perf_counter() - began))
        return found


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens of one stream in a row, and the bandwidth around them."""

    rate: float  # tokens per second, the first one and its prompt taken off
    bandwidth: float  # bytes per second

    def share(self, weights_bytes: int) -> float:
        """Of the limit, in per cent."""
        return 100 * self.rate * weights_bytes / self.bandwidth


async def decode(k: aio.Client, name: str, memory: Memory, seed: int) -> Stretch:
    """One stream, between two looks at the bandwidth."""
    seconds, bandwidths = [], []
    for num_output in (1, OUTPUT_TOKENS + 1):
        context = await k.alloc(name)
        bandwidths = memory.bandwidths()
        seconds.append(await infer_once([context], [prompt(seed + num_output, PROMPT_TOKENS)], num_output))
        bandwidths += memory.bandwidths()
        await context.free()
    return Stretch(OUTPUT_TOKENS / (seconds[1] - seconds[0]), statistics.median(bandwidths))


async def measure_stretches(socket: Path, model: Path) -> tuple[dict[str, list[Stretch]], dict[str, int]]:
    """Stretches with each kind of weights by turns, after one that does not count; and the bytes of the weights."""
    memory, stretches = Memory(), {quant: list[Stretch]() for quant in KINDS}
    async with await aio.connect(socket) as k:
        names = {quant: f"{model.name}-{quant or 'bf16'}" for quant in KINDS}
        sizes = {quant: (await k.load(str(model), name=names[quant], quant=quant)).bytes for quant in KINDS}
        for turn in range(TURNS + 1):
            for quant, name in names.items():
                stretches[quant].append(await decode(k, name, memory, 1000 * turn))
        for name in names.values():
            await k.unload(name)
    return {quant: each[1:] for quant, each in stretches.items()}, sizes


def roofline(socket: Path, model: Path) -> list[Figure]:
    """One stream with each kind of weights, beside the bandwidth of memory at that time."""
    stretches, sizes = asyncio.run(measure_stretches(socket, model))
    bandwidths = [stretch.bandwidth / 1e9 for each in stretches.values() for stretch in each]
    around = f"{min(bandwidths):.1f} to {max(bandwidths):.1f} around stretches"
    figures = [Figure("read bandwidth, all threads", statistics.median(bandwidths), "GB/s", note=around)]
    for quant, (name, goal) in KINDS.items():
        figures.append(Figure(f"{model.name}, one stream, {name}", statistics.median(one.rate for one in stretches[quant]), "tok/s"))
        shares = [one.share(sizes[quant]) for one in stretches[quant]]
        what, share = f"{model.name}, one stream, {name}, of the bandwidth's limit", statistics.median(shares)
        note = f"{min(shares):.1f} to {max(shares):.1f}"
        figures.append(at_least(what, share, goal, "%", note) if goal else Figure(what, share, "%", note=note))
    return figures


def overhead(socket: Path) -> list[Figure]:
    """The share of the time that is not forward pass."""
    figures = []
    for rows in ROWS:
        rests = [100 * asyncio.run(measure_daemon(socket, rows, 100 * turn))[1] for turn in range(ROUNDS + 1)][1:]
        figures.append(at_most(f"(wall - forward) / wall, {rows} rows", statistics.median(rests), 5.0, "%", "client on the same cores"))
    return figures


def idle() -> Figure:
    """What the daemon and its worker use of a core while nobody asks for anything."""
    family = [process for child in psutil.Process(os.getpid()).children() for process in (child, *child.children(recursive=True))]

    def used_s() -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in family))

    time.sleep(2.0)
    before = used_s()
    time.sleep(IDLE_S)
    return at_most("processor time while idle, of one core", 100 * (used_s() - before) / IDLE_S, 1.0, "%", f"{len(family)} processes")


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        make_135m(folder)
        settings = ["drivers.dtype=bfloat16", f"syscalls.metrics={METRICS}", "memory.device_bytes=3GiB", "memory.host_bytes=512MiB"]
        with running_daemon(folder, *settings) as socket:
            figures = [*roofline(socket, make_360m(folder)), *overhead(socket), idle()]
    publish("limits", "Close to the machine's limits", figures, json_path())


if __name__ == "__main__":
    main()
