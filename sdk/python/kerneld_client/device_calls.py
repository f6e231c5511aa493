"""Calls on devices: what is sent, and how the answers are read."""

from __future__ import annotations

from kerneld_client.call import Call, unary
from kerneld_client.device_values import Device, DeviceModel, OpReport
from kerneld_client.pb import syscalls_pb2 as pb


def devices(name: str) -> Call[list[Device]]:
    """All devices, or one."""
    request = pb.ListDevicesRequest(device=name)
    return unary("Admin/ListDevices", request, pb.ListDevicesResponse, lambda message: list(map(device, message.devices)))


def device(message: pb.Device) -> Device:
    """Read a device."""
    return Device(
        name=message.name,
        state=message.state,
        driver=message.driver,
        version=message.version,
        device_name=message.device_name,
        memory_bytes=message.memory_bytes,
        dtypes=tuple(message.dtypes),
        quantizations=tuple(message.quantizations),
        isa=message.isa,
        is_batch_invariant=message.is_batch_invariant,
        models=tuple(map(device_model, message.models)),
        problem=message.problem,
        arena_bytes=message.arena_bytes,
    )


def device_model(message: pb.DeviceModel) -> DeviceModel:
    """Read a model that is on a device."""
    return DeviceModel(message.model, message.runs_on, tuple(map(op_report, message.ops)), message.quant, message.kv_quant)


def op_report(message: pb.OpReport) -> OpReport:
    """Read what runs one op."""
    return OpReport(message.op, message.implementation, tuple(message.covers), message.num_calls, message.why, message.is_quarantined)
