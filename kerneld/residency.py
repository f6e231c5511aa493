"""Residency: which models are on the device, and the moves that bring them there and away.

One task per model loads it, whoever asks and however often; everybody waits for that task. The steps of a load:

    inspect    the driver says what the model needs; refused here, nothing has changed
    place      the pager finds slabs for the weights, evicting idle pages where it must
    copy       the driver copies weights, builds kernels and warms up, beside running steps
    open       spaces for its KV are opened, once in the life of this front

A worker that dies takes the weights with it, not the wish: `attach` brings back what was resident. A load waits for a worker as long as it
takes, because requests that were accepted wait behind it; who only watches is told after `DEVICE_WAIT_S`. A model that cannot be placed now
is FAILED with the holders named, and may be tried again. An adapter loads after its base, and leaves with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any

from drivers.client import Device
from drivers.contract import LoadSpec, ModelSpec
from drivers.errors import DeviceLost, DriverError
from drivers.wire import HeldModel
from kerneld.calls import LoadProgress, ModelState
from kerneld.errors import Conflict, KernelError, Unavailable, WrongState
from kerneld.eventbus import EventBus
from kerneld.events import ModelFailed, ModelLoaded, ModelUnloaded
from kerneld.identities import Identities
from kerneld.models import Model, ModelTable
from kerneld.placement import Placement
from memory.config import MemoryConfig
from memory.errors import PagingError
from memory.pager import Pager

logger = logging.getLogger(__name__)

DEVICE_WAIT_S = 30.0


class Residency:
    """Loads and unloads models on one device."""

    def __init__(self, memory: MemoryConfig, models: ModelTable, pager: Pager, events: EventBus, boot_generation: int = 1) -> None:
        self._models = models
        self._pager = pager
        self._events = events
        self._device: Device | None = None
        self._has_device = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progressed = asyncio.Event()
        self._adoption: asyncio.Task[None] | None = None
        self._claimed: set[str] = set()  # models whose weights the worker had already
        self._leaving: dict[str, asyncio.Task[None]] = {}  # models that the device is still to forget, by name
        self._placement = Placement(memory, pager)
        self._identities = Identities(memory, pager, boot_generation)
        self.on_change: Callable[[Model], None] = lambda _model: None
        self.before_use: Callable[[Device], Awaitable[None]] = lambda _device: asyncio.sleep(0)  # before anything is placed there

    # ------------------------------------------------------------------------------------------------------------------- the device

    def bind(self, make_room: Callable[[tuple[int, ...]], asyncio.Future[None]]) -> None:
        """Say who evicts pages when weights need slabs."""
        self._placement.make_room = make_room

    def attach(self, device: Device, held: Iterable[HeldModel] = ()) -> None:
        """A device is there (again): keep of `held` what is still wanted, then bring back what was resident on the one before."""
        self._device = device
        for model in self._models:
            if model.state is ModelState.LOADING:
                self.start(model)
        self._adoption = asyncio.get_running_loop().create_task(self._adopt(device, tuple(held)), name="adopt weights")

    async def _adopt(self, device: Device, held: tuple[HeldModel, ...]) -> None:
        """Claim the room of all weights that the worker has, before anything else is placed; let it forget those that nobody wants."""
        wanted = {model.weights_key: model for model in self._models if model.state is ModelState.LOADING}
        try:
            for kept in sorted(held, key=lambda kept: bool(kept.spec.base_id)):  # an adapter stays only with its base
                model = wanted.pop(kept.weights_key, None)
                if model is None or not await self._claim(device, model, kept):
                    await device.unload(kept.spec.model_id)
        except DriverError as error:
            logger.warning("weights of an earlier run could not be adopted", extra={"error": str(error)})
        with contextlib.suppress(DeviceLost):  # then the next device has its turn
            await self.before_use(device)
            self._has_device.set()

    async def _claim(self, device: Device, model: Model, kept: HeldModel) -> bool:
        """Take over the weights of one model. Returns whether they lie where they can stay. Raises: DriverError."""
        model.spec = spec = model.spec or await device.inspect(model.source)
        has_other_base = bool(model.base) and self._models.get(model.base).model_id != kept.spec.base_id
        if has_other_base or (model.model_id and model.model_id != kept.spec.model_id):
            return False
        try:
            self._placement.claim(model, kept.spec)
        except PagingError as error:
            logger.warning("weights of an earlier run are in the way", extra={"model": model.name, "error": str(error)})
            return False
        self._identities.give(model, spec, kept.spec)
        self._claimed.add(model.name)
        model.streamed_bytes, model.stream_rate = kept.loaded.streamed_bytes, kept.loaded.stream_rate
        return True

    def detach(self) -> None:
        """The device is gone: resident models wait for the next one as LOADING."""
        self._device = None
        self._has_device.clear()
        self._claimed.clear()
        if self._adoption is not None:
            self._adoption.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        for model in self._models:
            if model.state is ModelState.RESIDENT:
                model.state = ModelState.LOADING
                self.on_change(model)

    async def identify(self, model: Model, device: Device) -> None:
        """Give a model its ids and spaces, whether it is to be loaded or not. Raises: DriverError."""
        model.spec = model.spec or await device.inspect(model.source)
        self._identities.give(model, model.spec)

    async def inspect(self, model: Model) -> ModelSpec:
        """What the driver says of a model. Raises: Unavailable, DriverError."""
        if model.spec is None:
            model.spec = await (await self._await_device()).inspect(model.source)
        return model.spec

    # ------------------------------------------------------------------------------------------------------------------- load, unload

    def start(self, model: Model) -> None:
        """Begin to load a model unless it is there or on its way."""
        if model.is_resident or model.name in self._tasks:
            return
        model.state, model.failure = ModelState.LOADING, ""
        task = asyncio.get_running_loop().create_task(self._load(model), name=f"load {model.name}")
        self._tasks[model.name] = task
        task.add_done_callback(lambda done: self._loaded(model, done))

    async def load(self, model: Model) -> AsyncIterator[LoadProgress]:
        """Load a model, or join a load on its way, and tell its progress until it is resident.

        Raises: WrongState, what the load failed with; Unavailable, if there is no worker: the load then goes on when there is one.
        """
        self.start(model)
        shown: LoadProgress | None = None
        while model.state is ModelState.LOADING:
            progressed = self._progressed
            await self._await_device()
            if model.progress != shown:
                shown = model.progress
                yield shown
            elif model.state is ModelState.LOADING:
                await progressed.wait()
        if model.state is ModelState.FAILED:
            raise WrongState(f"The model {model.name!r} could not be loaded. {model.failure}", reason="MODEL_LOAD_FAILED")
        if model.state is not ModelState.RESIDENT:
            raise Conflict(f"The model {model.name!r} was unloaded meanwhile.")

    async def unload(self, model: Model) -> None:
        """Take a model off the device. The caller made sure that nothing runs on it; from now on nothing begins."""
        task = self._tasks.pop(model.name, None)
        if task is not None:
            task.cancel()
        if model.is_resident and self._device is not None:
            self._leave(model, self._take_off(model, self._device))
        model.state = ModelState.REGISTERED
        self.on_change(model)
        self._wake()
        if task is not None:
            await asyncio.wait([task])
        await self._gone(model)
        self._events.publish(ModelUnloaded(model.name, model.size_bytes))
        for adapter in [adapter for adapter in self._models.adapters_of(model.name) if adapter.state is not ModelState.REGISTERED]:
            await self.unload(adapter)

    def fail(self, model_id: int, reason: str) -> None:
        """A resident model cannot be run any more: it leaves the device, and whoever waits for it is told why."""
        model = next((model for model in self._models if model.model_id == model_id and model.is_resident), None)
        if model is None or self._device is None:
            return
        self._leave(model, self._take_off(model, self._device))
        model.state, model.failure = ModelState.FAILED, reason
        self._events.publish(ModelFailed(model.name, reason))
        self.on_change(model)
        self._wake()

    def forget(self, model: Model) -> None:
        """The model's name is removed: its spaces are closed, and no page of it is kept anywhere."""
        for space in model.spaces:
            self._pager.close_space(space.space_id)

    # ------------------------------------------------------------------------------------------------------------------- inner moves

    async def _load(self, model: Model) -> None:
        self._tell(model, "inspect", 0, 0)
        await self._has_device.wait()
        device = await self._await_device()
        await self._gone(model)
        if model.name in self._claimed:
            self._claimed.discard(model.name)
            return
        self._identities.give(model, await self.inspect(model))
        base_id = await self._await_base(model)
        self._tell(model, "place", 0, model.size_bytes)
        offsets, slots = await self._placement.place(model, may_stream=device.capabilities.streams)
        order = LoadSpec(model.model_id, model.source, model.space_ids, offsets, slots, base_id=base_id)
        copying = asyncio.get_running_loop().create_task(self._copy(model, device, order))
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:  # the device goes on with what it has begun: the room is its own until it has ended
            self._leave(model, self._abandon(model, device, copying))
            raise

    async def _await_base(self, model: Model) -> int:
        """Have the base of an adapter resident; answers its id, 0 for a model of its own. Raises: WrongState, what its load failed with."""
        if not model.base:
            return 0
        base = self._models.get(model.base)
        self.start(base)
        while base.state is ModelState.LOADING:
            await self._progressed.wait()
        if not base.is_resident:
            raise WrongState(f"Its base {base.name!r} is not there. {base.failure}".strip())
        return base.model_id

    async def _copy(self, model: Model, device: Device, order: LoadSpec) -> None:
        try:
            loaded = await device.load(order, lambda done, total: self._tell(model, "copy", done, total), model.weights_key)
        except BaseException:
            self._placement.release(model)
            raise
        model.streamed_bytes, model.stream_rate = loaded.streamed_bytes, loaded.stream_rate
        self._events.publish(ModelLoaded(model.name, loaded.bytes_loaded, loaded.seconds))

    async def _abandon(self, model: Model, device: Device, copying: asyncio.Task[None]) -> None:
        """Nobody wants a load any more that the device is busy with."""
        await asyncio.wait([copying])
        if copying.exception() is None:
            await self._take_off(model, device)

    async def _take_off(self, model: Model, device: Device) -> None:
        """Let the device forget a model, and give its room back."""
        with contextlib.suppress(DeviceLost):  # then it is forgotten as well, and the room is new
            await device.unload(model.model_id)
        if self._device is device:
            self._placement.release(model)

    def _leave(self, model: Model, leaving: Coroutine[Any, Any, None]) -> None:
        """A model leaves the device, whatever becomes of who asked for it; its next load waits."""
        task = self._leaving[model.name] = asyncio.get_running_loop().create_task(leaving, name=f"unload {model.name}")
        task.add_done_callback(lambda _done: self._leaving.pop(model.name, None))

    async def _gone(self, model: Model) -> None:
        """Wait until a model that leaves the device has left it."""
        leaving = self._leaving.get(model.name)
        if leaving is not None:
            await asyncio.shield(leaving)

    async def _await_device(self) -> Device:
        try:
            await asyncio.wait_for(self._has_device.wait(), DEVICE_WAIT_S)
        except TimeoutError:
            raise Unavailable("The device's worker is not running; it is being restarted.", retry_after_s=1.0) from None
        assert self._device is not None
        return self._device

    def _loaded(self, model: Model, task: asyncio.Task[None]) -> None:
        """The load task ended: settle the model's state and wake those who wait."""
        if self._tasks.get(model.name) is task:
            del self._tasks[model.name]
        failure = None if task.cancelled() else task.exception()
        if task.cancelled() or isinstance(failure, DeviceLost):  # the next device loads it
            self._wake()
            return
        if failure is None:
            model.state = ModelState.RESIDENT
            self.on_change(model)
            self._wake()
            return
        model.state, model.failure = ModelState.FAILED, str(failure)
        if not isinstance(failure, DriverError | PagingError | KernelError | OSError):
            model.failure = "An internal error; see the log."
            logger.error("a load failed", extra={"model": model.name}, exc_info=failure)
        self._events.publish(ModelFailed(model.name, model.failure))
        self.on_change(model)
        self._wake()

    def _tell(self, model: Model, stage: str, done: int, total: int) -> None:
        model.progress = LoadProgress(stage, done, total)
        self._wake()

    def _wake(self) -> None:
        """Let everybody who follows a load look again."""
        self._progressed.set()
        self._progressed = asyncio.Event()
