"""Does every tenant get its share of a real daemon, and what does a hog cost somebody who asks for little? The shipped model.

shares   four tenants of weights 1:2:3:4, each with twice as many requests waiting as the device has rows: tokens delivered over a minute,
         each tenant's within 3 % of its own share
hog      one tenant keeps 64 requests going, another sends one now and then, less than its share: its p99 time to first token beside the
         hog is at most 1.5x of what it is alone plus a step (the p99 of the hog's gaps between tokens). Alone and beside take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.daemon import ROOT, running_daemon
from bench.report import Figure, at_most, publish
from kerneld_client import aio

MODEL = ROOT / "examples" / "demo_model"
VOCABULARY = 4096
ROWS = 16
WEIGHTS = {f"lab/w{weight}": weight for weight in (1, 2, 3, 4)}
SHARE_INPUT, SHARE_OUTPUT = 16, 32
WARM_UP_S = 10.0

HOG_REQUESTS, HOG_INPUT, HOG_OUTPUT = 64, 64, 128
LIGHT_INPUT, LIGHT_OUTPUT = 256, 4
LIGHT_PAUSE_S = 0.4
HOG_ROUNDS = 4

_seeds = itertools.count(1)


def prompt(num_tokens: int) -> list[int]:
    """Random tokens that no other prompt begins with."""
    draw = random.Random(next(_seeds))
    return [draw.randrange(10, VOCABULARY) for _ in range(num_tokens)]


@dataclass
class Person:
    """One tenant's connection, and what was delivered to it."""

    client: aio.Client
    num_tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)  # between tokens of one stream

    async def ask(self, num_input: int, num_output: int) -> float:
        """One request on a context of its own; returns the seconds to its first token."""
        context = await self.client.alloc("demo")
        began = last = time.perf_counter()
        first_s = 0.0
        async for delta in context.infer(tokens=prompt(num_input), max_tokens=num_output, temperature=0, ignore_eos=True, detach_grace_s=0):
            now = time.perf_counter()
            self.num_tokens += len(delta.tokens)
            if first_s:
                self.gaps_s += [(now - last) / len(delta.tokens)] * len(delta.tokens)
            else:
                first_s = now - began
            last = now
        await context.free()
        return first_s

    async def keep_asking(self, num_input: int, num_output: int) -> None:
        """One request after the other, until cancelled."""
        while True:
            await self.ask(num_input, num_output)


@asynccontextmanager
async def person(admin: aio.Client, socket: Path, path: str, weight: int) -> AsyncIterator[Person]:
    """Somebody with a tenant and a token of its own."""
    await admin.add_tenant(path, weight=weight)
    token = await admin.add_token(path)
    async with await aio.connect(socket, token=token.token, timeout_s=600) as client:
        yield Person(client)


