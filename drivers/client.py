"""The front's side of a device: what the dispatcher is written against, and the worker behind a socket that satisfies it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from drivers.connection import Connection
from drivers.contract import Capabilities, InspectSpec, LoadedModel, LoadSpec, ModelSpec, Plan, StepResult
from drivers.errors import DeviceLost
from drivers.failure import restore_error
from drivers.wire import (
    Cut,
    Failed,
    Hello,
    Inspect,
    Inspected,
    Load,
    Loaded,
    LoadProgress,
    Message,
    Opened,
    Park,
    Parked,
    PlanFailed,
    PlanMessage,
    ShiftSlabs,
    Shutdown,
    SlabsShifted,
    StepDone,
    Unload,
    Unloaded,
    expect,
)

Progress = Callable[[int, int], None]


class DeviceListener(Protocol):
    """Hears what a device does with its plans. Every method is called on the event loop and must not block."""

    def on_step(self, plan_seq: int, step_idx: int, is_last: bool, result: StepResult) -> None:
        """A step is done. After `is_last` no more come for this plan; a plan of no steps ends with step_idx NO_STEP and an empty result."""

    def on_plan_failed(self, failed: PlanFailed) -> None:
        """Pages were corrupt: this plan and all sent since are void. The next one carries `failed.abort_count`."""

    def on_lost(self, reason: str) -> None:
        """The device is gone, told once; nothing comes after it, and nothing of it writes to the host tier any more."""


class Device(Protocol):
    """One device group, as the dispatcher sees it.

    At most two plans may be unanswered. Plans run in the order submitted, beside loads; an unload waits for the plans submitted before it.
    All methods are called on the event loop. Once `on_lost` was called, every one of them raises DeviceLost.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What the driver can do."""

    def attach(self, listener: DeviceListener) -> None:
        """Say who hears of plans; once, before the first of them."""

    async def inspect(self, spec: InspectSpec) -> ModelSpec:
        """Say what a model needs. Raises: ModelUnsupported, ModelCorrupt, DeviceLost."""

    async def load(self, spec: LoadSpec, progress: Progress, weights_key: str = "") -> LoadedModel:
        """Load a model; `progress(bytes_done, bytes_total)` is called on the way.

        The worker remembers it under `weights_key`, by which the front's successor knows it again.
        Raises: ModelUnsupported, ModelCorrupt, DeviceOutOfMemory, DeviceLost; then nothing of it is loaded.
        """

    async def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy the segments of a model to the host tier, beside steps; answers their checksums.

        Raises: UnknownModel, PlanRejected, DeviceLost; what lies there is then of no use.
        """

    async def unload(self, model_id: int) -> None:
        """Forget a model. Raises: UnknownModel, DeviceLost."""

    async def shift_slabs(self, gives: tuple[int, ...], takes: tuple[int, ...]) -> None:
        """Let the device have the memory of slabs, and have that of others again. Raises: DeviceOutOfMemory, DeviceLost."""

    def submit(self, plan: Plan) -> None:
        """Send a plan. Raises: WireError, if it is too long for one message; DeviceLost."""

    def cut(self, plan_seq: int, after_step: int) -> None:
        """End the quantum of a plan once step `after_step` is done; NO_STEP, or a step long done, means at once. Raises: DeviceLost."""

    def kill(self, reason: str) -> None:
        """End a device that hangs; `on_lost(reason)` follows when it has ended. Does nothing to one that is lost."""


@dataclass(slots=True)
class _Request:
    """A request that waits for its answer."""

    answer: asyncio.Future[Message]
    progress: Progress | None = None


