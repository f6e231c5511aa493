"""Reports on devices -> answers."""

from __future__ import annotations

from kerneld.devicereport import DeviceModel, DeviceReport, OpLine
from kerneld_client.pb import syscalls_pb2 as pb


def device(report: DeviceReport) -> pb.Device:
    """One device."""
    return pb.Device(
        name=report.name,
        state=report.state,
        driver=report.driver,
        version=report.version,
        device_name=report.device_name,
        memory_bytes=report.memory_bytes,
        dtypes=report.dtypes,
        quantizations=report.quantizations,
        isa=report.isa,
        is_batch_invariant=report.is_batch_invariant,
        models=map(model, report.models),
        problem=report.problem,
        arena_bytes=report.arena_bytes,
    )


def model(report: DeviceModel) -> pb.DeviceModel:
    """A model on it."""
    return pb.DeviceModel(model=report.model, runs_on=report.runs_on, ops=map(op, report.ops), quant=report.quant, kv_quant=report.kv_quant)


def op(line: OpLine) -> pb.OpReport:
    """What runs one of its ops."""
    return pb.OpReport(
        op=line.op,
        implementation=line.implementation,
        covers=line.covers,
        num_calls=line.num_calls,
        why=line.why,
        is_quarantined=line.is_quarantined,
    )
