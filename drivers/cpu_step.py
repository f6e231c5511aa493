"""One model's share of a step on the CPU: what is computed, what is drawn of it, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from drivers.contract import RowResult, TokenLogprob
from drivers.cpu_model import CpuModel
from drivers.cpu_runners import StepLora
from drivers.rows import Row, RowTable, StepRows
from drivers.sampling import NOT_FINITE, Pick, pick_tokens
from drivers.scoring import score


def run_share(model: CpuModel, share: StepRows, lora: StepLora | None, rows: RowTable) -> list[RowResult]:
    """Compute the rows of a step that are of one model, and move them on. Raises: StreamBroken; then no row has moved."""
    runner = model.runner
    hidden = runner.forward(share, lora)
    sampling = [idx for idx in range(len(share.rows)) if share.samples(idx)]
    scores = {idx: score(runner, hidden, share, idx) for idx, row in enumerate(share.rows) if row.is_scoring}
    for row, count in zip(share.rows, share.counts, strict=True):
        rows.advance(row, count)
    picks = dict(zip(sampling, _pick(model, hidden, share, sampling), strict=True))
    return [_result(row, picks.get(idx), scores.get(idx, ()), rows) for idx, row in enumerate(share.rows)]


def _pick(model: CpuModel, hidden: Tensor, share: StepRows, sampling: Sequence[int]) -> list[Pick]:
    """Draw for the rows that have come to their end. Logits are made of all of them or of none: they cost one reading of the head."""
    if not sampling:
        return []
    last = [share.starts[idx] + share.counts[idx] - 1 for idx in sampling]
    drawing = [share.rows[idx] for idx in sampling]
    if all(row.sampling.is_plainly_greedy for row in drawing):
        likeliest = model.runner.greedy(hidden, last)
        if likeliest is not None:
            return [Pick(token) for token in likeliest]
    return pick_tokens(model.runner.logits(hidden, last), drawing, model.decision.table.sample)


def _result(row: Row, pick: Pick | None, scored: tuple[TokenLogprob, ...] | None, rows: RowTable) -> RowResult:
    if scored is None or (pick is not None and pick.token < 0):
        return fail_row(row, NOT_FINITE, rows)
    if pick is None:
        return RowResult(row.slot, logprobs=scored)
    is_stopped = rows.append(row, pick.token)
    return RowResult(row.slot, (pick.token,), () if pick.logprob is None else (pick.logprob,), is_stopped)


def fail_row(row: Row, error: str, rows: RowTable) -> RowResult:
    """The row fails alone."""
    rows.fail(row)
    return RowResult(row.slot, error=error)
