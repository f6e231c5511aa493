"""Devices, asked of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.errors import NotFound, Unavailable
from kerneld.readings import gauges_of
from kerneld.supervisor import WorkerState
from kerneld.weights import residency
from tests.kerneld.rig import ANN, SLAB, Rig, in_loop, running


@in_loop
async def test_a_device_tells_what_runs_its_models(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(ANN)
        [device] = rig.kernel.list_devices(ANN)
        assert context
        assert [model.model for model in device.models] == ["m"]
        assert (device.models[0].quant, device.problem, device.arena_bytes) == ("", "", rig.sizes.device_slabs * SLAB)
        assert device.models[0].runs_on == "a dream of tokens"
        assert [op.op for op in device.models[0].ops] == ["hash"]
        assert gauges_of(rig.machine).quarantined == {device.name: 0}
        assert rig.kernel.list_devices(ANN, device.name) == (device,)
        with pytest.raises(NotFound, match=device.name):
            rig.kernel.list_devices(ANN, "tpu7")


@in_loop
async def test_who_waits_for_a_worker_in_vain_is_told_what_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "DEVICE_WAIT_S", 0.05)
    async with running(Rig(tmp_path), loads=False) as rig:
        rig.is_worker_replaced = False
        assert rig.worker is not None
        rig.worker.die()
        supervisor = rig.machine.devices.first.supervisor
        await rig.until(lambda: supervisor.state is WorkerState.BACKOFF)
        supervisor.last_problem = "The driver refuses its settings."
        with pytest.raises(Unavailable, match=r"not running \(backoff\).* The driver refuses its settings"):
            await rig.load()
        [device] = rig.kernel.list_devices(ANN)
        assert (device.state, device.problem) == ("backoff", "The driver refuses its settings.")
