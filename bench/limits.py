"""How close to the machine's limits does the whole daemon come, and what does it cost when there is nothing to do?

One stream reads all weights for every token, so the limit is the bandwidth of memory over the bytes of the weights. The bandwidth is
measured between the rounds, with the same threads, as the best of some sums over a large tensor. Goals, 360M shape: 85 % of the limit in
bf16, 65 % in int8; what is not forward pass at most 5 % of the time at 1, 8 and 32 rows of the 135M shape; nothing while idle.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch

from bench.daemon import running_daemon
from bench.engine import METRICS, PROMPT_TOKENS, infer_once, measure_daemon
from bench.report import Figure, at_least, at_most, json_path, publish
from bench.shapes import make_135m, make_360m, prompt
from kerneld_client import aio

KINDS = {"": ("bf16", 85.0), "int8": ("int8", 65.0), "int4": ("int4", 0.0)}  # name, goal in per cent
OUTPUT_TOKENS = 128
ROUNDS = 5
ROWS = (1, 8, 32)
IDLE_S = 5.0
BANDWIDTH_BYTES = 1 << 30


def read_bandwidth() -> float:
    """Bytes per second at which all threads together read memory: the best of eight sums."""
    values = torch.ones(BANDWIDTH_BYTES // 4)
    best_s = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        values.sum()
        best_s = min(best_s, time.perf_counter() - began)
    return values.nbytes / best_s


async def decode_rate(socket: Path, model: Path, quant: str, seed: int) -> tuple[float, int]:
    """Output tokens per second of one stream, its first token taken off; and the bytes of the weights."""
    async with await aio.connect(socket) as k:
        info = await k.load(str(model), name=f"{model.name}-{quant or 'bf16'}", quant=quant)
        seconds = []
        for num_output in (1, OUTPUT_TOKENS + 1):
            context = await k.alloc(info.name)
            seconds.append(await infer_once([context], [prompt(seed + num_output, PROMPT_TOKENS)], num_output))
            await context.free()
        await k.unload(info.name)
    return OUTPUT_TOKENS / (seconds[1] - seconds[0]), info.bytes


def roofline(socket: Path, model: Path) -> list[Figure]:
    """One stream with each kind of weights, beside the bandwidth of memory."""
    rates: dict[str, list[float]] = {quant: [] for quant in KINDS}
    shares: dict[str, list[float]] = {quant: [] for quant in KINDS}
    bandwidths: list[float] = []
    for turn in range(ROUNDS):
        bandwidths.append(read_bandwidth())
        for quant in KINDS:
            rate, weights_bytes = asyncio.run(decode_rate(socket, model, quant, 1000 * turn))
            rates[quant].append(rate)
            shares[quant].append(100 * rate * weights_bytes / bandwidths[-1])
    figures = [Figure("read bandwidth, all threads", statistics.median(bandwidths) / 1e9, "GB/s", note=f"best {max(bandwidths) / 1e9:.1f}")]
    for quant, (name, goal) in KINDS.items():
        figures.append(Figure(f"{model.name}, one stream, {name}", statistics.median(rates[quant]), "tok/s"))
        what, share = f"{model.name}, one stream, {name}, of the bandwidth's limit", statistics.median(shares[quant])
        figures.append(at_least(what, share, goal, "%") if goal else Figure(what, share, "%"))
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
