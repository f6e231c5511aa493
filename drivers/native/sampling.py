"""`cpu/sampling.cc` as Python sees it: rows, from logits to tokens and log-probabilities, by the rules in `cpu/sampling.h`.

Draws are those of `drivers.ops.drawing` over the numbers of `drivers.philox`; where they differ, two tokens were as near to each other as
the rounding of their weights. They do not depend on threads, on other rows, nor on the level of instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from drivers.contract import TokenLogprob
from drivers.native.engine import Engine, NativeModel
from drivers.native.records import DrawnRecord, DrawRecord, RowsRecord
from drivers.sampling import MIN_TEMPERATURE, Asked, Pick

MOST_TOKENS = 1 << 21  # of a vocabulary: cpu/weights.h
MOST_TOP_K = 2**31 - 1
LOGITS_BYTES = 64 << 20  # at most of so many rows at a time are in memory; the head is read once for each time
DRAW = np.dtype(DrawRecord)
DRAWN = np.dtype(DrawnRecord)
NO_SEEN = np.empty((0, 2), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Draws:
    """What some rows ask for."""

    records: np.ndarray  # [rows] DRAW
    seen: np.ndarray  # [n, 2] int32: tokens and how often they are in the output, those of one row side by side

    @classmethod
    def of(cls, asked: Sequence[Asked]) -> Draws:
        """As the library is told of it."""
        penalized = [one.row.tally.marks if one.row.sampling.has_penalties and one.given < 0 else NO_SEEN for one in asked]
        seen = np.concatenate(penalized) if any(map(len, penalized)) else NO_SEEN
        records, first = [], 0
        for one, tokens in zip(asked, penalized, strict=True):
            records.append(_record(one, (first, len(tokens))))
            first += len(tokens)
        return cls(np.array(records, dtype=DRAW), seen)

    @property
    def most_likeliest(self) -> int:
        """The most likeliest tokens that any row asks for."""
        return max(0, int(self.records["num_logprobs"].max(initial=0)))


def draw(model: NativeModel, hidden: Tensor, places: Sequence[int], draws: Draws, bases: np.ndarray, *, most_rows: int = 0) -> list[Pick]:
    """What rows `places` of hidden states draw; one call, from the head to tokens. Raises: StepInvalid; MemoryError.

    `most_rows`: whose logits are in memory at a time, else as many as LOGITS_BYTES have room for.
    """
    answer = _Answer(draws, width := model.program.widths[model.program.logits])
    if len(places) != len(draws.records):
        raise ValueError(f"{len(draws.records)} draws for {len(places)} rows.")
    model.draw(hidden, places, bases, answer.record, most_rows or max(1, LOGITS_BYTES // (4 * width)))
    return answer.picks()


def draw_of(engine: Engine, logits: Tensor, draws: Draws) -> list[Pick]:
    """The same of logits `[rows, vocab] f32`, which keep their values."""
    answer = _Answer(draws, logits.shape[1])
    own = logits.contiguous()
    if len(draws.seen):
        own = own.clone()
    answer.record.logits = own.data_ptr()
    engine.draw(answer.record, len(own))
    return answer.picks()


class _Answer:
    """Room for what rows draw."""

    def __init__(self, draws: Draws, width: int) -> None:
        self._draws = draws
        self._most = min(draws.most_likeliest, width)
        self._width = width
        num = len(draws.records)
        self._drawn = np.empty(num, dtype=DRAWN)
        self._likeliest = np.empty((num, self._most), dtype=DRAWN)
        self.record = RowsRecord(
            width=width,
            draws=draws.records.ctypes.data,
            seen=draws.seen.ctypes.data,
            drawn=self._drawn.ctypes.data,
            likeliest=self._likeliest.ctypes.data,
            most_likeliest=self._most,
        )

    def picks(self) -> list[Pick]:
        """As `drivers.sampling.pick_tokens` answers."""
        tokens = self._drawn["token"].tolist()
        wanted = self._draws.records["num_logprobs"].tolist()
        if max(wanted, default=-1) < 0:
            return [Pick(token) for token in tokens]
        return [
            Pick(token, self._logprob(idx, num)) if num >= 0 and token >= 0 else Pick(token)
            for idx, (token, num) in enumerate(zip(tokens, wanted, strict=True))
        ]

    def _logprob(self, idx: int, num: int) -> TokenLogprob:
        top = self._likeliest[idx, : min(num, self._most)].tolist()
        return TokenLogprob(float(self._drawn["logprob"][idx]), tuple(top))


def _record(asked: Asked, seen: tuple[int, int]) -> tuple[float | int, ...]:
    wanted = asked.row.sampling
    num_logprobs = wanted.num_logprobs if asked.given < 0 else max(0, wanted.num_logprobs)
    return (
        *(wanted.top_p, wanted.seed % 2**64, asked.position),
        max(wanted.temperature, MIN_TEMPERATURE) if wanted.temperature > 0 else 0.0,
        *(wanted.min_p, wanted.repetition_penalty, wanted.presence_penalty, wanted.frequency_penalty),
        *(min(max(wanted.top_k, 0), MOST_TOP_K), num_logprobs, asked.given, *seen),
    )
