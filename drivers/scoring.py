"""Scores: log-probabilities of tokens that are given, not sampled."""

from __future__ import annotations

from torch import Tensor

from drivers.contract import TokenLogprob
from drivers.cpu_runners import Runner
from drivers.rows import StepRows
from drivers.sampling import token_logprobs

SCORED_AT_ONCE = 64  # logits of so many scored tokens are in memory at a time


def score(runner: Runner, hidden: Tensor, share: StepRows, idx: int) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities of the scored tokens of row `idx`; None where logits were not finite."""
    first, targets = share.scored(idx)
    num_top = max(0, share.rows[idx].sampling.num_logprobs)
    answers: list[TokenLogprob] = []
    for low in range(0, len(targets), SCORED_AT_ONCE):
        part = targets[low : low + SCORED_AT_ONCE]
        logits = runner.logits(hidden, range(first + low, first + low + len(part))).float()
        if not bool(logits.amax(-1).isfinite().all()):
            return None
        answers += token_logprobs(logits, part, [num_top] * len(part))
    return tuple(answers)
