"""Parking: images of weights in the host tier, so that a model comes back by a copy and not by reading files.

    resident ---park---> resident and parked ---unload---> parked ---load---> resident and parked
                               ^  an image of a resident model is the first to go: losing it costs nothing at that moment

Invariants
1. A model's image is whole: it is noted when the device has copied all of it, and forgotten before its room is anybody else's.
2. No image goes while the device reads or writes it.
3. Where images lie is marked in the host tier before they are written (`drivers.hostmem`), so that nobody takes weights for pages.
4. Images take no more than their share of the host tier, and of pages only second copies go for them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from drivers.client import Device
from drivers.errors import DeviceLost, DriverError
from drivers.hostmem import MAX_RUNS, HostMemory
from kerneld.calls import ModelState
from kerneld.eventbus import EventBus
from kerneld.events import ModelParked
from kerneld.models import HostImage, Model, ModelTable
from kerneld.weights.placement import WEIGHTS_OWNER, kind_of
from memory.config import MemoryConfig
from memory.errors import OutOfFrames, PagingError
from memory.page import Tier
from memory.pager import Pager

logger = logging.getLogger(__name__)

SETTLED_S = 60.0

MakeRoom = Callable[[tuple[int, ...], Tier], Awaitable[None]]


class Parking:
    """The images of all models."""

    def __init__(self, memory: MemoryConfig, models: ModelTable, pager: Pager, events: EventBus) -> None:
        self._models = models
        self._shelf = pager.weights[Tier.HOST]
        self._slab_bytes = memory.slab_bytes
        self._max_slabs = int(memory.host_bytes // memory.slab_bytes * memory.host_weights_share)
        self._events = events
        self._in_use: set[str] = set()  # models whose image the device reads or writes (invariant 2)
        self.host: Callable[[], HostMemory | None] = lambda: None
        self.make_room: MakeRoom = _no_room

    def can_hold(self, model: Model) -> bool:
        """Whether a model is parked, or could be if others gave way."""
        num_slabs = -(-model.size_bytes // self._slab_bytes)
        return model.image is not None or (self.host() is not None and not model.streamed_bytes and 0 < num_slabs <= self._max_slabs)

    async def park(self, model: Model, device: Device) -> None:
        """Put a model that is resident into the host tier, if there is room or can be made. Raises: DeviceLost."""
        if model.image is not None or not self.can_hold(model):
            return
        offsets = await self._place(model)
        if offsets is None:
            return
        began = time.monotonic()
        try:
            with self.reading(model):
                checksums = await device.park(model.model_id, offsets)
            model.image = HostImage(offsets, checksums)  # invariant 1
        except DeviceLost:
            raise
        except DriverError as error:
            logger.warning("weights could not be parked", extra={"model": model.name, "error": str(error)})
            return
        finally:
            if model.image is None:
                self._release(model)
        self._events.publish(ModelParked(model.name, model.size_bytes, time.monotonic() - began, device=model.device))

    @contextmanager
    def reading(self, model: Model) -> Iterator[None]:
        """The device is at a model's image (invariant 2)."""
        self._in_use.add(model.name)
        try:
            yield
        finally:
            self._in_use.discard(model.name)

    def drop(self, model: Model) -> None:
        """Forget a model's image."""
        model.image = None
        self._release(model)

    def relieve(self, now: float) -> None:
        """Where pages fill the host tier, images go whose model has stayed on the device for `SETTLED_S`: nobody switches it."""
        for model in self._droppable():
            if self._shelf.num_free:
                return
            if model.is_resident and now - model.resident_since >= SETTLED_S:
                self.drop(model)

    async def _place(self, model: Model) -> tuple[int, ...] | None:
        """Room for an image: free slabs, those of colder images, or those of pages that are elsewhere too (invariant 4)."""
        sizes = model.segment_sizes
        needed = self._shelf.check_room(sizes) // self._slab_bytes
        for colder in self._droppable():
            if self._shelf.num_slabs + needed <= self._max_slabs:
                break
            self.drop(colder)
        if self._shelf.num_slabs + needed > self._max_slabs:
            return None
        offsets = self._take(model) or await self._take_from_pages(model)
        for colder in self._droppable():
            if offsets is not None:
                break
            if colder.is_resident or colder.last_used_at < model.last_used_at:
                self.drop(colder)
                offsets = self._take(model)
        return offsets

    async def _take_from_pages(self, model: Model) -> tuple[int, ...] | None:
        try:
            await self.make_room(model.segment_sizes, Tier.HOST)
        except PagingError:
            return None
        finally:
            self._shelf.unreserve()
        return self._take(model)

    def _take(self, model: Model) -> tuple[int, ...] | None:
        host = self.host()
        try:
            offsets = self._shelf.place(model.name, WEIGHTS_OWNER, model.segment_sizes, kind_of(model))
        except (OutOfFrames, PagingError):
            return None
        if host is None or len(self._shelf.runs()) > MAX_RUNS:
            self._shelf.release(model.name)
            return None
        host.mark_weights(self._shelf.runs())  # invariant 3
        return offsets

    def _droppable(self) -> list[Model]:
        """Models whose image may go, those first whose loss is cheapest: resident ones, then the least used; none that is being loaded."""
        parked = [model for model in self._models if model.image is not None and model.name not in self._in_use]
        return sorted(
            (model for model in parked if model.state is not ModelState.LOADING),
            key=lambda model: (not model.is_resident, model.last_used_at, model.name),
        )

    def _release(self, model: Model) -> None:
        self._shelf.release(model.name)
        host = self.host()
        if host is not None:
            host.mark_weights(self._shelf.runs())


async def _no_room(_sizes: tuple[int, ...], _tier: Tier) -> None:
    raise PagingError("Nobody makes room yet.")
