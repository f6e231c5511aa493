"""Two daemons that differ in one setting, measured in turn: how many times as long one takes for what the other does."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.daemon import running_daemon
from bench.engine import infer_once
from bench.shapes import make_135m, prompt
from kerneld_client import aio

ROWS = (1, 8, 32)
SHORT_TOKENS, LONG_TOKENS = 16, 512
COMMON = ("drivers.dtype=bfloat16", "memory.device_bytes=1GiB", "memory.host_bytes=256MiB")

Run = Callable[[int, int, int], float]  # rows, tokens of each prompt, tokens of each answer -> seconds


@dataclass(frozen=True, slots=True)
class Turns:
    """What came of one task, medians."""

    task: str
    ratio: float  # of the second daemon's time to the first's, turn by turn
    first_s: float
    second_s: float


@contextmanager
def twins(settings: Sequence[str], first: str, second: str) -> Iterator[tuple[Run, Run]]:
    """Daemons with the 135M shape and these settings; `first` and `second` are what each has beside them."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name, ExitStack() as stack:
        model = make_135m(Path(name))
        runs: list[Run] = []
        for idx, own in enumerate((first, second)):
            folder = Path(name) / str(idx)
            folder.mkdir()
            runs.append(_runner(stack.enter_context(running_daemon(folder, *COMMON, *settings, own, model_root=Path(name))), model))
        yield runs[0], runs[1]


def turns(runs: tuple[Run, Run], output_tokens: int, rounds: int) -> Iterator[Turns]:
    """Short contexts that go on, of one row and of several at once; then a long prompt. A round before the first is not counted."""
    tasks = {f"{num} row{'s' if num > 1 else ''}, going on": (num, SHORT_TOKENS, output_tokens) for num in ROWS}
    tasks[f"prompt of {LONG_TOKENS}"] = (1, LONG_TOKENS, 1)
    for task, sizes in tasks.items():
        taken = [tuple(run(*sizes) for run in runs) for _ in range(rounds + 1)][1:]
        first_s, second_s = (statistics.median(turn[idx] for turn in taken) for idx in (0, 1))
        yield Turns(task, statistics.median(second / first for first, second in taken), first_s, second_s)


def _runner(socket: Path, model: Path) -> Run:
    """Generation by one daemon."""
    seeds = iter(range(0, 1 << 30, 64))

    async def seconds(num_rows: int, num_prompt: int, num_output: int) -> float:
        async with await aio.connect(socket) as k:
            await k.load(str(model), name=model.name)
            contexts = [await k.alloc(model.name) for _ in range(num_rows)]
            seed = next(seeds)
            try:
                return await infer_once(contexts, [prompt(seed + idx, num_prompt) for idx in range(num_rows)], num_output)
            finally:
                for context in contexts:
                    await context.free()

    return lambda *sizes: asyncio.run(seconds(*sizes))
