"""The verbs on models: register, load, unload, remove, stat, list."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from kerneld.calls import Caller, ListArgs, ListPage, LoadProgress, ModelInfo, ModelState, RegisterArgs
from kerneld.catalog import Registered
from kerneld.context import priced_as
from kerneld.contexts import page_of
from kerneld.deviceparts import DeviceParts
from kerneld.errors import AlreadyExists, Conflict, InvalidArgument, WrongState
from kerneld.explain import Explainer
from kerneld.machine import Machine
from kerneld.registering import read_model
from kerneld.security.acl import check_permission
from kerneld.state.records import Effect
from kerneld.weights.presence import await_any
from memory.remedy import sentence

NAMED = 5  # holders that an error names


class ModelVerbs:
    """Verbs on models."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def register_model(self, caller: Caller, args: RegisterArgs) -> ModelInfo:
        """Give a model directory a name. Registering the same again changes nothing.

        Raises: InvalidArgument, AlreadyExists, ModelUnsupported, ModelCorrupt, Unavailable.
        """
        if self._machine.effects.find(caller, "register_model") is not None:
            return self.stat_model(caller, args.name)
        with self._machine.effects.done_by(caller, "register_model") as effects:
            return self._info(await self._register(caller, args, effects))

    async def load_model(self, caller: Caller, args: RegisterArgs) -> AsyncIterator[LoadProgress | ModelInfo]:
        """Bring a model onto a device, registering it first where a path is given; tells progress, then the model.

        The device is the one that is named, also where the model is on another one, else the best one for it (`kerneld.placing`).

        Raises: as register_model; NotFound; WrongState, if it cannot be loaded (says why, and who holds the memory).
        """
        machine = self._machine
        if machine.effects.find(caller, "load_model") is not None:
            yield self.stat_model(caller, args.name)
            return
        named = machine.devices.get(args.device) if args.device else None
        with machine.effects.under_way(caller):
            if self._asks_devices(caller, args):
                presences = [device.residency.presence for device in ([named] if named is not None else machine.devices)]
                async with contextlib.aclosing(await_any(presences)) as told:
                    async for text in told:
                        yield LoadProgress(text, 0, 0)
            model = await self._register(caller, args, []) if args.path else machine.models.get(args.name)
            device = named or await self._device_for(model)
            try:
                async for progress in device.residency.load(device.models.get(model.name)):
                    yield progress
            except WrongState as error:
                raise self._advised(caller, device, model, error) from error
            await self._want(model, machine.effects.record(caller, "load_model"))
        yield self._info(model)

    def _asks_devices(self, caller: Caller, args: RegisterArgs) -> bool:
        """Whether drivers are asked before it is known what is loaded where. Raises: as `_register`, what is wrong whatever they say."""
        is_new = bool(args.path) and self._check_new(caller, args) is None
        return is_new or (len(self._machine.devices) > 1 and not args.device)

    async def _device_for(self, model: Registered) -> DeviceParts:
        """The device on which a model is to be loaded. Raises: Unavailable, DriverError."""
        machine = self._machine
        if len(machine.devices) > 1:
            await machine.placer.know((model.base, model.name) if model.base else (model.name,))
            return machine.placer.for_load(model)
        return machine.devices.first

    def _advised(self, caller: Caller, device: DeviceParts, model: Registered, error: WrongState) -> WrongState:
        """The failure of a load, with who holds what it needed and the smallest change that would make room."""
        told = Explainer(self._machine, caller).model(model.name, device.name)
        if not told.remedies:
            return error
        holders = dict[str, int]()
        for holding in told.holders:
            holders[holding.owner] = holders.get(holding.owner, 0) + holding.size_bytes
        facts = {**error.facts, "tier": "device", "holders": json.dumps(holders), "remedy": told.remedies[0].text}
        return WrongState(f"{error.message} {sentence(told.remedies)}", reason=error.reason, facts=facts)

    async def unload_model(self, caller: Caller, name: str, device: str = "") -> ModelInfo:
        """Take a model off all devices, or the one that is named, and its adapters with it. Its contexts stay.

        Raises: NotFound, WrongState, if requests are on it there.
        """
        machine = self._machine
        if machine.effects.find(caller, "unload_model") is not None:
            return self.stat_model(caller, name)
        model = machine.models.get(name)
        devices = [machine.devices.get(device)] if device else list(machine.devices)
        self._check_unused(model, devices)
        with machine.effects.under_way(caller):
            for each in devices:
                await each.residency.unload(each.models.get(name))
            for adapter in machine.models.adapters_of(model.name):  # they left with it
                await self._want(adapter, [], devices)
            await self._want(model, machine.effects.record(caller, "unload_model"), devices)
        return self._info(model)

    async def pin_model(self, caller: Caller, name: str) -> ModelInfo:
        """Keep a model on the device once it is there: it leaves for no other one. Raises: NotFound."""
        return await self._pin(caller, name, "pin_model", is_pinned=True)

    async def unpin_model(self, caller: Caller, name: str) -> ModelInfo:
        """Let a model leave for others again. Raises: NotFound."""
        return await self._pin(caller, name, "unpin_model", is_pinned=False)

    async def remove_model(self, caller: Caller, name: str) -> None:
        """Forget a model's name. Raises: NotFound, WrongState, if contexts or requests are on it."""
        machine = self._machine
        if machine.effects.find(caller, "remove_model") is not None:
            return
        model = machine.models.get(name)
        self._check_free(model)
        self._check_unused(model, list(machine.devices))
        machine.models.remove(name)  # from now on nothing begins on it
        try:
            with machine.effects.done_by(caller, "remove_model") as effects:
                for device, copy in zip(machine.devices, model.copies, strict=True):
                    await device.residency.unload(copy)
                await machine.store.remove_model(name, effects)
        except BaseException:
            machine.models.add(model)
            raise
        for device, copy in zip(machine.devices, model.copies, strict=True):
            device.residency.forget(copy)
            device.pager.costs.forget_model(name)
            machine.calibration.forget(priced_as(name, device.label))

    def stat_model(self, caller: Caller, name: str) -> ModelInfo:
        """A model as it stands. Raises: NotFound."""
        return self._info(self._machine.models.get(name))

    def list_models(self, caller: Caller, args: ListArgs) -> ListPage[ModelInfo]:
        """All models, by name. Raises: InvalidArgument."""
        models = {model.name: model for model in self._machine.models}
        return page_of(sorted(models), args, lambda name: self._info(models[name]), lambda _info: True)

    # ------------------------------------------------------------------------------------------------------------------------ inside

    async def _register(self, caller: Caller, args: RegisterArgs, effects: list[Effect]) -> Registered:
        machine = self._machine
        known = self._check_new(caller, args)
        if known is not None:
            return known
        path = machine.models.resolve(args)
        base = self._base_of(args, path)
        row, read = await asyncio.to_thread(read_model, args, path, caller.principal.name, base)
        model = machine.models.made(read)
        await machine.placer.inspect(model)
        known = self._known(args, path)
        if known is not None:
            return known  # somebody else registered the same meanwhile
        if base is not None and (base.name not in machine.models or machine.models.get(base.name) is not base):
            raise Conflict(f"The model {base.name!r} was removed meanwhile.")
        machine.models.add(model)
        try:
            await machine.store.put_model(row, effects)
        except BaseException:
            machine.models.remove(model.name)
            raise
        return model

    def _check_new(self, caller: Caller, args: RegisterArgs) -> Registered | None:
        """The model if it is registered just so; else whether it may be. Raises: as `_register` does, before drivers are asked."""
        path = self._machine.models.resolve(args)
        known = self._known(args, path)
        if known is None:
            check_permission(caller.principal, "model.register")
            self._base_of(args, path)
        return known

    def _known(self, args: RegisterArgs, path: Path) -> Registered | None:
        """The model if it is registered just so, None if the name is free. Raises: AlreadyExists."""
        models = self._machine.models
        known = models.get(args.name) if args.name in models else None
        if known is not None and not _is_same(known, args, path):
            raise AlreadyExists(f"The name {args.name!r} is taken by {_told(known)}; remove it first or choose another.")
        return known

    def _base_of(self, args: RegisterArgs, path: Path) -> Registered | None:
        """The model that an adapter is registered for. Raises: NotFound, InvalidArgument."""
        if not args.base:
            if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
                raise InvalidArgument("base", f"{args.path} is an adapter; name the registered model that it changes.")
            return None
        base = self._machine.models.get(args.base)
        if base.base:
            raise InvalidArgument("base", f"{base.name!r} is an adapter itself; its base is {base.base!r}.")
        if args.max_positions or args.quant or args.kv_quant:
            raise InvalidArgument("base", "an adapter has max_positions, quant and kv_quant of its base; leave them out.")
        return base

    async def _pin(self, caller: Caller, name: str, verb: str, *, is_pinned: bool) -> ModelInfo:
        machine = self._machine
        if machine.effects.find(caller, verb) is None:
            model = machine.models.get(name)
            with machine.effects.done_by(caller, verb) as effects:
                await machine.store.set_pinned(name, is_pinned, effects)
            model.pin(is_pinned)
            for device in machine.devices:
                device.residency.turns.look_again()
        return self.stat_model(caller, name)

    async def _want(self, model: Registered, effects: list[Effect], but: Sequence[DeviceParts] = ()) -> None:
        """Remember on which devices a model is to be after a restart, and the call that said so: where it is now, `but` for some."""
        machine = self._machine
        is_there = (ModelState.RESIDENT, ModelState.LOADING)
        devices = (machine.devices.get(copy.device) for copy in model.copies if copy.state in is_there)
        there = [device.label for device in devices if device not in but]
        await machine.store.set_want_loaded(model.name, bool(there), " ".join(there), effects)
        machine.effects.keep(effects)

    def _check_free(self, model: Registered) -> None:
        """Whether a name may be forgotten. Raises: WrongState, naming who needs it."""
        adapters = [adapter.name for adapter in self._machine.models.adapters_of(model.name)]
        if adapters:
            raise WrongState(f"The model {model.name!r} has adapters: {_some(adapters)}; remove them first.", reason="MODEL_IN_USE")
        if model.num_contexts:
            ids = [context.id for context in self._machine.contexts if model.name in context.models]
            raise WrongState(f"{len(ids)} contexts are on the model {model.name!r}: {_some(ids)}; free them first.", reason="MODEL_IN_USE")

    @staticmethod
    def _check_unused(model: Registered, devices: list[DeviceParts]) -> None:
        active = sum(device.demand[model.name] for device in devices)
        if active:
            raise WrongState(f"{active} requests are on the model {model.name!r}; wait for them or cancel them.", reason="MODEL_IN_USE")

    def _info(self, model: Registered) -> ModelInfo:
        return model.info({device.name: device.shown_name for device in self._machine.devices})


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _told(known: Registered) -> str:
    """What is registered: its path, and what was said of how it is run."""
    said = {"base": known.base, "max_positions": 0 if known.base else known.max_positions, "quant": known.quant, "kv_quant": known.kv_quant}
    return " with ".join((known.path, ", ".join(f"{name}={value}" for name, value in said.items() if value))).removesuffix(" with ")


def _is_same(known: Registered, args: RegisterArgs, path: Path) -> bool:
    """Whether a model is registered as these arguments say; of how it is quantized they need not say anything again."""
    if (known.path, known.base) != (str(path), args.base):
        return False
    is_quantized_so = args.quant in ("", known.quant) and args.kv_quant in ("", known.kv_quant)
    return bool(known.base) or (known.max_positions == args.max_positions and is_quantized_so)
