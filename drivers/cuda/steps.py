"""Steps on their way: queued ahead of the host, answered one behind the other.

    step(k)    queue what is not queued of steps k .. k + run_ahead     wait for k     tell the rows     answer
               device  | k | k + 1 | k + 2 |
               host              | k       | k + 1                      the device never waits for this

A step in which every row computes one token and the device can draw all of them is a **decode step**: a replay. Once a row's tokens are all
computed, and nobody asks for something that only the host can do, the steps behind are decode steps whatever came before, and are queued
before the host knows the tokens: the device itself ends the rows that stop. All else is an **eager step**, launched kernel by kernel, on
tokens that the host names.

Invariants
1. What the host reads of a step was copied to memory that nothing writes again before it is read: a place for each step on its way.
2. A step is queued ahead only for the lanes of the step before it; a row that stopped there computes nothing.
3. What was queued ahead and is not asked for any more (a plan was cut) changes only pages of its own rows, behind their last token, and
   tables that are written again before they are used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from drivers.contract import TokenLogprob
from drivers.cuda.adapters import Adapters
from drivers.cuda.model import CudaModel
from drivers.cuda.ops import StepAdapters
from drivers.cuda.runtime import Event, Runtime
from drivers.cuda.seats import is_simple
from drivers.rows import StepRows as Share
from drivers.sampling import token_logprobs
from drivers.triton.layout import StepRows, tile_tokens

Answers = tuple[dict[int, Tensor], dict[int, tuple[TokenLogprob, ...] | None]]  # `Flight.logits`, `Flight.scores`
NO_ADAPTERS: Adapters = {}
SCORED_AT_ONCE = 64  # logits of so many scored tokens are in memory at a time


@dataclass(slots=True)
class Flight:
    """One step of one model on its way."""

    event: Event
    drawn: Tensor  # [lanes] int32 on the host, good once the event has passed
    lane_of: dict[int, int]  # row slot -> lane, of rows that the device draws for
    logits: dict[int, Tensor] = field(default_factory=dict)  # row slot -> logits [vocab] f32 on the host, of rows that it cannot draw for
    scores: dict[int, tuple[TokenLogprob, ...] | None] = field(default_factory=dict)  # row slot -> what was scored


class StepQueue:
    """The steps of one model."""

    def __init__(self, runtime: Runtime, model: CudaModel, run_ahead: int, max_rows: int) -> None:
        """`run_ahead`: steps that are queued behind the one that is asked for."""
        self._runtime = runtime
        self._model = model
        self._run_ahead = run_ahead
        self._places = deque(runtime.pinned(4 * max_rows).view(torch.int32) for _ in range(run_ahead + 2))
        self._flights: deque[tuple[int, Flight]] = deque()  # with the index of the step
        self._slots: tuple[int, ...] = ()  # of the rows that steps queued ahead run
        self._size = 0  # of their graph
        self._graphs = model.graphs  # that they are of: with adapters, or without

    def forget(self) -> None:
        """A new plan: nobody asks for what is on its way (invariant 3)."""
        self._flights.clear()
        self._slots = ()

    def take(self, share: Share, step_idx: int, num_steps: int, adapters: Adapters = NO_ADAPTERS) -> Flight:
        """The step of that index, queued if it was not, and more behind it as far as the plan goes; `adapters`: those that are loaded."""
        if not self._flights:
            self._flights.append((step_idx, self._queue(share, adapters)))
        found_idx, flight = self._flights.popleft()
        assert found_idx == step_idx, "steps of a model are asked for in order"
        if self._slots:
            for idx in range(step_idx + 1 + len(self._flights), min(step_idx + self._run_ahead + 1, num_steps)):
                self._flights.append((idx, self._decode()))
        return flight

    def _queue(self, share: Share, adapters: Adapters) -> Flight:
        """Queue a step that follows from what the host knows; sets which rows may go on by themselves."""
        simple = [row for row in share.rows if is_simple(row)]
        going_on = tuple(row.slot for idx, row in enumerate(share.rows) if share.samples(idx))
        self._slots = ()
        seats = self._model.adapters
        is_adapted = seats.seat(share.rows, adapters)
        self._graphs = seats.graphs if is_adapted and seats.graphs is not None else self._model.graphs
        if len(simple) == len(share.rows) and all(count == 1 for count in share.counts) and len(going_on) == len(share.rows):
            self._model.seats.place(share.rows, share.counts)
            self._go_on(going_on)
            return self._decode()
        flight = self._eager(share, seats.of_step() if is_adapted else None)
        if going_on and len(flight.lane_of) == len(going_on):
            self._go_on(going_on)
        return flight

    def _go_on(self, slots: tuple[int, ...]) -> None:
        self._slots = slots
        self._size = self._graphs.fill(slots)

    def _decode(self) -> Flight:
        drawn = self._graphs.run(self._size)
        return self._flight(drawn, {slot: lane for lane, slot in enumerate(self._slots)})

    def _flight(self, drawn: Tensor, lane_of: dict[int, int]) -> Flight:
        """Bring drawn tokens to the host (invariant 1)."""
        self._places.rotate(-1)
        place = self._places[-1][: drawn.shape[0]]
        compute = self._runtime.compute
        compute.run(lambda: _copy(place, drawn))
        return Flight(compute.record(), place, lane_of)

    # ------------------------------------------------------------------------------------------------------------------------ eager steps

    def _eager(self, share: Share, adapters: StepAdapters | None) -> Flight:
        """Queue a step of rows that compute several tokens, or that ask for what only the host can do."""
        seats, compute = self._model.seats, self._runtime.compute
        sampling = [idx for idx in range(len(share.rows)) if share.samples(idx)]
        mine = [idx for idx in sampling if is_simple(share.rows[idx])]
        if mine:
            seats.place([share.rows[idx] for idx in mine], [share.counts[idx] for idx in mine])
        drawn = torch.empty(max(1, len(mine)), dtype=torch.int32, device=self._runtime.device)
        logits: dict[int, Tensor] = {}
        scores: dict[int, tuple[TokenLogprob, ...] | None] = {}
        others = [idx for idx in sampling if idx not in mine]
        compute.run(lambda: self._run_eager((share, adapters), (mine, others), drawn, (logits, scores)))
        flight = self._flight(drawn, {share.rows[idx].slot: lane for lane, idx in enumerate(mine)})
        flight.logits, flight.scores = logits, scores
        return flight

    def _run_eager(
        self, run: tuple[Share, StepAdapters | None], sampling: tuple[list[int], list[int]], drawn: Tensor, answers: Answers
    ) -> None:
        (share, adapters), (mine, others), (told_logits, told_scores) = run, sampling, answers
        model, kernels, sent = self._model, self._runtime.kernels, self._runtime.sent
        seats = [row.slot for row in share.rows]
        step = step_of(share, seats, model.decoder.heads.num_queries_per_kv, self._runtime, model.seats.tables)
        hidden = model.decoder.forward(step, adapters)
        last = {idx: share.starts[idx] + share.counts[idx] - 1 for idx in (*mine, *others)}
        if mine:
            lanes = sent(np.array([share.rows[idx].slot for idx in mine], dtype=np.int32))
            found = model.decoder.logits(hidden[sent(np.array([last[idx] for idx in mine], dtype=np.int64))], step)
            kernels.sample(found, lanes, model.seats.ints, model.seats.cuts, drawn)
            kernels.append(lanes, drawn, model.seats.ints, model.seats.stops)
        for idx in others:
            told_logits[share.rows[idx].slot] = model.decoder.logits(hidden[last[idx] : last[idx] + 1], step)[0].float().cpu()
        for idx, row in enumerate(share.rows):
            if row.is_scoring:
                told_scores[row.slot] = self._score(hidden, share, idx, step)

    def _score(self, hidden: Tensor, share: Share, idx: int, step: StepRows) -> tuple[TokenLogprob, ...] | None:
        """Log-probabilities of the scored tokens of row `idx`; None where logits were not finite."""
        first, targets = share.scored(idx)
        num_top = max(0, share.rows[idx].sampling.num_logprobs)
        answers: list[TokenLogprob] = []
        for low in range(0, len(targets), SCORED_AT_ONCE):
            part = targets[low : low + SCORED_AT_ONCE]
            logits = self._model.decoder.logits(hidden[first + low : first + low + len(part)], step).float().cpu()
            if not bool(logits.amax(-1).isfinite().all()):
                return None
            answers += token_logprobs(logits, part, [num_top] * len(part))
        return tuple(answers)


def step_of(share: Share, seats: Sequence[int], num_queries_per_kv: int, runtime: Runtime, tables: tuple[Tensor, ...]) -> StepRows:
    """A step that the host knows all of, on the device; `seats`: where each of its rows stands in the tables."""
    slots = np.repeat(np.array(seats, dtype=np.int32), share.counts)
    parts = zip(seats, share.rows, share.starts, share.counts, strict=True)
    rows = [(seat, start, count, row.position) for seat, row, start, count in parts]
    at_once = tile_tokens(num_queries_per_kv, is_decode=max(share.counts) == 1)
    tiles = [(row, first) for row, count in enumerate(share.counts) for first in range(0, count, at_once)]
    return StepRows(
        tokens=runtime.sent(share.tokens),
        positions=runtime.sent(share.positions),
        slots=runtime.sent(slots),
        rows=runtime.sent(np.array(rows, dtype=np.int32)),
        tiles=runtime.sent(np.array(tiles, dtype=np.int32)),
        tile_tokens=at_once,
        tables=tables,
    )


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)
