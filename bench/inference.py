"""How fast is the whole daemon beside the engines that people could run instead? Random weights in the SmolLM2 shapes, the same threads.

Each engine answers the same tasks in turn, round by round, and a ratio is taken within a round; while one works, the others are stopped.
Peers keep their own defaults but for the threads. The tasks:

    one stream     128 prompt and 128 output tokens, the first output token taken off: output tokens per second
    8, 32          so many of them at once: output tokens per second, prefill included
    first token    a prompt of 512 tokens

`python -m bench.peers.install` installs the peers; vLLM, where there is none for this machine, is left out, and that is noted. With
`--peers "vllm bf16,openvino bf16"`, only those are started, beside the kinds of ours that are compared with them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.daemon import running_daemon
from bench.engine import infer_once
from bench.peers.install import converted, is_installed, python_of
from bench.peers.peer import running_peer
from bench.report import Figure, at_least, at_most, publish
from bench.shapes import make_135m, make_360m, prompt
from kerneld_client import aio

PROMPT_TOKENS, OUTPUT_TOKENS, LONG_TOKENS = 128, 128, 512
BATCHES = (8, 32)
ROUNDS = 3
THREADS = len(os.sched_getaffinity(0))

Seconds = Callable[[list[list[int]], int], float]  # prompts, output tokens


@dataclass(frozen=True, slots=True)
class Peers:
    """What a kind of our weights is compared with, and how many times as fast it should be."""

    quant: str  # of ours
    batch: tuple[str, ...]
    batch_goal: float
    single: tuple[str, ...]
    single_goal: float
    first_goal: float  # of the time to the first token


GOALS = (
    Peers("int8", ("openvino int8", "llama.cpp q8_0"), 1.2, ("llama.cpp q8_0",), 1.0, 0.85),
    Peers("", ("openvino bf16", "vllm bf16"), 1.05, (), 0.0, 1.1),
    Peers("int4", (), 0.0, ("llama.cpp q4_0",), 0.9, 0.0),
)
PEERS = ("openvino int8", "openvino bf16", "vllm bf16", "llama.cpp q8_0", "llama.cpp q4_0")
FOR_COMPARISON = ("llama.cpp bf16", "transformers bf16")  # without a goal, on the smaller shape
Shape = tuple[Callable[[Path], Path], tuple[str, ...]]  # what writes the model, and who runs it beside us
SHAPES: dict[str, Shape] = {"135m": (make_135m, (*PEERS, *FOR_COMPARISON)), "360m": (make_360m, PEERS)}


def goals_with(peers: Sequence[str]) -> list[Peers]:
    """The goals as they are when only some peers run: those that have one to be compared with."""
    found = []
    for goal in GOALS:
        batch, single = (tuple(name for name in names if name in peers) for names in (goal.batch, goal.single))
        if batch or single:
            found.append(replace(goal, batch=batch, single=single))
    return found


@contextmanager
def peer(name: str, model: Path) -> Iterator[Seconds]:
    """Start the peer of that name on a model."""
    engine, kind = name.split()
    if engine == "openvino":
        folder = converted("openvino", model, "int8" if kind == "int8" else "none")
        arguments = [str(folder), str(THREADS), "" if kind == "int8" else "bf16"]
        started = running_peer(python_of("openvino"), "openvino_peer.py", *arguments)
    elif engine == "llama.cpp":
        file = converted("llama_cpp", model, kind)
        started = running_peer(python_of("llama_cpp"), "llama_cpp_peer.py", str(file), str(THREADS))
    elif engine == "vllm":
        started = running_peer(python_of("vllm"), "vllm_peer.py", str(model), str(THREADS))
    else:
        started = running_peer(Path(sys.executable), "transformers_peer.py", str(model), str(THREADS))
    with started as running:
        yield running.seconds


def ours(socket: Path, model: Path, quant: str) -> Seconds:
    """The daemon, with weights of that kind."""
    name = f"{model.name}-{quant or 'bf16'}"

    async def generate(prompts: list[list[int]], num_output: int) -> float:
        async with await aio.connect(socket) as k:
            await k.load(str(model), name=name, quant=quant)
            contexts = [await k.alloc(name) for _ in prompts]
            try:
                return await infer_once(contexts, prompts, num_output)
            finally:
                for context in contexts:
                    await context.free()

    return lambda prompts, num_output: asyncio.run(generate(prompts, num_output))


def measure(seconds: Seconds, seed: int) -> dict[str, float]:
    """One round of all tasks on one engine, by task."""

    def prompts(num: int, num_tokens: int) -> list[list[int]]:
        return [prompt(seed + idx, num_tokens) for idx in range(num)]

    one = prompts(1, PROMPT_TOKENS)
    decode_s = seconds(one, OUTPUT_TOKENS + 1) - seconds(prompts(2, PROMPT_TOKENS)[1:], 1)
    figures = {"one stream": OUTPUT_TOKENS / decode_s, "first token": 1000 * seconds(prompts(1, LONG_TOKENS), 1)}
    for num in BATCHES:
        figures[f"{num} requests"] = num * OUTPUT_TOKENS / seconds(prompts(num, PROMPT_TOKENS), OUTPUT_TOKENS)
    return figures


def rounds(engines: dict[str, Seconds]) -> dict[str, list[dict[str, float]]]:
    """All engines in turn, `ROUNDS` times, after they warmed up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for seconds in engines.values():
        for num in (1, *BATCHES):
            seconds([prompt(idx, PROMPT_TOKENS) for idx in range(num)], 4)
        seconds([prompt(0, LONG_TOKENS)], 1)
    for turn in range(ROUNDS):
        for name, seconds in engines.items():
            found[name].append(measure(seconds, 1000 * (turn + 1)))
            print(name, found[name][-1], flush=True)
    return found


