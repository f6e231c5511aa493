"""Rows: what a driver remembers of running requests between plans. Shared by every driver that runs in this language.

States of a row slot, and who moves them:

    empty --start--> READY --append(stop token)---> STOPPED
      ^                |-----fail-----------------> FAILED
      +---- clear -----+------------------------------+

A plan may name a row that stopped or failed meanwhile: it was made before the front could know. Such a row is passed over in silence.
Everything else that does not fit the contract is found by `drivers.plan_check` before anything is changed.

Invariants
1. A READY row has at least one pending token, unless it is a scoring row that has computed all of its tokens.
2. `position` is the position of `pending[0]`; KV of everything before it is in the row's frames.
3. Every page that a run and its following steps can touch is in the table before step 0.
4. Steps of a plan come in order; in step k > 0 exactly the rows that sampled in step k - 1 and go on take part.
5. A step lists rows with one token first, shortest context first: `drivers.ops.ragged` builds on that order.
6. A row samples at most as many tokens in a plan as the plan has steps, drafts that were kept included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from drivers.contract import FramePatch, Plan, RowStart, Sampling
from drivers.errors import PlanRejected
from drivers.tally import Tally

# What comes after the pending token of a row, as far as one can guess: at most so many tokens.
Draft = Callable[["Row", int], Sequence[int]]

NO_FRAME = -1  # allowed in a table only for pages that have left the window of their group


class RowState(Enum):
    """Whether a row still computes."""

    READY = "ready"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """What a table of one KV group may hold."""

    num_frames: int  # frames lie in [0, num_frames)
    window: int | None = None


@dataclass(frozen=True, slots=True)
class ModelLimit:
    """What rows of one model may hold."""

    vocab_size: int
    max_positions: int
    groups: tuple[GroupLimit, ...]
    adapter_ids: frozenset[int] = frozenset()  # loaded adapters that change it


@dataclass(slots=True)
class Row:
    """One running request."""

    slot: int
    model_id: int
    position: int
    pending: list[int]
    tables: list[np.ndarray]  # [group][pages] int64
    sampling: Sampling
    score_from: int  # -1: it samples; else the first position whose token is scored
    output_start: int
    adapter_id: int = 0
    state: RowState = RowState.READY
    tally: Tally = field(default_factory=Tally)  # tokens before the next one, kept only where penalties need them
    draft_model_id: int = 0
    past: list[int] = field(default_factory=list)  # all of its tokens, kept only where drafts are made of them
    num_left: int = 0  # tokens that it may still sample in this plan

    @property
    def is_scoring(self) -> bool:
        """Whether it scores its tokens instead of sampling."""
        return self.score_from >= 0


@dataclass(frozen=True, slots=True)
class StepRows:
    """One model's share of a step: rows in batch order, their tokens side by side."""

    model_id: int
    rows: tuple[Row, ...]
    counts: tuple[int, ...]  # tokens of each row in this step
    starts: tuple[int, ...]  # where they begin in the flat batch
    tokens: np.ndarray  # [num_tokens] int64
    positions: np.ndarray  # [num_tokens] int64
    drafts: tuple[tuple[int, ...], ...] = ()  # of each row: the last of its `counts` tokens, which are guesses; (): nobody has any

    def samples(self, idx: int) -> bool:
        """Whether row `idx` reaches the end of its pending tokens and samples one more."""
        return self.num_pending(idx) == len(self.rows[idx].pending) and not self.rows[idx].is_scoring

    def num_pending(self, idx: int) -> int:
        """How many pending tokens row `idx` computes: all of its tokens but guesses."""
        return self.counts[idx] - (len(self.drafts[idx]) if self.drafts else 0)

    def scored(self, idx: int) -> tuple[int, list[int]]:
        """(first, targets): flat token first + i predicts targets[i], for the scored tokens of row `idx`.

        Scored are the pending tokens at positions [max(score_from, first pending position + 1), end): each is told by the token before
        it, so a chunk scores one token beyond its end, and the first pending token of a row never.
        """
        row, count = self.rows[idx], self.counts[idx]
        if not row.is_scoring:
            return self.starts[idx], []
        skipped = max(0, row.score_from - 1 - row.position)
        return self.starts[idx] + skipped, row.pending[skipped + 1 : count + 1]


