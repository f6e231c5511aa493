"""Loading: the way of one model onto the device, once there is one.

held back    a soft limit on loads lets others go first                                        (`kerneld.weights.heldloads`)
base         an adapter needs its base there, and brings it along
place        the pager finds slabs for the weights, evicting idle pages where it must
wait         other models leave for it, or it waits for its turn                               (`kerneld.weights.turns`)
copy         the driver copies weights, builds kernels and warms up, beside running steps
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from drivers.client import Device
from drivers.contract import LoadSpec
from kerneld.calls import ModelState
from kerneld.errors import WrongState
from kerneld.eventbus import EventBus
from kerneld.events import ModelLoaded
from kerneld.models import HostImage, Model, ModelTable
from kerneld.weights.debts import LoadDebts
from kerneld.weights.departures import Departures
from kerneld.weights.followers import Followers
from kerneld.weights.parking import Parking
from kerneld.weights.placement import Placement
from kerneld.weights.turns import Turns
from memory.errors import OutOfFrames
from memory.pager import Pager


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Brings models onto the device."""

    models: ModelTable
    pager: Pager
    events: EventBus
    placement: Placement
    followers: Followers
    parking: Parking
    departures: Departures
    turns: Turns
    debts: LoadDebts
    start: Callable[[Model], None]  # of the load of another model
    evict: Callable[[Model], Awaitable[None]]
    is_ahead: Callable[[Model], bool]  # nobody needs it yet
    is_system: Callable[[Model], bool]  # no tenant is to pay for it

    async def run(self, model: Model, device: Device) -> None:
        """Load a model that the device knows of. Raises: DriverError, PagingError, WrongState."""
        if self.turns.held.seconds_left(model.name):
            self.followers.tell(model, "held back", 0, model.size_bytes)
        await self.turns.held_back(model)
        offsets, slots = await self._place(model, device)
        self.turns.placed(model)
        image, base_id = model.image or HostImage((), ()), self.models.get(model.base).model_id if model.base else 0
        order = LoadSpec(model.model_id, model.source, model.space_ids, offsets, slots, image.offsets, image.checksums, base_id)
        copying = asyncio.get_running_loop().create_task(self._copy(model, device, order))
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:  # the device goes on with what it has begun: the room is its own until it has ended
            copying.add_done_callback(lambda _done: self.debts.end(model.name))
            self.departures.abandon(model, device, copying)
            raise

    async def _place(self, model: Model, device: Device) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offsets and slots for a model, once others have left for it where they must. Raises: PagingError."""
        may_stream = device.capabilities.streams
        while True:
            await self._await_base(model)  # after every wait: it may have had to leave meanwhile
            if not self.turns.may_place(model):
                await self.turns.changed()
                continue
            self.followers.tell(model, "place", 0, model.size_bytes)
            try:
                return await self.placement.place(model, may_stream=may_stream)
            except OutOfFrames as shortage:
                self.turns.placed(model)
                if self.is_ahead(model) and not self.turns.demand(model):
                    raise
                self.followers.tell(model, "wait", 0, model.size_bytes)
                await self.turns.make_way(model, self.placement.places(model, may_stream=may_stream), shortage, self.evict)

    async def _await_base(self, model: Model) -> None:
        """Have the base of an adapter resident. Raises: WrongState, what its load failed with."""
        if not model.base:
            return
        self.start(base := self.models.get(model.base))
        while not base.is_resident:
            self.turns.placed(model)  # nobody waits for it meanwhile
            if base.state is ModelState.FAILED or (base.state is ModelState.REGISTERED and not self.turns.demand(model)):
                raise WrongState(f"Its base {base.name!r} is not there. {base.failure}".strip())
            self.start(base)
            await self.followers.moved()

    async def _copy(self, model: Model, device: Device, order: LoadSpec) -> None:
        source = "host" if order.host_offsets else "disk"
        tell = partial(self.followers.tell, model, "copy", source=source)
        try:
            with self.parking.reading(model):
                loaded = await device.load(order, tell, model.weights_key)
        except BaseException:
            self.placement.release(model)
            raise
        model.note_loaded(loaded)
        if loaded.num_corrupt:
            self.parking.drop(model)
        self.turns.note_rate(source, loaded.bytes_loaded, loaded.copy_s)
        self.pager.costs.know_model(model.name, model.space_ids, loaded.prefill_s)
        figures = loaded.bytes_loaded, loaded.seconds, loaded.host_bytes, loaded.copy_s, loaded.num_corrupt
        self.events.publish(ModelLoaded(model.name, *figures, device=model.device))
        self.debts.begin(model.name, round(loaded.seconds * 1e6), is_system=self.is_system(model))
