"""Devices: every field arrives at its place in the client's values."""

from __future__ import annotations

from dataclasses import asdict

from kerneld.devicereport import DeviceModel, DeviceReport, OpLine
from kerneld_client import device_calls
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import device_answers

OP = OpLine("norm_linear", "native.norm_linear", ("rms_norm", "linear"), 61, "one call for 2", True)
DEVICE = DeviceReport(
    *("cpu0", "running", (DeviceModel("small", "native code", (OP,), "int8", "fp8"),)),
    *("cpu", "2", "x86_64", 7, ("float32",), ("int8",), "avx2", True, "it would not start", 6),
)


def test_a_device_arrives_with_what_runs_its_models() -> None:
    assert asdict(device_calls.device(device_answers.device(DEVICE))) == asdict(DEVICE)


def test_one_device_is_asked_for_by_name() -> None:
    assert device_calls.devices("cpu0").request == pb.ListDevicesRequest(device="cpu0")