class RowTable:
    """The row slots of a driver."""

    def __init__(self, max_rows: int, max_step_tokens: int, page_tokens: int) -> None:
        self.max_rows = max_rows
        self.max_step_tokens = max_step_tokens
        self.page_tokens = page_tokens
        self._rows: dict[int, Row] = {}
        self._due: list[tuple[Row, int]] = []  # the next step: rows and how many tokens
        self._next_step = 0
        self._num_steps = 0

    def row(self, slot: int) -> Row | None:
        """The row in a slot, if one sits there."""
        return self._rows.get(slot)

    def apply(self, plan: Plan) -> tuple[Row, ...]:
        """Carry out clears, starts, patches and runs of a plan that `check_rows` let through; answers the rows that started."""
        for slot in plan.clears:
            del self._rows[slot]
        started = tuple(_seat(start) for start in plan.starts)
        for row in started:
            self._rows[row.slot] = row
        for patch in plan.patches:
            tables = self._rows[patch.slot].tables
            tables[patch.group] = _patched(tables[patch.group], patch)
        self._due = [(row, run.num_tokens) for run in plan.runs if (row := self._rows[run.slot]).state is RowState.READY]
        for row, _num_tokens in self._due:
            row.num_left = plan.num_steps
        self._next_step, self._num_steps = 0, plan.num_steps
        return started

    def take(self, step_idx: int, draft: Draft | None = None, most_tokens: int = 0) -> tuple[StepRows, ...]:
        """The rows of step `step_idx`, one share per model. Each has to be advanced, or failed, before the next step.

        `draft` guesses what comes after the pending token of a row that asks for it; the row computes its guesses in the same step, which
        has no more than `most_tokens` then (0: as many as any step).
        Raises: PlanRejected, if it is not the next step of the plan applied last.
        """
        if step_idx != self._next_step or step_idx >= self._num_steps:
            raise PlanRejected(f"Step {step_idx} was asked for; the plan has {self._num_steps} steps and {self._next_step} is next.")
        self._next_step += 1
        due, self._due = self._due, []
        guesses = self._drafted(due, draft, most_tokens or self.max_step_tokens) if draft is not None else {}
        if guesses:
            due = [(row, count + len(guesses.get(row.slot, ()))) for row, count in due]
        due.sort(key=_batch_order)  # invariant 5
        models = dict.fromkeys(row.model_id for row, _ in due)
        if len(models) == 1:
            return (_share(due, guesses),)
        return tuple(_share([entry for entry in due if entry[0].model_id == model_id], guesses) for model_id in models)

    def _drafted(self, due: Sequence[tuple[Row, int]], draft: Draft, most_tokens: int) -> dict[int, tuple[int, ...]]:
        """Guesses by row slot: of rows that ask for them, generate, and may sample more than one token; within the tokens of a step.

        A row with penalties goes on without: what it may sample depends on which guesses are right.
        """
        room = min(most_tokens, self.max_step_tokens) - sum(count for _row, count in due)
        guesses: dict[int, tuple[int, ...]] = {}
        for row, count in due:
            most = 0 if row.sampling.has_penalties else min(row.sampling.draft_tokens, row.num_left - 1, room)
            if most > 0 and count == len(row.pending) == 1 and (found := tuple(draft(row, most))):
                guesses[row.slot] = found
                room -= len(found)
        return guesses

    def advance(self, row: Row, count: int) -> None:
        """The KV of `count` of the row's pending tokens is in its frames."""
        done = row.pending[:count]
        if row.sampling.has_penalties:
            remember(row, row.position, done)
        row.position += count
        del row.pending[:count]

    def append(self, row: Row, token: int) -> bool:
        """The row, all of whose tokens are computed, sampled `token`; answers whether that stops it."""
        self.accept(row, (token,))
        return row.state is RowState.STOPPED

    def accept(self, row: Row, tokens: Sequence[int]) -> tuple[int, ...]:
        """The row, all of whose tokens are computed, sampled these one after the other; KV of all but the last is in its frames.

        Answers those up to the first that stops it; `row.state` says whether one did.
        """
        ends = (idx for idx, token in enumerate(tokens) if token in row.sampling.stop_token_ids)
        end = next(ends, None)
        kept = tuple(tokens) if end is None else tuple(tokens[: end + 1])
        if row.sampling.has_penalties:
            remember(row, row.position, kept[:-1])
        if row.sampling.draft_tokens:
            row.past += kept
        row.position += len(kept) - 1
        row.pending.append(kept[-1])
        row.num_left -= len(kept)
        if end is not None:
            row.state = RowState.STOPPED
        elif row.num_left > 0:  # invariant 6
            self._due.append((row, 1))  # invariant 4
        return kept

    def fail(self, row: Row) -> None:
        """The row failed alone and computes no more."""
        row.state = RowState.FAILED