class WorkerClient:
    """A worker process as a Device."""

    def __init__(self, connection: Connection, hello: Hello, boot_generation: int, opened: Opened) -> None:
        """Take over a connection after its handshake, with what the worker said at its end."""
        self.hello = hello
        self.boot_generation = boot_generation
        self.capabilities = opened.capabilities  # what the driver can do
        self.models = opened.models  # that it kept from before
        self.copies = opened.copies  # that it measured when it opened its driver
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, _Request] = {}
        self._last_request_id = 0
        self._listener: DeviceListener | None = None
        self._lost: asyncio.Future[str] = self._loop.create_future()
        connection.start(self._on_message, self._on_lost)

    def attach(self, listener: DeviceListener) -> None:
        """Say who hears of plans; one that is already lost says so soon."""
        self._listener = listener
        if self._lost.done():
            self._loop.call_soon(listener.on_lost, self._lost.result())

    async def inspect(self, spec: InspectSpec) -> ModelSpec:
        """Say what a model needs. Raises: ModelUnsupported, ModelCorrupt, DeviceLost."""
        answer = await self._ask(Inspect(self._next_id(), spec))
        return expect(answer, Inspected).model

    async def load(self, spec: LoadSpec, progress: Progress, weights_key: str = "") -> LoadedModel:
        """Load a model. Raises: ModelUnsupported, ModelCorrupt, DeviceOutOfMemory, DeviceLost; then nothing of it is loaded."""
        answer = await self._ask(Load(self._next_id(), spec, weights_key), progress)
        return expect(answer, Loaded).model

    async def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy the segments of a model to the host tier. Raises: UnknownModel, PlanRejected, DeviceLost."""
        return expect(await self._ask(Park(self._next_id(), model_id, host_offsets)), Parked).checksums

    async def unload(self, model_id: int) -> None:
        """Forget a model, after the plans submitted before. Raises: UnknownModel, DeviceLost."""
        expect(await self._ask(Unload(self._next_id(), model_id)), Unloaded)

    async def shift_slabs(self, gives: tuple[int, ...], takes: tuple[int, ...]) -> None:
        """Give slabs back, and take others, after the plans submitted before. Raises: DeviceOutOfMemory, DeviceLost."""
        expect(await self._ask(ShiftSlabs(self._next_id(), gives, takes)), SlabsShifted)

    def submit(self, plan: Plan) -> None:
        """Send a plan. Raises: WireError, DeviceLost."""
        self._check_alive()
        self._connection.send(PlanMessage(plan))

    def cut(self, plan_seq: int, after_step: int) -> None:
        """End the quantum of a plan once step `after_step` is done. Raises: DeviceLost."""
        self._check_alive()
        self._connection.send(Cut(plan_seq, after_step))

    def kill(self, reason: str) -> None:
        """End the process; `on_lost(reason)` follows when it has ended."""
        if not self._lost.done():
            self._connection.kill(reason)

    def hang_up(self) -> None:
        """Leave the worker to the next front: it keeps its models and waits. The listener hears nothing of it."""
        self._listener = None
        self._connection.hang_up()
        if not self._lost.done():
            self._end("The front hung up.")

    async def shut_down(self, timeout_s: float) -> None:
        """Let the worker finish its plans and exit, and wait until it has; kill it if that takes longer than `timeout_s`."""
        if self._lost.done():
            return
        self._connection.give_reason("It was shut down.")
        self._connection.send(Shutdown())
        await asyncio.wait([self._lost], timeout=timeout_s)
        if not self._lost.done():
            self._connection.kill("It was shut down.")
            await asyncio.wait([self._lost])

    async def _ask(self, request: Inspect | Load | Park | Unload | ShiftSlabs, progress: Progress | None = None) -> Message:
        self._check_alive()
        entry = _Request(self._loop.create_future(), progress)
        self._requests[request.request_id] = entry
        self._connection.send(request)
        return await entry.answer

    def _next_id(self) -> int:
        self._last_request_id += 1
        return self._last_request_id

    def _check_alive(self) -> None:
        if self._lost.done():
            raise DeviceLost(self._lost.result())

    def _on_message(self, message: Message) -> None:
        if isinstance(message, StepDone):
            if self._listener is not None:
                self._listener.on_step(message.plan_seq, message.step_idx, message.is_last, message.result)
        elif isinstance(message, PlanFailed):
            if self._listener is not None:
                self._listener.on_plan_failed(message)
        elif isinstance(message, LoadProgress):
            self._on_progress(message)
        elif isinstance(message, Failed) and message.request_id == 0:
            self._connection.give_reason(message.text)  # its last words: the end of the stream follows
        elif isinstance(message, Inspected | Loaded | Parked | Unloaded | SlabsShifted | Failed):
            self._on_answer(message.request_id, message)

    def _on_progress(self, message: LoadProgress) -> None:
        entry = self._requests.get(message.request_id)
        if entry is not None and entry.progress is not None and not entry.answer.done():
            entry.progress(message.bytes_done, message.bytes_total)

    def _on_answer(self, request_id: int, message: Message) -> None:
        entry = self._requests.pop(request_id, None)
        if entry is None or entry.answer.done():
            return  # its caller was cancelled
        if isinstance(message, Failed):
            entry.answer.set_exception(restore_error(message))
        else:
            entry.answer.set_result(message)

    def _on_lost(self, reason: str) -> None:
        self._end(reason)
        if self._listener is not None:
            self._listener.on_lost(reason)

    def _end(self, reason: str) -> None:
        self._lost.set_result(reason)
        waiting, self._requests = self._requests, {}
        for entry in waiting.values():
            if not entry.answer.done():
                entry.answer.set_exception(DeviceLost(reason))
