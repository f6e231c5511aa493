"""The chain of the audit log on disk: lines of JSON, each bound to the one before it by a hash.

    audit-000000000001.log     a full file, named by the number of its first entry
    audit.log                  the file that is being written
    audit.head                 number and hash of the last entry that was on the disk when this was written

    hash of an entry = SHA-256(hash of the entry before + the entry without its hash); the first one follows 64 zeros

Invariants
1. A line is the one and only encoding of its entry: whatever is changed in it, if only a space, no longer reads back the same.
2. Entries are on the disk before the head that names them. So a crash leaves the head behind the log, never before it, and at most a part
   of a line behind the last whole one. A log that ends before its head has lost entries by another hand.
3. When entries or the head are missing at a start, the chain does not go on from what is left: the gap stays to be seen.

The hashes have no key: whoever may write all files of the log can write another history. Send the head elsewhere to prevent that.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from kerneld.failpoints import hit
from kerneld.state.files import sync_directory, write_all, write_file

logger = logging.getLogger(__name__)

NO_HASH = "0" * 64
_encode = msgspec.json.Encoder(order="deterministic").encode


class Entry(msgspec.Struct, frozen=True):
    """One line of the audit log."""

    seq: int
    at: float
    principal: str
    tenant: str
    via: str
    credential_id: str
    verb: str
    object_id: str
    outcome: str
    facts: dict[str, str]
    hash: str = ""


class Head(msgspec.Struct, frozen=True):
    """Where the chain stands."""

    seq: int = 0
    hash: str = NO_HASH


class AuditChain:
    """The writing end of the chain. Every method blocks; one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Find the end of the chain, and cut off what a crash left of a line. Raises: OSError."""
        self._folder = folder
        self._max_bytes = max_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / "audit.log"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._head, self._offset = self._recover()
        self._write_head()

    @property
    def next_seq(self) -> int:
        """Return the number that the next entry has to have."""
        return self._head.seq + 1

    def write(self, entries: Iterable[Entry]) -> None:
        """Append entries, numbered from `next_seq` on, and put them on the disk. Raises: OSError; then none was appended."""
        if self._offset >= self._max_bytes:
            self._rotate()
        head = self._head
        lines = []
        for entry in entries:
            sealed = seal(entry, head.hash)
            lines.append(_encode(sealed) + b"\n")
            head = Head(sealed.seq, sealed.hash)
        content = b"".join(lines)
        try:
            hit("audit.append.before_write")
            write_all(self._fd, content, self._offset)
            os.fdatasync(self._fd)
            hit("audit.append.after_write")
        except OSError:
            os.ftruncate(self._fd, self._offset)
            raise
        self._offset += len(content)
        self._head = head
        try:
            self._write_head()
        except OSError as error:
            logger.warning("the audit head could not be written; it stays behind the log", extra={"error": str(error)})

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _recover(self) -> tuple[Head, int]:
        """Return where the chain goes on, and the size of the file that is being written."""
        content = self._path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            logger.warning("the audit log ended in a part of a line; it was cut off", extra={"bytes_cut": len(content) - end})
            os.ftruncate(self._fd, end)
        entries = [parse(line) for line in content[:end].splitlines()]
        last = entries[-1].seq if entries and entries[-1] is not None else 0
        head = read_head(self._folder)
        if head is None:
            if entries or any(self._folder.glob("audit-*.log")):
                logger.error("audit.head is missing or damaged; the audit log does not verify any more")
            return Head(last), end  # invariant 3
        if entries and last < head.seq:
            logger.error("the audit log lost entries at its end", extra={"last": last, "expected": head.seq})
        for entry in entries:
            if entry is not None and entry.seq == head.seq + 1 and entry == seal(entry, head.hash):
                head = Head(entry.seq, entry.hash)  # written by a process that died before it wrote the head
        return head, end

    def _rotate(self) -> None:
        self._write_head()  # a start looks for entries behind the head in the newest file alone
        with self._path.open("rb") as file:
            first = parse(file.readline().rstrip(b"\n"))
        number = first.seq if first is not None else self._head.seq
        following, full = self._folder / "audit.log.next", self._folder / f"audit-{number:012d}.log"
        fd = os.open(following, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.rename(self._path, full)
        try:
            hit("audit.rotate.after_rename")
            os.rename(following, self._path)
        except OSError:
            os.close(fd)
            os.rename(full, self._path)
            raise
        sync_directory(self._folder)
        os.close(self._fd)
        self._fd, self._offset = fd, 0

    def _write_head(self) -> None:
        temporary = self._folder / "audit.head.temp"
        temporary.unlink(missing_ok=True)
        write_file(temporary, [_encode(self._head) + b"\n"])
        os.rename(temporary, self._folder / "audit.head")
        hit("audit.head.after_rename")
        sync_directory(self._folder)


def verify(folder: Path) -> str | None:
    """Read the whole audit log and say what is wrong with it, None if nothing is. Raises: OSError."""
    expected = Head()
    stored = read_head(folder)
    is_head_seen = stored == expected
    for name, number, line in _lines(folder):
        entry = parse(line)
        if entry is None:
            return f"{name} line {number} is not an entry as it was written."
        if entry.seq != expected.seq + 1:
            return f"{name} line {number} is entry {entry.seq}, but entry {expected.seq + 1} belongs there."
        if entry != seal(entry, expected.hash):
            return f"{name} line {number} (entry {entry.seq}) was changed, or one before it."
        expected = Head(entry.seq, entry.hash)
        is_head_seen = is_head_seen or expected == stored
    if stored is None and expected.seq:
        return "audit.head is missing or was changed."
    if stored is not None and not is_head_seen:
        return f"audit.head names entry {stored.seq} as it is not in the log, which has {expected.seq}: entries at its end were removed."
    return None


def seal(entry: Entry, previous: str) -> Entry:
    """Return the entry with its hash."""
    bare = msgspec.structs.replace(entry, hash="")
    return msgspec.structs.replace(bare, hash=hashlib.sha256(previous.encode() + _encode(bare)).hexdigest())


def parse(line: bytes) -> Entry | None:
    """Return the entry of a line without its end, None if it is not one exactly as it was written (invariant 1)."""
    try:
        entry = msgspec.json.decode(line, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return entry if _encode(entry) == line else None


def read_head(folder: Path) -> Head | None:
    """Return the stored head, None if there is none that reads back as it was written."""
    try:
        content = (folder / "audit.head").read_bytes()
        head = msgspec.json.decode(content, type=Head)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return head if _encode(head) + b"\n" == content else None


def _lines(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """Give (file, line number, line) of all whole lines, oldest first."""
    current = folder / "audit.log"
    for path in [*sorted(folder.glob("audit-*.log")), *([current] if current.exists() else [])]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield path.name, number, line[:-1]
                elif path != current:
                    yield path.name, number, line  # only the newest file can end in a part of a line (invariant 2)
