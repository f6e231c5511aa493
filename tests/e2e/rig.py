"""A real daemon with a real worker, in a folder of its own: what an administrator would start, and a test may kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kerneld_client
from kerneld_client import Client, Context, KerneldError

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "demo_model"
START_TIMEOUT_S = 60.0
FAKE = (
    "drivers.use=fake",
    "memory.device_bytes=16MiB",
    "memory.host_bytes=8MiB",
    "memory.slab_bytes=256KiB",
    "kerneld.disk_reserve_bytes=0",
)


class DaemonRig:
    """Starts, kills and stops one kerneld."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.socket = folder / "k.sock"
        self.log = folder / "daemon.log"
        self.address = ""  # HOST:PORT, where a test gives it one
        self.arguments: tuple[str, ...] = ()  # of the command line, beside the settings
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None
        return self._process.pid

    def start(self, **environment: str) -> None:
        """Start it; `connect` waits until it answers."""
        command = [sys.executable, "-P", "-m", "cli.daemon", "serve", f"--state={self.state}", f"--socket={self.socket}"]
        command += [
            f"--model-root={ROOT / 'examples'}",
            f"--model-root={self.folder}",
            *(f"--set={item}" for item in self._settings),
            *self.arguments,
        ]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths, **environment})

    def connect(self, **options: Any) -> Client:
        """A client, once the daemon answers. Raises: AssertionError with the log, if it never does."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return kerneld_client.connect(self.socket, **options)
            except KerneldError as error:
                if time.monotonic() > deadline or (self._process is not None and self._process.poll() is not None):
                    raise AssertionError(f"the daemon does not answer ({error}):\n{self.log_text()}") from error
                time.sleep(0.05)

    def refused(self) -> tuple[int, str]:
        """Exit code and log of a start that is to fail."""
        self.start()
        return self.wait_exit(), self.log_text()

    def wait_exit(self) -> int:
        """The exit code, once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self.wait_exit()

    def worker_pid(self, k: Client) -> int:
        """Process id of the worker, once there is one."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (pid := k.top().workers[0].pid):
            assert time.monotonic() < deadline, self.log_text()
            time.sleep(0.02)
        return pid

    def signal_worker(self, k: Client, number: int) -> int:
        """Send a signal to the worker; returns its process id."""
        pid = self.worker_pid(k)
        os.kill(pid, number)
        return pid

    def next_worker(self, old: int) -> int:
        """Process id of the worker that was started after another, as soon as there is one."""
        until(lambda: set(self.worker_processes()) - {old})
        return next(iter(set(self.worker_processes()) - {old}))

    def kill_worker(self, k: Client) -> None:
        """kill -9 of the worker."""
        os.kill(self.worker_pid(k), signal.SIGKILL)

    def log_text(self) -> str:
        """What the daemon and its worker said."""
        return self.log.read_text(errors="replace")[-20_000:] if self.log.exists() else ""

    def clean_up(self) -> None:
        """Leave no process behind, whatever the test did."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for worker in self.worker_processes():
            os.kill(worker, signal.SIGKILL)

    def worker_processes(self) -> Iterator[int]:
        """Process ids of workers that were started, whether they have reported or not."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if b"drivers.worker" in command and os.fsencode(self.folder) in command:
                    yield int(entry.name)


def fake_model(folder: Path, name: str = "toy", **fields: object) -> Path:
    """A directory that the fake driver takes for a model; it has no tokenizer, so it is spoken to in tokens."""
    path = folder / name
    path.mkdir()
    (path / "fake.json").write_text(json.dumps(fields))
    return path


def script(**faults: object) -> str:
    """The setting that lets the fake driver fail as `drivers.fake.FakeScript` says."""
    return "drivers.options={ " + ", ".join(f'{name} = "{value}"' for name, value in faults.items()) + " }"


def free_port() -> int:
    """A port of loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for something that comes by itself. Raises: AssertionError, if it does not come in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.01)


def stream_all(contexts: list[Context], prompts: list[str], max_tokens: int, during: Callable[[], None] = lambda: None) -> list[list[int]]:
    """Infer greedily on all contexts at once; once every stream has begun, do something; return the tokens of each."""
    outputs: list[list[int]] = [[] for _ in contexts]
    failures: list[BaseException] = []
    begun = threading.Barrier(len(contexts) + 1)

    def follow(idx: int) -> None:
        has_begun = False
        try:
            for delta in contexts[idx].infer(prompts[idx], max_tokens=max_tokens, temperature=0, ignore_eos=True):
                outputs[idx].extend(delta.tokens)
                if not has_begun:
                    has_begun = True
                    begun.wait(timeout=60)
        except BaseException as error:
            failures.append(error)
            begun.abort()
            raise

    threads = [threading.Thread(target=follow, args=(idx,), daemon=True) for idx in range(len(contexts))]
    for thread in threads:
        thread.start()
    begun.wait(timeout=120)
    during()
    for thread in threads:
        thread.join(timeout=240)
    assert not failures, failures
    return outputs
