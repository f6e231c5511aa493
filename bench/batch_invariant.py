"""What does `drivers.batch_invariant` cost? 135M shape in bf16, with and without it in turn, round by round, natively and in torch.

Native code computes a token alike in any company anyway, so there is nothing to switch, and nothing to pay: at most 3 %, which is noise.
In torch, which runs what native code does not cover, tokens go through the model in tiles of their own; that has no goal. A context of 16
tokens goes on with so many more, of one row and of several at once; and a prompt of 512 tokens is read.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.daemon import running_daemon
from bench.engine import infer_once
from bench.report import Figure, at_most, json_path, publish
from bench.shapes import make_135m, prompt
from kerneld_client import aio

ROWS = (1, 8, 32)
SHORT_TOKENS, LONG_TOKENS = 16, 512
GOAL = 1.03  # times as long, natively

Run = Callable[[int, int, int], float]  # rows, tokens of each prompt, tokens of each answer -> seconds


@dataclass(frozen=True, slots=True)
class Way:
    """What computes, and how much of it is measured."""

    name: str
    settings: tuple[str, ...]
    output_tokens: int
    rounds: int


WAYS = (Way("native", (), 64, 7), Way("torch", ('drivers.options={ native = "off" }',), 12, 3))


def runner(socket: Path, model: Path) -> Run:
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


def costs(way: Way, runs: tuple[Run, Run]) -> list[Figure]:
    """How many times as long every task takes with the option, of two daemons that differ in nothing else."""
    tasks = {f"{num} row{'s' if num > 1 else ''}, going on": (num, SHORT_TOKENS, way.output_tokens) for num in ROWS}
    tasks[f"prompt of {LONG_TOKENS}"] = (1, LONG_TOKENS, 1)
    figures = []
    for task, sizes in tasks.items():
        turns = [tuple(run(*sizes) for run in runs) for _ in range(way.rounds + 1)][1:]
        plain_s, asked_s = (statistics.median(turn[idx] for turn in turns) for idx in (0, 1))
        ratio = statistics.median(asked / plain for plain, asked in turns)
        note = f"{1e3 * plain_s:.0f} ms without, {1e3 * asked_s:.0f} ms with"
        what = f"{way.name}, {task}, times as long"
        figures.append(at_most(what, ratio, GOAL, "x", note) if way.name == "native" else Figure(what, ratio, "x", note=note))
    return figures


def main() -> None:
    """Measure, print and keep."""
    figures: list[Figure] = []
    for way in WAYS:
        with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name, ExitStack() as stack:
            model = make_135m(Path(name))
            runs = []
            for option in ("false", "true"):
                folder = Path(name) / option
                folder.mkdir()
                settings = ["drivers.dtype=bfloat16", "memory.device_bytes=1GiB", "memory.host_bytes=256MiB", *way.settings]
                settings.append(f"drivers.batch_invariant={option}")
                runs.append(runner(stack.enter_context(running_daemon(folder, *settings, model_root=Path(name))), model))
            figures += costs(way, (runs[0], runs[1]))
    publish("batch_invariant", "What bits that depend on no other row cost, 135M shape in bf16", figures, json_path())


if __name__ == "__main__":
    main()
