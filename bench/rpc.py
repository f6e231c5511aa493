"""What does a system call cost? A reading call (goal: p50 <= 0.6 ms), a streamed token (goal: <= 60 us of front CPU at 32 streams).

The server is the real one (gate, identity by token, bounds, conversion, login socket) in a process of its own, over a kernel that answers
at once; its tokens come as those of a batch do, one per stream and tick. CPU is user and system time of the whole server process, which
for one stream is mostly that of waking up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop
from prometheus_client import CollectorRegistry

import kerneld_client
from bench.report import Figure, at_most, publish
from kerneld.calls import (
    Caller,
    ContextInfo,
    ContextState,
    Durability,
    Finished,
    FinishReason,
    InferArgs,
    Principal,
    Priority,
    Role,
    Started,
    StreamEvent,
    Usage,
)
from kerneld.config import SyscallsConfig
from kerneld.stream import OutputLog
from kerneld_client import aio
from syscalls.server import Security, SyscallServer
from syscalls.verbs import Verbs

CONTEXT_ID = "0123456789abcdef" * 2
PRINCIPAL = Principal("bench", "local", frozenset({Role.USER}))
INFO = ContextInfo(
    id=CONTEXT_ID,
    model="demo",
    owner="bench",
    tenant="local",
    state=ContextState.IDLE,
    num_tokens=1000,
    max_tokens=1024,
    priority=Priority.INTERACTIVE,
    nice=0,
    durability=Durability.JOURNAL,
    labels={"purpose": "bench"},
    created_at=1.0,
    last_used_at=2.0,
    seed=7,
)
GOAL_CALL_MS = 0.6
GOAL_TOKEN_US = 60.0
GOAL_STREAMS = 32
TICK_S = 0.008  # a decode step of 32 rows


class EchoKernel:
    """The two verbs that are measured; it needs no more."""

    def __init__(self) -> None:
        self._logs: dict[OutputLog, int] = {}

    def is_ready(self) -> bool:
        return True

    def readiness_problem(self) -> str:
        return ""

    def stat(self, _caller: Caller, _context_id: str) -> ContextInfo:
        return INFO

    async def infer(self, _caller: Caller, args: InferArgs) -> AsyncIterator[StreamEvent]:
        log = OutputLog(0, time.monotonic)
        reader = log.open(0)
        self._logs[log] = args.max_tokens
        yield Started("r", 0, 1)
        async for event in reader:
            yield event

    async def tick(self) -> None:
        """Give every stream a token, as a step does."""
        while True:
            await asyncio.sleep(TICK_S)
            for log, num_tokens in list(self._logs.items()):
                log.append(log.end % 4096, " word")
                if log.end == num_tokens:
                    log.finish(Finished(FinishReason.LENGTH, Usage(output_tokens=num_tokens)))
                    del self._logs[log]


@dataclass(frozen=True)
class Ticket:
    """What a login gives."""

    secret: str
    principal: Principal
    expires_at: float


class OneToken:
    """Identity and audit of a machine with one user."""

    def login(self, _uid: int, _gid: int, _groups: Sequence[int]) -> Ticket:
        return Ticket("bench", PRINCIPAL, 4e9)

    def authenticate(self, _bearer: str) -> Principal:
        return PRINCIPAL

    def authenticate_certificate(self, _common_name: str) -> Principal:
        return PRINCIPAL

    def append(self, principal: Principal, verb: str, object_id: str, outcome: str, facts: Mapping[str, str]) -> None:
        """Keep nothing."""


async def serve(path: Path) -> None:
    """The server process; ends with its standard input."""
    kernel, security = EchoKernel(), OneToken()
    ticking = asyncio.create_task(kernel.tick())
    config = SyscallsConfig(socket=path)
    server = SyscallServer(config, cast(Verbs, kernel), Security(security, security.login, security, "bench"), CollectorRegistry())
    await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    ticking.cancel()
    await server.stop(0)


def cpu_s(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return times.user + times.system


def measure_calls(path: Path, server: psutil.Process, num_calls: int) -> list[Figure]:
    """One caller, one call after the other."""
    took = []
    with kerneld_client.connect(path) as client:
        context = client.context(CONTEXT_ID)
        for _ in range(200):
            context.stat()
        before = cpu_s(server)
        for _ in range(num_calls):
            began = time.perf_counter()
            context.stat()
            took.append((time.perf_counter() - began) * 1e3)
        used = (cpu_s(server) - before) / num_calls
    took.sort()
    return [
        at_most("reading call, p50", statistics.median(took), GOAL_CALL_MS, "ms"),
        Figure("reading call, p99", took[int(len(took) * 0.99)], "ms"),
        Figure("reading call, front CPU", used * 1e6, "us"),
    ]


async def measure_streams(path: Path, server: psutil.Process, num_streams: int, num_tokens: int) -> list[Figure]:
    """Many streams at once, one token each per tick."""
    num_deltas = 0

    async def read(client: aio.Client) -> None:
        nonlocal num_deltas
        async for _ in client.context(CONTEXT_ID).infer(max_tokens=num_tokens):
            num_deltas += 1

    async with aio.connect(path) as client:
        began, before = time.perf_counter(), cpu_s(server)
        await asyncio.gather(*(read(client) for _ in range(num_streams)))
        used, took = cpu_s(server) - before, time.perf_counter() - began
    total = num_streams * num_tokens
    token_us = used / total * 1e6
    token = f"streamed token at {num_streams} streams, front CPU"
    return [
        at_most(token, token_us, GOAL_TOKEN_US, "us") if num_streams == GOAL_STREAMS else Figure(token, token_us, "us"),
        Figure(f"tokens per message at {num_streams} streams", total / num_deltas, "tokens"),
        Figure(f"tokens at {num_streams} streams", total / took, "per s"),
    ]


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=600, help="of each stream")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.serve))
        return
    with tempfile.TemporaryDirectory() as folder, started(Path(folder) / "k.sock") as (path, process):
        figures = measure_calls(path, process, options.calls)
        for num_streams in (1, GOAL_STREAMS):
            figures += asyncio.run(measure_streams(path, process, num_streams, options.tokens))
    publish("rpc", "System calls, over a kernel that answers at once", figures, options.json)


@contextlib.contextmanager
def started(path: Path) -> Any:
    """A server process for the time being."""
    command = [sys.executable, "-m", "bench.rpc", "--serve", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield path, psutil.Process(process.pid)
        process.stdin.close()
        process.wait(10)


if __name__ == "__main__":
    main()
