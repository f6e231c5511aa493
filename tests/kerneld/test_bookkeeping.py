"""What changed of the books goes along with what changed them, in one write, and nothing is lost where there is no room for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from kerneld.accounts import Accounts
from kerneld.bookkeeping import Bookkeeping
from kerneld.calls import Durability
from kerneld.errors import DiskFull
from kerneld.fairshare import FairShare
from kerneld.pricing.tariff import Tariff
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.state.journal import Journal
from kerneld.state.records import Record, Standing, Suspend
from kerneld.state.replay import LogState
from tests.kerneld.small_disk import full_disk

MakeRequest = Callable[..., Request]
EVENT = Suspend(bytes(16))


@pytest.fixture
def scheduler() -> Scheduler:
    shares = FairShare()
    for path in ("lab", "lab/ann", "lab/bob"):
        shares.add(path)
    made = Scheduler(shares)
    made.set_resident("m", True)
    made.account_changes()
    return made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    assert list(opened.replay()) == []
    yield opened
    opened.close()


@pytest.fixture
def books(journal: Journal, scheduler: Scheduler) -> Bookkeeping:
    return Bookkeeping(journal, scheduler)


def written(journal: Journal) -> list[Record]:
    """Everything in the journal, which is closed for that."""
    journal.close()
    again = Journal(journal._path)
    records = list(again.replay())
    again.close()
    return records


def seat(scheduler: Scheduler, books: Bookkeeping, request: Request) -> None:
    scheduler.enqueue(request)
    scheduler.admit(request, 0)
    books.note(request)


def shares_of(record: Record) -> set[str]:
    assert isinstance(record, Accounts)
    return {account.path for account in record.shares}


def test_nothing_is_written_of_books_that_did_not_change(journal: Journal, books: Bookkeeping) -> None:
    books.append([EVENT])
    books.flush()
    assert written(journal) == [EVENT]


def test_accounts_and_standings_come_behind_what_changed_them(
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    request = make_request("lab/ann")
    seat(scheduler, books, request)
    books.append([EVENT])
    books.append([EVENT])
    first, standing, accounts, second = written(journal)
    assert first == second == EVENT
    assert shares_of(accounts) == {"", "lab", "lab/ann", "lab/ann/."}
    assert isinstance(standing, Standing)
    assert standing.request.hex() == request.id
    assert (standing.is_running, standing.is_charged, standing.tariff) == (True, True, request.tariff)


def test_a_request_that_lost_its_row_through_no_decision_stands_as_if_it_ran(
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    interrupted, preempted = make_request("lab/ann"), make_request("lab/bob")
    for request in (interrupted, preempted):
        seat(scheduler, books, request)
    scheduler.interrupt(interrupted)
    scheduler.preempt(preempted)
    books.flush()
    standings = [record for record in written(journal) if isinstance(record, Standing)]
    assert [(item.request.hex(), item.is_running) for item in standings] == [(interrupted.id, True), (preempted.id, False)]


def test_how_long_a_request_waits_beside_the_line_is_told(
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    request = make_request("lab/ann")
    scheduler.defer(request, 77.0)
    scheduler.enqueue(request)
    books.note(request)
    books.flush()
    standing = next(record for record in written(journal) if isinstance(record, Standing))
    assert (standing.is_charged, standing.is_running, standing.defer_until) == (False, False, 77.0)


def test_a_request_that_ended_has_no_standing_any_more(
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    request = make_request("lab/ann")
    seat(scheduler, books, request)
    scheduler.finish(request)
    books.forget(request)
    books.append([EVENT])
    assert [type(record) for record in written(journal)] == [Suspend, Accounts]


def test_what_is_not_journaled_has_no_standing_and_its_cost_is_kept_all_the_same(  # invariant 3
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    request = make_request("lab/ann")
    request.context.durability = Durability.NONE
    seat(scheduler, books, request)
    books.flush()
    (accounts,) = written(journal)
    assert "lab/ann" in shares_of(accounts)


def test_what_found_no_room_rides_with_the_next_write(  # invariant 2
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    segment = journal._segment
    journal.reserve(segment.allocated - segment.offset - (64 << 10) - 200)
    seat(scheduler, books, make_request("lab/ann"))
    scheduler.charging.tariffs.put("m", Tariff(1, 1, 1))
    with full_disk(segment.allocated):
        for _ in range(3):
            books.append([EVENT])
        books.flush()
    seat(scheduler, books, make_request("lab/bob"))
    books.append([EVENT])
    *events, ann, bob, accounts = written(journal)
    assert events == [EVENT] * 4
    assert isinstance(ann, Standing)
    assert isinstance(bob, Standing)
    assert shares_of(accounts) == {"", "lab", "lab/ann", "lab/ann/.", "lab/bob", "lab/bob/."}
    assert isinstance(accounts, Accounts)
    assert accounts.tariffs == {"m": Tariff(1, 1, 1)}


def test_a_write_that_fails_loses_nothing_of_the_books(
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    seat(scheduler, books, make_request("lab/ann"))
    with full_disk():
        with pytest.raises(DiskFull):
            books.append([EVENT])
        books.flush()
        assert not books.append_or_owe(EVENT)
    books.flush()
    assert [type(record) for record in written(journal)] == [Suspend, Standing, Accounts]


def test_all_changes_one_over_the_other_come_to_the_books(
    journal: Journal, scheduler: Scheduler, books: Bookkeeping, make_request: MakeRequest
) -> None:
    requests = [make_request(("lab", "lab/ann", "lab/bob")[number % 3]) for number in range(9)]
    for request in requests:
        seat(scheduler, books, request)
        books.append(())
        request.context.tokens.extend([7] * 5)
        scheduler.charge_outputs([(request, 5)])
        books.append(())
    for request in requests[::2]:
        scheduler.finish(request)
        books.append(())
    kept = LogState.fold(written(journal)).accounts
    everything = scheduler.accounts()
    assert {account.path: account for account in kept.shares} == {account.path: account for account in everything.shares}
    assert msgspec.structs.replace(kept, shares=()) == msgspec.structs.replace(everything, shares=())


def test_standings_are_told_in_the_order_in_which_requests_came_to_stand_so(
    scheduler: Scheduler, books: Bookkeeping, journal: Journal, make_request: MakeRequest
) -> None:
    first, second = make_request("lab/ann"), make_request("lab/bob")
    for request in (first, second):
        seat(scheduler, books, request)
    books.note(first)
    books.append([EVENT])

    told = [record.request.hex() for record in written(journal) if isinstance(record, Standing)]
    assert told == [second.id, first.id]
