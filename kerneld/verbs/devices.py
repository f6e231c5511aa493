"""The verbs on devices: what they are, and what runs their models."""

from __future__ import annotations

from dataclasses import replace

from kerneld.calls import Caller
from kerneld.deviceparts import DeviceParts
from kerneld.devicereport import DeviceModel, DeviceReport, OpLine
from kerneld.machine import Machine
from kerneld.models import Model


class DeviceVerbs:
    """Reads what drivers said of themselves and of each load."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def list_devices(self, caller: Caller, name: str = "") -> tuple[DeviceReport, ...]:
        """All devices, or the one of that name. Raises: NotFound."""
        del caller  # its permission was checked, and nothing here belongs to anybody
        devices = self._machine.devices
        return tuple(map(_report, [devices.get(name)] if name else devices))


def _report(device: DeviceParts) -> DeviceReport:
    models = tuple(_model(model) for model in device.models if model.is_resident)
    report = DeviceReport(
        device.name,
        device.supervisor.state.value,
        models,
        problem="" if device.is_running else device.supervisor.problems.last,
        arena_bytes=device.config.memory.device_bytes,
    )
    worker = device.supervisor.client
    if worker is None:
        return report
    told = worker.capabilities
    return replace(
        report,
        driver=told.driver,
        version=told.version,
        device_name=told.device_name,
        memory_bytes=told.memory_bytes,
        dtypes=told.dtypes,
        quantizations=told.quantizations,
        isa=told.isa,
        is_batch_invariant=told.batch_invariant,
    )


def _model(model: Model) -> DeviceModel:
    ops = (OpLine(each.op, each.implementation, each.covers, each.num_calls, each.why, each.is_quarantined) for each in model.ops)
    told = model.info("")
    return DeviceModel(model.name, model.runs_on, tuple(ops), told.quant, told.kv_quant)
