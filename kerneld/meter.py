"""Meter: what plans took, told to the costs of memory; and how the pages of a request come back, decided at its seat and measured after.

    choose ----> Row.decision --started--> in the ring, open --heard: copies, then steps over what is computed again--> settled
    fetching (from disk, before the seat) --'

Invariants
1. A decision is in the ring once the plan that seats its row goes out, not when it is thought of.
2. A row that leaves before it has its pages leaves its decision without a measured cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from drivers.contract import CopyTimes, StepResult
from drivers.wire import NO_STEP
from kerneld.request import Request
from kerneld.rows import Flight, Part, Row
from memory.costs import Costs, Link
from memory.decisions import Decision
from memory.page import Move, Tier
from memory.table import PageTable

MIN_PREFILL_TOKENS = 16  # a row that computes fewer in a step generates
MIN_PREFILL_SHARE = 0.75  # of the tokens of a step that teaches what prefill costs
MAX_FETCHES = 256  # decisions to fetch from disk that wait for their seat


@dataclass(slots=True, eq=False)
class _Open:
    """A decision that is being carried out."""

    row: Row
    decision: Decision
    seconds: float = 0.0


class Meter:
    """Event-loop thread only."""

    def __init__(self, costs: Costs, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` measures how long pages take to come from the disk."""
        self._costs = costs
        self._clock = clock
        self.on_settled: Callable[[Request, float], None] = lambda _request, _seconds: None  # a request has its pages, which took so long
        self._open: dict[int, _Open] = {}  # by row slot
        self._fetches: dict[PageTable, tuple[Decision, float]] = {}  # with the time at which the fetch began; oldest first
        self._heard_seq = 0
        self._copies_s = self._steps_s = 0.0  # of the plan that runs

    # ------------------------------------------------------------------------------------------------------------------ decisions

    def choose(self, label: str, table: PageTable, num_tokens: int) -> Decision:
        """How the first `num_tokens` tokens of a context that is seated now come to the device."""
        return self._costs.choose(table, num_tokens, label)

    def fetching(self, label: str, table: PageTable, num_tokens: int) -> None:
        """Pages of a context are fetched from disk before it is seated; why is remembered until it is."""
        self._fetches.setdefault(table, (self._costs.choose(table, num_tokens, label), self._clock()))
        while len(self._fetches) > MAX_FETCHES:
            del self._fetches[next(iter(self._fetches))]

    def started(self, row: Row) -> None:
        """The plan that seats a row goes out (invariant 1)."""
        fetched = self._fetches.pop(row.table, None)
        if row.decision is None or not row.decision.num_tokens:
            return
        self._open[row.slot] = run = _Open(row, row.decision)
        if fetched is not None and fetched[0].num_tokens == row.decision.num_tokens:
            run.decision, run.seconds = fetched[0], self._clock() - fetched[1]
        self._costs.decisions.record(run.decision)

    # ------------------------------------------------------------------------------------------------------------------ what came of it

    def heard(self, flight: Flight, step_idx: int, is_last: bool, result: StepResult) -> None:
        """A step of a plan is done, or a plan of no steps; positions of rows have not moved yet."""
        if flight.seq != self._heard_seq:
            self._heard_seq, self._copies_s, self._steps_s = flight.seq, 0.0, 0.0
            self._note_copies(flight, result.copies)
        if step_idx != NO_STEP:
            self._steps_s += result.compute_s
            computed = [(part, part.num_first if step_idx == 0 else 1) for part in flight.parts.values()]
            self._note_prefill(computed, result)
            for part, num_tokens in computed:
                self._settle(part.row, num_tokens, result)
        if is_last:
            self._costs.pace.note_plan(self._steps_s, self._copies_s)

    def measured(self, copies: CopyTimes) -> None:
        """A device came, and measured how fast pages are copied."""
        self._costs.measured(Link.HOST_TO_DEVICE, copies.up_bytes, copies.up_s)
        self._costs.measured(Link.DEVICE_TO_HOST, copies.down_bytes, copies.down_s)
        self._open.clear()

    def _note_copies(self, flight: Flight, copies: CopyTimes) -> None:
        self._copies_s = copies.up_s + copies.down_s
        up, down = _spaces(flight.moves, Tier.DEVICE), _spaces(flight.moves, Tier.HOST)
        self._costs.note_copy(Link.HOST_TO_DEVICE, copies.up_bytes, copies.up_s, up)
        self._costs.note_copy(Link.DEVICE_TO_HOST, copies.down_bytes, copies.down_s, down)
        for slot in flight.starts:
            run = self._open.get(slot)
            if run is not None and copies.up_bytes:
                run.seconds += copies.up_s * min(run.decision.copied_bytes / copies.up_bytes, 1.0)

    def _note_prefill(self, computed: list[tuple[Part, int]], result: StepResult) -> None:
        inputs = [(part.row, num_tokens) for part, num_tokens in computed if num_tokens >= MIN_PREFILL_TOKENS]
        if sum(num_tokens for _row, num_tokens in inputs) < max(MIN_PREFILL_SHARE * result.num_tokens, 1):
            return
        for row, num_tokens in inputs:
            seconds = result.compute_s * num_tokens / result.num_tokens
            self._costs.note_prefill(row.table.spaces[0].space_id, row.position, row.position + num_tokens, seconds)

    def _settle(self, row: Row, num_tokens: int, result: StepResult) -> None:
        """A row computes `num_tokens` tokens: those that it had before count towards its decision, which ends with the last of them."""
        run = self._open.get(row.slot)
        if run is None or run.row is not row:
            return
        decision, end = run.decision, row.position + num_tokens
        again = min(end, decision.num_tokens) - max(row.position, decision.keep_tokens)
        if again > 0 and decision.keep_tokens < decision.num_tokens:
            run.seconds += result.compute_s * again / max(result.num_tokens, 1)
        if end >= decision.num_tokens:
            del self._open[row.slot]
            self._costs.decisions.settle(decision, run.seconds)
            self.on_settled(row.request, run.seconds)


def _spaces(moves: tuple[Move, ...], target: Tier) -> tuple[int, ...]:
    """The spaces whose pages are moved to a tier from the other one."""
    return tuple({move.space_id for move in moves if move.target_tier is target and move.source_tier is not target})