def compared(found: dict[str, list[dict[str, float]]], goals: Sequence[Peers]) -> Iterator[Figure]:
    """What every engine reached, and the ratios that have goals."""
    for name, turns in found.items():
        for task in turns[0]:
            unit = "ms" if task == "first token" else "tok/s"
            yield Figure(f"{task}, {name}", statistics.median(turn[task] for turn in turns), unit)
    for goal in goals:
        mine = found[f"kerneld {goal.quant or 'bf16'}"]

        def ratio(task: str, names: tuple[str, ...], best: Callable[..., float], own: list[dict[str, float]] = mine) -> float:
            return statistics.median(turn[task] / best(found[name][idx][task] for name in names) for idx, turn in enumerate(own))

        kind = goal.quant or "bf16"
        if goal.batch:
            for num in BATCHES:
                value = ratio(f"{num} requests", goal.batch, max)
                yield at_least(f"{kind}, {num} requests, of the best of {' and '.join(goal.batch)}", value, goal.batch_goal, "x")
            value = ratio("first token", goal.batch, min)
            yield at_most(f"{kind}, time to the first token, of the best's", value, goal.first_goal, "x")
        if goal.single:
            value = ratio("one stream", goal.single, max)
            yield at_least(f"{kind}, one stream, of {' and '.join(goal.single)}", value, goal.single_goal, "x")


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--peers", default=",".join((*PEERS, *FOR_COMPARISON)), help="the peers to start")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="one of them alone  [default: all]")
    asked = parser.parse_args()
    wanted = [name.strip() for name in asked.peers.split(",")]
    if unknown := set(wanted) - {*PEERS, *FOR_COMPARISON}:
        parser.error(f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join((*PEERS, *FOR_COMPARISON))}")
    is_without_vllm = not is_installed("vllm")
    chosen = [name for name in wanted if not (is_without_vllm and name.startswith("vllm"))]
    shapes = {asked.shape: SHAPES[asked.shape]} if asked.shape else SHAPES
    figures = measured(chosen, shapes)
    if is_without_vllm:
        print("vLLM is not installed: compared without it", file=sys.stderr)
        figures = [replace(figure, note="without vLLM") if ": bf16, " in figure.what else figure for figure in figures]
    publish("inference", "Generation beside other engines" + (f", {asked.shape} shape" if asked.shape else ""), figures, asked.json)


def measured(chosen: Sequence[str], shapes: Mapping[str, Shape]) -> list[Figure]:
    """All figures of some shapes, beside the chosen peers."""
    figures: list[Figure] = []
    goals = goals_with(chosen)
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        settings = ["drivers.dtype=bfloat16", "memory.device_bytes=4GiB", "memory.host_bytes=512MiB"]
        with running_daemon(folder, *settings) as socket:
            for make, peers in shapes.values():
                model = make(folder)
                with ExitStack() as stack:
                    engines = {f"kerneld {goal.quant or 'bf16'}": ours(socket, model, goal.quant) for goal in goals}
                    engines |= {name: stack.enter_context(peer(name, model)) for name in peers if name in chosen}
                    found = compared(rounds(engines), goals)
                    figures += [Figure(f"{model.name}: {f.what}", f.value, f.unit, f.goal, f.is_met) for f in found]
    return figures


if __name__ == "__main__":
    main()
