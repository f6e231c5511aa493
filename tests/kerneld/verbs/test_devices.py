"""Devices, asked of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.errors import NotFound
from kerneld.readings import gauges_of
from tests.kerneld.rig import ANN, Rig, in_loop, running


@in_loop
async def test_a_device_tells_what_runs_its_models(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(ANN)
        [device] = rig.kernel.list_devices(ANN)
        assert context
        assert [model.model for model in device.models] == ["m"]
        assert device.models[0].runs_on == "a dream of tokens"
        assert [op.op for op in device.models[0].ops] == ["hash"]
        assert gauges_of(rig.machine).quarantined == {device.name: 0}
        assert rig.kernel.list_devices(ANN, device.name) == (device,)
        with pytest.raises(NotFound, match=device.name):
            rig.kernel.list_devices(ANN, "tpu7")
