"""DiskReserve: the free space under the state directory that new work must leave alone.

What was admitted may still be written when the disk is full for everybody else, and so may what an administrator does to free some.
"""

from __future__ import annotations

from pathlib import Path

from kerneld.errors import DiskFull
from kerneld.state.files import disk_errors, free_bytes
from memory.remedy import size_text


class DiskReserve:
    """Looks at the disk before work is admitted."""

    def __init__(self, path: Path, reserve_bytes: int) -> None:
        """`reserve_bytes` 0: new work may use the last byte."""
        self._path = path
        self._reserve_bytes = reserve_bytes

    def has_room(self, num_bytes: int) -> bool:
        """Whether a cache may take so many bytes more and leave the reserve alone."""
        try:
            return not self._reserve_bytes or free_bytes(self._path) - num_bytes >= self._reserve_bytes
        except OSError:
            return False

    def check(self) -> None:
        """Let new work in, or not. Raises: DiskFull; Unavailable, if the disk does not answer."""
        if not self._reserve_bytes:
            return
        with disk_errors(self._path):
            free = free_bytes(self._path)
        if free < self._reserve_bytes:
            raise DiskFull(
                f"The disk under {self._path} is full: {size_text(free)} are free, {size_text(self._reserve_bytes)} are kept "
                "(kerneld.disk_reserve_bytes).",
                facts={"path": str(self._path), "needed_bytes": str(self._reserve_bytes), "free_bytes": str(free)},
            )