def right_guesses(sampled: Sequence[int], guesses: Sequence[int]) -> tuple[int, ...]:
    """What a row has sampled, if `sampled[i]` comes after the first i guesses: one token, and one more for each guess that was right."""
    num_right = next((idx for idx, guess in enumerate(guesses) if sampled[idx] != guess), len(guesses))
    return tuple(sampled[: num_right + 1])


def _seat(start: RowStart) -> Row:
    row = Row(
        slot=start.slot,
        model_id=start.model_id,
        position=start.position,
        pending=list(start.tokens),
        tables=[np.array(frames, dtype=np.int64) for frames in start.frames],
        sampling=start.sampling,
        score_from=start.score_from,
        output_start=start.output_start,
        adapter_id=start.adapter_id,
        draft_model_id=start.draft_model_id,
    )
    if row.sampling.draft_tokens:
        row.past = [*start.history, *start.tokens]
    if row.sampling.has_penalties:
        remember(row, start.position - len(start.history), list(start.history))
    return row


def remember(row: Row, position: int, tokens: Sequence[int]) -> None:
    """Note tokens from `position` on for the row's penalties."""
    row.tally.note(tokens, tokens[max(0, row.output_start - position) :])


def _patched(table: np.ndarray, patch: FramePatch) -> np.ndarray:
    end = patch.page_idx + len(patch.frames)
    if end > len(table):
        table = np.concatenate((table, np.empty(end - len(table), dtype=np.int64)))
    table[patch.page_idx : end] = patch.frames
    return table


def _batch_order(entry: tuple[Row, int]) -> tuple[int, int, int]:
    row, count = entry
    return count, row.position, row.slot


def _share(due: Sequence[tuple[Row, int]], guesses: dict[int, tuple[int, ...]]) -> StepRows:
    rows, counts = zip(*due, strict=True)
    starts = np.cumsum(counts) - counts
    num_tokens = int(starts[-1]) + counts[-1]
    return StepRows(
        model_id=rows[0].model_id,
        rows=rows,
        counts=counts,
        starts=tuple(starts.tolist()),
        tokens=np.fromiter(_tokens(due, guesses), dtype=np.int64, count=num_tokens),
        positions=np.repeat([row.position for row in rows] - starts, counts) + np.arange(num_tokens),
        drafts=tuple(guesses.get(row.slot, ()) for row in rows) if guesses else (),
    )


def _tokens(due: Sequence[tuple[Row, int]], guesses: dict[int, tuple[int, ...]]) -> Iterator[int]:
    for row, count in due:
        if count == 1:
            yield row.pending[0]
        else:
            yield from row.pending[:count]
            yield from guesses.get(row.slot, ())
