"""Checks of what lies in a state directory: each reads one part to its end, changes nothing, and says what does not hold.

A part may be in use while it is checked: what is being written just then is looked at twice before it is called wrong.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from kerneld.errors import DataLoss, KernelError
from kerneld.holdings import PartChecked
from kerneld.state import chain
from kerneld.state.segment import SegmentReader, Tail
from kerneld.state.shelf import Shelf

MOST_PROBLEMS = 20


def check_database(path: Path) -> PartChecked:
    """Let SQLite look through the database, indexes and foreign keys included."""
    num_rows, problems = 0, list[str]()
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            problems += [f"{path.name}: {line}" for line in found if line != "ok"]
            broken = connection.execute("PRAGMA foreign_key_check").fetchall()
            problems += [f"{path.name}: a row of {row[0]} names a row of {row[2]} that is not there" for row in broken]
            names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            num_rows = sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names)
    except sqlite3.Error as error:
        problems.append(f"{path.name}: {error}")
    size_bytes = path.stat().st_size if path.exists() else 0
    return PartChecked("database", num_rows, "rows", size_bytes, tuple(problems[:MOST_PROBLEMS]))


def check_journal(folder: Path, *, is_live: bool) -> PartChecked:
    """Read every record of the journal. `is_live`: a daemon appends to it."""
    for is_second in (False, True):
        part = _read_journal(folder, is_live)
        if not part.problems or (is_second or not is_live):
            break
    return part


def check_audit(folder: Path) -> PartChecked:
    """Follow the hash chain of the audit log."""
    files = sorted(folder.glob("*.jsonl")) or [path for path in folder.iterdir() if path.is_file()] if folder.exists() else []
    size_bytes = sum(path.stat().st_size for path in files)
    problem = chain.verify(folder) if files else None
    return PartChecked("audit log", len(files), "files", size_bytes, (problem,) if problem else ())


def _read_journal(folder: Path, is_live: bool) -> PartChecked:
    num_records = num_bytes = 0
    problems: list[str] = []
    shelf = Shelf(folder, None)
    try:
        segments = shelf.segments()
        num_records += sum(1 for _ in shelf.read_snapshot())
        for number in segments[:-1]:
            num_records += sum(1 for _ in shelf.read_sealed(number))
            num_bytes += shelf.end_of(number)
        for number in segments[-1:]:
            with SegmentReader(shelf.file(number, "log")) as reader:
                num_records += sum(1 for _ in reader.records())
                num_bytes += reader.end
                problems += _tail_problems(reader, is_live)
    except DataLoss as error:
        problems.append(error.message)
    except (KernelError, OSError) as error:
        problems.append(f"The journal cannot be read: {error}")
    return PartChecked("journal", num_records, "records", num_bytes, tuple(problems))


def _tail_problems(reader: SegmentReader, is_live: bool) -> Iterator[str]:
    tail = reader.tail()
    if tail is Tail.DAMAGED:
        yield f"{reader.path} does not hold at byte {reader.end}, and there are records behind it."
    elif tail is Tail.TORN and not is_live:
        yield f"{reader.path} ends at byte {reader.end} in an append that did not finish: nothing was lost, the next start cuts it off."
