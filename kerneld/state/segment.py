"""One file of the journal: a header, then records, then zeros.

    header, 56 bytes, little endian
       0 magic 8 B     8 version u32     12 kind u32 (1 log, 2 snapshot)     16 number u64     24 machine boot id 16 B
      40 previous end u64: where the records of the segment before end     48 salt u32     52 crc32c u32 (of bytes 0 .. 51)
    record
       0 length u32     4 crc32c u32 (of the length and the payload, started from the salt)     8 payload: a msgpack array     end mark 0xc1
       the payload is one record, or all records of an append (`Together`)

    |header|record|record|record|000000000000000000000| <- allocated ahead; a length of 0 is the end

Invariants
1. A file with a segment's name has a whole header: it gets that name after the header is on the disk.
2. A record is believed only if its checksum holds. The salt is random and never leaves the file, so no caller can hide a record that would
   be believed inside the tokens of another.
3. Bytes behind the last record are zeros, or the first part of an append that did not finish, or damage. An append lands on zeros, so one
   that was cut short has a zero for its last end mark; with anything else there and a wrong checksum, it was damaged later.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import msgspec
from crc32c import crc32c

from kerneld.errors import DataLoss
from kerneld.failpoints import hit
from kerneld.state.files import sync_directory, write_all
from kerneld.state.records import Record, Synced, Together

logger = logging.getLogger(__name__)

_MAGIC = b"kd.jrnl\n"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ16sQI")
_CHECKSUM = struct.Struct("<I")
_FRAME = struct.Struct("<II")
_END_MARK = b"\xc1"  # a byte that msgpack never uses
HEADER_BYTES = _HEADER.size + _CHECKSUM.size

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record | Together).decode


class Kind(Enum):
    """What a segment file is."""

    LOG = 1
    SNAPSHOT = 2


class Tail(Enum):
    """What lies behind the last record of a segment."""

    CLEAN = "clean"  # nothing, or zeros
    TORN = "torn"  # something, but no record: an append that did not finish
    DAMAGED = "damaged"  # something, and whole records after it


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself."""

    kind: Kind
    number: int
    machine_boot: bytes  # the machine's boot id when it was made: another one now means that the page cache is gone since
    previous_end: int = 0
    salt: int = field(default_factory=lambda: secrets.randbits(32))

    def pack(self) -> bytes:
        """Return the header's bytes."""
        body = _HEADER.pack(_MAGIC, _VERSION, self.kind.value, self.number, self.machine_boot, self.previous_end, self.salt)
        return body + _CHECKSUM.pack(crc32c(body))


def frame_together(records: Sequence[Record], salt: int) -> bytes:
    """Return records as they lie in a segment with this salt, under one checksum: a reader finds all of them, or none."""
    return frame(records if len(records) < 2 else (Together(tuple(records)),), salt)


def frame(records: Sequence[Record | Together], salt: int) -> bytes:
    """Return records as they lie in a segment with this salt, each by itself."""
    parts: list[bytes] = []
    for record in records:
        payload = _encode(record)
        length = _CHECKSUM.pack(len(payload))
        parts += (length, _CHECKSUM.pack(crc32c(payload, crc32c(length, salt))), payload, _END_MARK)
    return b"".join(parts)


