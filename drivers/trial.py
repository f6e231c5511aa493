"""A short prefill, timed: what a token of input costs on a model that was just loaded."""

from __future__ import annotations

import time

import numpy as np

from drivers.arena import Arena
from drivers.contract import Sampling
from drivers.cpu_model import CpuModel
from drivers.rows import Row, StepRows

TOKENS = 64


def prefill_pace(model: CpuModel, granule_bytes: int) -> float:
    """Seconds per token of an input of `TOKENS` tokens, on pages of its own; the second of two passes, as the first warms up.

    The model must not run yet, because its workspace is used; and it must not be streamed.
    """
    num_tokens = min(TOKENS, model.limit.max_positions)
    num_pages = -(-num_tokens // model.frames[0].page_tokens)
    arena = Arena(sum(num_pages * frame.size_bytes for frame in model.frames), granule_bytes)
    tables: list[np.ndarray] = []
    start = 0
    for frame in model.frames:
        size = frame.size_bytes // granule_bytes
        tables.append(start + size * np.arange(num_pages))
        start += size * num_pages
    tokens, positions = np.arange(num_tokens) % model.limit.vocab_size, np.arange(num_tokens)
    row = Row(0, 0, 0, tokens.tolist(), tables, Sampling(), score_from=-1, output_start=0)
    share = StepRows(0, (row,), (num_tokens,), (0,), tokens, positions)
    trial = model.runner.in_arena(arena)
    try:
        trial.forward(share)
        began = time.perf_counter()
        trial.forward(share)
        return (time.perf_counter() - began) / num_tokens
    finally:
        trial.close()
