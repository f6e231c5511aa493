"""Placing: on which device a model is loaded, and on which of its copies a context runs.

    a load        the device that is named, else one where the model is, or is on its way; else the best one where it can be
    a request     its context has pages somewhere, and fits there: there, unless the worker of that device fails again and again
                  else, of the copies of its model, the one where it is expected to be done first; without any, as for a load

Where it can be, and how well, says `kerneld.weights.prospects`; of equal prospects the device counts that would compute a token first, with
as many others at work as there are now. One from which idle models would have to leave is taken only if it is more than twice as fast. How
fast a device computes a model is taken from what its steps took, else from the trial of its load, else from models of other sizes, else by
guess: an accelerator before a processor, more threads before fewer.

Invariants
1. A model gets a second copy only by a load that names another device, or for a context that fits none of those that there are.
2. A context is moved only between two requests, and leaves its pages behind: they are computed again from its tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from drivers.errors import DeviceLost, DriverError
from kerneld.catalog import Catalog, Registered
from kerneld.context import Context, priced_as
from kerneld.deviceparts import DeviceParts
from kerneld.devices import Devices
from kerneld.errors import Unavailable
from kerneld.models import Model
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepfit import StepWork
from kerneld.weights.prospects import Prospect
from memory.errors import NeverFits

_ONE_TOKEN: Final = StepWork(1, 1, 0)
_THREAD_RATE: Final = 1e9  # bytes of weights per second and thread of a processor, for a guess
_ACCELERATOR_RATE: Final = 1e12
_ROOM: Final = {Prospect.FREE, Prospect.FITS}
_EVICTING: Final = 2.0  # a device counts as so many times as slow where idle models would have to leave it

Speed = Callable[[DeviceParts, Model], float]  # seconds per token; 0: unknown


class Placer:
    """Chooses devices."""

    def __init__(self, devices: Devices, models: Catalog, costs: StepCosts) -> None:
        self._devices = devices
        self._models = models
        self._costs = costs

    # ----------------------------------------------------------------------------------------------------------------------- to know

    async def know(self, names: Sequence[str], context: Context | None = None) -> None:
        """Have what drivers say of models, on every device that answers now, and on that of the context.

        Raises: Unavailable, DriverError, if none can say.
        """
        asked = [device for device in self._devices if device.residency.has_device or self._has_pages(context, device)]
        hopeful = [device for device in asked if not any(device.models.get(name).is_refused for name in names)]

        async def ask(device: DeviceParts) -> None:
            for name in names:
                await _ask(device.residency.know, device.models.get(name))

        await self._ask_all(hopeful or asked, ask)

    async def inspect(self, model: Registered) -> None:
        """Have at least one driver look at a model that is to be registered. Raises: Unavailable, DriverError, if none can run it."""

        async def ask(device: DeviceParts) -> None:
            await _ask(device.residency.inspect, model.on(device.name))

        await self._ask_all([device for device in self._devices if device.residency.has_device], ask)

    async def _ask_all(self, asked: Sequence[DeviceParts], ask: Callable[[DeviceParts], Awaitable[None]]) -> None:
        """Ask these devices, and if none of them can say, the others, whose workers may be on their way. Raises: what the first raised."""
        failures: list[Exception] = []
        has_answer = False
        for device in (*asked, *(device for device in self._devices if device not in asked)):
            if has_answer and device not in asked:
                return
            try:
                await ask(device)
                has_answer = True
            except (Unavailable, DriverError) as error:
                failures.append(error)
        if not has_answer:
            raise failures[0]

    # -------------------------------------------------------------------------------------------------------------------- to choose

    def for_load(self, model: Registered) -> DeviceParts:
        """The device on which a model is to be loaded that is known."""
        names = (model.base, model.name) if model.base else (model.name,)
        able = self._able(names)
        return self._best(able, model.name) if able else self._largest()

    def place(self, context: Context, num_tokens: int, staying: Callable[[DeviceParts], Iterable[str]]) -> DeviceParts:
        """The device on which a context of so many tokens is to run, whose models are known; it is there then.

        `staying`: the weights that leave a device for nobody. Raises: NeverFits, of the device where it would fit best.
        """
        misfits: list[NeverFits] = []

        def fits(device: DeviceParts) -> bool:
            try:
                space_ids = device.models.get(context.model).space_ids
                device.pager.fits(space_ids, num_tokens, context.tenant, staying(device))
            except NeverFits as error:
                misfits.append(error)
                return False
            return True

        bound = self._devices.of(context)
        is_bound = len(self._devices) == 1 or self._has_pages(context, bound)
        stays = is_bound and fits(bound)
        if stays and not bound.supervisor.is_failing:
            return bound
        able = {device: prospect for device, prospect in self._able(context.models).items() if device is not bound or not is_bound}
        fitting = {device: prospect for device, prospect in able.items() if fits(device)}
        if fitting:
            chosen = self._best(fitting, context.model)
        elif stays:
            return bound
        elif misfits:
            raise max(misfits, key=lambda error: error.limit_bytes)
        else:
            chosen = self._largest()
        self.move(context, chosen)
        return chosen

    def recovered(self, context: Context, wanted: Sequence[str]) -> None:
        """Give an unfinished request's context a device before any worker has said a word: one that had its model, else the largest."""
        homes = [device for device in self._devices if device.name in wanted] or [self._largest()]
        context.device = min(homes, key=lambda device: device.num_requests).label

    def homes(self, devices: str) -> tuple[str, ...]:
        """The devices where a model was wanted before a restart, by their names as they were written down; the largest, if none is left."""
        known = {device.name for device in self._devices}
        return tuple(name for name in devices.split() if name in known) or (self._largest().name,)

    def move(self, context: Context, to: DeviceParts) -> None:
        """Let an idle context be on another device (invariant 2)."""
        old = self._devices.of(context)
        if context.table is not None and old is not to:
            old.pager.drop(context.table)
            context.table, context.chain, context.kv_valid = None, None, 0
            old.dispatcher.room_made()
        context.device = to.label

    # ------------------------------------------------------------------------------------------------------------------------ inside

    def _has_pages(self, context: Context | None, device: DeviceParts) -> bool:
        """Whether a context has anything on a device that would have to be computed again elsewhere."""
        if context is None or context.table is None or self._devices.of(context) is not device:
            return False
        return min(context.kv_valid, context.table.intact_tokens()) > 0

    def _able(self, names: Sequence[str]) -> dict[DeviceParts, Prospect]:
        """The devices that can run these models, and what stands between; none whose worker fails, if there are others."""
        known = [device for device in self._devices if all(device.models.get(name).model_id for name in names)]
        prospects = {device: max(device.residency.prospect(device.models.get(name)) for name in names) for device in known}
        able = {device: prospect for device, prospect in prospects.items() if prospect < Prospect.NEVER}
        return {device: prospect for device, prospect in able.items() if not device.supervisor.is_failing} or able

    def _best(self, able: dict[DeviceParts, Prospect], name: str) -> DeviceParts:
        """Of the devices with the best prospects the one that would be done first; one without a worker only if all are."""
        best = min(able.values())
        alike = _ROOM if best in _ROOM else {best}
        equal = [device for device, prospect in able.items() if prospect in alike]
        devices = [device for device in equal if device.is_running] or equal
        speeds = self._token_seconds(devices, name)
        prices = {device: _EVICTING if able[device] is Prospect.FITS else 1.0 for device in devices}
        return min(devices, key=lambda device: prices[device] * speeds[device] * (1 + device.num_requests))

    def _token_seconds(self, devices: Sequence[DeviceParts], name: str) -> dict[DeviceParts, float]:
        """Seconds per token of a model on each device, all by the best figure that there is of each of them."""
        levels: tuple[Speed, ...] = (self._by_steps, _by_trial, _by_others, _by_guess)
        for speed in levels:
            found = {device: speed(device, device.models.get(name)) for device in devices}
            if all(found.values()):
                return found
        return dict.fromkeys(devices, 1.0)

    def _by_steps(self, device: DeviceParts, model: Model) -> float:
        fit = self._costs.find(priced_as(model.name, device.label))
        return fit.terms.seconds(_ONE_TOKEN) if fit is not None and fit.is_measured else 0.0

    def _largest(self) -> DeviceParts:
        return max(self._devices, key=lambda device: device.config.memory.device_bytes)


async def _ask(question: Callable[[Model], Awaitable[object]], model: Model) -> None:
    """Ask a driver about a model, and remember if it cannot run it, so that it is not asked again with every request."""
    try:
        await question(model)
    except DeviceLost:
        raise
    except DriverError:
        model.is_refused = True
        raise
    model.is_refused = False


def _by_trial(_device: DeviceParts, model: Model) -> float:
    return model.prefill_s


def _by_others(device: DeviceParts, model: Model) -> float:
    """As long for each byte of its weights as a model takes there that is about as large."""
    measured = [other for other in device.models if other.prefill_s and other.size_bytes]
    if not measured or not model.size_bytes:
        return 0.0
    alike = min(measured, key=lambda other: abs(math.log(other.size_bytes / model.size_bytes)))
    return alike.prefill_s * model.size_bytes / alike.size_bytes


def _by_guess(device: DeviceParts, model: Model) -> float:
    drivers = device.config.drivers
    is_processor = drivers.use == "cpu" or (drivers.use == "split" and "cuda" not in drivers.options.get("parts", ""))
    rate = (drivers.threads or os.cpu_count() or 1) * _THREAD_RATE if is_processor else _ACCELERATOR_RATE
    return max(model.size_bytes, 1) / rate
