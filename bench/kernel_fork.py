"""A fork inside the kernel, without RPC: journal, page tables and chain, on the fake driver."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from drivers.config import DriversConfig
from drivers.contract import Sampling
from kerneld.calls import AllocArgs, Caller, ForkArgs, InferArgs, Principal, RegisterArgs, Role, TokenInput
from kerneld.config import Config, KerneldConfig
from kerneld.daemon import Daemon

ADMIN = Caller(Principal("bench", "admin", frozenset({Role.ADMIN})))


def kernel_fork_ms(num_tokens: int, num_forks: int) -> float:
    """Median milliseconds of the verb fork on a context of so many tokens, durability `journal`."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        return asyncio.run(_measure(Path(name), num_tokens, num_forks))


async def _measure(folder: Path, num_tokens: int, num_forks: int) -> float:
    (folder / "models" / "fake").mkdir(parents=True)
    kernel = KerneldConfig(folder / "state", folder, folder / "worker.sock", model_roots=(folder / "models",))
    daemon = Daemon(Config(drivers=DriversConfig(use="fake"), kerneld=kernel))
    await daemon.start()
    try:
        return await _fork(daemon, folder / "models" / "fake", num_tokens, num_forks)
    finally:
        await daemon.stop()


async def _fork(daemon: Daemon, model: Path, num_tokens: int, num_forks: int) -> float:
    kernel = daemon.kernel
    daemon.machine.authenticator.login(0, 0, ())  # makes the tenant "admin"
    async for _progress in kernel.load_model(ADMIN, RegisterArgs("fake", str(model))):
        pass
    context = await kernel.alloc(ADMIN, AllocArgs("fake"))
    tokens = TokenInput(tuple(idx % 50 + 1 for idx in range(num_tokens)))
    async for _event in kernel.infer(ADMIN, InferArgs(context.id, tokens, 1, Sampling(temperature=0.0), ignore_eos=True)):
        pass
    took = []
    for _ in range(num_forks):
        started_at = time.perf_counter()
        await kernel.fork(ADMIN, ForkArgs(context.id))
        took.append((time.perf_counter() - started_at) * 1e3)
    return statistics.median(took)
