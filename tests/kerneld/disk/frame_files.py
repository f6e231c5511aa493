"""Page files that fail or wait as a test says; everything else is done by a real one."""

from __future__ import annotations

import errno
import threading

from kerneld.disk.carrier import FrameFile


class BrokenFile:
    """A disk that is gone."""

    def read(self, frame: int, target: memoryview) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def write(self, frame: int, source: memoryview) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def punch(self, frame: int, size_bytes: int) -> None:
        raise OSError(errno.EIO, "Input/output error")


class GatedFile:
    """A disk that does nothing until it is let; then it is as quick as any."""

    def __init__(self, inner: FrameFile) -> None:
        self._inner = inner
        self._gate = threading.Event()
        self.num_waiting = 0

    def let(self) -> None:
        self._gate.set()

    def read(self, frame: int, target: memoryview) -> None:
        self._wait()
        self._inner.read(frame, target)

    def write(self, frame: int, source: memoryview) -> None:
        self._wait()
        self._inner.write(frame, source)

    def punch(self, frame: int, size_bytes: int) -> None:
        self._inner.punch(frame, size_bytes)

    def _wait(self) -> None:
        self.num_waiting += 1
        assert self._gate.wait(30), "the test lets it"


class SlowToWrite(GatedFile):
    """A disk that reads at once, and writes when it is let."""

    def read(self, frame: int, target: memoryview) -> None:
        self._inner.read(frame, target)


class FullFile(GatedFile):
    """A disk that reads at once, and takes nothing more."""

    def read(self, frame: int, target: memoryview) -> None:
        self._inner.read(frame, target)

    def write(self, frame: int, source: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
