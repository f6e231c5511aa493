"""The database behind the store: how it is opened, and what its failures are called.

SQLite in WAL mode with `synchronous=FULL` (one sync a commit; NORMAL would lose the last commits at power loss), or what else SQLAlchemy
reaches by URL. One engine writes and takes its lock at the start of a transaction, so that no transaction fails half way for want of it;
another one reads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool

from kerneld.errors import Conflict, DataLoss, DiskFull, KernelError, Unavailable, WrongState
from kerneld.state.files import disk_errors, explain, free_bytes
from kerneld.state.migrations import migrate

# Primary result codes. Source: sqlite.org/rescode.html
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26


@dataclass(frozen=True, slots=True)
class Database:
    """An open database: checked, and at the newest schema version."""

    writer: Engine
    reader: Engine
    path: Path  # of the file, or the URL without its password

    @classmethod
    def open(cls, url: str, now: float, busy_timeout_s: float) -> Database:
        """Open a database, making it if it is not there, check it, and migrate it. Blocks.

        Raises: DataLoss, if it is damaged: it is never made anew in its place; WrongState, if it is newer than this code or cannot be
        written; Unavailable, if somebody else holds it for longer than `busy_timeout_s`; DiskFull. Then nothing was changed.
        """
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            engine = create_engine(parsed, pool_pre_ping=True)
            database = cls(engine, engine, Path(parsed.render_as_string(hide_password=True)))
        else:
            path = Path(parsed.database or "")
            _create_file(path)
            options = {"timeout": busy_timeout_s, "check_same_thread": False}
            writer = _sqlite_engine(url, options, "BEGIN IMMEDIATE")
            database = cls(writer, _sqlite_engine(url, options, "BEGIN"), path)
        database._check_and_migrate(now)
        return database

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.writer.dispose()
        self.reader.dispose()

    def explain(self, error: DBAPIError | OSError) -> KernelError:
        """Return the kernel's word for an error of the database."""
        if isinstance(error, OSError):
            return explain(error, self.path)
        if isinstance(error, IntegrityError):
            return Conflict(f"The change contradicts what is stored: {error.orig}.")
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        facts = {"path": str(self.path)}
        if code == _FULL:
            free = free_bytes(self.path.parent)
            return DiskFull(f"The disk under {self.path.parent} is full: {free} bytes are free.", facts=facts | {"free_bytes": str(free)})
        if code in (_CORRUPT, _NOTADB):
            return self._damaged(str(error.orig))
        if code in (_READONLY, _CANTOPEN):
            problem = f"The database {self.path} cannot be written: {error.orig}. Make it writable for the user that kerneld runs as."
            return WrongState(problem, reason="STATE_READ_ONLY", facts=facts)
        if code in (_BUSY, _LOCKED):
            problem = f"The database {self.path} is held by another program."
            return Unavailable(problem, reason="DATABASE_LOCKED", facts=facts, retry_after_s=1.0)
        return Unavailable(f"The database {self.path} failed: {error.orig}.", reason="DATABASE_ERROR", facts=facts, retry_after_s=1.0)

    def _check_and_migrate(self, now: float) -> None:
        try:
            with self.writer.connect() as connection, connection.begin():
                self._check(connection)
                migrate(connection, now)
        except (DBAPIError, OSError) as error:
            self.close()
            raise self.explain(error) from error
        except BaseException:
            self.close()
            raise

    def _check(self, connection: Connection) -> None:
        if connection.dialect.name != "sqlite":
            return
        problems = list(connection.execute(text("PRAGMA quick_check(3)")).scalars())
        if problems != ["ok"]:
            raise self._damaged("; ".join(str(problem) for problem in problems))

    def _damaged(self, problem: str) -> DataLoss:
        return DataLoss(
            f"The database {self.path} is damaged: {problem}. Stop here and keep the file; restore it from a backup, or rescue what it has "
            "with: sqlite3 kerneld.db .recover",
            facts={"path": str(self.path)},
        )


def sqlite_url(path: Path) -> str:
    """Return the URL of a database file."""
    return f"sqlite:///{path}"


def _create_file(path: Path) -> None:
    """Make sure of the file's mode before SQLite gives it to its companions (-wal, -shm)."""
    with disk_errors(path.parent):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _sqlite_engine(url: str, options: dict[str, float | bool], begin: str) -> Engine:
    engine = create_engine(url, connect_args=options, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: object, _: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # the driver's own transactions do not know savepoints
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
