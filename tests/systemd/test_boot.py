"""The shipped units under a real systemd: start, ready, kill -9, restart, hung watchdog, stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import CannotBoot, Machine

DAEMON = "kerneld.service"
WORKER = "kerneld-worker@cpu.service"
START_TIMEOUT_S = 120.0
WATCHDOG_TIMEOUT_S = 60.0  # WatchdogSec= and some room


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose only service is kerneld."""
    try:
        booted = Machine(tmp_path_factory.mktemp("machine"))
    except CannotBoot as reason:
        pytest.skip(f"systemd cannot be booted here: {reason}")
    yield booted
    booted.close()


def await_serving(machine: Machine, previous_pid: int = 0) -> int:
    """Wait until another daemon than `previous_pid` is ready and has its worker; returns its process id."""

    def is_new_and_active() -> bool:
        return machine.main_pid(DAEMON) not in (0, previous_pid) and machine.show(DAEMON, "ActiveState") == "active"

    machine.wait("the daemon is ready", is_new_and_active, START_TIMEOUT_S)
    machine.wait("a worker is connected", lambda: has_worker(machine), START_TIMEOUT_S)
    return machine.main_pid(DAEMON)


def has_worker(machine: Machine) -> bool:
    """Whether the daemon says that its worker runs."""
    answer = machine.kernelctl("top", "--once", "-o", "json")
    return answer.returncode == 0 and [worker["state"] for worker in json.loads(answer.stdout)["workers"]] == ["running"]


def model_state(machine: Machine) -> str:
    """Where the shipped model is."""
    shown = machine.kernelctl("model", "show", "demo", "-o", "json")
    return str(json.loads(shown.stdout)["state"]) if shown.returncode == 0 else ""


def answer(machine: Machine) -> tuple[int, str, str]:
    """Ask the shipped model something through its chat template, greedily."""
    asked = machine.kernelctl("run", "demo", "Write a function.", "--chat", "--max-tokens=8", "--temperature=0", "--ignore-eos")
    return asked.returncode, asked.stdout, asked.stderr


@pytest.mark.systemd
def test_the_service_lives_as_its_units_say(machine: Machine, tmp_path: Path) -> None:
    first = await_serving(machine)
    worker = machine.main_pid(WORKER)
    assert machine.show(DAEMON, "StatusText") != ""
    assert json.loads(machine.kernelctl("whoami", "-o", "json").stdout)["roles"] == ["admin"]
    assert machine.kernelctl("model", "load", "/opt/source/examples/demo_model", "--name=demo").returncode == 0
    answered = answer(machine)
    assert answered[0] == 0, answered

    machine.run("kill", "-9", str(first))
    second = await_serving(machine, first)
    assert machine.main_pid(WORKER) == worker, "the worker lived through the death of the daemon"
    machine.wait("the model is back", lambda: model_state(machine) == "resident", START_TIMEOUT_S)
    assert answer(machine) == answered

    machine.run("kill", "-STOP", str(second))
    machine.wait("the watchdog has seen it", lambda: machine.main_pid(DAEMON) != second, WATCHDOG_TIMEOUT_S)
    await_serving(machine, second)
    assert "Watchdog timeout" in machine.journal(DAEMON)
    assert machine.show(DAEMON, "NRestarts") == "2"
    assert machine.main_pid(WORKER) == worker

    assert machine.run("systemctl", "stop", DAEMON).returncode == 0
    assert (machine.show(DAEMON, "Result"), machine.show(DAEMON, "ExecMainStatus")) == ("success", "0")
    machine.wait("the worker was sent away", lambda: machine.main_pid(WORKER) == 0, 30.0)
    assert machine.show(WORKER, "Result") == "success"
    assert machine.run("sh", "-c", "ls -A /run/kerneld").stdout == ""
