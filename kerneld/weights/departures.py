"""Departures: models that leave the device, whoever asked for it and whatever has become of them since.

Invariants
1. A model's room is given back when the device has forgotten it, or is gone; a load of the same model waits until then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from drivers.client import Device
from drivers.errors import DeviceLost
from kerneld.models import Model, ModelTable
from kerneld.weights.parking import Parking
from kerneld.weights.placement import Placement


class Departures:
    """The models on their way out."""

    def __init__(self, models: ModelTable, placement: Placement, parking: Parking) -> None:
        self._models = models
        self._placement = placement
        self._parking = parking
        self._leaving: dict[str, asyncio.Task[None]] = {}  # by name
        self.device: Device | None = None

    def park_and_leave(self, model: Model) -> None:
        """Leave the device by way of the host tier, unless the model is being removed or there is no room for it."""
        if self.device is not None:
            self._leave(model, self._park_and_take_off(model, self.device))

    def leave(self, model: Model) -> None:
        """Leave the device at once."""
        if self.device is not None:
            self._leave(model, self._take_off(model, self.device))

    def abandon(self, model: Model, device: Device, copying: asyncio.Task[None]) -> None:
        """Leave the device when it has ended a load that nobody wants any more."""
        self._leave(model, self._await_and_take_off(model, device, copying))

    async def gone(self, model: Model) -> None:
        """Wait until a model that leaves has left."""
        leaving = self._leaving.get(model.name)
        if leaving is not None:
            await asyncio.shield(leaving)

    def _leave(self, model: Model, leaving: Coroutine[Any, Any, None]) -> None:
        task = self._leaving[model.name] = asyncio.get_running_loop().create_task(leaving, name=f"unload {model.name}")
        task.add_done_callback(lambda _done: self._leaving.pop(model.name, None))

    async def _park_and_take_off(self, model: Model, device: Device) -> None:
        try:
            if model.name in self._models:
                with contextlib.suppress(DeviceLost):
                    await self._parking.park(model, device)
        finally:
            await self._take_off(model, device)

    async def _await_and_take_off(self, model: Model, device: Device, copying: asyncio.Task[None]) -> None:
        await asyncio.wait([copying])
        if copying.exception() is None:
            await self._take_off(model, device)

    async def _take_off(self, model: Model, device: Device) -> None:
        """Let the device forget a model, and give its room back (invariant 1)."""
        with contextlib.suppress(DeviceLost):  # then it is forgotten as well, and the room is new
            await device.unload(model.model_id)
        if self.device is device:
            self._placement.release(model)
