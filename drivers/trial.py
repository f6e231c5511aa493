"""A short prefill, timed: what a token of input costs on a model that was just loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drivers.arena import Arena, FrameShape
from drivers.contract import Sampling
from drivers.cpu_runners import Runner
from drivers.rows import Row, StepRows

TOKENS = 64


@dataclass(frozen=True, slots=True)
class Pages:
    """What a trial has to know of a model."""

    frames: tuple[FrameShape, ...]
    granule_bytes: int
    max_positions: int
    vocab_size: int


def prefill_pace(runner: Runner, pages: Pages, pass_of: Callable[[Runner, StepRows], object]) -> float:
    """Seconds per token of an input of `TOKENS` tokens, on pages of its own; the second of two passes, as the first warms up.

    `pass_of` computes it. The model must not run yet, because its workspace is used; and it must not be streamed.
    """
    num_tokens = min(TOKENS, pages.max_positions)
    num_pages = -(-num_tokens // pages.frames[0].page_tokens)
    arena = Arena(sum(num_pages * frame.size_bytes for frame in pages.frames), pages.granule_bytes)
    tables: list[np.ndarray] = []
    start = 0
    for frame in pages.frames:
        size = frame.size_bytes // pages.granule_bytes
        tables.append(start + size * np.arange(num_pages))
        start += size * num_pages
    tokens, positions = np.arange(num_tokens) % pages.vocab_size, np.arange(num_tokens)
    row = Row(0, 0, 0, tokens.tolist(), tables, Sampling(), score_from=-1, output_start=0)
    share = StepRows(0, (row,), (num_tokens,), (0,), tokens, positions)
    trial = runner.in_arena(arena)
    try:
        pass_of(trial, share)
        began = time.perf_counter()
        pass_of(trial, share)
        return (time.perf_counter() - began) / num_tokens
    finally:
        trial.close()
