"""What does it cost to draw? From logits of 49,152 tokens to the tokens of 1, 8 and 32 rows, native code beside torch, two threads each.

Both begin with the logits of a step, in turn, a round each; medians. `language` has logits that fall with the logarithm of a token's rank,
as those of language models do; `flat` normally distributed ones, where top_p keeps thousands of tokens. Goal: native code is never slower.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.report import Figure, at_least, json_path, publish
from drivers.contract import Sampling
from drivers.native.engine import Engine
from drivers.native.sampling import Draws, draw_of
from drivers.ops.table import fused_table
from drivers.rows import Row
from drivers.sampling import Asked, pick_tokens

VOCAB, THREADS, SEEN = 49_152, 2, 1000
ROUNDS = {1: 41, 8: 21, 32: 9}
PAUSE_S = 0.005
TOP_P = Sampling(temperature=0.8, top_p=0.95)
OTHERS = {
    "temperature": Sampling(temperature=0.8),
    "top_k 50": Sampling(temperature=0.8, top_k=50),
    "min_p 0.05": Sampling(min_p=0.05),
    "greedy with 5 log-probabilities": Sampling(temperature=0.0, num_logprobs=5),
    f"temperature and repetition penalty, {SEEN} tokens seen": Sampling(temperature=0.8, repetition_penalty=1.1),
}


def logits_like(kind: str, num_rows: int) -> Tensor:
    """Repeatable logits `[num_rows, VOCAB]`."""
    random = torch.Generator().manual_seed(num_rows)
    noise = torch.randn(num_rows, VOCAB, generator=random)
    if kind == "flat":
        return 2.0 * noise
    ranks = torch.stack([torch.randperm(VOCAB, generator=random) for _ in range(num_rows)]) + 1.0
    return 12.0 - 1.5 * ranks.log() + 0.5 * noise


def rows_of(sampling: Sampling, num: int) -> list[Row]:
    """Rows that have seen some tokens."""
    made = [Row(slot, 1, 100 + slot, [], [], sampling, score_from=-1, output_start=0) for slot in range(num)]
    for row in made:
        row.tally.note(range(row.slot, VOCAB, VOCAB // SEEN))
    return made


def medians(works: list[Callable[[], object]], rounds: int) -> list[float]:
    """Microseconds that each takes, in turn: after a pause, so that threads of the other sleep, and a call that wakes its own."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for times, work in zip(taken, works, strict=True):
            time.sleep(PAUSE_S)
            work()
            started_at = time.perf_counter()
            work()
            times.append((time.perf_counter() - started_at) * 1e6)
    return [statistics.median(times) for times in taken]


def compared(engine: Engine, what: str, kind: str, sampling: Sampling, num: int) -> Figure:
    """How many times faster native code is."""
    rows, logits, sample = rows_of(sampling, num), logits_like(kind, num), fused_table().sample
    asked = [Asked(row, row.position) for row in rows]
    native, plain = medians(
        [lambda: draw_of(engine, logits, Draws.of(asked)), lambda: pick_tokens(logits, rows, sample)],
        ROUNDS[num],
    )
    many = f"{num} row{'s' if num > 1 else ''}"
    return at_least(f"{what}, {kind}, {many}", plain / native, 1.0, "x", f"{native:.0f} us native, {plain:.0f} us torch")


def main() -> None:
    """Compare them, and publish."""
    torch.set_num_threads(THREADS)
    engine = Engine(THREADS)
    with torch.inference_mode():
        figures = [compared(engine, "temperature and top_p 0.95", kind, TOP_P, num) for kind in ("language", "flat") for num in ROUNDS]
        figures += [compared(engine, what, "language", sampling, num) for what, sampling in OTHERS.items() for num in ROUNDS]
    engine.close()
    publish("sampling", "Draws: native code beside torch", figures, json_path())


if __name__ == "__main__":
    main()
