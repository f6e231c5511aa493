"""Several devices on the command line: which device is meant stands beside everything that is on one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kerneld_client import values
from tests.cli.fake_client import DEVICE, FRAME, MODEL, TIER, WORKER, Kernelctl

COPY = values.ModelCopy("gpu0", values.ModelState.RESIDENT, "device", "bfloat16", 12 << 20, 0, 0, "", 0.001)
TWO = replace(
    FRAME,
    workers=(replace(WORKER, device="gpu0"), replace(WORKER, device="cpu0", state="backoff", restarts=2)),
    tiers=(replace(TIER, tier="device", device="gpu0"), replace(TIER, tier="device", device="cpu0", weights_bytes=0)),
    models=(replace(MODEL, device="gpu0", copies=(COPY, replace(COPY, device="cpu0", state=values.ModelState.REGISTERED))),),
)


@pytest.fixture
def two(kernelctl: Kernelctl) -> Kernelctl:
    """The command line of a daemon with two devices."""
    kernelctl.client.frame = TWO
    return kernelctl


def test_devices_are_listed_with_what_is_on_them(two: Kernelctl) -> None:
    lines = two("device", "ls").stdout.splitlines()

    assert lines[0].split()[:3] == ["NAME", "DRIVER", "STATE"]
    assert lines[1].split()[0] == "gpu0"
    assert MODEL.name in lines[1]
    assert lines[2].split()[0] == "cpu0"
    assert "backoff" in lines[2]
    assert MODEL.name not in lines[2]
    assert two("device", "ls", "-o", "name").stdout == "gpu0\ncpu0\n"


def test_the_only_device_is_listed_too(kernelctl: Kernelctl) -> None:
    kernelctl.client.frame = replace(FRAME, tiers=(replace(TIER, tier="device"),))
    assert len(kernelctl("device", "ls").stdout.splitlines()) == 2


def test_top_names_the_device_of_every_tier_and_model(two: Kernelctl) -> None:
    shown = two("top", "--once").stdout

    assert "gpu0 device |" in shown
    assert "cpu0 device |" in shown
    assert "DEVICE" in next(line for line in shown.splitlines() if line.startswith("NAME"))


def test_a_device_is_asked_for_by_name(kernelctl: Kernelctl) -> None:
    kernelctl("model", "load", "/srv/small", "--device", "gpu0")
    kernelctl("model", "unload", "small", "--device", "gpu0")

    assert kernelctl.client.arguments_of("load")[1]["device"] == "gpu0"
    assert kernelctl.client.arguments_of("unload")[1]["device"] == "gpu0"


SHOWN = """\
cpu0: running, cpu driver, version 2, on x86_64 CPU, 2 threads
memory 1GiB, of it 512MiB for weights and pages (memory.device_bytes); computes in float32, bfloat16
quantizes to int8
instructions avx2

small: native code (avx2), 2 threads
weights int8; keys and values not quantized
OP           RUNS AS                       STANDS FOR         CALLS  WHY
norm_linear  native.norm_linear            rms_norm + linear     61  one call for 2
softcap      native.softcap (quarantined)  -                      -  it disagreed
"""


def test_a_device_is_shown_with_what_runs_each_op(kernelctl: Kernelctl) -> None:
    assert kernelctl("device", "show", "cpu0").stdout == SHOWN
    assert kernelctl.client.arguments_of("devices") == (("cpu0",), {})
    [device] = json.loads(kernelctl("device", "show", "-o", "json").stdout)
    assert device["models"][0]["ops"][1]["is_quarantined"] is True
    assert kernelctl("device", "show", "-o", "name").stdout == "cpu0\n"


def test_why_a_worker_is_not_there_is_said_where_devices_are_looked_at(two: Kernelctl) -> None:
    refused = replace(DEVICE, state="backoff", driver="", problem="The driver refuses its settings. isa is 'foo'.")
    two.client.shown_device = refused

    assert "cpu0: The driver refuses its settings. isa is 'foo'." in two("device", "ls").stderr
    assert "its worker does not run: The driver refuses its settings." in two("device", "show").stdout
