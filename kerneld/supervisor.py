"""Supervisor: keeps one worker process alive for the device, and says when it is there and when it is not.

States, and who moves them:

    STOPPED --start--> STARTING --hello--> RUNNING --lost--> BACKOFF --timer--> STARTING
                          |  ^                                  |
                          |  +- no hello in time, or ended early +
    any --stop--> STOPPED

Rules
1. A worker is started by exec, never by fork of this process, and is not tied to our death: a front that dies leaves it running, so that
   the next front can take its weights over (`orphan_grace_s` of the worker bounds how long it waits).
2. Before the first start, a worker left by an earlier front gets `ADOPT_WAIT_S` to report; only then is another one started.
3. Death is seen by the connection (end-of-file or pidfd), and before there is one by the pidfd of our child, never by polling; a worker
   that hangs is killed by whoever saw it hang.
4. When another one is started, and what is told of the one before, says `kerneld.problems`.
5. Under systemd each worker is a unit of its own: then `spawn` is False and only connections are awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from drivers.client import WorkerClient
from drivers.errors import DriverError, DriverUnavailable, OptionUnknown
from drivers.listener import Admission
from drivers.wire import Hello
from kerneld.problems import Problems

logger = logging.getLogger(__name__)

ADOPT_WAIT_S = 3.0
HELLO_TIMEOUT_S = 60.0


class WorkerState(Enum):
    """Where the worker is, as `top` shows it."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How a worker is started. `spawn` False: somebody else starts it."""

    device: str
    driver: str
    socket: Path
    runtime_dir: Path
    orphan_grace_s: float
    check_limit_s: float = 0.0  # how long its driver may take to prove itself; 0: it has not to
    spawn: bool = True
    log_level: str = "info"
    log_json: bool = False

    @property
    def pid_file(self) -> Path:
        """Where the pid of the running worker is noted for the next front."""
        return self.runtime_dir / f"worker-{self.device}.pid"

    @property
    def problem_file(self) -> Path:
        """Where a worker that cannot serve says why."""
        return self.runtime_dir / f"worker-{self.device}.problem"

    def argv(self) -> list[str]:
        """The command line, isolated from the working directory (`-P`)."""
        return [
            sys.executable,
            "-P",
            "-m",
            "drivers.worker",
            f"--socket={self.socket}",
            f"--device={self.device}",
            f"--driver={self.driver}",
            f"--orphan-grace-s={self.orphan_grace_s}",
            f"--check-limit-s={self.check_limit_s}",
            f"--problem-file={self.problem_file}",
            f"--log-level={self.log_level}",
            *(["--log-json"] if self.log_json else []),
        ]


class Landlord(Protocol):
    """Gives memory to a worker, and takes it into use."""

    def admission(self, host_fd: int | None) -> Admission:
        """What the worker gets; `host_fd` is the host tier that it kept, and ours to close. Raises: DriverError."""

    def running(self, worker: WorkerClient) -> None:
        """The worker is ready for plans."""


