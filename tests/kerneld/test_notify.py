"""The daemon's words to systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(5)
        yield end


def test_ready_and_stopping_carry_a_status_line(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})

    notifier.ready("serving")
    notifier.alive()
    notifier.status("busy")
    notifier.stopping()

    assert [manager.recv(4096) for _ in range(4)] == [b"READY=1\nSTATUS=serving", b"WATCHDOG=1", b"STATUS=busy", b"STOPPING=1"]


def test_an_abstract_address_is_understood() -> None:
    name = f"kerneld-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind("\0" + name)
        end.settimeout(5)

        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()

        assert end.recv(4096) == b"READY=1"


def test_outside_systemd_nothing_is_sent_and_there_is_no_watchdog() -> None:
    notifier = Notifier({})

    notifier.ready("serving")

    assert notifier.watchdog_interval_s is None


def test_the_watchdog_is_fed_three_times_per_timeout_by_the_process_it_is_meant_for() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "6000000"}

    assert Notifier({**environment, "WATCHDOG_PID": str(os.getpid())}).watchdog_interval_s == 2.0
    assert Notifier({**environment, "WATCHDOG_PID": "1"}).watchdog_interval_s is None
