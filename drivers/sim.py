"""The simulated device: a `Device` in virtual time, whose steps take what a cost model says. It computes nothing.

It keeps the promises of a worker behind `drivers.client`: plans in order, at most two of them, cuts, one answer per step. What a plan
copies between the tiers takes bytes / bandwidth before its first step. Every sampled token is the same one, but for the last: a row with
stop tokens samples the first of them at the position that its `Sampling.seed` names. Nothing is kept in frames; whether the kernel gives
out frames rightly is the fake driver's to find.

It is no driver of a worker: a worker lives in real time. `drivers.registry` knows its name, and says so.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from drivers.client import DeviceListener, Progress
from drivers.contract import (
    Capabilities,
    CopyTimes,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    Plan,
    RowResult,
    RowStart,
    StepResult,
)
from drivers.errors import ModelUnsupported
from drivers.wire import NO_STEP
from memory.page import Tier

TOKEN = 1  # what every step samples
CAPABILITIES = Capabilities("sim", "1", "virtual device", 0, ("float32",), batch_invariant=True)


class StepCostsInvalid(ValueError):
    """A file of step costs cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """What a step takes: `step_s + token_s * tokens + row_s * rows + context_s * context`, in seconds.

    `tokens` are those that the step computes, of `rows` rows; `context` is the sum, over those tokens, of how many stand before each.
    """

    step_s: float
    token_s: float
    row_s: float = 0.0
    context_s: float = 0.0

    def __post_init__(self) -> None:
        """Raises: StepCostsInvalid, if a step could take no time or less."""
        for name in ("step_s", "token_s", "row_s", "context_s"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise StepCostsInvalid(f"{name} = {value}: seconds are not negative.")
        if self.step_s + self.token_s <= 0:
            raise StepCostsInvalid("step_s and token_s are both 0: steps would take no time.")

    @classmethod
    def read(cls, path: Path) -> StepModel:
        """The model in a JSON file of the four numbers, as a daemon learned them. Raises: StepCostsInvalid, OSError."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return msgspec.convert(kept, cls)
        except (ValueError, msgspec.ValidationError) as error:
            raise StepCostsInvalid(f"{path}: {error}") from error

    def seconds(self, num_tokens: int, num_rows: int, num_read: int) -> float:
        """What a step takes; `num_read` is the sum of what stands before each token."""
        return self.step_s + self.token_s * num_tokens + self.row_s * num_rows + self.context_s * num_read


class Timeline(Protocol):
    """Whose time it is: an event loop, in virtual time."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object:
        """Call back after so many seconds."""


@dataclass(slots=True)
class _Row:
    """A row slot that is taken."""

    position: int
    num_pending: int
    is_scoring: bool
    rest: RowResult  # while its input is read
    answer: RowResult
    last: RowResult  # when it stops
    stop_at: int  # position of the token that stops it; -1: none


class SimDevice:
    """A device of one worker that is not there."""

    def __init__(self, timeline: Timeline, costs: StepModel, frame_bytes: Mapping[int, int], bytes_per_s: float) -> None:
        """`frame_bytes`: of a page on the device, by space; `bytes_per_s`: of copies between the tiers, either way."""
        self._timeline = timeline
        self._costs = costs
        self._frame_bytes = frame_bytes
        self._bytes_per_s = bytes_per_s
        self._listener: DeviceListener | None = None
        self._rows: dict[int, _Row] = {}
        self._queue: deque[Plan] = deque()
        self._plan: Plan | None = None
        self._due: list[tuple[_Row, int]] = []  # of the next step: rows and how many tokens
        self._result = StepResult((), 0.0, 0)
        self._step_idx = NO_STEP
        self._cuts: dict[int, int] = {}
        self._copies = CopyTimes()
        self.num_steps = 0
        self.busy_s = 0.0

    # ------------------------------------------------------------------------------------------------------------------- the contract

    @property
    def capabilities(self) -> Capabilities:
        """What the driver can do."""
        return CAPABILITIES

    def attach(self, listener: DeviceListener) -> None:
        """Say who hears of plans."""
        self._listener = listener

    async def inspect(self, spec: InspectSpec) -> ModelSpec:
        """There are no files to look at. Raises: ModelUnsupported."""
        raise ModelUnsupported(f"{spec.path}: a simulated device runs no model.")

    async def load(self, spec: LoadSpec, progress: Progress, weights_key: str = "") -> LoadedModel:
        """There is nothing to load. Raises: ModelUnsupported."""
        raise ModelUnsupported(f"{spec.source.path}: a simulated device loads no model ({weights_key or 'no key'}, {progress}).")

    async def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """There is nothing to copy. Raises: ModelUnsupported."""
        raise ModelUnsupported(f"Model {model_id} has no weights to be parked at {len(host_offsets)} offsets.")

    async def unload(self, model_id: int) -> None:
        """There is nothing to forget. Raises: ModelUnsupported."""
        raise ModelUnsupported(f"Model {model_id} was never loaded.")

    async def shift_slabs(self, gives: tuple[int, ...], takes: tuple[int, ...]) -> None:
        """Memory that is not there may come and go."""

    def submit(self, plan: Plan) -> None:
        """Take a plan; it begins when the one before has ended."""
        self._queue.append(plan)
        if self._plan is None:
            self._begin()

    def cut(self, plan_seq: int, after_step: int) -> None:
        """End the quantum of a plan once step `after_step` is done."""
        self._cuts[plan_seq] = after_step

    def kill(self, reason: str) -> None:
        """A simulated step never hangs: a deadline that struck is a bug of whoever set it."""
        raise RuntimeError(f"The simulated device was killed: {reason}")

    # ------------------------------------------------------------------------------------------------------------------------- inside

    def _begin(self) -> None:
        """Begin the next plan: its moves, then its first step."""
        plan = self._plan = self._queue.popleft()
        self._step_idx = NO_STEP
        self._copies = self._copy(plan)
        copy_s = self._copies.up_s + self._copies.down_s
        self.busy_s += copy_s
        for slot in plan.clears:
            del self._rows[slot]
        for start in plan.starts:
            self._rows[start.slot] = _seat(start)
        if not plan.num_steps or self._is_cut(plan, NO_STEP):
            self._result = StepResult((), 0.0, 0, copies=self._copies)
            self._timeline.call_later(copy_s, self._end_plan)
            return
        # A row that stopped meanwhile may be named: the plan was made before the front could know.
        self._due = [(row, run.num_tokens) for run in plan.runs if (row := self._rows[run.slot]).num_pending]
        self._run(copy_s)

    def _copy(self, plan: Plan) -> CopyTimes:
        if not plan.moves:
            return CopyTimes()
        up = sum(self._frame_bytes[move.space_id] for move in plan.moves if move.source_tier is Tier.HOST)
        down = sum(self._frame_bytes[move.space_id] for move in plan.moves if move.target_tier is Tier.HOST)
        return CopyTimes(up, up / self._bytes_per_s, down, down / self._bytes_per_s)

    def _run(self, delay_s: float) -> None:
        """Run the next step: what it answers is settled now, and told when it has taken its time."""
        self._step_idx += 1
        self.num_steps += 1
        num_tokens = num_read = 0
        answers: list[RowResult] = []
        sampled: list[tuple[_Row, int]] = []
        for row, count in self._due:
            num_tokens += count
            num_read += count * row.position + count * (count - 1) // 2
            row.position += count
            row.num_pending -= count
            if row.num_pending or row.is_scoring:
                answers.append(row.rest)
            elif row.position == row.stop_at:
                answers.append(row.last)
            else:
                row.num_pending = 1
                answers.append(row.answer)
                sampled.append((row, 1))
        seconds = self._costs.seconds(num_tokens, len(self._due), num_read) if self._due else 0.0
        copies = self._copies if self._step_idx == 0 else CopyTimes()
        self._result = StepResult(tuple(answers), seconds, num_tokens, copies=copies)
        self._due = sampled
        self.busy_s += seconds
        self._timeline.call_later(delay_s + seconds, self._end_step)

    def _end_step(self) -> None:
        plan, result, step_idx = self._plan, self._result, self._step_idx
        assert plan is not None, "a step belongs to a plan"
        is_last = step_idx + 1 >= plan.num_steps or not self._due or self._is_cut(plan, step_idx)
        if is_last:
            self._go_on(plan)
        else:
            self._run(0.0)
        self._tell(plan.seq, step_idx, is_last, result)

    def _end_plan(self) -> None:
        plan, result = self._plan, self._result
        assert plan is not None, "it was begun"
        self._go_on(plan)
        self._tell(plan.seq, NO_STEP, True, result)

    def _go_on(self, plan: Plan) -> None:
        """A plan has ended: the next one begins at once, before the front has heard of it."""
        self._plan = None
        self._cuts.pop(plan.seq, None)
        if self._queue:
            self._begin()

    def _tell(self, plan_seq: int, step_idx: int, is_last: bool, result: StepResult) -> None:
        assert self._listener is not None, "somebody sent the plan"
        self._listener.on_step(plan_seq, step_idx, is_last, result)

    def _is_cut(self, plan: Plan, step_idx: int) -> bool:
        return self._cuts.get(plan.seq, plan.num_steps) <= step_idx


def _seat(start: RowStart) -> _Row:
    stops = start.sampling.stop_token_ids
    return _Row(
        position=start.position,
        num_pending=len(start.tokens),
        is_scoring=start.score_from >= 0,
        rest=RowResult(start.slot),
        answer=RowResult(start.slot, (TOKEN,)),
        last=RowResult(start.slot, stops[:1], is_stopped=True),
        stop_at=start.sampling.seed if stops else -1,
    )
