"""What the daemon tells systemd: ready, alive, stopping (the protocol of sd_notify(3)). Outside systemd every call does nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Datagrams to the service manager that started this process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout_us = int(environment.get("WATCHDOG_USEC", "0")) if is_ours and address else 0
        # systemd advises half the timeout; a third leaves room for one late turn of the loop.
        self.watchdog_interval_s: float | None = timeout_us / 1e6 / 3 if timeout_us else None

    def ready(self, status: str = "") -> None:
        """Say that calls are answered from now on."""
        self._send("READY=1", status)

    def alive(self) -> None:
        """Feed the watchdog; to be called from the scheduling loop, every `watchdog_interval_s`."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str = "") -> None:
        """Say that the daemon is on its way out."""
        self._send("STOPPING=1", status)

    def status(self, status: str) -> None:
        """Set the one line that `systemctl status` shows."""
        self._send("", status)

    def _send(self, state: str, status: str = "") -> None:
        if not self._address:
            return
        lines = [line for line in (state, f"STATUS={status}" if status else "") if line]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(self._address)
            sender.sendall("\n".join(lines).encode())
