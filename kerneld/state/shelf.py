"""The journal's folder: which files there are, what they hold, and which of them count.

    000000000007.snapshot   what segments 1..6 came to; when it is there, they are on their way out
    000000000007.log        a sealed segment; the next one's header says where its records end
    000000000008.log        the last segment
    *.temp                  left by a process that died; removed at the next boot

Invariants
1. Segments are numbered without a gap, from the newest snapshot's number (or 1) on.
2. A snapshot counts only if it is whole; it gets its name after it is on the disk, and what it replaces goes after that.
3. Only the last segment may end in a torn append, which is cut with a warning. Anything else that is not a record is DataLoss, except in
   the last segment after the machine was restarted: records that were never synced may have holes then, and the log ends at the first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kerneld.errors import DataLoss
from kerneld.failpoints import hit
from kerneld.state.files import disk_errors, sync_directory, write_file
from kerneld.state.records import Record, SnapshotEnd, Synced
from kerneld.state.segment import Header, Kind, SegmentReader, Tail, damage, frame

logger = logging.getLogger(__name__)

_SNAPSHOT_CHUNK = 64  # records framed at a time


class Shelf:
    """The files of one journal. It holds no state of its own: two threads may use it on different files."""

    def __init__(self, path: Path, machine_boot: bytes | None) -> None:
        """Look at the folder. Raises: WrongState or Unavailable, if it cannot be used."""
        self.path = path
        self.machine_boot = machine_boot or _read_machine_boot()
        with disk_errors(path):
            path.mkdir(mode=0o700, exist_ok=True)

    def file(self, number: int, suffix: str) -> Path:
        """Return the path of a segment ("log") or a snapshot ("snapshot")."""
        return self.path / f"{number:012d}.{suffix}"

    def first(self) -> int:
        """Return the number of the newest snapshot; 1 if there is none."""
        return max(self._numbers("snapshot"), default=1)

    def segments(self) -> list[int]:
        """Return the numbers of the segments that count, in order. Raises: DataLoss, if one is missing (invariant 1)."""
        snapshots = self._numbers("snapshot")
        first = max(snapshots, default=1)
        present = [number for number in self._numbers("log") if number >= first]
        expected = range(first, max(present, default=first if snapshots else 0) + 1)
        missing = sorted(set(expected) - set(present))
        if missing:
            raise DataLoss(
                f"The journal in {self.path} misses segment {missing[0]}. Restore the state directory from a backup; nothing was changed.",
                facts={"file": str(self.file(missing[0], "log"))},
            )
        return present

    def read_snapshot(self) -> Iterator[Record]:
        """Give the records of the newest snapshot; none if there is no snapshot. Raises: DataLoss."""
        number = max(self._numbers("snapshot"), default=0)
        if not number:
            return
        num_records = 0
        with disk_errors(self.path), self._open(number, Kind.SNAPSHOT) as reader:
            for record in reader.records():
                if isinstance(record, SnapshotEnd) and record.num_records == num_records and reader.end == reader.size_bytes:
                    return
                num_records += 1
                yield record
            raise damage(reader.path, reader.end, "a record of the snapshot does not hold its checksum")

    def read_sealed(self, number: int) -> Iterator[Record]:
        """Give the records of a segment that has a next one. Raises: DataLoss, if they are not all there."""
        with disk_errors(self.path):
            with self._open(number + 1, Kind.LOG) as following:
                expected = following.header.previous_end
            with self._open(number, Kind.LOG) as reader:
                yield from _visible(reader.records(limit=expected))
                if reader.end != expected:
                    raise damage(
                        reader.path, reader.end, f"a record does not hold its checksum, and there are records up to byte {expected}"
                    )

    def read_last(self, number: int) -> Iterator[Record]:
        """Give the records of the last segment. Then cut off what a torn append left and put the rest on the disk.

        Raises: DataLoss; then nothing was changed.
        """
        with disk_errors(self.path):
            with self._open(number, Kind.LOG) as reader:
                yield from _visible(reader.records())
                end, tail = reader.end, reader.tail()
                if tail is Tail.DAMAGED and not self._is_lost_by_power_cut(reader):
                    raise damage(reader.path, end, "a record does not hold its checksum")
            if tail is not Tail.CLEAN:
                facts = {"file": reader.path.name, "offset": end, "bytes_cut": reader.size_bytes - end}
                logger.warning("the journal ended in an append that did not finish; it was cut off", extra=facts)
            _settle(reader.path, end)

    def end_of(self, number: int) -> int:
        """Return where a settled segment ends; 0 for segment 0, which there is not."""
        with disk_errors(self.path):
            return self.file(number, "log").stat().st_size if number else 0

    def write_snapshot(self, number: int, records: Iterable[Record]) -> None:
        """Replace everything below segment `number` by `records`. Raises: DiskFull, Unavailable; then the older files still stand."""
        path = self.file(number, "snapshot")
        temporary = path.with_name(path.name + ".temp")
        with disk_errors(self.path):
            temporary.unlink(missing_ok=True)
            hit("journal.snapshot.before_write")
            write_file(temporary, _snapshot_chunks(Header(Kind.SNAPSHOT, number, self.machine_boot), records))
            hit("journal.snapshot.after_sync")
            os.rename(temporary, path)
            hit("journal.snapshot.after_rename")
            sync_directory(self.path)
        self.forget_below(number)

    def forget_below(self, number: int) -> None:
        """Remove what the snapshot `number` replaces. Raises: Unavailable; then it can be done again."""
        with disk_errors(self.path):
            for suffix in ("log", "snapshot"):
                for old in self._numbers(suffix):
                    if old < number:
                        self.file(old, suffix).unlink()
                        hit("journal.snapshot.after_delete")
            sync_directory(self.path)

    def remove_temporary(self) -> None:
        """Remove what a process that died left unfinished."""
        with disk_errors(self.path):
            for path in self.path.glob("*.temp"):
                path.unlink()

    def _open(self, number: int, kind: Kind) -> SegmentReader:
        reader = SegmentReader(self.file(number, "log" if kind is Kind.LOG else "snapshot"))
        if (reader.header.kind, reader.header.number) != (kind, number):
            raise damage(reader.path, 0, f"it says that it is {reader.header.kind.name.lower()} {reader.header.number}")
        return reader

    def _is_lost_by_power_cut(self, reader: SegmentReader) -> bool:
        """Whether the hole at the reader's end is one that nobody was promised away (invariant 3)."""
        return reader.header.machine_boot != self.machine_boot and not reader.was_synced(reader.end)

    def _numbers(self, suffix: str) -> list[int]:
        return sorted(int(file.stem) for file in self.path.glob(f"*.{suffix}") if file.stem.isdecimal())


def _visible(records: Iterator[Record]) -> Iterator[Record]:
    return (record for record in records if not isinstance(record, Synced))


def _settle(path: Path, end: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, end)
        os.fsync(fd)
    finally:
        os.close(fd)


def _snapshot_chunks(header: Header, records: Iterable[Record]) -> Iterator[bytes]:
    yield header.pack()
    chunk: list[Record] = []
    num_records = 0
    for record in records:
        num_records += 1
        chunk.append(record)
        if len(chunk) == _SNAPSHOT_CHUNK:
            yield frame(chunk, header.salt)
            chunk = []
    yield frame([*chunk, SnapshotEnd(num_records)], header.salt)


def _read_machine_boot() -> bytes:
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", ""))
