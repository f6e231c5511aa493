"""The audit log: who did what to which object, and how it ended; never what a message held, and never a secret.

`append` only queues: the file is written in a thread, in order, many entries to one sync of the disk. An entry that could not be written
(a full disk) stays queued and is tried again with the next; when too many wait, later ones are counted, and the count becomes an entry.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from kerneld.calls import Principal
from kerneld.errors import KernelError
from kerneld.state.chain import AuditChain, Entry
from kerneld.state.files import disk_errors, explain

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20
MAX_QUEUED = 10_000
_MAX_TEXT = 512  # characters of a name or a fact
_MAX_FACTS = 32


class AuditLog:
    """The audit log of one state directory. `append` on the event loop's thread."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Open the log where it ends. Raises: WrongState, DiskFull, Unavailable."""
        self._folder = folder
        self._clock = clock
        with disk_errors(folder):
            self._chain = AuditChain(folder, max_bytes)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._is_closed = False
        # Shared with the thread, under the lock.
        self._lock = threading.Lock()
        self._queue: list[Entry] = []
        self._num_lost = 0
        self._is_draining = False
        self._problem: KernelError | None = None

    @property
    def problem(self) -> KernelError | None:
        """Why entries could not be written the last time; None if they were."""
        return self._problem

    def append(self, principal: Principal, verb: str, object_id: str, outcome: str, facts: Mapping[str, str]) -> None:
        """Queue one entry."""
        entry = Entry(
            seq=0,
            at=self._clock(),
            principal=_clean(principal.name),
            tenant=_clean(principal.tenant),
            via=_clean(principal.via),
            credential_id=_clean(principal.credential_id),
            verb=_clean(verb),
            object_id=_clean(object_id),
            outcome=_clean(outcome),
            facts={_clean(name): _clean(value) for name, value in list(facts.items())[:_MAX_FACTS]},
        )
        with self._lock:
            if len(self._queue) >= MAX_QUEUED:
                self._num_lost += 1
            else:
                self._queue.append(entry)
            if self._is_draining:
                return
            self._is_draining = True
        self._executor.submit(self._drain).add_done_callback(_report)

    async def flush(self) -> None:
        """Wait until every entry that was appended is on the disk. Raises: DiskFull, Unavailable, WrongState."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._drain)
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        """Write what is queued and stop. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._executor.submit(self._drain).add_done_callback(_report)
        self._executor.shutdown(wait=True)
        self._chain.close()
        if self._queue:
            logger.error("audit entries could not be written before the stop", extra={"num_entries": len(self._queue)})

    # ------------------------------------------------------------------------------------------------------------------ the writing thread

    def _drain(self) -> None:
        while batch := self._take():
            try:
                self._chain.write(batch)
            except OSError as error:
                self._put_back(batch, explain(error, self._folder))
                return
            self._problem = None

    def _take(self) -> list[Entry]:
        """Take what is queued, numbered; nothing left means that the next `append` starts another drain."""
        with self._lock:
            batch, self._queue = self._queue, []
            if batch and self._num_lost:
                batch.append(self._lost_entry())
            self._is_draining = bool(batch)
        first = self._chain.next_seq
        return [msgspec.structs.replace(entry, seq=first + idx) for idx, entry in enumerate(batch)]

    def _put_back(self, batch: list[Entry], problem: KernelError) -> None:
        if self._problem is None:
            logger.error("the audit log could not be written", extra={"error": problem.message})
        self._problem = problem
        with self._lock:
            self._queue = batch + self._queue
            self._is_draining = False

    def _lost_entry(self) -> Entry:
        num_lost, self._num_lost = self._num_lost, 0
        facts = {"entries": str(num_lost)}
        return Entry(0, self._clock(), "kerneld", "", "", "", "audit.lost", "", "DISK_FULL", facts)


def _report(drain: Future[None]) -> None:
    error = drain.exception()
    if error is not None:
        logger.error("the audit log failed", exc_info=error)


def _clean(text: str) -> str:
    """Return a text that any reader of JSON takes, and of bounded length."""
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode()
