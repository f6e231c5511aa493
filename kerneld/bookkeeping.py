"""Bookkeeping: what changed of the scheduler's books rides along in the journal, in the write of whatever changed them.

    admission, tokens of a step, end of a request --+--> one write --> after a restart the next picks are those that would have followed
    accounts and standings that changed since ------+

Invariants
1. What a write tells of the books is how they stand at that moment, its own records included: the log is a history of one scheduler,
   and a restart finds it at some moment of that history.
2. What could not be written along counts as changed, and rides with the next write. No write fails for it.
3. Requests of contexts that are not journaled have no standing; what they cost their tenants is kept like all else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from kerneld.accounts import Accounts, together
from kerneld.calls import Durability
from kerneld.errors import DiskFull, KernelError, Unavailable
from kerneld.request import Request, RequestState
from kerneld.state.journal import Journal
from kerneld.state.records import Record, Standing

logger = logging.getLogger(__name__)


class Book(Protocol):
    """Accounts that somebody beside the scheduler keeps."""

    def changes(self) -> Accounts:
        """What changed since the last call."""

    def unkept(self, accounts: Accounts) -> None:
        """Changes could not be written: they count as changed again."""


class SchedulerBooks(Protocol):
    """What the scheduler keeps, or all of them."""

    def account_changes(self) -> Accounts | None:
        """What changed since the last call; None: nothing."""

    def unkept(self, accounts: Accounts) -> None:
        """Changes could not be written: they count as changed again."""


class Bookkeeping:
    """Writes to the journal, and has the books go along."""

    def __init__(self, journal: Journal, scheduler: SchedulerBooks) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self.others: list[Book] = []
        self._restanding: dict[str, Request] = {}  # by id: those whose standing changed since it was written
        self._is_behind = False  # the last write had no room for the books

    def note(self, request: Request) -> None:
        """A request was seated, preempted or deferred. One that lost its row through no decision stands as if it ran."""
        if request.context.durability is not Durability.NONE:
            self._restanding.pop(request.id, None)  # they are told in the order in which they came to stand so
            self._restanding[request.id] = request

    def forget(self, request: Request) -> None:
        """A request has ended: how it stood tells nothing any more."""
        self._restanding.pop(request.id, None)

    def append(self, records: Sequence[Record]) -> None:
        """Append records, and what changed of the books. Raises: DiskFull, Unavailable; then nothing was written."""
        accounts = self._changes()
        riders: list[Record] = [standing_of(request) for request in self._restanding.values()]
        if accounts is not None:
            riders.append(accounts)
        is_along = False
        try:
            is_along = self._journal.append(records, riders)
        finally:
            if is_along:
                self._restanding.clear()
            else:
                self._unkept(accounts)
        self._tell(is_behind=not is_along)

    def append_or_owe(self, record: Record) -> bool:
        """Append what has happened, or write it in front of the next record that can be written. Returns whether it was written now."""
        try:
            self.append([record])
        except (DiskFull, Unavailable):
            self._journal.owe(record)
            return False
        return True

    def flush(self) -> None:
        """Write what changed of the books without anything else to write; where that cannot be, it stays changed."""
        try:
            self.append(())
        except KernelError:
            self._tell(is_behind=True)

    def _changes(self) -> Accounts | None:
        mine = self._scheduler.account_changes()
        return together([*([] if mine is None else [mine]), *(book.changes() for book in self.others)])

    def _unkept(self, accounts: Accounts | None) -> None:
        if accounts is not None:
            self._scheduler.unkept(accounts)
            for book in self.others:
                book.unkept(accounts)

    def _tell(self, *, is_behind: bool) -> None:
        if is_behind != self._is_behind:
            self._is_behind = is_behind
            logger.warning("the books are not journaled: no room" if is_behind else "the books are journaled again")


def standing_of(request: Request) -> Standing:
    """How an unfinished request stands with the scheduler."""
    return Standing(
        context_id=bytes.fromhex(request.context.id),
        request=bytes.fromhex(request.id),
        num_cached=request.num_cached,
        num_prepaid=request.num_prepaid,
        is_running=request.state is RequestState.RUNNING or request.is_interrupted,
        num_served=request.num_since_admission,
        tariff=request.tariff,
        is_charged=request.is_charged,
        defer_until=request.defer_until,
    )