class Supervisor:
    """Starts, receives and restarts the worker of one device."""

    def __init__(self, command: WorkerCommand, landlord: Landlord) -> None:
        self.command = command
        self._landlord = landlord
        self.state = WorkerState.STOPPED
        self.restarts = 0
        self.client: WorkerClient | None = None
        self.problems = Problems()
        self._process: subprocess.Popen[bytes] | None = None
        self._child_fd = -1  # pidfd of the process, while it is watched
        self._is_received = False  # the latest worker came in: its connection tells of its end
        self._running_since = 0.0
        self.awaited_since = 0.0  # of the monotonic clock: the worker that comes in, or came in last
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """Process id of the connected worker, 0 while there is none."""
        return self.client.hello.pid if self.client is not None else 0

    @property
    def is_failing(self) -> bool:
        """Whether its worker is not there, and has ended again and again."""
        return self.state is not WorkerState.RUNNING and self.problems.is_many

    def start(self) -> None:
        """Wait for a worker of an earlier front, else start one."""
        self.state, self.awaited_since = WorkerState.STARTING, time.monotonic()
        if not self.command.spawn:
            return
        if _is_worker_alive(self.command.pid_file):
            logger.info("waiting for the worker of an earlier run", extra={"device": self.command.device})
            self._after(ADOPT_WAIT_S, self._spawn)
        else:
            self._spawn()

    # ----------------------------------------------------------------------------------------------- as the reception of the listener

    def admit(self, hello: Hello, host_fd: int | None) -> Admission:
        """A worker came in. Raises: DriverError, if it is not the one that is expected."""
        try:
            self._check(hello)
        except DriverUnavailable:
            if host_fd is not None:
                os.close(host_fd)
            raise
        if self._timer is not None:
            self._after(HELLO_TIMEOUT_S, self._hello_missed)
        self._is_received = True
        return self._landlord.admission(host_fd)

    def _check(self, hello: Hello) -> None:
        """Raises: DriverUnavailable, if nobody waits for that worker."""
        if hello.device != self.command.device or hello.driver != self.command.driver:
            raise DriverUnavailable(f"This front runs {self.command.driver} on {self.command.device}.")
        if self.client is not None or self.state is WorkerState.STOPPED:
            raise DriverUnavailable("This device has a worker already.")

    def ready(self, worker: WorkerClient) -> None:
        """A worker that was admitted is open."""
        if self.client is not None or self.state is WorkerState.STOPPED:
            worker.hang_up()
            return
        self._cancel_timer()
        self.client = worker
        self.state = WorkerState.RUNNING
        self.problems.over()
        self._running_since = asyncio.get_running_loop().time()
        self.command.pid_file.write_text(str(self.pid))
        self._landlord.running(worker)

    def failed(self, hello: Hello, error: DriverError) -> None:
        """A worker that was admitted did not become ready."""
        if self.client is None and self.state is not WorkerState.STOPPED:
            logger.error("the worker could not open its device", extra={"device": hello.device, "error": str(error)})
            self._back_off(str(error), self.problems.failed(str(error), is_final=isinstance(error, OptionUnknown)))

    def lost(self, reason: str) -> None:
        """The running worker is gone; called by whoever runs its plans."""
        self.client = None
        if self.state is WorkerState.STOPPED:
            return
        ran_s = asyncio.get_running_loop().time() - self._running_since
        self._back_off(reason, self.problems.lost(f"The one before ended while it served: {reason}", ran_s))

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Let the worker leave, or make it leave; nothing of it stays behind."""
        self.state = WorkerState.STOPPED
        self._cancel_timer()
        worker, self.client = self.client, None
        if worker is not None:
            await worker.shut_down(timeout_s)
        self._unwatch()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            await asyncio.to_thread(_await_exit, self._process, timeout_s)
        self.command.pid_file.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------------------- inner moves

    def _spawn(self) -> None:
        self._timer = None
        self._unwatch()
        self._reap()
        self._is_received = False
        self.command.problem_file.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(self.command.argv(), stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
        self.command.pid_file.write_text(str(self._process.pid))
        self.state, self.awaited_since = WorkerState.STARTING, time.monotonic()
        self._after(HELLO_TIMEOUT_S + self.command.check_limit_s, self._hello_missed)
        self._child_fd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._child_fd, self._child_ended)

    def _child_ended(self) -> None:
        """The process that we started is gone; if it never came in, nobody else will say so."""
        self._unwatch()
        self._reap()
        if self._is_received or self.state is not WorkerState.STARTING or self._process is None:
            return
        told = self.command.problem_file.read_text("utf-8", "replace") if self.command.problem_file.exists() else ""
        problem = told or f"It ended with exit code {self._process.returncode} before it reported; its last words are in the log."
        self._back_off(problem, self.problems.failed(problem, is_final=bool(told)))

    def _unwatch(self) -> None:
        if self._child_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._child_fd)
            os.close(self._child_fd)
            self._child_fd = -1

    def _hello_missed(self) -> None:
        self._timer = None
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        within_s, what = HELLO_TIMEOUT_S, "open its device"
        if not self._is_received:
            within_s, what = within_s + self.command.check_limit_s, "report"
        problem = f"It did not {what} within {within_s:.0f} s and was ended: its driver hangs, or the machine is overloaded."
        self._back_off(problem, self.problems.failed(problem))

    def _back_off(self, reason: str, delay_s: float) -> None:
        self.restarts += 1
        self.state = WorkerState.BACKOFF
        facts = {"device": self.command.device, "reason": reason, "restart_in_s": delay_s}
        logger.warning("worker is gone and will be started again", extra=facts)
        if self.command.spawn:
            self._after(delay_s, self._spawn)

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, action)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reap(self) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.1)


def _await_exit(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for our child; kill it if it takes too long."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _is_worker_alive(pid_file: Path) -> bool:
    """Whether the noted pid still runs our worker module (pids are used again by others)."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    return b"drivers.worker" in command and _is_alive(pid)
