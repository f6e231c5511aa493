"""Compares native draws with their definition over logits of a model's vocabulary, before they are used.

What makes the logits is compared by itself (`drivers.native.check`); drawing behind it in one call is these two, one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from drivers.contract import Sampling
from drivers.native.engine import Engine
from drivers.native.sampling import Draws, draw_of
from drivers.ops import drawing
from drivers.ops.check import SEED
from drivers.rows import Row
from drivers.sampling import Asked, Pick, pick_tokens

NAME = "native.head_sample"
MOST_TOKENS = 10_000  # of a vocabulary: three chunks of the native passes over it
TOLERANCE = 1e-4  # of log-probabilities
SETTINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.8, seed=1),
    Sampling(temperature=0.7, top_k=40, seed=2, num_logprobs=3),
    Sampling(temperature=1.2, top_p=0.9, seed=3),
    Sampling(top_k=300, top_p=0.8, min_p=0.01, seed=4, num_logprobs=0),
    Sampling(min_p=0.05, seed=5),
    Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, seed=6, num_logprobs=1),
    Sampling(temperature=0.0, repetition_penalty=1.5),
)


@dataclass(frozen=True, slots=True)
class DrawCase:
    """Rows of a vocabulary of this size."""

    vocab_size: int


def draw_case(vocab_size: int) -> DrawCase:
    """What is to be tried for a model."""
    return DrawCase(min(vocab_size, MOST_TOKENS))


def error_of(case: DrawCase, engine: Engine) -> float:
    """The largest difference of log-probabilities, in tolerances; infinite where another token is drawn."""
    logits = 4 * torch.randn(len(SETTINGS), case.vocab_size, generator=torch.Generator().manual_seed(SEED))
    rows = [_row(sampling, idx, logits[idx]) for idx, sampling in enumerate(SETTINGS)]
    asked = [Asked(row, row.position) for row in rows]
    found, expected = draw_of(engine, logits, Draws.of(asked)), pick_tokens(logits, rows, drawing.sample)
    return max(map(_error, found, expected))


def _row(sampling: Sampling, position: int, logits: torch.Tensor) -> Row:
    """A row whose penalties are for some of its likeliest tokens."""
    row = Row(0, 0, position, [], [], sampling, score_from=-1, output_start=0)
    if sampling.has_penalties:
        likely: list[int] = logits.topk(min(6, len(logits))).indices.tolist()
        row.tally.note(likely, likely[::2] + likely[:1])
    return row


def _error(found: Pick, expected: Pick) -> float:
    if found.token != expected.token or (found.logprob is None) != (expected.logprob is None):
        return math.inf
    if found.logprob is None or expected.logprob is None:
        return 0.0
    tops = zip(found.logprob.top, expected.logprob.top, strict=True)
    errors = [abs(found.logprob.logprob - expected.logprob.logprob), *(abs(one[1] - other[1]) for one, other in tops)]
    return max(errors) / TOLERANCE
