"""What does sharing equal beginnings save, and what does it tell a stranger?

at once     32 requests with 512 common tokens and up to 8 of their own arrive together: work beside that of 32 with nothing in common
first token of a prompt that the tenant has asked before, beside one that is new to it
channel     first token of a prompt that another tenant has just asked, beside one that it has not: the same distribution (135M shape)
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kerneld_client
from bench.daemon import running_daemon
from bench.report import Figure, at_least, at_most, json_path, publish
from bench.shapes import make_135m, prompt
from kerneld_client import Client, Context

REQUESTS = 32
SYSTEM_TOKENS = 512
PROBES = 24
PROBE_TOKENS = 256


def first_token_s(client: Client, tokens: Sequence[int]) -> float:
    """Seconds to the first token of a new context."""
    context = client.alloc("135m")
    began = time.perf_counter()
    context.infer(tokens=tokens, max_tokens=1, temperature=0, ignore_eos=True).result()
    took = time.perf_counter() - began
    context.free()
    return took


def run_at_once(k: Client, prompts: Sequence[Sequence[int]]) -> tuple[int, list[float], float]:
    """Let requests arrive together; returns tokens computed, seconds to each first token, and seconds for all."""
    contexts = [k.alloc("135m") for _ in prompts]
    began = time.perf_counter()

    def run(context: Context, tokens: Sequence[int]) -> tuple[int, float]:
        result = context.infer(tokens=tokens, max_tokens=1, temperature=0, ignore_eos=True).result()
        return result.usage.input_tokens - result.usage.cached_tokens, time.perf_counter() - began

    with ThreadPoolExecutor(len(prompts)) as pool:
        outcomes = list(pool.map(run, contexts, prompts))
    took = time.perf_counter() - began
    for context in contexts:
        context.free()
    return sum(computed for computed, _ in outcomes), [seconds for _, seconds in outcomes], took


def measure_at_once(k: Client) -> list[Figure]:
    """The same number of requests with and without a common beginning."""
    system = prompt(1, SYSTEM_TOKENS)
    own = [prompt(1000 + number, number % 8 + 1) for number in range(REQUESTS)]
    apart, apart_first, apart_s = run_at_once(k, [prompt(10 + number, SYSTEM_TOKENS) + tail for number, tail in enumerate(own)])
    shared, shared_first, shared_s = run_at_once(k, [system + tail for tail in own])
    return [
        Figure(f"tokens computed, {REQUESTS} requests with nothing in common", apart, "tokens"),
        Figure(f"tokens computed, {REQUESTS} requests with {SYSTEM_TOKENS} tokens in common", shared, "tokens"),
        at_most("of the work without sharing", shared / apart, 1 / 16, "x"),
        Figure("first token, nothing in common, median", statistics.median(apart_first) * 1e3, "ms"),
        Figure("first token, common beginning, median", statistics.median(shared_first) * 1e3, "ms"),
        Figure("all done, nothing in common / common beginning", apart_s / shared_s, "x"),
    ]


def measure_known(k: Client) -> list[Figure]:
    """Prompts that the tenant has asked before, beside new ones; the first context still lives."""
    new, known = [], []
    for turn in range(PROBES):
        tokens = prompt(2000 + turn, PROBE_TOKENS)
        keeper = k.alloc("135m")
        began = time.perf_counter()
        keeper.infer(tokens=tokens, max_tokens=1, temperature=0, ignore_eos=True).result()
        new.append(time.perf_counter() - began)
        known.append(first_token_s(k, tokens))
        keeper.free()
    return [
        Figure(f"first token of {PROBE_TOKENS} tokens, new to the tenant, median", statistics.median(new) * 1e3, "ms"),
        Figure(f"first token of {PROBE_TOKENS} tokens, known to the tenant, median", statistics.median(known) * 1e3, "ms"),
        Figure("new / known", statistics.median(new) / statistics.median(known), "x"),
    ]


def measure_channel(other: Client, prober: Client) -> list[Figure]:
    """Prompts that another tenant has just asked, beside prompts that it has not, in turns; it is just as busy before either."""
    warmed, unwarmed = [], []
    for turn in range(2 * PROBES):
        asked, probed = prompt(5000 + turn, PROBE_TOKENS), prompt(7000 + turn, PROBE_TOKENS)
        keeper = other.alloc("135m")
        keeper.infer(tokens=asked, max_tokens=1, temperature=0, ignore_eos=True).result()
        if turn % 2:
            warmed.append(first_token_s(prober, asked))
        else:
            unwarmed.append(first_token_s(prober, probed))
        keeper.free()
    figures = []
    for what, took in (("asked by another tenant", warmed), ("asked by nobody", unwarmed)):
        deciles = statistics.quantiles(took, n=10)
        figures.append(Figure(f"first token, prompt {what}, p50", statistics.median(took) * 1e3, "ms"))
        figures.append(Figure(f"first token, prompt {what}, p90", deciles[8] * 1e3, "ms"))
    difference = statistics.median(warmed) - statistics.median(unwarmed)
    chance = same_distribution(warmed, unwarmed)
    note = f"{PROBES} probes each; Kolmogorov-Smirnov"
    return [
        *figures,
        Figure("difference of the medians", difference * 1e3, "ms"),
        at_least("probability of such a difference if both are alike", chance, 0.01, "", note),
    ]


def same_distribution(first: Sequence[float], second: Sequence[float]) -> float:
    """Probability that two samples of one distribution lie this far apart (two-sample Kolmogorov-Smirnov, asymptotic).

    Source: Press et al., Numerical Recipes in C, second edition, section 14.3.
    """
    points = sorted([*first, *second])
    distance = max(abs(sum(x <= at for x in first) / len(first) - sum(x <= at for x in second) / len(second)) for at in points)
    size = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (size + 0.12 + 0.11 / size) * distance
    if scaled < 0.2:
        return 1.0
    tail = 2 * math.fsum((-1.0) ** (term - 1) * math.exp(-2 * term * term * scaled * scaled) for term in range(1, 101))
    return min(max(tail, 0.0), 1.0)


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        path = make_135m(folder)
        settings = ["drivers.dtype=bfloat16", "memory.device_bytes=2GiB", "memory.host_bytes=512MiB"]
        with running_daemon(folder, *settings) as socket, kerneld_client.connect(socket) as k:
            k.load(str(path), name="135m")
            first_token_s(k, prompt(3, PROBE_TOKENS))  # warms the kernels
            figures = measure_at_once(k) + measure_known(k)
            for tenant in ("victim", "prober"):
                k.add_tenant(tenant)
            tokens = [k.add_token(tenant).token for tenant in ("victim", "prober")]
            with kerneld_client.connect(socket, token=tokens[0]) as other, kerneld_client.connect(socket, token=tokens[1]) as prober:
                figures += measure_channel(other, prober)
    publish("prefix", "Equal beginnings, 135M shape in bfloat16", figures, json_path())


if __name__ == "__main__":
    main()
