"""Whether a plan fits the contract and the rows that sit in a driver: every way in which the kernel could be wrong, found beforehand.

`check_pages` and `check_rows` change nothing. They read the plan in the order in which it will be carried out: zeros and moves; then
clears, starts, patches, runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drivers.contract import FramePatch, Plan, RowRun, RowStart
from drivers.errors import PlanRejected
from drivers.page_header import KEY_BYTES
from drivers.rows import NO_FRAME, GroupLimit, ModelLimit, Row, RowState, RowTable
from memory.page import Tier


def check_rows(plan: Plan, table: RowTable, models: Mapping[int, ModelLimit]) -> None:
    """Whether the row part of a plan can be applied to `table`. Raises: PlanRejected."""
    for slot in plan.clears:
        if table.row(slot) is None:
            raise PlanRejected(f"Slot {slot} is cleared, but no row sits there.")
    if len(set(plan.clears)) != len(plan.clears):
        raise PlanRejected("A slot is cleared twice.")
    check = _RowCheck(plan, table, models)
    for start in plan.starts:
        check.start(start)
    for patch in plan.patches:
        check.patch(patch)
    check.runs()


@dataclass(slots=True)
class _Seat:
    """What a row will be once starts and patches are applied."""

    row: Row | RowStart
    limit: ModelLimit
    num_pages: list[int]  # per KV group

    @property
    def pending(self) -> Sequence[int]:
        return self.row.pending if isinstance(self.row, Row) else self.row.tokens

    @property
    def goes_on(self) -> bool:
        return not isinstance(self.row, Row) or self.row.state is RowState.READY


class _RowCheck:
    """One plan against one table; `_seats` are the rows that the plan has named so far."""

    def __init__(self, plan: Plan, table: RowTable, models: Mapping[int, ModelLimit]) -> None:
        self._plan = plan
        self._table = table
        self._models = models
        self._cleared = frozenset(plan.clears)
        self._seats: dict[int, _Seat] = {}

    def start(self, start: RowStart) -> None:
        """A row takes a free slot, with tokens and frames that its model can hold."""
        is_taken = self._table.row(start.slot) is not None and start.slot not in self._cleared
        if is_taken or start.slot in self._seats or not 0 <= start.slot < self._table.max_rows:
            raise PlanRejected(f"A row starts in slot {start.slot}, which is taken or not below {self._table.max_rows}.")
        limit = self._limit(start.slot, start.model_id)
        if start.adapter_id and start.adapter_id not in limit.adapter_ids:
            raise PlanRejected(
                f"Slot {start.slot} starts with adapter {start.adapter_id}; model {start.model_id} has none of that id loaded."
            )
        if not start.tokens or start.position < 0 or start.position + len(start.tokens) > limit.max_positions:
            raise PlanRejected(
                f"Slot {start.slot} starts with {len(start.tokens)} tokens at position {start.position}; "
                f"at least one is needed, and the model ends at {limit.max_positions}."
            )
        known = (*start.tokens, *start.history)
        if min(known) < 0 or max(known) >= limit.vocab_size:
            raise PlanRejected(f"Slot {start.slot} starts with a token id outside [0, {limit.vocab_size}).")
        if len(start.frames) != len(limit.groups):
            raise PlanRejected(f"Slot {start.slot} starts with {len(start.frames)} page tables; its model has {len(limit.groups)} groups.")
        for group, frames in zip(limit.groups, start.frames, strict=True):
            _check_frames(start.slot, group, frames)
            if len(frames) * self._table.page_tokens < start.position:
                raise PlanRejected(f"Slot {start.slot} starts at position {start.position}, and its frames end before it.")
        self._seats[start.slot] = _Seat(start, limit, [len(frames) for frames in start.frames])

    def patch(self, patch: FramePatch) -> None:
        """Frames follow those that a seated row has, without a gap."""
        seat = self._seat(patch.slot)
        if not 0 <= patch.group < len(seat.num_pages) or not 0 <= patch.page_idx <= seat.num_pages[patch.group]:
            raise PlanRejected(f"Slot {patch.slot} is patched at page {patch.page_idx} of group {patch.group}, which leaves a gap.")
        _check_frames(patch.slot, seat.limit.groups[patch.group], patch.frames)
        seat.num_pages[patch.group] = max(seat.num_pages[patch.group], patch.page_idx + len(patch.frames))

    def runs(self) -> None:
        """Rows that run have the tokens and the frames that all steps of the plan can need."""
        runs, num_steps = self._plan.runs, self._plan.num_steps
        if num_steps < 0 or (runs and num_steps == 0):
            raise PlanRejected(f"{len(runs)} rows run in {num_steps} steps.")
        if len({run.slot for run in runs}) != len(runs):
            raise PlanRejected("A row runs twice in one plan.")
        num_tokens = 0
        for run in runs:
            seat = self._seat(run.slot)
            if seat.goes_on:
                self._check_run(run, seat)
                num_tokens += run.num_tokens
        if num_tokens > self._table.max_step_tokens:
            raise PlanRejected(f"Step 0 has {num_tokens} tokens; the driver was opened for {self._table.max_step_tokens}.")

    def _check_run(self, run: RowRun, seat: _Seat) -> None:
        num_pending = len(seat.pending)
        if not 1 <= run.num_tokens <= num_pending:
            raise PlanRejected(f"Slot {run.slot} runs {run.num_tokens} tokens; {num_pending} are pending.")
        samples = run.num_tokens == num_pending and seat.row.score_from < 0
        end = seat.row.position + run.num_tokens + (self._plan.num_steps - 1 if samples else 0)
        if end > seat.limit.max_positions:
            raise PlanRejected(f"Slot {run.slot} would reach position {end}; the model ends at {seat.limit.max_positions}.")
        reach = min(seat.num_pages) * self._table.page_tokens
        if reach < end:  # rows, invariant 3
            raise PlanRejected(f"Slot {run.slot} has frames up to position {reach}; its steps reach {end}.")

    def _seat(self, slot: int) -> _Seat:
        if slot not in self._seats:
            row = None if slot in self._cleared else self._table.row(slot)
            if row is None:
                raise PlanRejected(f"Slot {slot} is named, but no row sits there.")
            self._seats[slot] = _Seat(row, self._limit(slot, row.model_id), [len(table) for table in row.tables])
        return self._seats[slot]

    def _limit(self, slot: int, model_id: int) -> ModelLimit:
        limit = self._models.get(model_id)
        if limit is None:
            raise PlanRejected(f"The row of slot {slot} is of model {model_id}, which is not loaded.")
        return limit


def _check_frames(slot: int, group: GroupLimit, frames: Sequence[int]) -> None:
    lowest = 0 if group.window is None else NO_FRAME
    if frames and (min(frames) < lowest or max(frames) >= group.num_frames):
        raise PlanRejected(f"Slot {slot} names a frame outside [0, {group.num_frames}).")


def check_pages(plan: Plan, num_frames: Callable[[int, Tier], int]) -> None:
    """Whether every frame that zeros and moves name lies in its tier, below `num_frames` of its space there. Changes nothing.

    Raises: PlanRejected, as does `num_frames` for spaces and tiers that there are not.
    """
    ends: dict[tuple[int, Tier], int] = {}
    for space_id, tier, frame in (
        *plan.zeros,
        *plan.late_zeros,
        *((move.space_id, move.source_tier, move.source_frame) for move in plan.moves),
        *((move.space_id, move.target_tier, move.target_frame) for move in plan.moves),
    ):
        end = ends.get((space_id, tier))
        if end is None:
            end = ends[space_id, tier] = num_frames(space_id, tier)
        if not 0 <= frame < end:
            raise PlanRejected(f"Frame {frame} of space {space_id} lies outside [0, {end}) of the {tier.name.lower()} tier.")
    if any(len(move.key) != KEY_BYTES for move in plan.moves if move.source_tier is not move.target_tier):
        raise PlanRejected(f"A page that moves between tiers is named by {KEY_BYTES} bytes.")
    if any(move.source_tier is Tier.HOST and move.target_tier is Tier.HOST for move in plan.moves):
        raise PlanRejected("A page moves inside the host tier, which no driver does.")
