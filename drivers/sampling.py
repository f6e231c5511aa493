"""From logits to tokens: penalties, draws and log-probabilities of the rows of one step.

What a row draws is a function of its logits, its `Sampling`, the tokens before it, its seed and the position of the token alone: no row
sees another, and a row that was interrupted draws the same again. Log-probabilities are of the raw logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.contract import Sampling, TokenLogprob
from drivers.ops.drawing import Cuts
from drivers.philox import uniforms
from drivers.rows import Row

SampleOp = Callable[[Tensor, Cuts, Tensor], Tensor]

MIN_TEMPERATURE = 1e-5  # below it a draw is greedy in all but name, and logits divided by it might overflow
NOT_FINITE = "The model's logits are not finite; its weights, or the row's cached pages, may be damaged."


@dataclass(frozen=True, slots=True)
class Pick:
    """What one row drew; `token` is -1 where its logits were not finite."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the logits at one place: a draw of a row for a position, or how likely a given token is."""

    row: Row
    position: int
    given: int = -1  # a token; -1: it is drawn


def pick_tokens(logits: Tensor, rows: Sequence[Row], sample: SampleOp, positions: Sequence[int] | None = None) -> list[Pick]:
    """Draw a token of each row from `logits [rows, vocab]`, at `positions`: by default, `row.position`."""
    places = [row.position for row in rows] if positions is None else positions
    raw = logits.float()
    likeliest, greedy = raw.max(-1)
    is_finite = likeliest.isfinite().tolist()  # NaN and +inf survive the maximum, and so does a row of nothing but -inf
    tokens = greedy.tolist()
    penalized = [idx for idx, row in enumerate(rows) if row.sampling.has_penalties and is_finite[idx]]
    scores = raw
    if penalized:
        scores = raw.clone()
        for idx in penalized:
            penalize(scores[idx], rows[idx])
            tokens[idx] = int(scores[idx].max(-1).indices)
    drawing = [idx for idx, row in enumerate(rows) if row.sampling.temperature > 0 and is_finite[idx]]
    if drawing:
        drawn = _draw(scores, [(rows[idx].sampling, places[idx]) for idx in drawing], drawing, sample)
        for idx, token in zip(drawing, drawn, strict=True):
            tokens[idx] = token
    logprobs = _logprobs_of(raw, tokens, [row.sampling.num_logprobs if fine else -1 for row, fine in zip(rows, is_finite, strict=True)])
    return [Pick(token if fine else -1, logprob) for token, fine, logprob in zip(tokens, is_finite, logprobs, strict=True)]


def _draw(scores: Tensor, draws: Sequence[tuple[Sampling, int]], drawing: list[int], sample: SampleOp) -> list[int]:
    settings = [sampling for sampling, _position in draws]
    numbers = uniforms([one.seed for one in settings], [position for _sampling, position in draws])
    chosen = scores if len(drawing) == len(scores) else scores[drawing]
    drawn: list[int] = sample(chosen, cuts_of(settings), torch.from_numpy(numbers)).tolist()
    return drawn


def cuts_of(settings: Sequence[Sampling]) -> Cuts:
    """The settings of several rows side by side."""
    return Cuts(
        temperature=torch.tensor([one.temperature for one in settings], dtype=torch.float32).clamp_min_(MIN_TEMPERATURE),
        top_k=torch.tensor([max(0, one.top_k) for one in settings], dtype=torch.int64),
        top_p=torch.tensor([one.top_p for one in settings], dtype=torch.float64),
        min_p=torch.tensor([one.min_p for one in settings], dtype=torch.float32),
    )


def penalize(scores: Tensor, row: Row) -> None:
    """Apply the row's penalties to its `scores [vocab] f32`, in place.

    Repetition divides positive and multiplies negative scores of every token seen; presence and frequency are subtracted once, and once
    per occurrence, for tokens of the output.
    """
    wanted, marks = row.sampling, torch.from_numpy(row.tally.marks).long()
    if wanted.repetition_penalty != 1.0:
        values = scores[marks[:, 0]]
        scores[marks[:, 0]] = torch.where(values > 0, values / wanted.repetition_penalty, values * wanted.repetition_penalty)
    if wanted.presence_penalty or wanted.frequency_penalty:
        outputs, counts = marks[marks[:, 1] > 0].unbind(1)
        scores[outputs] -= wanted.presence_penalty + wanted.frequency_penalty * counts.float()


def _logprobs_of(raw: Tensor, tokens: Sequence[int], wanted: Sequence[int]) -> list[TokenLogprob | None]:
    asked = [idx for idx, num in enumerate(wanted) if num >= 0]
    answers: list[TokenLogprob | None] = [None] * len(wanted)
    if asked:
        chosen = [tokens[idx] for idx in asked]
        for idx, answer in zip(asked, token_logprobs(raw[asked], chosen, [wanted[idx] for idx in asked]), strict=True):
            answers[idx] = answer
    return answers


def token_logprobs(logits: Tensor, tokens: Sequence[int], nums_top: Sequence[int]) -> list[TokenLogprob]:
    """Log-probabilities of given tokens under `logits [n, vocab] f32`, and of the `nums_top[i]` likeliest tokens beside each."""
    total = torch.cat([row.logsumexp(-1) for row in torch.split(logits, 1)])  # one by one, as many threads share the work on one
    chosen = (logits.gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1) - total).tolist()
    most = min(max(nums_top), logits.shape[-1])
    if most <= 0:
        return [TokenLogprob(logprob) for logprob in chosen]
    values, ids = logits.topk(most, dim=-1)
    tops = zip((values - total.unsqueeze(-1)).tolist(), ids.tolist(), strict=True)
    return [
        TokenLogprob(logprob, tuple(zip(top_ids[:num], top_values[:num], strict=True)) if num > 0 else ())
        for logprob, num, (top_values, top_ids) in zip(chosen, nums_top, tops, strict=True)
    ]
