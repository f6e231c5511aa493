"""The state directory: one daemon's durable state, held by one daemon at a time.

    kerneld.db      relations                       journal/   the token log
    audit/          the audit log                   images/    what checkpoint leaves
    kerneld.lock    held with flock while a daemon lives; its text is the holder's pid

Invariants
1. Whoever has a StateDirectory holds the lock; the kernel gives it back when the process dies, however it dies.
2. The directory is readable for its owner alone.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kerneld.errors import DataLoss, WrongState
from kerneld.state.files import disk_errors


class StateDirectory:
    """A locked state directory and the paths in it."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.database = path / "kerneld.db"
        self.journal = path / "journal"
        self.images = path / "images"
        self.audit = path / "audit"
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path) -> StateDirectory:
        """Take the directory, making it if it is not there.

        Raises: WrongState, if it cannot be written or another daemon has it; DataLoss, if there is a journal but no database beside it.
        """
        with disk_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(path / "kerneld.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(lock_fd, path)
            directory = cls(path, lock_fd)
            with disk_errors(path):
                directory._prepare()
        except BaseException:
            os.close(lock_fd)
            raise
        return directory

    def close(self) -> None:
        """Give the directory back. Safe to call twice."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _prepare(self) -> None:
        has_database = self.database.exists() and self.database.stat().st_size > 0
        if any(self.journal.glob("*.log")) and not has_database:
            raise DataLoss(
                f"{self.path} has a journal but no database in {self.database.name}. Restore the database from a backup, or move the "
                "whole directory away to start from nothing.",
                facts={"path": str(self.database)},
            )
        os.chmod(self.path, 0o700)  # invariant 2
        for part in (self.journal, self.images, self.audit):
            part.mkdir(mode=0o700, exist_ok=True)


def _lock(lock_fd: int, path: Path) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise WrongState(
            f"The state directory {path} is in use by another daemon (pid {pid}).",
            reason="STATE_LOCKED",
            facts={"path": str(path), "pid": pid},
        ) from error
    with disk_errors(path):
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
