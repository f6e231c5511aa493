"""One model's share of a step on the CPU: what is computed, what is drawn of it, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from drivers.contract import RowResult, TokenLogprob
from drivers.cpu_model import CpuModel
from drivers.cpu_runners import StepLora
from drivers.rows import Row, RowState, RowTable, StepRows, right_guesses
from drivers.sampling import NOT_FINITE, Pick, pick_tokens
from drivers.scoring import score


def run_share(model: CpuModel, share: StepRows, lora: StepLora | None, rows: RowTable) -> list[RowResult]:
    """Compute the rows of a step that are of one model, and move them on. Raises: StreamBroken; then no row has moved."""
    runner = model.runner
    hidden = runner.forward(share, lora)
    sampling = [idx for idx in range(len(share.rows)) if share.samples(idx)]
    scores = {idx: score(runner, hidden, share, idx) for idx, row in enumerate(share.rows) if row.is_scoring}
    for idx, row in enumerate(share.rows):
        rows.advance(row, share.num_pending(idx))
    picks = _pick(model, hidden, share, sampling)
    return [_result(share, idx, picks.get(idx), scores.get(idx, ()), rows) for idx in range(len(share.rows))]


def _pick(model: CpuModel, hidden: Tensor, share: StepRows, sampling: Sequence[int]) -> dict[int, list[Pick]]:
    """Draw for the rows that have come to their end: one token, and one behind each guess, as if the guesses were right.

    Logits are made of all of them or of none: they cost one reading of the head.
    """
    if not sampling:
        return {}
    nums = [share.counts[idx] - share.num_pending(idx) + 1 for idx in sampling]
    draws = [(idx, behind) for idx, num in zip(sampling, nums, strict=True) for behind in range(num)]
    places = [share.starts[idx] + share.num_pending(idx) - 1 + behind for idx, behind in draws]
    drawing = [share.rows[idx] for idx, _behind in draws]
    drawn: list[Pick] | None = None
    if all(row.sampling.is_plainly_greedy for row in drawing):
        likeliest = model.runner.greedy(hidden, places)
        drawn = None if likeliest is None else [Pick(token) for token in likeliest]
    if drawn is None:
        positions = [row.position + behind for row, (_idx, behind) in zip(drawing, draws, strict=True)]
        drawn = pick_tokens(model.runner.logits(hidden, places), drawing, model.decision.table.sample, positions)
    picks: dict[int, list[Pick]] = {}
    for (idx, _behind), pick in zip(draws, drawn, strict=True):
        picks.setdefault(idx, []).append(pick)
    return picks


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


def fail_row(row: Row, error: str, rows: RowTable) -> RowResult:
    """The row fails alone."""
    rows.fail(row)
    return RowResult(row.slot, error=error)
