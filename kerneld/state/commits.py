"""Commits: durable changes to the database, many callers to a transaction.

    caller 1   apply -----------------\\
    caller 2         apply ------------+-- commit (one sync of the disk) -- all three go on
    caller 3               apply -----/

One thread owns the writing connection. A change runs there inside a savepoint; when its result is back, the callers that have a change in
the transaction share one commit, which is queued behind the changes that came meanwhile.

Invariants
1. A caller goes on only after its change is committed and on the disk, or with the error that left nothing of it behind.
2. A change that fails undoes itself alone. When the whole transaction is lost (a full disk), everybody in it is told so.
3. A caller that is cancelled does not take its change back, and does not keep others from their commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError

from kerneld.errors import KernelError
from kerneld.failpoints import hit

_REMEMBERED_LOSSES = 16

Result = TypeVar("Result")
Change = Callable[[Connection], Result]
Explain = Callable[[DBAPIError | OSError], KernelError]


class Commits:
    """The one writer of a database. Made and called on the event loop's thread."""

    def __init__(self, engine: Engine, explain: Explain) -> None:
        """Take the writing connection. `explain` gives the kernel's word for an error of the database."""
        self._engine = engine
        self._explain = explain
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")
        self._commits: dict[int, asyncio.Task[None]] = {}  # those under way, by transaction number
        self._unsettled: set[asyncio.Task[object]] = set()
        # The writer thread's own.
        self._connection: Connection | None = None
        self._transaction: RootTransaction | None = None
        self._number = 0  # of the transaction that was begun last
        self._lost: dict[int, DBAPIError | OSError] = {}  # transactions that came to nothing, the last few

    async def commit(self, change: Change[Result]) -> Result:
        """Make a change and wait until it is durable (invariant 1). Raises: what the change raised, or the kernel's word for it."""
        task = asyncio.ensure_future(self._commit(change))
        self._unsettled.add(task)
        task.add_done_callback(self._unsettled.discard)
        return await asyncio.shield(task)  # invariant 3

    async def close(self) -> None:
        """Wait for the changes under way and give the connection back. Safe to call twice."""
        while self._unsettled:
            await asyncio.wait(self._unsettled)
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._disconnect)
        self._executor.shutdown()

    async def _commit(self, change: Change[Result]) -> Result:
        loop = asyncio.get_running_loop()
        try:
            number, result = await loop.run_in_executor(self._executor, self._apply, change)
            task = self._commits.get(number)
            if task is None:
                task = self._commits[number] = asyncio.create_task(self._end(number))
            await task
        except (DBAPIError, OSError) as error:
            raise self._explain(error) from error
        return result

    async def _end(self, number: int) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._end_transaction, number)
        finally:
            del self._commits[number]

    # ------------------------------------------------------------------------------------------------------------------ the writer thread

    def _apply(self, change: Change[Result]) -> tuple[int, Result]:
        connection = self._begin()
        try:
            with connection.begin_nested():
                hit("store.change.before")
                result = change(connection)
                hit("store.change.after")
        except (DBAPIError, OSError) as error:
            self._note_loss(connection, error)
            raise
        return self._number, result

    def _begin(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        if self._transaction is None:
            try:
                self._transaction = self._connection.begin()
            except BaseException:
                self._disconnect()
                raise
            self._number += 1
        return self._connection

    def _note_loss(self, connection: Connection, error: DBAPIError | OSError) -> None:
        """SQLite rolls the whole transaction back by itself when the disk is full, and savepoints with it (invariant 2)."""
        if not getattr(connection.connection.dbapi_connection, "in_transaction", True):
            self._lose(error)

    def _lose(self, error: DBAPIError | OSError) -> None:
        self._lost[self._number] = error
        self._lost.pop(self._number - _REMEMBERED_LOSSES, None)
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.close()

    def _end_transaction(self, number: int) -> None:
        if number in self._lost:
            raise self._lost[number]
        if self._transaction is None or number != self._number:
            return
        try:
            hit("store.commit.before")
            self._transaction.commit()
            hit("store.commit.after")
        except (DBAPIError, OSError) as error:
            self._lose(error)
            raise
        self._transaction = None

    def _disconnect(self) -> None:
        if self._transaction is not None:
            self._transaction.rollback()
        if self._connection is not None:
            self._connection.close()
        self._transaction = self._connection = None
