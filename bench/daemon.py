"""A daemon for measuring, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kerneld_client

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0


@contextmanager
def running_daemon(folder: Path, *settings: str, model_root: Path | None = None) -> Iterator[Path]:
    """Start a daemon with `--set` settings, give its socket, and stop it at the end. Models lie in its folder unless said."""
    socket = folder / "k.sock"
    command = [sys.executable, "-P", "-m", "cli.daemon", "serve", f"--state={folder / 'state'}", f"--socket={socket}"]
    command += [f"--model-root={model_root or folder}", f"--model-root={ROOT / 'examples'}", *(f"--set={item}" for item in settings)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])}
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_ready(socket)
        yield socket
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_ready(socket: Path) -> None:
    """Return once the daemon answers. Raises: TimeoutError."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            kerneld_client.connect(socket).close()
        except kerneld_client.KerneldError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"no daemon answers on {socket}")