@asynccontextmanager
async def crowd(who: Person, num_requests: int, num_input: int, num_output: int) -> AsyncIterator[None]:
    """So many requests of somebody at once, each followed by another."""
    tasks = [asyncio.create_task(who.keep_asking(num_input, num_output)) for _ in range(num_requests)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure_shares(socket: Path, seconds: float) -> list[Figure]:
    """Weights 1:2:3:4."""
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(await aio.connect(socket))
        await admin.load(str(MODEL), name="demo")
        people = {path: await stack.enter_async_context(person(admin, socket, path, weight)) for path, weight in WEIGHTS.items()}
        for who in people.values():
            await stack.enter_async_context(crowd(who, 3 * ROWS, SHARE_INPUT, SHARE_OUTPUT))
        await asyncio.sleep(WARM_UP_S)
        before, charged = {path: who.num_tokens for path, who in people.items()}, await services(admin)
        await asyncio.sleep(seconds)
        tokens = {path: who.num_tokens - before[path] for path, who in people.items()}
        service = {path: cost - charged[path] for path, cost in (await services(admin)).items()}
    delivered = deviations(tokens)
    return [
        at_most("worst deviation of a share, tokens delivered", max(map(abs, delivered.values())), 3, "%", listed(delivered)),
        Figure("worst deviation of a share, service charged", max(map(abs, deviations(service).values())), "%"),
        Figure("tokens delivered to all four", sum(tokens.values()) / seconds, "tok/s"),
    ]


async def services(admin: aio.Client) -> dict[str, int]:
    """Service charged so far, by tenant."""
    return {tenant.path: tenant.service for tenant in await admin.tenants() if tenant.path in WEIGHTS}


def deviations(amounts: dict[str, int]) -> dict[str, float]:
    """By how many percent of its own share each tenant is off."""
    total, weights = sum(amounts.values()), sum(WEIGHTS.values())
    return {path: 100 * (amount / (total * WEIGHTS[path] / weights) - 1) for path, amount in amounts.items()}


def listed(percents: dict[str, float]) -> str:
    """Percents in a row."""
    return " ".join(f"{percent:+.1f}" for percent in percents.values())


async def measure_hog(socket: Path, num_asked: int) -> list[Figure]:
    """Somebody alone, and beside a hog, in turns."""
    alone: list[float] = []
    beside: list[float] = []
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(await aio.connect(socket))
        await admin.load(str(MODEL), name="demo")
        light = await stack.enter_async_context(person(admin, socket, "lab/light", 1))
        hog = await stack.enter_async_context(person(admin, socket, "lab/hog", 1))
        async with crowd(hog, HOG_REQUESTS, HOG_INPUT, HOG_OUTPUT):  # until the daemon knows what tokens of this model take
            await asyncio.sleep(WARM_UP_S)
            await now_and_then(light, 3)
        hog.num_tokens = 0
        hog.gaps_s.clear()
        for _ in range(HOG_ROUNDS):
            alone += await now_and_then(light, num_asked)
            async with crowd(hog, HOG_REQUESTS, HOG_INPUT, HOG_OUTPUT):
                while hog.num_tokens < HOG_REQUESTS * HOG_OUTPUT:
                    await asyncio.sleep(0.1)
                beside += await now_and_then(light, num_asked)
            hog.num_tokens = 0
    step_s = p99(hog.gaps_s)
    limit_ms = 1e3 * (1.5 * p99(alone) + step_s)
    return [
        Figure("light tenant's p99 TTFT, alone", 1e3 * p99(alone), "ms", note=f"median {1e3 * statistics.median(alone):.1f} ms"),
        Figure("p99 gap between tokens of the hog", 1e3 * step_s, "ms", note=f"median {1e3 * statistics.median(hog.gaps_s):.1f} ms"),
        at_most("light tenant's p99 TTFT beside the hog", 1e3 * p99(beside), round(limit_ms, 1), "ms", median_note(beside)),
    ]


async def now_and_then(who: Person, num_asked: int) -> list[float]:
    """Seconds to first tokens of somebody who asks for less than its share."""
    waited = []
    for _ in range(num_asked):
        waited.append(await who.ask(LIGHT_INPUT, LIGHT_OUTPUT))
        await asyncio.sleep(LIGHT_PAUSE_S)
    return waited


def median_note(values: list[float]) -> str:
    """The median in words."""
    return f"median {1e3 * statistics.median(values):.1f} ms; the limit is 1.5x alone plus a step"


def p99(values: list[float]) -> float:
    """The value that one in a hundred exceeds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="that shares are measured over")
    parser.add_argument("--asked", type=int, default=50, help="requests of the light tenant in each round")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name, running_daemon(Path(name), f"kerneld.max_rows={ROWS}") as socket:
        figures += asyncio.run(measure_shares(socket, options.seconds))
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name, running_daemon(Path(name)) as socket:
        figures += asyncio.run(measure_hog(socket, options.asked))
    publish("fairness", "Shares and a hog, the shipped model", figures, options.json)


if __name__ == "__main__":
    main()
