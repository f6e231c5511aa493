"""Residency: which models are on the device, and the moves that bring them there and away.

    REGISTERED --load--> LOADING --done--> RESIDENT --unload, evict--> REGISTERED
                                              '-- on the way out it is parked in the host tier, if there is room (`kerneld.weights.parking`)

One task per model loads it, whoever asks and however often; everybody waits for that task. Its steps are in `kerneld.weights.loading`.
A worker that dies takes the weights with it, not the wish: `attach` brings back what was resident. A load waits for a worker as long as it
takes, because requests that were accepted wait behind it; for how long who only watches does, says `kerneld.weights.presence`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from drivers.client import Device
from drivers.contract import ModelSpec
from drivers.errors import DeviceLost, DeviceOutOfMemory, DriverError
from drivers.wire import HeldModel
from kerneld.calls import LoadProgress, ModelState
from kerneld.errors import Conflict, KernelError, WrongState
from kerneld.eventbus import EventBus
from kerneld.events import ModelEvicted, ModelFailed, ModelUnloaded
from kerneld.models import Model, ModelTable
from kerneld.weights.claims import Claims
from kerneld.weights.debts import LoadDebts
from kerneld.weights.departures import Departures
from kerneld.weights.followers import Followers
from kerneld.weights.identities import Identities
from kerneld.weights.loading import Loading
from kerneld.weights.parking import Parking
from kerneld.weights.placement import Placement
from kerneld.weights.presence import Presence, await_any
from kerneld.weights.prospects import Prospect, prospect_of
from kerneld.weights.turns import Turns
from memory.config import MemoryConfig
from memory.errors import NeverFits, OutOfFrames, OverLimit, PagingError
from memory.page import Tier
from memory.pager import Pager

logger = logging.getLogger(__name__)


class Residency:
    """Loads and unloads models on one device."""

    def __init__(self, memory: MemoryConfig, models: ModelTable, pager: Pager, events: EventBus, boot_generation: int = 1) -> None:
        self._models, self._pager, self._events = models, pager, events
        self._device: Device | None = None
        self.presence = Presence()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._adoption: asyncio.Task[None] | None = None
        self._claimed: set[str] = set()  # models whose weights the worker had already
        self._ahead: set[str] = set()  # models that are loaded ahead of need, and only beside those that are there
        self._returning: set[str] = set()  # models that are brought back after a death: their load is nobody's doing
        self.placement = Placement(memory, pager)
        self._identities = Identities(memory, pager, boot_generation)
        self._claims = Claims(models, self.placement, self._identities, pager.costs)
        self._followers = Followers(self.presence)
        self.parking = Parking(memory, models, pager, events)
        self._departures = Departures(models, self.placement, self.parking)
        self.turns = Turns(memory, models, self.placement, self.parking, events.clock)
        self.debts = LoadDebts(events)
        self._loading = Loading(
            models=models,
            pager=pager,
            events=events,
            placement=self.placement,
            followers=self._followers,
            parking=self.parking,
            departures=self._departures,
            turns=self.turns,
            debts=self.debts,
            start=self.start,
            evict=self.evict,
            is_ahead=lambda model: model.name in self._ahead,
            is_system=lambda model: model.name in self._ahead | self._returning,
        )
        self.preempt: Callable[[Model], None] = lambda _model: None  # lets the rows of a model that leaves wait again
        self.on_change: Callable[[Model], None] = lambda _model: None
        self.before_use: Callable[[Device], Awaitable[None]] = lambda _device: asyncio.sleep(0)  # before anything is placed there

    # ------------------------------------------------------------------------------------------------------------------- the device

    def bind(self, make_room: Callable[[tuple[int, ...], Tier], asyncio.Future[None]], have_slabs: Callable[[], Awaitable[None]]) -> None:
        """Say who evicts pages when weights need slabs, and who brings slabs back that were given to the device."""
        self.placement.before_placing = have_slabs
        self.placement.make_room = lambda places: make_room(places, Tier.DEVICE)
        self.parking.make_room = make_room

    def attach(self, device: Device, held: Iterable[HeldModel] = ()) -> None:
        """A device is there (again): keep of `held` what is still wanted, then bring back what was resident on the one before."""
        self._device = self._departures.device = device
        for model in self._models:
            if model.state is ModelState.LOADING:
                self.start(model, is_ahead=model.name in self._ahead)
        self._adoption = asyncio.get_running_loop().create_task(self._adopt(device, tuple(held)), name="adopt weights")

    async def _adopt(self, device: Device, held: tuple[HeldModel, ...]) -> None:
        """Claim what the worker has before anything else is placed."""
        self._claimed = await self._claims.take(device, held)
        self.debts.end_all_but(self._claimed | self._returning)
        with contextlib.suppress(DeviceLost):  # then the next device has its turn
            await self.before_use(device)
            self.presence.came()

    def detach(self) -> None:
        """The device is gone: resident models wait for the next one as LOADING."""
        self._device = self._departures.device = None
        self.presence.went()
        self._claimed.clear()
        for task in (*self._tasks.values(), *([self._adoption] if self._adoption is not None else [])):
            task.cancel()
        self._tasks.clear()
        for model in self._models:
            if model.is_resident or (model.state is ModelState.REGISTERED and self.turns.demand(model)):  # evicted, and wanted again
                self._returning.update([model.name] if model.is_resident else [])
                model.state = ModelState.LOADING
                self.on_change(model)

    @property
    def has_device(self) -> bool:
        """Whether a device is there that models may be placed on."""
        return self._device is not None and self.presence.is_there

    def prospect(self, model: Model) -> Prospect:
        """How a model of which the driver has told would come to be here."""
        return prospect_of(model, self._models, self.placement, self.turns.demand, self._device)

    async def identify(self, model: Model, device: Device) -> None:
        """Give a model its ids and spaces, whether it is to be loaded or not. Raises: DriverError."""
        model.spec = model.spec or await device.inspect(model.source)
        self._identities.give(model, model.spec)

    async def inspect(self, model: Model) -> ModelSpec:
        """What the driver says of a model. Raises: Unavailable, DriverError."""
        model.spec = model.spec or await (await self._await_device()).inspect(model.source)
        return model.spec

    # ------------------------------------------------------------------------------------------------------------------- load, unload

    async def know(self, model: Model) -> None:
        """Have what the driver says of a model, and its spaces, so that one can tell what would fit. Raises: Unavailable, DriverError."""
        self._identities.give(model, await self.inspect(model))

    def would_load(self, model: Model, tenant: str) -> bool:
        """Whether a request of a tenant would be the one that begins a load of a model: it is not there, and nobody else may have it."""
        if model.state in (ModelState.REGISTERED, ModelState.FAILED):
            return not self.turns.demand(model)
        return self.turns.held.holds_others(model.name, tenant)

    def hold_back(self, model: Model, tenant: str, seconds: float) -> None:
        """A tenant begins the load of a model, for which a limit makes it wait so long (0: not at all) while others need the device."""
        self.turns.held.hold(model.name, tenant, seconds)
        self.turns.look_again()

    def start(self, model: Model, *, is_ahead: bool = False) -> None:
        """Begin to load a model unless it is there or on its way; `is_ahead`: only beside those that are there, until somebody needs it."""
        if not is_ahead:
            self._ahead.discard(model.name)
        if model.is_resident or model.name in self._tasks:
            return
        if is_ahead:
            self._ahead.add(model.name)
        model.state, model.failure, model.lacks_room = ModelState.LOADING, "", False
        task = asyncio.get_running_loop().create_task(self._load(model), name=f"load {model.name}")
        self._tasks[model.name] = task
        task.add_done_callback(lambda done: self._loaded(model, done))

    def bring_back(self, model: Model, *, is_ahead: bool) -> None:
        """Load a model that was wanted before a restart."""
        self._returning.add(model.name)
        self.start(model, is_ahead=is_ahead)

    async def load(self, model: Model) -> AsyncIterator[LoadProgress]:
        """Load a model, or join a load on its way, and tell its progress until it is resident. Raises: WrongState, what the load failed
        with; Conflict, if it was unloaded or removed meanwhile; Unavailable, if there is no worker: it goes on when there is one.
        """
        self.turns.held.release(model.name)
        self.start(model)
        self.turns.look_again()
        async with contextlib.aclosing(self._followers.follow(model)) as progress:
            async for step in progress:
                yield step
        if model.state is ModelState.FAILED:
            facts = {"tier": "device"} if model.lacks_room else {}
            raise WrongState(f"The model {model.name!r} could not be loaded. {model.failure}", reason="MODEL_LOAD_FAILED", facts=facts)
        if model.name not in self._models:
            raise Conflict(f"The model {model.name!r} was removed while it was loaded.", reason="MODEL_REMOVED")
        if model.state is not ModelState.RESIDENT:
            raise Conflict(f"The model {model.name!r} was unloaded meanwhile.")

    async def unload(self, model: Model) -> None:
        """Take a model off the device. The caller made sure that nothing runs on it; from now on nothing begins."""
        task = self._tasks.pop(model.name, None)
        if task is not None:
            task.cancel()
        if model.is_resident:
            self._departures.park_and_leave(model)
        model.state = ModelState.REGISTERED
        self._returning.discard(model.name)
        self.turns.settled(model)
        self._changed(model)
        if task is not None:
            await asyncio.wait([task])
        await self._departures.gone(model)
        self._events.publish(ModelUnloaded(model.name, model.size_bytes, device=model.device))
        for adapter in [adapter for adapter in self._models.adapters_of(model.name) if adapter.state is not ModelState.REGISTERED]:
            await self.unload(adapter)

    async def evict(self, model: Model) -> None:
        """Take a model off the device for another one: its rows wait again, and it comes back when its turn comes."""
        if not model.is_resident or self._device is None:
            return
        model.state = ModelState.REGISTERED
        num_requests = self.turns.demand(model)
        self._departures.park_and_leave(model)
        self._changed(model)
        self.preempt(model)
        try:
            await self._departures.gone(model)
        finally:  # whoever wanted its room may have given up meanwhile
            self._events.publish(ModelEvicted(model.name, model.size_bytes, num_requests, model.image is not None, device=model.device))
            if self._device is not None and self.turns.demand(model):
                self.start(model)

    def fail(self, model_id: int, reason: str) -> None:
        """A resident model cannot be run any more: it leaves the device, and whoever waits for it is told why."""
        for model in [model for model in self._models if model.model_id == model_id and model.is_resident]:
            self._departures.leave(model)
            model.state, model.failure = ModelState.FAILED, reason
            self._events.publish(ModelFailed(model.name, reason, device=model.device))
            self._changed(model)

    def forget(self, model: Model) -> None:
        """The model's name is removed: its spaces are closed, and no page and no weight of it is kept anywhere."""
        self.parking.drop(model)
        for space in model.spaces:
            self._pager.close_space(space.space_id)

    # ------------------------------------------------------------------------------------------------------------------- inner moves

    async def _load(self, model: Model) -> None:
        self._followers.tell(model, "inspect")
        while not self.presence.is_there:
            await self.presence.moved()
        device = await self._await_device()
        await self._departures.gone(model)
        if model.name in self._claimed:
            self._claimed.discard(model.name)
            return
        await self.know(model)
        await self._loading.run(model, device)

    async def _await_device(self) -> Device:
        async with contextlib.aclosing(await_any([self.presence])) as told:
            async for _text in told:
                pass
        if self._device is None:  # it went while we were being woken
            raise DeviceLost("The worker is gone.")
        return self._device

    def _loaded(self, model: Model, task: asyncio.Task[None]) -> None:
        """The load task ended: settle the model's state and wake those who wait."""
        if self._tasks.get(model.name) is task:
            del self._tasks[model.name]
        if task.cancelled() or isinstance(failure := task.exception(), DeviceLost):  # the next device loads it
            self.turns.placed(model)
            self._followers.wake()
            return
        self.turns.settled(model)
        if failure is None:
            model.state, model.resident_since, model.num_loads = ModelState.RESIDENT, self._events.clock(), model.num_loads + 1
        elif isinstance(failure, DriverError) and model.base and not self._models.get(model.base).is_resident:
            self.start(model)  # its base had to leave while it was copied: both come again
        elif model.name in self._ahead and isinstance(failure, OutOfFrames):  # it comes when somebody needs it
            model.state = ModelState.REGISTERED
        else:
            self._note_failure(model, failure)
        self._ahead.discard(model.name)
        self._returning.discard(model.name)
        self._changed(model)

    def _note_failure(self, model: Model, failure: BaseException) -> None:
        model.state, model.failure = ModelState.FAILED, str(failure)
        model.lacks_room = isinstance(failure, OutOfFrames | NeverFits | OverLimit | DeviceOutOfMemory)
        if not isinstance(failure, DriverError | PagingError | KernelError | OSError):
            model.failure = "An internal error; see the log."
            logger.error("a load failed", extra={"model": model.name}, exc_info=failure)
        self._events.publish(ModelFailed(model.name, model.failure, device=model.device))

    def _changed(self, model: Model) -> None:
        """A model came, went or failed."""
        if not model.is_resident:
            self.debts.end(model.name)
        self.on_change(model)
        self._followers.wake()
        self.turns.look_again()
