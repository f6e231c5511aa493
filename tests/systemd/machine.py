"""A small machine of its own: a real systemd as process 1 of fresh namespaces, over an overlay of this machine's root.

Nothing is downloaded, and nothing outlives the test: the namespaces end with their process 1.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOOT = Path(__file__).with_name("boot.sh")
TOOLS = ("unshare", "nsenter", "findmnt", "systemd-sysusers", "systemd-tmpfiles", "pivot_root")
CANNOT = 77
BOOT_TIMEOUT_S = 60.0
POLL_S = 0.05

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/opt/source:/opt/source/sdk/python",
    "LD_LIBRARY_PATH": "/opt/python/lib",
    "PYTHONDONTWRITEBYTECODE": "1",
}
TARGET = """\
[Unit]
Description=What this machine is for
Wants=kerneld.service
"""
# Where the checkout is, and no more memory than a test needs. The shared libraries of an interpreter that is not the system's are its own.
DROP_IN = """\
[Service]
Environment=PYTHONPATH=/opt/source:/opt/source/sdk/python
Environment=LD_LIBRARY_PATH=/opt/python/lib
Environment=PYTHONDONTWRITEBYTECODE=1
Environment=KERNELD_MEMORY__DEVICE_BYTES=64MiB KERNELD_MEMORY__HOST_BYTES=16MiB
Environment=KERNELD_KERNELD__MODEL_ROOTS=/opt/source/examples
"""


class CannotBoot(Exception):
    """This machine cannot hold another one; the text says why."""


class Machine:
    """A booted machine. `run` starts a program in it; `close` ends it and all that runs there."""

    def __init__(self, folder: Path) -> None:
        self._check()
        self._cgroup = self._make_cgroup()
        self._stderr = folder / "boot.log"
        self._units(folder / "units")
        (folder / "machine").mkdir()
        self._boot = self._start(folder)
        try:
            self._init = self._await_init()
            self.wait("the target is reached", lambda: self.show("kerneld-test.target", "ActiveState") == "active", BOOT_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine, as root."""
        enter = ["nsenter", f"--target={self._init}", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root", "--wd=/"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=timeout_s, check=False, env=ENVIRONMENT)

    def kernelctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kernelctl in the machine."""
        return self.run("/opt/kerneld/bin/python", "-P", "-m", "cli.main", *arguments)

    def show(self, unit: str, field: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", unit, "--property", field, "--value").stdout.strip()

    def main_pid(self, unit: str) -> int:
        """Process id of a service, inside the machine; 0 while there is none."""
        return int(self.show(unit, "MainPID") or 0)

    def journal(self, unit: str) -> str:
        """The last lines that a unit logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--lines=80", f"--unit={unit}").stdout

    def wait(self, what: str, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Look again and again until it is so. Raises: TimeoutError, with what the units logged."""
        give_up_at = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > give_up_at:
                logged = self.journal("kerneld.service") + self.journal("kerneld-worker@*.service")
                raise TimeoutError(f"Not so after {timeout_s:.0f} s: {what}.\n{logged}")
            time.sleep(POLL_S)

    def close(self) -> None:
        """End the machine, and remove its control group."""
        self._boot.send_signal(signal.SIGKILL)  # --kill-child takes process 1 along, and that all others
        self._boot.wait()
        for _ in range(200):
            for path in sorted(self._cgroup.rglob("*/"), reverse=True):
                remove_empty(path)
            if remove_empty(self._cgroup):
                return
            time.sleep(POLL_S)

    @staticmethod
    def _check() -> None:
        if os.geteuid() != 0:
            raise CannotBoot("needs root")
        missing = [tool for tool in TOOLS if shutil.which(tool) is None] + ([] if Path("/lib/systemd/systemd").exists() else ["systemd"])
        if missing:
            raise CannotBoot(f"not installed: {', '.join(missing)}")
        for path in (ROOT, Path(sys.base_prefix), Path(sysconfig.get_path("purelib"))):
            if path.stat().st_mode & 0o005 != 0o005:
                raise CannotBoot(f"{path} cannot be read by the user of the service")

    @staticmethod
    def _make_cgroup() -> Path:
        asked = subprocess.run(["findmnt", "-rn", "-t", "cgroup2", "-o", "TARGET"], capture_output=True, text=True, check=False)
        mounts = asked.stdout.split()
        if not mounts:
            raise CannotBoot("no cgroup2 is mounted")
        group = Path(mounts[0]) / f"kerneld-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            raise CannotBoot(f"no control group can be made: {error.strerror}") from error
        return group

    @staticmethod
    def _units(folder: Path) -> None:
        """Lay out what goes to /etc: the shipped units as they are, and drop-ins for this place."""
        system = folder / "systemd" / "system"
        for unit in ("kerneld.service", "kerneld-worker@.service"):
            drop_ins = system / f"{unit}.d"
            drop_ins.mkdir(parents=True)
            shutil.copy(ROOT / "systemd" / unit, system)
            (drop_ins / "test.conf").write_text(DROP_IN)
        (system / "kerneld-test.target").write_text(TARGET)
        for kind in ("sysusers", "tmpfiles"):
            (folder / f"{kind}.d").mkdir()
            shutil.copy(ROOT / "systemd" / f"kerneld.{kind}.conf", folder / f"{kind}.d" / "kerneld.conf")
        (folder / "kerneld").mkdir()
        shutil.copy(ROOT / "systemd" / "kerneld.toml", folder / "kerneld")

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        unshare = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child=KILL"]
        inner = ["sh", str(BOOT), str(folder / "machine"), str(ROOT), sys.base_prefix, sysconfig.get_path("purelib"), str(folder / "units")]
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(self._cgroup)]
        with self._stderr.open("wb") as log:
            return subprocess.Popen([*enter, *unshare, *inner], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _await_init(self) -> int:
        """The process id of systemd, seen from outside."""
        give_up_at = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < give_up_at:
            if self._boot.poll() is not None:
                said = self._stderr.read_text(errors="replace").strip()
                raise CannotBoot(said) if self._boot.returncode == CANNOT else RuntimeError(f"The boot script failed: {said}")
            children = Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
                return int(children[0])
            time.sleep(POLL_S)
        raise RuntimeError("systemd did not become process 1")


def remove_empty(path: Path) -> bool:
    """Remove a folder if nothing holds it."""
    try:
        path.rmdir()
    except OSError:
        return False
    return True
