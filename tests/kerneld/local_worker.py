"""A worker without a process: the fake driver behind the front's Device contract, on the front's own event loop.

It keeps the promises of `drivers.server`: plans in order, at most two of them, cuts, aborts, one end told once. Every step is one turn of
the loop, so a run is the same every time; `hold` stops it between two steps, `lead` lets it run ahead of what the front has heard.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from drivers.client import DeviceListener, Progress
from drivers.contract import Capabilities, InspectSpec, LoadedModel, LoadSpec, ModelSpec, OpenSpec, Plan, StepResult
from drivers.errors import DeviceLost, DriverError, PageCorrupt
from drivers.fake import FakeDriver
from drivers.wire import NO_STEP, HeldModel, Hello, PlanFailed

NOBODY = 4_194_305  # more than the largest process id
HELLO = Hello(NOBODY, "fake0", "fake", "", FakeDriver().probe())
NO_RESULT = StepResult(rows=(), compute_s=0.0, num_tokens=0)


@dataclass(slots=True)
class Script:
    """What goes wrong; steps are counted from 1 on, over the life of the worker."""

    die_at_step: int = 0  # it is gone before that step
    die_after_apply: int = 0  # it is gone after the page moves of that plan, counted from 1 on
    hang_at_step: int = 0  # that step never ends
    lead: int = 0  # messages that may be on their way while it works on


class LocalWorker:
    """A Device, with what the supervisor asks of a WorkerClient."""

    def __init__(self, spec: OpenSpec, host_fd: int | None, script: Script | None = None, driver: FakeDriver | None = None) -> None:
        """`driver`: one that is open already, of a worker that outlived its front."""
        self.driver = driver or FakeDriver()
        if driver is None:
            self.driver.open(spec, os.dup(host_fd) if host_fd is not None else None)
        self.spec = spec
        self.host_fd = os.dup(host_fd) if host_fd is not None else None
        self.script = script or Script()
        self.boot_generation = 0
        self.models: tuple[HeldModel, ...] = ()
        self.copies = self.driver.copied()
        self.hello = HELLO
        self.num_steps = self.num_plans = self.num_cuts = 0
        self.plans: list[Plan] = []
        self.reason = ""
        self.on_gone: Callable[[], None] = lambda: None
        self._held: dict[int, HeldModel] = {}
        self._slots: set[int] = set()
        self._away: set[int] = set()  # slabs that were given back
        self._listener: DeviceListener | None = None
        self._queue: deque[Plan] = deque()
        self._plan: Plan | None = None
        self._step_idx = NO_STEP
        self._cuts: dict[int, int] = {}
        self._abort_count = 0
        self._outbox: deque[Callable[[DeviceListener], None]] = deque()
        self._turns_allowed: int | None = None
        self._is_due = self._is_hung = self._is_lost = False
        self.load_gate: asyncio.Event | None = None  # loads wait for it
        self.num_loads = self.num_unloads = self.num_parks = 0

    # ---------------------------------------------------------------------------------------------------------- what a test does with it

    def hold(self) -> None:
        """Stop between two steps."""
        self._turns_allowed = 0

    def let(self, num_turns: int) -> None:
        """Go on for some turns."""
        self._turns_allowed = (self._turns_allowed or 0) + num_turns
        self._wake()

    def release(self) -> None:
        """Go on."""
        self._turns_allowed = None
        self._wake()

    def die(self, reason: str = "It was killed.") -> None:
        """Be gone, with all of the device's memory."""
        if not self.reason:
            self.reason = reason
            asyncio.get_running_loop().call_soon(self._lose)

    def orphan(self) -> LocalWorker:
        """The front died: what is left of the worker, with its driver, its models and its host tier."""
        self._listener = None
        self.reason, self._is_lost = "The front is gone.", True
        heir = LocalWorker(self.spec, None, driver=self.driver)
        heir.host_fd, heir._held, heir._slots, heir._away = self.host_fd, self._held, self._slots, self._away
        heir.hello = msgspec.structs.replace(
            self.hello, boot_generation=self.boot_generation, opened=self.spec, models=tuple(self._held.values())
        )
        self.host_fd = None
        return heir

    def serve(self, boot_generation: int) -> None:
        """Be ready for a front: forget the rows of the one before."""
        if self._slots:
            self.driver.apply(Plan(boot_generation, seq=0, clears=tuple(sorted(self._slots))))
            self._slots.clear()
        self.driver.take(tuple(self._away))
        self._away.clear()
        self.boot_generation = boot_generation
        self.models = tuple(self._held.values())

    # ---------------------------------------------------------------------------------------------------------------------- the contract

    @property
    def capabilities(self) -> Capabilities:
        return self.hello.capabilities

    def attach(self, listener: DeviceListener) -> None:
        self._listener = listener

    async def inspect(self, spec: InspectSpec) -> ModelSpec:
        await asyncio.sleep(0)
        self._check_alive()
        return self.driver.inspect(spec)

    async def load(self, spec: LoadSpec, progress: Progress, weights_key: str = "") -> LoadedModel:
        self.num_loads += 1
        if self.load_gate is not None:
            await self.load_gate.wait()
        await asyncio.sleep(0)
        self._check_alive()
        loaded = self.driver.load(spec, progress)
        self._held[spec.model_id] = HeldModel(weights_key, spec, loaded)
        return loaded

    async def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        await asyncio.sleep(0)
        self._check_alive()
        self.num_parks += 1
        return self.driver.park(model_id, host_offsets)

    async def unload(self, model_id: int) -> None:
        while not self._is_lost and (self._plan is not None or self._queue):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._check_alive()
        self.num_unloads += 1
        self.driver.unload(model_id)
        self._held.pop(model_id, None)

    async def shift_slabs(self, gives: tuple[int, ...], takes: tuple[int, ...]) -> None:
        while not self._is_lost and (self._plan is not None or self._queue):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._check_alive()
        self.driver.give_back(gives)
        self.driver.take(takes)
        self._away = (self._away | set(gives)) - set(takes)

    def submit(self, plan: Plan) -> None:
        self._check_alive()
        if self.reason:
            return  # it goes nowhere
        if plan.boot_generation != self.boot_generation or plan.abort_count < self._abort_count:
            return
        assert len(self._queue) + (self._plan is not None) < 2, "two plans are outstanding"
        self._abort_count = plan.abort_count
        self.plans.append(plan)
        self._queue.append(msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan))
        self._wake()

    def cut(self, plan_seq: int, after_step: int) -> None:
        self._check_alive()
        self.num_cuts += 1
        self._cuts[plan_seq] = after_step

    def kill(self, reason: str) -> None:
        self.die(reason)

    def hang_up(self) -> None:
        self._listener = None

    async def shut_down(self, timeout_s: float) -> None:
        self.die("It was shut down.")
        while self._listener is not None:
            await asyncio.sleep(0)

    # ---------------------------------------------------------------------------------------------------------------------------- inside

    def _check_alive(self) -> None:
        if self._is_lost:
            raise DeviceLost(self.reason)

    def _wake(self) -> None:
        if not self._is_due and not self._is_hung and not self.reason and (self._queue or self._plan or self._outbox):
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_due = False
        if self.reason or self._turns_allowed == 0:
            return
        if self._turns_allowed is not None:
            self._turns_allowed -= 1
        try:
            self._work()
        except DriverError as error:
            self.die(str(error))
        if len(self._outbox) > self.script.lead or not (self._queue or self._plan):
            self._deliver()
        self._wake()

    def _work(self) -> None:
        if self._plan is None:
            if self._queue:
                self._begin(self._queue.popleft())
            return
        self._run_step(self._plan)

    def _begin(self, plan: Plan) -> None:
        self.num_plans += 1
        try:
            self.driver.apply(plan)
        except PageCorrupt as error:
            self._abort_count += 1
            self._queue.clear()
            failed = PlanFailed(plan.seq, type(error).__name__, str(error), error.move_idxs, self._abort_count)
            self._outbox.append(lambda listener: listener.on_plan_failed(failed))
            return
        if self.num_plans == self.script.die_after_apply:
            self.die("It died after its page moves.")
            return
        self._slots.difference_update(plan.clears)
        self._slots.update(start.slot for start in plan.starts)
        if plan.num_steps == 0 or self._is_cut(plan, NO_STEP):
            self._answer(plan, NO_STEP, msgspec.structs.replace(NO_RESULT, copies=self.driver.copied()), is_last=True)
            return
        self._plan, self._step_idx = plan, NO_STEP

    def _run_step(self, plan: Plan) -> None:
        self.num_steps += 1
        if self.num_steps == self.script.die_at_step:
            self.die("It died in a step.")
            return
        if self.num_steps == self.script.hang_at_step:
            self._is_hung = True
            return
        self._step_idx += 1
        result = self.driver.step(self._step_idx)
        if self._step_idx == 0:
            result = msgspec.structs.replace(result, copies=self.driver.copied())
        goes_on = any(row.tokens and not row.is_stopped and not row.error for row in result.rows)
        is_last = self._step_idx + 1 == plan.num_steps or self._is_cut(plan, self._step_idx) or not goes_on
        self._answer(plan, self._step_idx, result, is_last=is_last)
        if is_last:
            self._plan = None

    def _is_cut(self, plan: Plan, step_idx: int) -> bool:
        return self._cuts.get(plan.seq, plan.num_steps) <= step_idx

    def _answer(self, plan: Plan, step_idx: int, result: StepResult, *, is_last: bool) -> None:
        self._outbox.append(lambda listener: listener.on_step(plan.seq, step_idx, is_last, result))

    def _deliver(self) -> None:
        while self._outbox and self._listener is not None:
            self._outbox.popleft()(self._listener)

    def _lose(self) -> None:
        self._deliver()  # what was sent is heard
        self._is_lost = True
        listener, self._listener = self._listener, None
        self.driver.close()
        if self.host_fd is not None:
            os.close(self.host_fd)
            self.host_fd = None
        if listener is not None:
            listener.on_lost(self.reason)
        self.on_gone()
