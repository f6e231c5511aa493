"""What a step that has passed means for its rows."""

from __future__ import annotations

from drivers.contract import RowResult, TokenLogprob
from drivers.cuda.steps import Flight
from drivers.errors import DeviceLost
from drivers.ops.fused import sample
from drivers.rows import Row, RowTable, StepRows
from drivers.sampling import NOT_FINITE, pick_tokens
from drivers.triton import layout


def answers(share: StepRows, flight: Flight, rows: RowTable) -> list[RowResult]:
    """Advance the rows of a share, and tell what they sampled or scored. Raises: DeviceLost, if the device has gone another way."""
    drawn = flight.drawn.tolist()
    samples = [share.samples(idx) for idx in range(len(share.rows))]
    for row, count in zip(share.rows, share.counts, strict=True):
        rows.advance(row, count)
    return [
        _answer(row, flight, drawn, rows) if does else _quiet_answer(row, flight, rows)
        for row, does in zip(share.rows, samples, strict=True)
    ]


def _quiet_answer(row: Row, flight: Flight, rows: RowTable) -> RowResult:
    """Of a row that samples nothing."""
    if not row.is_scoring:
        return RowResult(row.slot)
    scored = flight.scores[row.slot]
    return _failed(row, rows) if scored is None else RowResult(row.slot, logprobs=scored)


def _answer(row: Row, flight: Flight, drawn: list[int], rows: RowTable) -> RowResult:
    logprobs: tuple[TokenLogprob, ...] = ()
    if row.slot in flight.lane_of:
        token = drawn[flight.lane_of[row.slot]]
        if token == layout.UNUSED:
            raise DeviceLost(f"The device has the row of slot {row.slot} for ended, and it is not.")
    else:
        [pick] = pick_tokens(flight.logits[row.slot].unsqueeze(0), [row], sample)
        token, logprobs = pick.token, () if pick.logprob is None else (pick.logprob,)
    if token < 0:
        return _failed(row, rows)
    is_stopped = rows.append(row, token)
    return RowResult(row.slot, (token,), logprobs, is_stopped)


def _failed(row: Row, rows: RowTable) -> RowResult:
    rows.fail(row)
    return RowResult(row.slot, error=NOT_FINITE)
