"""Durable file operations, and what their failures are called.

A file that must be there wholly or not at all is made in three steps: `write_file` under a temporary name (written and synced), `os.rename`
to its real name, `sync_directory`. Only after the third is the name itself on the disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kerneld.errors import DiskFull, KernelError, Unavailable, WrongState

Bytes = bytes | bytearray | memoryview

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, content: Bytes, offset: int) -> None:
    """Write every byte at `offset`, however many calls it takes. One call is the rule; a short one means that the disk is almost full."""
    with memoryview(content) as given, given.cast("B") as view:  # an error that is kept must not keep the buffer
        num_written = 0
        while num_written < len(view):
            num_written += os.pwrite(fd, view[num_written:], offset + num_written)


def write_file(path: Path, chunks: Iterable[Bytes], mode: int = 0o600) -> int:
    """Create a file with this content, sync it, and return its size. On failure the file is gone again.

    Raises: OSError, FileExistsError among them.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    size_bytes = 0
    try:
        for chunk in chunks:
            write_all(fd, chunk, size_bytes)
            size_bytes += memoryview(chunk).nbytes
        os.fsync(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return size_bytes


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return a file's content, at most one byte more than `max_bytes`; no link is followed. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        return file.read(max_bytes + 1)


def free_bytes(path: Path) -> int:
    """Return what an unprivileged process may still write on the file system that holds `path`."""
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


@contextmanager
def disk_errors(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError about files under `path` into the kernel's word for it: DiskFull, WrongState (read-only) or Unavailable."""
    try:
        yield
    except OSError as error:
        raise explain(error, path, needed_bytes) from error


def explain(error: OSError, path: Path, needed_bytes: int = 0) -> KernelError:
    """Return the kernel's error for an OSError about a file under `path`."""
    if error.errno in _FULL:
        return _full(path, needed_bytes)
    if error.errno in _READ_ONLY:
        return WrongState(
            f"{path} cannot be written: {error.strerror}. Make it writable for the user that kerneld runs as.",
            reason="STATE_READ_ONLY",
            facts={"path": str(path)},
        )
    return Unavailable(f"The disk failed under {path}: {error.strerror}.", reason="DISK_ERROR", facts={"path": str(path)})


def _full(path: Path, needed_bytes: int) -> DiskFull:
    free = free_bytes(path if path.exists() else path.parent)
    wanted = f"{needed_bytes} bytes are needed" if needed_bytes else "more is needed"
    return DiskFull(
        f"The disk under {path} is full: {wanted}, {free} are free.",
        facts={"path": str(path), "needed_bytes": str(needed_bytes), "free_bytes": str(free)},
    )


def sync_failed(path: Path) -> Unavailable:
    """What is said when a disk did not take what was written."""
    return Unavailable(
        f"The disk under {path} failed to sync the journal: what was appended survives the daemon, but perhaps not a power cut.",
        reason="JOURNAL_SYNC_FAILED",
        facts={"path": str(path)},
    )