class SegmentReader:
    """The records of one segment file, in order. A context manager: the file is mapped while it is open."""

    def __init__(self, path: Path) -> None:
        """Map a segment and check its header. Raises: OSError; DataLoss, naming the file."""
        self.path = path
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.size_bytes = os.fstat(fd).st_size
            if self.size_bytes < HEADER_BYTES:
                raise damage(path, 0, "the file ends within its header")
            self._map = mmap.mmap(fd, self.size_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self.header = self._read_header()
        self.end = HEADER_BYTES  # behind the last record that was given

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def records(self, limit: int | None = None) -> Iterator[Record]:
        """Give the records up to `limit` or the first thing that is none; `end` and `tail()` then speak of what is behind them.

        Raises: DataLoss, for a record whose checksum holds but which this version cannot read.
        """
        while self.end != limit and (size_bytes := self._record_bytes(self.end)) > 0:
            start = self.end
            self.end += size_bytes
            yield from self._decode(start, size_bytes)

    def tail(self) -> Tail:
        """Say what lies behind `end`, once `records` is through."""
        if not self._map[self.end :].strip(b"\0"):
            return Tail.CLEAN
        if self._last_byte(self.end) != b"\0":
            return Tail.DAMAGED  # invariant 3
        return Tail.TORN if next(self.later_records(), None) is None else Tail.DAMAGED

    def later_records(self) -> Iterator[Record]:
        """Give every whole record that can be found behind the damage at `end`."""
        offset = self.end + 1
        last = self.end + len(self._map[self.end :].rstrip(b"\0"))
        while offset < last:
            size_bytes = self._record_bytes(offset)
            if size_bytes:
                yield from self._decode(offset, size_bytes)
            offset += size_bytes or 1

    def was_synced(self, offset: int) -> bool:
        """Whether a later record says that everything up to beyond `offset` had reached the disk."""
        return any(isinstance(record, Synced) and record.offset > offset for record in self.later_records())

    def _read_header(self) -> Header:
        raw = self._map[:HEADER_BYTES]
        magic, version, kind, number, machine_boot, previous_end, salt = _HEADER.unpack_from(raw)
        if magic != _MAGIC or _CHECKSUM.unpack_from(raw, _HEADER.size)[0] != crc32c(raw[: _HEADER.size]):
            raise damage(self.path, 0, "its header does not hold its checksum")
        if version > _VERSION:
            raise damage(self.path, 0, f"it was written by a newer kerneld (format {version}, this one reads up to {_VERSION})")
        return Header(Kind(kind), number, machine_boot, previous_end, salt)

    def _last_byte(self, offset: int) -> bytes:
        """Return the byte where the record that `offset` seems to be should have its end mark; zero if there is no room for it."""
        room = self.size_bytes - offset - _FRAME.size - len(_END_MARK)
        if room <= 0:
            return b"\0"
        length, _ = _FRAME.unpack_from(self._map, offset)
        end = offset + _FRAME.size + length
        return self._map[end : end + 1] if 0 < length <= room else b"\0"

    def _record_bytes(self, offset: int) -> int:
        """Return the bytes of the record at `offset`, 0 if there is none."""
        if self._last_byte(offset) != _END_MARK:
            return 0
        length, checksum = _FRAME.unpack_from(self._map, offset)
        start = offset + _FRAME.size
        computed = crc32c(self._map[start : start + length], crc32c(_CHECKSUM.pack(length), self.header.salt))
        return _FRAME.size + length + len(_END_MARK) if computed == checksum else 0

    def _decode(self, offset: int, size_bytes: int) -> tuple[Record, ...]:
        payload = self._map[offset + _FRAME.size : offset + size_bytes - len(_END_MARK)]
        try:
            record: Record | Together = _decode(payload)
        except msgspec.DecodeError as error:
            raise damage(self.path, offset, f"a record that this version cannot read ({error})") from error
        return record.records if isinstance(record, Together) else (record,)


class SegmentWriter:
    """The segment that is being written. `offset` is where the next record goes, `allocated` the end of what the file system gave."""

    def __init__(self, path: Path, header: Header, allocated: int) -> None:
        """Make a new segment, wholly on the disk, with room up to `allocated`. Raises: OSError; then there is no such file."""
        self.path = path
        self.number = header.number
        self.salt = header.salt
        self.offset = HEADER_BYTES
        self.allocated = max(allocated, HEADER_BYTES)
        self.synced = HEADER_BYTES  # everything before it is on the disk
        self.is_abandoned = False  # a sync or a cut failed: no more is written here than has to be, and it is never synced again
        self.fd = _create(path, header, self.allocated)

    def write(self, framed: bytes) -> None:
        """Put framed records behind the last. Raises: OSError; then the segment is as before.

        A write that failed half way is cut off: its first records must not be believed when a shorter one lands in front of the rest.
        """
        try:
            hit("journal.append.before_write")
            write_all(self.fd, framed, self.offset)
            hit("journal.append.after_write")
        except OSError:
            self.is_abandoned = True  # unless the rest of this succeeds
            os.ftruncate(self.fd, self.offset)
            os.posix_fallocate(self.fd, self.offset, max(1, self.allocated - self.offset))
            self.is_abandoned = False
            raise
        self.offset += len(framed)
        self.allocated = max(self.allocated, self.offset)

    def allocate(self, end: int) -> None:
        """Take room up to `end`, which stays zeros until it is written. Raises: OSError; then the room is as before."""
        hit("journal.reserve.before_allocate")
        os.posix_fallocate(self.fd, self.allocated, end - self.allocated)
        self.allocated = end

    def sync(self) -> None:
        """Put all records on the disk. Raises: OSError; then the segment is abandoned."""
        try:
            os.fdatasync(self.fd)
        except OSError:
            self.is_abandoned = True
            raise
        self.synced = self.offset

    def close(self) -> None:
        """Give back the room that was not used, and the file."""
        try:
            os.ftruncate(self.fd, self.offset)
        except OSError as error:
            logger.warning("unused room of a journal segment stays taken", extra={"segment": self.path.name, "error": str(error)})
        finally:
            os.close(self.fd)


def _create(path: Path, header: Header, allocated: int) -> int:
    temporary = path.with_suffix(".temp")
    temporary.unlink(missing_ok=True)
    hit("journal.segment.before_write")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, allocated)
        write_all(fd, header.pack(), 0)
        os.fsync(fd)
        hit("journal.segment.after_sync")
        os.rename(temporary, path)  # invariant 1
        hit("journal.segment.after_rename")
        sync_directory(path.parent)
    except BaseException:
        os.close(fd)
        temporary.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise
    return fd


def damage(path: Path, offset: int, problem: str) -> DataLoss:
    """Return the error that names a damaged place."""
    return DataLoss(
        f"The journal is damaged: {path.name} at byte {offset}: {problem}. Restore the state directory from a backup; nothing was changed.",
        facts={"file": str(path), "offset": str(offset)},
    )
