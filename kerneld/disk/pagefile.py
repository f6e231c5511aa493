"""The page file: the disk tier, one file of frames. A frame on disk is the image of a host frame, header and all.

    |superblock, 4 KiB|0      |1      |2      |3      |...                frame f starts at byte 4096 + f * granule_bytes
                      |frame 1        |  hole  |frame 3   ...

    superblock, little endian
       0 magic          8 B      16 slab_bytes     u64
       8 version        u32      24 zeros
      12 granule_bytes  u32      60 crc32c         u32 (of bytes 0 .. 59)

Frames move straight between the host tier's mapping and the file. Where the file system and the granule allow it they pass the page cache
by (O_DIRECT), so that a disk tier larger than memory does not push everything else out of it.

What is in the file is a cache of pages, never the truth. It is not synced: a page that a power cut tore does not hold its checksum.

Invariants
1. Bytes of the file are data only where a frame was written and not punched since; everything else is a hole, reads as zeros, and takes no
   space. `scan` finds pages in data alone.
2. Every call names its own offset, so threads may use the file at once as long as no two name the same frame.
3. One daemon at a time has the file (flock).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from crc32c import crc32c

from drivers.hostmem import host_frame_bytes
from drivers.page_header import HEADER_BYTES, PageHeader, parse_header
from kerneld.errors import Unavailable
from kerneld.state.files import disk_errors

logger = logging.getLogger(__name__)

SUPERBLOCK_BYTES = 4096
DIRECT_BYTES = 4096  # frames that start on multiples of this may pass the page cache by

PROBE_BYTES = 8 << 20

_MAGIC = b"kd.disk\n"
_VERSION = 1
_SUPERBLOCK = struct.Struct("<8sIIQ36x")
_CHECKSUM = struct.Struct("<I")
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_ZEROS_BYTES = 1 << 20
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

_Call = Callable[[int, Sequence[memoryview], int], int]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class PageFile:
    """The frames of the disk tier. Frames are named by their first granule."""

    def __init__(self, path: Path, fd: int, granule_bytes: int) -> None:
        """Use an open, locked file with a superblock that fits; `fd` belongs to this object from here on."""
        self.path = path
        self.granule_bytes = granule_bytes
        self._fd = fd
        self._direct_fd = _open_direct(path) if granule_bytes % DIRECT_BYTES == 0 else -1
        self.is_direct = self._direct_fd >= 0  # whether frames pass the page cache by
        if not self.is_direct:
            logger.info("the page file passes through the page cache", extra={"path": str(path)})

    @classmethod
    def open(cls, path: Path, size_bytes: int, granule_bytes: int, slab_bytes: int) -> PageFile:
        """Open the file for frames of these sizes, with the pages that lie in it, or begin it anew.

        A page file that does not fit (of another version or other sizes) is a cache nobody can use and is removed; a file that is none is
        set aside as NAME.aside. Raises: Unavailable, if another daemon has it; DiskFull, WrongState, Unavailable of the disk.
        """
        with disk_errors(path.parent):
            fd = _open_locked(path)
            try:
                fd = _renewed(path, fd, _superblock(granule_bytes, slab_bytes))
                os.ftruncate(fd, SUPERBLOCK_BYTES + size_bytes)
                return cls(path, fd, granule_bytes)
            except BaseException:
                os.close(fd)
                raise

    @property
    def used_bytes(self) -> int:
        """Bytes that the file takes on the disk."""
        return os.fstat(self._fd).st_blocks * 512

    def read(self, frame: int, target: memoryview) -> None:
        """Fill `target` with what lies in a frame. Raises: OSError, also where the file ends too early; `target` holds anything then."""
        self._whole(os.preadv, frame, target)

    def write(self, frame: int, source: memoryview) -> None:
        """Write a whole frame. Raises: OSError; the frame holds anything then."""
        self._whole(os.pwritev, frame, source)

    def punch(self, frame: int, size_bytes: int) -> None:
        """Make a hole of a frame: it holds zeros and takes no space (invariant 1). Raises: OSError."""
        self._punch(SUPERBLOCK_BYTES + frame * self.granule_bytes, size_bytes)

    def keep_only(self, frames: Iterable[tuple[int, int]]) -> None:
        """Make a hole of everything but these (frame, bytes). Raises: OSError."""
        end = SUPERBLOCK_BYTES
        for frame, size_bytes in sorted(frames):
            start = SUPERBLOCK_BYTES + frame * self.granule_bytes
            if start > end:
                self._punch(end, start - end)
            end = start + size_bytes
        size = os.fstat(self._fd).st_size
        if size > end:
            self._punch(end, size - end)

    def scan(self) -> Iterator[tuple[int, PageHeader]]:
        """Give every frame whose header says that it holds a page, in order; payloads are not looked at. Raises: OSError."""
        next_frame = 0
        for start, end in self._data():
            frame = max(next_frame, -(-(start - SUPERBLOCK_BYTES) // self.granule_bytes))
            while (offset := SUPERBLOCK_BYTES + frame * self.granule_bytes) + HEADER_BYTES <= end:
                raw = os.pread(self._fd, HEADER_BYTES, offset)
                if len(raw) < HEADER_BYTES:
                    return  # somebody cut the file meanwhile
                header = parse_header(raw)
                if header is None:
                    frame += 1
                    continue
                yield frame, header
                frame += host_frame_bytes(header.payload_bytes, self.granule_bytes) // self.granule_bytes
            next_frame = frame

    def probe(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """Measure the disk beside the frames: (bytes, seconds) of a write and of a read; zeros where it cannot be done."""
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC | (os.O_DIRECT if self.is_direct else 0)
        try:
            fd = os.open(self.path.parent, flags, 0o600)
        except OSError as error:
            logger.info("the disk tier is measured in use alone", extra={"path": str(self.path), "error": str(error)})
            return (0, 0.0), (0, 0.0)
        with os.fdopen(fd), mmap.mmap(-1, PROBE_BYTES) as buffer:
            started_at = time.perf_counter()
            written = os.pwritev(fd, [buffer], 0)
            between = time.perf_counter()
            read = os.preadv(fd, [buffer], 0)
            return (written, between - started_at), (read, time.perf_counter() - between)

    def close(self) -> None:
        """Close the file; no call may be under way."""
        for fd in (self._fd, self._direct_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1

    # ------------------------------------------------------------------------------------------------------------------ inside

    def _whole(self, call: _Call, frame: int, buffer: memoryview) -> None:
        """Read or write all of a buffer, however many calls it takes."""
        offset, rest = SUPERBLOCK_BYTES + frame * self.granule_bytes, buffer
        while rest:
            try:
                num_bytes = call(self._direct_fd if self.is_direct else self._fd, [rest], offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.is_direct:
                    raise
                self.is_direct = False  # opened, but not obeyed
                logger.info("the page file passes through the page cache from now on", extra={"path": str(self.path)})
                continue
            if not num_bytes:
                raise OSError(errno.EIO, f"the page file ends within frame {frame}", str(self.path))
            rest, offset = rest[num_bytes:], offset + num_bytes

    def _data(self) -> Iterator[tuple[int, int]]:
        """Extents of data behind the superblock, as [start, end) bytes."""
        end = SUPERBLOCK_BYTES
        while True:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
                end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                raise
            yield start, end

    def _punch(self, offset: int, size_bytes: int) -> None:
        if not _libc.fallocate(self._fd, _KEEP_SIZE_PUNCH_HOLE, offset, size_bytes):
            return
        code = ctypes.get_errno()
        if code not in _NO_HOLES:
            raise OSError(code, os.strerror(code), str(self.path))
        for start in range(offset, offset + size_bytes, _ZEROS_BYTES):  # a file system without holes: zeros at least
            os.pwrite(self._fd, bytes(min(_ZEROS_BYTES, offset + size_bytes - start)), start)


def granule_of(path: Path) -> int | None:
    """The granule that a page file was made with; None, if it is no page file of this version. Raises: OSError."""
    with path.open("rb") as file:
        raw = file.read(_SUPERBLOCK.size + _CHECKSUM.size)
    if len(raw) < _SUPERBLOCK.size + _CHECKSUM.size or _CHECKSUM.unpack_from(raw, _SUPERBLOCK.size)[0] != crc32c(raw[: _SUPERBLOCK.size]):
        return None
    magic, version, granule_bytes, _slab_bytes = _SUPERBLOCK.unpack_from(raw)
    return int(granule_bytes) if (magic, version) == (_MAGIC, _VERSION) else None


def _superblock(granule_bytes: int, slab_bytes: int) -> bytes:
    body = _SUPERBLOCK.pack(_MAGIC, _VERSION, granule_bytes, slab_bytes)
    return (body + _CHECKSUM.pack(crc32c(body))).ljust(SUPERBLOCK_BYTES, b"\0")


def _open_locked(path: Path) -> int:
    """Open the file, made if there is none, for this daemon alone (invariant 3)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(fd, 0o600)
    except BlockingIOError:
        os.close(fd)
        raise Unavailable(f"Another kerneld uses the page file {path}; give each its own `kerneld.page_file`.") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _renewed(path: Path, fd: int, superblock: bytes) -> int:
    """Make sure that the file has this superblock: as it is, emptied, or another one in its place. Returns the descriptor to use."""
    found = os.pread(fd, SUPERBLOCK_BYTES, 0)
    if found == superblock:
        return fd
    if found and not found.startswith(_MAGIC):
        aside = path.with_name(path.name + ".aside")
        logger.warning("a file that is no page file was set aside", extra={"path": str(path), "aside": str(aside)})
        path.rename(aside)
        new_fd = _open_locked(path)
        os.close(fd)
        fd = new_fd
    elif found:
        logger.warning("the page file is of another version or other sizes; it is begun anew", extra={"path": str(path)})
        os.ftruncate(fd, 0)
    os.pwrite(fd, superblock, 0)
    return fd


def _open_direct(path: Path) -> int:
    """A descriptor that passes the page cache by, or -1 where the file system has none."""
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1
