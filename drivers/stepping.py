"""One model's share of a step, once its forward pass has run: what is drawn or scored of it, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from drivers.contract import RowResult, TokenLogprob
from drivers.rows import Row, RowState, RowTable, StepRows, right_guesses
from drivers.sampling import NOT_FINITE, Asked, Pick, SampleOp, pick_tokens, token_logprobs

SCORED_AT_ONCE = 64  # so many tokens are scored at a time


class Head(Protocol):
    """What makes logits of a model's hidden states."""

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """Logits `[n, vocab]` of those tokens of the step."""

    def draw(self, hidden: Tensor, tokens: Sequence[int], asked: Sequence[Asked]) -> list[Pick] | None:
        """What is asked behind each of those tokens, without logits in between (`drivers.sampling`); None: ask for logits."""


def answer_rows(head: Head, hidden: Tensor, share: StepRows, rows: RowTable, sample: SampleOp) -> list[RowResult]:
    """Draw or score what the rows of a step ask for, and move them on. `hidden [num_tokens, ...]` is what the forward pass answered."""
    sampling = [idx for idx in range(len(share.rows)) if share.samples(idx)]
    scores = {idx: _score(head, hidden, share, idx) for idx, row in enumerate(share.rows) if row.is_scoring}
    for idx, row in enumerate(share.rows):
        rows.advance(row, share.num_pending(idx))
    picks = _pick(head, hidden, share, sampling, sample)
    return [_result(share, idx, picks.get(idx), scores.get(idx, ()), rows) for idx in range(len(share.rows))]


def fail_row(row: Row, error: str, rows: RowTable) -> RowResult:
    """The row fails alone."""
    rows.fail(row)
    return RowResult(row.slot, error=error)


def _pick(head: Head, hidden: Tensor, share: StepRows, sampling: Sequence[int], sample: SampleOp) -> dict[int, list[Pick]]:
    """Draw for the rows that have come to their end: one token, and one behind each guess, as if the guesses were right.

    Logits are made of all of them or of none: they cost one reading of the head.
    """
    if not sampling:
        return {}
    nums = [share.counts[idx] - share.num_pending(idx) + 1 for idx in sampling]
    draws = [(idx, behind) for idx, num in zip(sampling, nums, strict=True) for behind in range(num)]
    places = [share.starts[idx] + share.num_pending(idx) - 1 + behind for idx, behind in draws]
    asked = [Asked(share.rows[idx], share.rows[idx].position + behind) for idx, behind in draws]
    drawn = head.draw(hidden, places, asked)
    if drawn is None:
        drawn = pick_tokens(head.logits(hidden, places), [one.row for one in asked], sample, [one.position for one in asked])
    picks: dict[int, list[Pick]] = {}
    for (idx, _behind), pick in zip(draws, drawn, strict=True):
        picks.setdefault(idx, []).append(pick)
    return picks


def _score(head: Head, hidden: Tensor, share: StepRows, idx: int) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities of the scored tokens of row `idx`, which are given, not sampled; None where logits were not finite."""
    first, targets = share.scored(idx)
    row = share.rows[idx]
    answers: list[TokenLogprob] = []
    for low in range(0, len(targets), SCORED_AT_ONCE):
        part = targets[low : low + SCORED_AT_ONCE]
        places = range(first + low, first + low + len(part))
        told = head.draw(hidden, places, [Asked(row, row.position, given) for given in part])
        found = _logprobs(head.logits(hidden, places), part, row) if told is None else [pick.logprob for pick in told]
        answers += [logprob for logprob in found if logprob is not None]
        if len(answers) < low + len(part):
            return None
    return tuple(answers)


def _logprobs(logits: Tensor, tokens: Sequence[int], row: Row) -> list[TokenLogprob]:
    """Of given tokens; of none where any logits are not finite."""
    wide = logits.float()
    is_finite = bool(wide.amax(-1).isfinite().all())
    return token_logprobs(wide, tokens, [max(0, row.sampling.num_logprobs)] * len(tokens)) if is_finite else []


def _result(share: StepRows, idx: int, picks: list[Pick] | None, scored: tuple[TokenLogprob, ...] | None, rows: RowTable) -> RowResult:
    row, guesses = share.rows[idx], share.drafts[idx] if share.drafts else ()
    if scored is None or (picks is not None and picks[0].token < 0):
        return fail_row(row, NOT_FINITE, rows)
    if picks is None:
        return RowResult(row.slot, logprobs=scored)
    sampled = right_guesses([pick.token for pick in picks], guesses)
    # What is not finite behind a guess that was right is met again by the next step, which computes that place without guessing.
    tokens = rows.accept(row, sampled if sampled[-1] >= 0 else sampled[:-1])
    logprobs = tuple(pick.logprob for pick in picks[: len(tokens)] if pick.logprob is not None)
    return RowResult(row.slot, tokens, logprobs, row.state is RowState.STOPPED, num_drafted=len(guesses))
