"""How fast does the whole daemon generate beside `transformers`? 135M shape, bf16, 128 prompt and 128 output tokens, prefill included.

Both run on the same threads in turn, a round each, and the ratio is taken round by round. Goals: 2x at one request, 1.4x at 8 and 32.
The second table is what is left of a step when the forward pass is taken away, at 32 rows. Goal: at most 5 %.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import torch
import transformers

from bench.daemon import running_daemon
from bench.report import Figure, at_least, at_most, json_path, publish
from bench.shapes import make_135m, prompt
from kerneld_client import aio

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 128
REQUESTS = {1: 2.0, 8: 1.4, 32: 1.4}
ROUNDS = 3
METRICS = "127.0.0.1:9473"


async def infer_once(contexts: list[aio.Context], prompts: list[list[int]], num_output: int = OUTPUT_TOKENS) -> float:
    """Seconds that the daemon takes for one request on each context, all at once."""

    async def one(context: aio.Context, tokens: list[int]) -> int:
        result = await context.infer(tokens=tokens, max_tokens=num_output, temperature=0, ignore_eos=True).result()
        return len(result.tokens)

    started_at = time.perf_counter()
    counts = await asyncio.gather(*(one(context, tokens) for context, tokens in zip(contexts, prompts, strict=True)))
    seconds = time.perf_counter() - started_at
    if set(counts) != {num_output}:
        raise RuntimeError(f"requests ended with {sorted(set(counts))} tokens instead of {OUTPUT_TOKENS}")
    return seconds


async def measure_daemon(socket: Path, num_requests: int, seed: int) -> tuple[float, float]:
    """Tokens per second of the daemon, and the share of the time that its steps did not compute."""
    async with await aio.connect(socket) as k:
        await k.load(str(socket.parent / "135m"), name="135m")
        contexts = [await k.alloc("135m") for _ in range(num_requests)]
        before = compute_seconds()
        seconds = await infer_once(contexts, [prompt(seed + idx, PROMPT_TOKENS) for idx in range(num_requests)])
        computed = compute_seconds() - before
        for context in contexts:
            await context.free()
    return num_requests * OUTPUT_TOKENS / seconds, (seconds - computed) / seconds


def compute_seconds() -> float:
    """Seconds inside forward passes since the daemon started, by its own metrics."""
    with urllib.request.urlopen(f"http://{METRICS}/metrics") as page:
        found = re.search(r"^kerneld_compute_seconds_total ([0-9.e+-]+)$", page.read().decode(), re.MULTILINE)
    if found is None:
        raise RuntimeError("the daemon's metrics have no kerneld_compute_seconds_total")
    return float(found.group(1))


def measure_transformers(model: transformers.PreTrainedModel, num_requests: int, seed: int) -> float:
    """Tokens per second of `generate` on one batch."""
    batch = torch.tensor([prompt(seed + idx, PROMPT_TOKENS) for idx in range(num_requests)])
    started_at = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=OUTPUT_TOKENS,
            min_new_tokens=OUTPUT_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    seconds = time.perf_counter() - started_at
    return num_requests * (output.shape[1] - PROMPT_TOKENS) / seconds


def main() -> None:
    """Measure, print and keep."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        path = make_135m(folder)
        peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        settings = ["drivers.dtype=bfloat16", f"syscalls.metrics={METRICS}", "memory.device_bytes=2GiB", "memory.host_bytes=512MiB"]
        with running_daemon(folder, *settings) as socket:
            for num_requests, goal in REQUESTS.items():
                figures += compare(socket, peer, num_requests, goal)
    publish("engine", "Generation, 135M shape in bf16, beside transformers", figures, json_path())


def compare(socket: Path, peer: transformers.PreTrainedModel, num_requests: int, goal: float) -> list[Figure]:
    """Interleaved rounds of both; medians, and the median of the rounds' ratios."""
    asyncio.run(measure_daemon(socket, num_requests, 10_000))
    measure_transformers(peer, 1, 10_000)
    ours, theirs, rests = [], [], []
    for turn in range(ROUNDS):
        speed, rest = asyncio.run(measure_daemon(socket, num_requests, turn * 100))
        ours.append(speed)
        rests.append(rest)
        theirs.append(measure_transformers(peer, num_requests, turn * 100))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    figures = [
        Figure(f"kerneld, {num_requests} requests", statistics.median(ours), "tok/s"),
        Figure(f"transformers generate, {num_requests} requests", statistics.median(theirs), "tok/s"),
        at_least(f"ratio, {num_requests} requests", ratio, goal, "x"),
    ]
    if num_requests == max(REQUESTS):
        share = 100 * statistics.median(rests)
        figures.append(at_most(f"(wall - forward) / wall, {num_requests} rows", share, 5.0, "%", "client on the same cores"))
    return figures


if __name__ == "__main__":
    main()
