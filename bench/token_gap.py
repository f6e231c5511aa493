"""How long do running streams wait for their next token while a long prompt is read beside them? 135M shape in bf16, a real daemon.

    16 streams generate  |---- alone ----|---- beside: a prompt of 4,000 tokens is read ----|---- alone ----|
                                         it arrives                          its first token

Tokens that come while the prompt is read are compared with those that come before and after, round by round, by the 99th percentile of the
time between two tokens of one stream. Goal: at most 2x.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.daemon import running_daemon
from bench.report import Figure, at_most, publish
from bench.shapes import make_135m, prompt
from kerneld_client import aio

STREAM_INPUT = 64
WARM_UP_TOKENS = 16  # of every stream, before anything counts
ALONE_TOKENS = 128  # of every stream, that count before the prompt arrives, and as many after it
MAX_POSITIONS = 8192
METRICS = "127.0.0.1:9474"
GOAL = 2.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int
    streams: int
    prompt_tokens: int


@dataclass(slots=True)
class Streams:
    """Streams that run together, and when their tokens came."""

    contexts: list[aio.Context]
    seed: int
    arrivals: list[list[float]] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def begin(self) -> None:
        """Start them all, and return once each has warmed up."""
        self.arrivals = [[] for _ in self.contexts]
        self._tasks = [asyncio.create_task(self._read(idx)) for idx in range(len(self.contexts))]
        await self.until(WARM_UP_TOKENS)

    async def until(self, num_more: int) -> None:
        """Return once every stream has so many more tokens. Raises: what ended a stream."""
        wanted = [len(times) + num_more for times in self.arrivals]
        while any(len(times) < count for times, count in zip(self.arrivals, wanted, strict=True)):
            for task in self._tasks:
                if task.done():
                    await task
                    raise RuntimeError("a stream ended before its time")
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Cancel them all."""
        for context in self.contexts:
            await context.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def gaps_s(self, start: float, end: float) -> list[float]:
        """Seconds between two tokens of one stream, of the tokens that came from `start` to `end`."""
        return [later - earlier for times in self.arrivals for earlier, later in pairwise(times) if start <= later <= end]

    async def _read(self, idx: int) -> None:
        tokens = prompt(self.seed + idx, STREAM_INPUT)
        async for delta in self.contexts[idx].infer(tokens=tokens, max_tokens=MAX_POSITIONS // 2, temperature=1, ignore_eos=True):
            self.arrivals[idx] += [time.perf_counter()] * len(delta.tokens)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round told."""

    alone_s: list[float]
    beside_s: list[float]
    first_token_s: float


async def measure(socket: Path, sizes: Sizes, seed: int) -> Round:
    """A round: the streams alone, beside a prompt, and alone again."""
    async with await aio.connect(socket, timeout_s=600) as k:
        await k.load(str(socket.parent / "135m"), name="135m")
        contexts = [await k.alloc("135m") for _ in range(sizes.streams + 1)]
        streams = Streams(contexts[:-1], seed)
        await streams.begin()
        began = time.perf_counter()
        await streams.until(ALONE_TOKENS)
        asked = time.perf_counter()
        tokens = prompt(seed + 999, sizes.prompt_tokens)
        await contexts[-1].infer(tokens=tokens, max_tokens=1, temperature=0, ignore_eos=True).result()
        answered = time.perf_counter()
        await streams.until(ALONE_TOKENS)
        ended = time.perf_counter()
        await streams.end()
        for context in contexts:
            await context.free()
    alone_s = streams.gaps_s(began, asked) + streams.gaps_s(answered, ended)
    return Round(alone_s, streams.gaps_s(asked, answered), answered - asked)


def step_error() -> float:
    """By how much steps are off what is expected of them, by the daemon's own metrics, in percent."""
    with urllib.request.urlopen(f"http://{METRICS}/metrics") as page:
        found = re.search(r'^kerneld_step_cost_error_ratio{model="135m"} ([0-9.e+-]+)$', page.read().decode(), re.MULTILINE)
    if found is None:
        raise RuntimeError("the daemon's metrics have no kerneld_step_cost_error_ratio of the model")
    return 100 * float(found.group(1))


def p99_ms(gaps_s: list[float]) -> float:
    """The 99th percentile in milliseconds."""
    return 1000 * statistics.quantiles(gaps_s, n=100)[98]


def figures_of(rounds: list[Round], sizes: Sizes, error: float) -> list[Figure]:
    """Medians over the rounds, and the median of their ratios."""
    alone, beside = [p99_ms(each.alone_s) for each in rounds], [p99_ms(each.beside_s) for each in rounds]
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    gaps = f"{sum(len(each.beside_s) for each in rounds)} gaps, {len(rounds)} rounds"
    return [
        Figure(f"p99 between tokens, {sizes.streams} streams alone", statistics.median(alone), "ms"),
        Figure(f"p99 between tokens, beside a prompt of {sizes.prompt_tokens}", statistics.median(beside), "ms", note=gaps),
        at_most("ratio", statistics.median(ratios), GOAL, "x", ", ".join(f"{ratio:.2f}" for ratio in ratios)),
        Figure("median between tokens, alone", statistics.median(1000 * statistics.median(each.alone_s) for each in rounds), "ms"),
        Figure("median between tokens, beside it", statistics.median(1000 * statistics.median(each.beside_s) for each in rounds), "ms"),
        Figure("first token of the prompt", statistics.median(each.first_token_s for each in rounds), "s"),
        Figure("mean error of the step's predicted time", error, "%"),
    ]


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=4000, help="tokens of the long prompt")
    given = parser.parse_args()
    sizes = Sizes(given.rounds, given.streams, given.prompt)
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        make_135m(folder, max_positions=MAX_POSITIONS)
        settings = ["drivers.dtype=bfloat16", f"syscalls.metrics={METRICS}", "memory.device_bytes=2GiB", "memory.host_bytes=512MiB"]
        with running_daemon(folder, *settings) as socket:
            asyncio.run(measure(socket, sizes, 10_000))  # learns what steps cost
            rounds = [asyncio.run(measure(socket, sizes, turn * 100)) for turn in range(sizes.rounds)]
            error = step_error()
    title = f"Time between tokens of {sizes.streams} streams beside a long prompt, 135M shape in bf16"
    publish("token_gap", title, figures_of(rounds, sizes, error), given.json)


if __name__ == "__main__":
    main()
