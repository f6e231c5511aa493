"""What do fork, restore and recovery cost?

fork       of a 1,000-token context: in the kernel <= 0.3 ms, by RPC with durability `journal` <= 1 ms (135M shape)
restore    of an image of 1,000 tokens until its first token, beside the prefill of the same tokens: >= 5x (135M shape)
recovery   from kill -9 of the worker to the first token after it: <= 3 s (shipped model)
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import kerneld_client
from bench.daemon import ROOT, running_daemon
from bench.kernel_fork import kernel_fork_ms
from bench.report import Figure, at_least, at_most, json_path, publish
from bench.shapes import make_135m, prompt
from kerneld_client import Client

TOKENS = 1000
ROUNDS = 5
FORKS = 50


def measure_fork(k: Client) -> list[Figure]:
    """Milliseconds of a fork by RPC; pages that it copied."""
    context = k.alloc("135m")
    context.infer(tokens=prompt(1, TOKENS), max_tokens=1, temperature=0, ignore_eos=True).result()
    took, children = [], []
    for _ in range(FORKS):
        started_at = time.perf_counter()
        children.append(context.fork())
        took.append((time.perf_counter() - started_at) * 1e3)
    device_bytes = sum(k.top().tiers[0].kv_bytes.values())
    pages = -(-TOKENS // 16)
    page_bytes = k.models()[0].kv_bytes_per_token * 16
    for child in children:
        child.free()
    return [
        at_most("fork by RPC, 1,000 tokens", statistics.median(took), 1.0, "ms"),
        Figure(f"device KV with {FORKS} forks, in pages of the one context", device_bytes / page_bytes / pages, "x"),
    ]


def measure_restore(k: Client) -> list[Figure]:
    """First token after a restore, beside first token of the same 1,000 tokens given anew."""
    context = k.alloc("135m")
    context.infer(tokens=prompt(2, TOKENS), max_tokens=1, temperature=0, ignore_eos=True).result()
    image = context.checkpoint()
    restores, prefills = [], []
    for turn in range(ROUNDS):
        started_at = time.perf_counter()
        restored = k.restore(image)
        restored.infer(max_tokens=1, temperature=0, ignore_eos=True).result()
        restores.append(time.perf_counter() - started_at)
        fresh = k.alloc("135m")
        started_at = time.perf_counter()
        fresh.infer(tokens=prompt(100 + turn, TOKENS), max_tokens=1, temperature=0, ignore_eos=True).result()
        prefills.append(time.perf_counter() - started_at)
        restored.free()
        fresh.free()
    ratio = statistics.median(prefill / restore for prefill, restore in zip(prefills, restores, strict=True))
    return [
        Figure("restore to first token, 1,000 tokens", statistics.median(restores) * 1e3, "ms"),
        Figure("prefill to first token, 1,000 tokens", statistics.median(prefills) * 1e3, "ms"),
        at_least("prefill / restore", ratio, 5.0, "x"),
    ]


def measure_recovery(k: Client) -> list[Figure]:
    """Seconds from kill -9 of the worker to the next token of a stream."""
    k.load(str(ROOT / "examples" / "demo_model"), name="demo")
    took = []
    for _ in range(ROUNDS):
        context = k.alloc("demo")
        pid = k.top().workers[0].pid
        killed_at = 0.0
        for delta in context.infer("import os\n", max_tokens=900, temperature=0, ignore_eos=True):
            if not killed_at:
                os.kill(pid, signal.SIGKILL)
                killed_at = time.perf_counter()
                at_kill = delta.offset + len(delta.tokens)
            elif delta.offset > at_kill + 16:  # what was on its way when it died has passed
                took.append(time.perf_counter() - killed_at)
                break
        context.free()
    return [at_most("kill -9 of the worker to the next token", statistics.median(took), 3.0, "s", f"worst {max(took):.2f} s")]


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        path = make_135m(folder)
        figures = [at_most("fork in the kernel, 1,000 tokens", kernel_fork_ms(TOKENS, FORKS), 0.3, "ms")]
        settings = ["drivers.dtype=bfloat16", "memory.device_bytes=2GiB", "memory.host_bytes=1GiB"]
        with running_daemon(folder, *settings) as socket, kerneld_client.connect(socket) as k:
            k.load(str(path), name="135m")
            figures += measure_fork(k) + measure_restore(k)
            k.unload("135m")
            figures += measure_recovery(k)
    publish("verbs", "Fork, restore, recovery", figures, json_path())


if __name__ == "__main__":
    main()
