"""The token journal: the append-only log that is the truth of contexts.

States: OPENED -> (`replay` to its end) -> READY -> (`close`) -> CLOSED. Everything is called on one thread; syncs and compactions run in
threads of their own, on files that `append` does not change meanwhile.

Invariants
1. When `append` returns, the records are with the operating system, in one write: no death of a process loses them, and a process that
   dies within it leaves all of them, or none.
2. When `sync` returns, every record appended before it was called is on the disk. A failed sync is never tried again on the same file: the
   segment is abandoned, a new one begins, and `needs_compaction` asks for a snapshot that does not depend on it.
3. While bytes are reserved, that many are allocated behind the last record: only `reserve` can find the disk full. Records that begin
   something (an alloc, an admit) are reserved first; records that nobody reserved use a slack that is kept beside.
4. A segment is on the disk before the next one exists, so only the last can have lost anything to a power cut.

5. Riders of an append are written if they need no byte that was reserved, and no append fails for them.

How much a request reserves is the caller's to know: `TOKEN_BYTES` per token that it may generate, and `RECORD_BYTES` for its other records.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path

from kerneld.errors import DiskFull, Unavailable
from kerneld.failpoints import hit
from kerneld.state.files import disk_errors, explain, sync_failed
from kerneld.state.records import Record, Synced
from kerneld.state.segment import HEADER_BYTES, Header, Kind, SegmentWriter, frame_together
from kerneld.state.shelf import Shelf

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20  # a segment that has grown past this is sealed
GROWTH_BYTES = 1 << 20  # room is taken in steps of this; one step took 20 us on ext4
COMPACT_SEGMENTS = 4  # sealed segments that make a compaction worth while
TOKEN_BYTES = 64  # of a step that sampled one token for one row
RECORD_BYTES = 1024  # of an admit without its input and stop strings, plus its finish
_SLACK_BYTES = 64 << 10
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Fold = Callable[[Iterable[Record]], Iterable[Record]]


class _State(Enum):
    OPENED = "opened"
    READY = "ready"
    CLOSED = "closed"


class Journal:
    """The log of one state directory. Open it, read `replay` to its end, then append."""

    _segment: SegmentWriter  # there from the end of `replay` on

    def __init__(self, path: Path, *, segment_bytes: int = SEGMENT_BYTES, machine_boot: bytes | None = None) -> None:
        """Look at the folder; nothing in it is changed before the end of `replay`. Raises: WrongState, Unavailable."""
        self._shelf = Shelf(path, machine_boot)
        self._path = path
        self._segment_bytes = segment_bytes
        self._state = _State.OPENED
        self._reserved = 0
        self._owed: list[Record] = []  # could not be written yet
        self._marked = HEADER_BYTES  # up to here a mark in the current segment says that it was synced
        self._syncing: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-sync")
        self._last_abandoned = 0
        # Written by the thread of a compaction too, as single assignments.
        self._first = self._shelf.first()
        self._is_compacting = False

    @property
    def needs_compaction(self) -> bool:
        """Whether `compact` should be called soon: the log has grown, or a segment was abandoned."""
        has_grown = self._segment.number - self._first >= COMPACT_SEGMENTS
        return not self._is_compacting and (has_grown or self._last_abandoned >= self._first)

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._reserved

    def replay(self) -> Iterator[Record]:
        """Give every record since the log began or was last compacted. At its end the journal is ready for `append`.

        Raises: DataLoss, naming file and offset; then nothing was changed. DiskFull, WrongState, Unavailable.
        """
        if self._state is not _State.OPENED:
            raise RuntimeError("the journal was already replayed")
        segments = self._shelf.segments()
        yield from self._shelf.read_snapshot()
        for number in segments[:-1]:
            yield from self._shelf.read_sealed(number)
        for number in segments[-1:]:
            yield from self._shelf.read_last(number)
        self._shelf.remove_temporary()
        self._shelf.forget_below(self._first)
        last = segments[-1] if segments else 0
        with disk_errors(self._path):
            self._segment = self._create(last + 1, self._shelf.end_of(last))
        self._state = _State.READY

    def append(self, records: Sequence[Record], riders: Sequence[Record] = ()) -> bool:
        """Write records in one call; when it returns they survive the death of any process (invariant 1).

        Returns whether `riders`, which may be lost, went along behind them (invariant 5).
        Raises: DiskFull, if the records were not reserved and the slack is used up; Unavailable. Then nothing was written.
        """
        self._check_ready()
        records = (*self._owed, *records)
        is_along = not riders
        if riders:
            with contextlib.suppress(DiskFull, Unavailable):
                self._write((*records, *riders), kept=self._reserved + _SLACK_BYTES)
                is_along = True
        if records and (not riders or not is_along):
            self._write(records)
        self._owed.clear()
        return is_along

    def owe(self, record: Record) -> None:
        """Write a record that tells what has happened, and that could not be appended, in front of the next that can."""
        self._owed.append(record)

    def append_unreserved(self, records: Sequence[Record]) -> None:
        """Append records that begin nothing; where the disk is full they use the slack. Raises: as append; then nothing was written."""
        self._check_ready()
        self._grow(self._segment, len(frame_together(records, self._segment.salt)), kept=self._reserved)
        self.append(records)

    def reserve(self, num_bytes: int) -> None:
        """Promise that `num_bytes` can be appended later, whatever becomes of the disk. Raises: DiskFull; then nothing is reserved."""
        self._check_ready()
        segment = self._segment
        end = segment.offset + self._reserved + num_bytes + _SLACK_BYTES
        if end > segment.allocated:
            with disk_errors(self._path, num_bytes):
                _allocate(segment, end)
        self._reserved += num_bytes

    def release(self, num_bytes: int) -> None:
        """Give back a reservation, used or not."""
        if num_bytes > self._reserved:
            raise ValueError(f"{num_bytes} bytes were released, {self._reserved} are reserved")
        self._reserved -= num_bytes

    async def sync(self) -> None:
        """Put everything appended so far on the disk; callers that come together share one sync (invariant 2).

        Raises: Unavailable, if the disk failed: what was appended may be lost by a power cut until a compaction has been written.
        """
        self._check_ready()
        segment, end = self._segment, self._segment.offset
        while segment.synced < end:
            if segment.is_abandoned:
                raise sync_failed(self._path)
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync_once())
            await asyncio.shield(self._syncing)

    def rotate(self) -> int:
        """Seal the current segment, begin the next and return its number. Raises: DiskFull, Unavailable; then nothing changed.

        Blocks for two or three syncs, about 10 ms on a disk. A seal that fails abandons the old segment and is no error here.
        """
        self._check_ready()
        old = self._segment
        if not old.is_abandoned:
            self._sync_old(old)  # invariant 4
        with disk_errors(self._path):
            self._segment, self._marked = self._create(old.number + 1, old.offset), HEADER_BYTES
        old.close()
        return self._segment.number

    async def compact(self, fold: Fold) -> None:
        """Replace all sealed segments by the shorter list of records that `fold` makes of them, in a thread.

        `fold` must be pure: folding its result and what follows gives the same as folding everything. Does nothing while another
        compaction runs. Raises: DataLoss, if a segment does not read back; DiskFull, Unavailable. Then the older files still stand.
        """
        if not self._is_compacting:
            number = self.rotate()
            self._is_compacting = True
            await asyncio.to_thread(self._compact, number, fold)

    def close(self) -> None:
        """Put the log on the disk and stop. Safe to call twice. Raises: Unavailable, if the disk failed."""
        if self._state is _State.CLOSED:
            return
        if self._owed:
            with contextlib.suppress(DiskFull, Unavailable):
                self.append(())
        was_ready, self._state = self._state is _State.READY, _State.CLOSED
        self._executor.shutdown(wait=True)
        if not was_ready:
            return
        if not self._segment.is_abandoned:
            self._sync_old(self._segment)
        self._segment.close()
        if self._segment.is_abandoned:
            raise sync_failed(self._path)

    def _create(self, number: int, previous_end: int) -> SegmentWriter:
        """Make a segment with room for all that is reserved, so that invariant 3 holds before its first record."""
        header = Header(Kind.LOG, number, self._shelf.machine_boot, previous_end)
        end = HEADER_BYTES + self._reserved + _SLACK_BYTES
        path = self._shelf.file(number, "log")
        return SegmentWriter(path, header, end)

    def _try_rotate(self) -> None:
        """Begin a new segment if there is room for one; a disk that is full lets the old one grow."""
        try:
            self.rotate()
        except (DiskFull, Unavailable) as error:
            logger.warning("the journal could not begin a new segment", extra={"error": error.message})

    def _write(self, records: Sequence[Record], kept: int = 0) -> None:
        if self._segment.offset >= self._segment_bytes or self._segment.is_abandoned:
            self._try_rotate()
        segment, synced = self._segment, self._segment.synced
        if synced > self._marked:
            records = (Synced(synced), *records)
        framed = frame_together(records, segment.salt)
        self._grow(segment, len(framed), kept)
        with disk_errors(self._path, len(framed)):
            segment.write(framed)
        self._marked = synced

    def _grow(self, segment: SegmentWriter, num_bytes: int, kept: int = 0) -> None:
        """Keep the reserved bytes allocated behind the next `num_bytes`; where the disk is full, records use all of them but `kept`."""
        end = segment.offset + num_bytes + self._reserved + _SLACK_BYTES
        if end <= segment.allocated:
            return
        try:
            _allocate(segment, end)
        except OSError as error:
            if error.errno not in _FULL or segment.offset + num_bytes + kept > segment.allocated:
                raise explain(error, self._path, num_bytes) from error

    def _sync_old(self, segment: SegmentWriter) -> None:
        try:
            segment.sync()
        except OSError as error:
            self._abandon(segment, error)

    async def _sync_once(self) -> None:
        """Sync the current segment once, in a thread. The descriptor is a copy: the segment may be sealed meanwhile."""
        segment, end = self._segment, self._segment.offset
        fd = os.dup(segment.fd)
        try:
            hit("journal.sync.before")
            await asyncio.get_running_loop().run_in_executor(self._executor, os.fdatasync, fd)
            hit("journal.sync.after")
            segment.synced = max(segment.synced, end)
        except OSError as error:
            self._abandon(segment, error)
            if self._segment is segment and self._state is _State.READY:
                self._try_rotate()
        finally:
            self._syncing = None
            os.close(fd)

    def _abandon(self, segment: SegmentWriter, error: OSError) -> None:
        segment.is_abandoned = True
        self._last_abandoned = segment.number
        logger.error("a journal segment could not be synced and was abandoned", extra={"segment": segment.path.name, "error": str(error)})

    def _compact(self, number: int, fold: Fold) -> None:
        try:
            self._shelf.write_snapshot(number, fold(self._read_below(number)))
            self._first = number
        finally:
            self._is_compacting = False

    def _read_below(self, number: int) -> Iterator[Record]:
        yield from self._shelf.read_snapshot()
        for sealed in range(self._first, number):
            yield from self._shelf.read_sealed(sealed)

    def _check_ready(self) -> None:
        if self._state is not _State.READY:
            raise RuntimeError(f"the journal is {self._state.value}")


def _allocate(segment: SegmentWriter, end: int) -> None:
    try:
        segment.allocate(end + GROWTH_BYTES)
    except OSError:
        segment.allocate(end)  # not a whole step then, but all that is needed
