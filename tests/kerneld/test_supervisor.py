"""The supervisor over real worker processes on the fake driver: started, lost, adopted, refused, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.client import WorkerClient
from drivers.config import DriversConfig
from drivers.contract import OpenSpec
from drivers.listener import Admission, WorkerListener
from kerneld import supervisor
from kerneld.deviceassembly import check_limit_s
from kerneld.supervisor import Supervisor, WorkerCommand, WorkerState
from tests.kerneld.rig import in_loop

SPEC = OpenSpec(num_slabs=4, slab_bytes=4096, granule_bytes=256, page_tokens=4, max_rows=4, max_step_tokens=16)


class Listener:
    """Hears of plans, of which there are none, and of the end."""

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        self.on_lost = on_lost

    def on_step(self, *_args: object) -> None:
        raise AssertionError("no plan was sent")

    def on_plan_failed(self, *_args: object) -> None:
        raise AssertionError("no plan was sent")


class House:
    """A front that only houses a worker."""

    def __init__(self, folder: Path, *, generation: int = 1, options: dict[str, str] | None = None, spawn: bool = True) -> None:
        command = WorkerCommand("fake0", "fake", folder / "w.sock", folder, orphan_grace_s=20.0, spawn=spawn)
        self.generation = generation
        self.options = options or {}
        self.supervisor = Supervisor(command, self)
        self.listener = WorkerListener(command.socket, self.supervisor)
        self.workers: list[WorkerClient] = []
        self.reasons: list[str] = []
        self.told: list[str] = []

    def admission(self, host_fd: int | None) -> Admission:
        if host_fd is not None:
            os.close(host_fd)
        fields = {name: getattr(SPEC, name) for name in SPEC.__struct_fields__}
        return Admission(self.generation, OpenSpec(**fields | {"options": self.options}))

    def running(self, worker: WorkerClient) -> None:
        self.workers.append(worker)
        worker.attach(Listener(self._lost))

    def _lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self.supervisor.lost(reason)
        self.told.append(self.supervisor.problems.last)

    def open(self) -> None:
        self.listener.start()
        self.supervisor.start()

    async def close(self) -> None:
        await self.listener.close()
        await self.supervisor.stop()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


def test_only_a_driver_of_another_distribution_gets_time_to_prove_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "other_drivers-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-drivers\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[kerneld.drivers]\nother = other_drivers:Driver\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert check_limit_s(DriversConfig(use="other", check_limit_s=7.0)) == 7.0
    assert check_limit_s(DriversConfig(use="other", trust=True)) == 0.0
    assert check_limit_s(DriversConfig(use="cpu")) == 0.0
    assert "--check-limit-s=7.0" in WorkerCommand("d", "other", tmp_path, tmp_path, 1.0, check_limit_s=7.0).argv()


@in_loop
async def test_a_worker_that_cannot_serve_leaves_word_why(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.supervisor.command = replace(house.supervisor.command, driver="abacus")
    house.open()
    try:
        await house.until(lambda: "'abacus' is none of: cpu, cuda, fake" in house.supervisor.problems.last)
        assert house.supervisor.state in (WorkerState.BACKOFF, WorkerState.STARTING)
        assert house.supervisor.problems.is_final
    finally:
        await house.close()


@in_loop
async def test_a_worker_that_never_reports_is_ended_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HELLO_TIMEOUT_S", 0.01)  # none is as fast
    house = House(tmp_path)
    house.open()
    try:
        await house.until(lambda: house.supervisor.restarts >= 1)
        assert house.supervisor.problems.last.startswith("It did not report within 0 s and was ended")
    finally:
        await house.close()


@in_loop
async def test_a_killed_worker_is_started_again_at_once_and_none_is_left_behind(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.open()
    try:
        await house.until(lambda: len(house.workers) == 1)
        first = house.supervisor.pid
        os.kill(first, signal.SIGKILL)
        await house.until(lambda: len(house.workers) == 2)
        second = house.supervisor.pid
        assert second != first
        assert house.supervisor.restarts == 1
        assert "ended while it served: The worker" in house.told[0]
        assert house.supervisor.state is WorkerState.RUNNING
        assert len(house.reasons) == 1
    finally:
        await house.close()
    assert not Path(f"/proc/{first}").exists()
    assert not Path(f"/proc/{second}").exists()
    assert not house.supervisor.command.pid_file.exists()


@in_loop
async def test_a_worker_that_outlived_its_front_is_adopted(tmp_path: Path) -> None:
    before = House(tmp_path)
    before.open()
    await before.until(lambda: len(before.workers) == 1)
    pid = before.supervisor.pid
    await before.listener.close()
    before.workers[0].hang_up()  # what a front's death is to its worker
    after = House(tmp_path, generation=2)
    after.open()
    try:
        await after.until(lambda: len(after.workers) == 1)
        assert after.supervisor.pid == pid
    finally:
        await after.close()
        before.supervisor.client = None
        await before.supervisor.stop()
    assert not Path(f"/proc/{pid}").exists()


@in_loop
async def test_a_worker_that_cannot_open_its_device_is_tried_again_and_the_problem_is_named(tmp_path: Path) -> None:
    house = House(tmp_path, options={"no_such_option": "1"})
    house.open()
    try:
        await house.until(lambda: house.supervisor.restarts >= 1)
        assert "no_such_option" in house.supervisor.problems.last
        assert house.supervisor.problems.is_final
        house.options = {}
        await house.until(lambda: house.supervisor.state is WorkerState.RUNNING)
        assert house.supervisor.problems.last == ""
    finally:
        await house.close()


@in_loop
async def test_a_second_worker_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.open()
    try:
        await house.until(lambda: len(house.workers) == 1)
        command = [*house.supervisor.command.argv()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        other = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, timeout=30)
        assert other.returncode == 3
        assert house.supervisor.state is WorkerState.RUNNING
        assert len(house.workers) == 1
    finally:
        await house.close()


@in_loop
async def test_under_another_master_workers_are_awaited_not_started(tmp_path: Path) -> None:
    house = House(tmp_path, spawn=False)
    house.open()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(house.supervisor.command.argv(), env=environment, stderr=subprocess.DEVNULL)
    try:
        await house.until(lambda: len(house.workers) == 1)
        process.kill()
        process.wait()
        await house.until(lambda: house.supervisor.state is WorkerState.BACKOFF)
        process = subprocess.Popen(house.supervisor.command.argv(), env=environment, stderr=subprocess.DEVNULL)
        await house.until(lambda: len(house.workers) == 2)
    finally:
        await house.close()
        assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.parametrize("left", ["", "not a number", "1", "4194305"])
@in_loop
async def test_a_pid_that_is_not_our_worker_is_not_waited_for(tmp_path: Path, left: str) -> None:
    house = House(tmp_path)
    house.supervisor.command.pid_file.write_text(left)
    began = asyncio.get_running_loop().time()
    house.open()
    try:
        assert house.supervisor.command.pid_file.read_text() not in ("", left), "one was started at once"
        assert asyncio.get_running_loop().time() - began < 2.0
    finally:
        await house.close()
