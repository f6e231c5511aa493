"""Devices, asked of the kernel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kerneld.calls import LoadProgress, ModelInfo, RegisterArgs
from kerneld.errors import NotFound, Unavailable
from kerneld.readings import gauges_of
from kerneld.supervisor import Supervisor, WorkerState
from kerneld.weights import presence
from tests.kerneld.rig import ADMIN, ANN, SLAB, Rig, in_loop, running


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
    monkeypatch.setattr(presence, "WAIT_S", 0.05)
    async with running(Rig(tmp_path), loads=False) as rig:
        supervisor = await lose_worker(rig)
        supervisor.problems.last = "The driver refuses its settings."
        with pytest.raises(Unavailable, match=r"not there\. The driver refuses its settings"):
            await rig.load()
        [device] = rig.kernel.list_devices(ANN)
        assert (device.state, device.problem) == ("backoff", "The driver refuses its settings.")


@pytest.mark.parametrize("is_known", [False, True])
@in_loop
async def test_a_load_tells_at_once_what_it_waits_for_and_goes_on_when_it_comes(tmp_path: Path, is_known: bool) -> None:
    async with running(Rig(tmp_path), loads=is_known) as rig:
        if is_known:
            await rig.kernel.unload_model(ADMIN, "m")
        supervisor = await lose_worker(rig)
        told = rig.kernel.load_model(ADMIN, RegisterArgs("m", str(tmp_path / "models" / "m")))
        first = await anext(told)
        supervisor.problems.failed("The library is missing.")
        second = await anext(told)
        rig.bring_worker()
        *_, last = [item async for item in told]

    assert isinstance(first, LoadProgress)
    assert isinstance(second, LoadProgress)
    assert first.stage == "waiting for the worker of fake0: The one before ended while it served: It was killed."
    assert second.stage == "waiting for the worker of fake0: The library is missing."
    assert isinstance(last, ModelInfo)


@pytest.mark.parametrize("is_known", [False, True])
@in_loop
async def test_no_load_and_no_request_waits_for_a_worker_that_cannot_come(tmp_path: Path, is_known: bool) -> None:
    async with running(Rig(tmp_path), loads=is_known) as rig:
        context = await rig.alloc() if is_known else ""
        supervisor = await lose_worker(rig)
        supervisor.problems.failed("There is no driver of that name.", is_final=True)
        with pytest.raises(Unavailable, match=r"no driver of that name\. Mend that"):
            await rig.load()
        if is_known:
            with pytest.raises(Unavailable, match="no driver of that name"):
                await rig.infer(context, (5, 6, 7))
            [told] = [item.summary for item in (rig.kernel.explain_model(ADMIN, "m"),)]
            assert "waiting for the worker of fake0: There is no driver of that name." in told
            rig.bring_worker()
            assert len((await rig.infer(context, (5, 6, 7))).tokens) == 8


@in_loop
async def test_who_waits_already_hears_that_the_worker_cannot_come(tmp_path: Path) -> None:
    async with running(Rig(tmp_path), loads=False) as rig:
        supervisor = await lose_worker(rig)
        loading = asyncio.get_running_loop().create_task(rig.load())
        await rig.settle()
        supervisor.problems.failed("No such device.", is_final=True)
        with pytest.raises(Unavailable, match=r"No such device\."):
            await loading


async def lose_worker(rig: Rig) -> Supervisor:
    """The worker dies, and no other one comes."""
    rig.is_worker_replaced = False
    assert rig.worker is not None
    rig.worker.die()
    supervisor = rig.machine.devices.first.supervisor
    await rig.until(lambda: supervisor.state is WorkerState.BACKOFF)
    return supervisor
