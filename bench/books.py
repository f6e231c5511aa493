"""What does it cost that the scheduler's books ride in the journal? A step of 32 rows, with them and without, written to a real journal.

At most 30 us and 1 KiB a step that charges; a step whose tokens were paid for ahead carries nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.report import Figure, at_most, json_path, publish
from drivers.contract import Sampling
from kerneld.bookkeeping import Bookkeeping
from kerneld.calls import InferArgs
from kerneld.context import Context
from kerneld.fairshare import FairShare
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.state.journal import Journal
from kerneld.state.records import Tokens, pack_tokens
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript

ROWS, STEPS, ROUNDS = 32, 500, 21


class Load:
    """A scheduler with all rows taken by as many tenants as are asked for, three levels deep, and its journal."""

    def __init__(self, folder: Path, num_tenants: int) -> None:
        self.journal = Journal(folder)
        list(self.journal.replay())
        self.tenants = [f"lab/group{idx % 2}/person{idx}" for idx in range(num_tenants)]
        shares = FairShare()
        for idx, tenant in enumerate(self.tenants):
            shares.add(tenant, 1 + idx % 3)
        self.scheduler = Scheduler(shares)
        self.scheduler.set_resident("model", True)
        self.books = Bookkeeping(self.journal, self.scheduler)
        self.rows = [self._seated(number) for number in range(ROWS)]
        self.tokens = Tokens(tuple((bytes.fromhex(row.context.id), pack_tokens((7,))) for row in self.rows))
        self.books.flush()

    def _seated(self, number: int) -> Request:
        tenant = self.tenants[number % len(self.tenants)]
        context = Context(id=f"{number:032x}", owner="o", tenant=tenant, model="model", fingerprint="", seed=0, created_at=0.0)
        context.tokens.extend([0] * 100)
        log = OutputLog(100, lambda: 0.0)
        request = Request(
            id=f"{number:032x}",
            context=context,
            args=InferArgs(context.id),
            sampling=Sampling(),
            num_input=100,
            output_start=100,
            max_tokens=1 << 30,
            arrival=float(number),
            log=log,
            transcript=Transcript(log, None),
        )
        self.scheduler.enqueue(request)
        self.scheduler.admit(request, 0)
        self.books.note(request)
        return request

    def charge(self) -> None:
        """Every row has another token."""
        self.scheduler.charge_outputs([(row, 1) for row in self.rows])

    def with_books(self) -> None:
        """A step as it is."""
        self.charge()
        self.books.append([self.tokens])

    def without(self) -> None:
        """A step whose books would be lost."""
        self.charge()
        self.journal.append([self.tokens])

    def bytes_of(self, step: Callable[[], None]) -> int:
        """What a step writes."""
        before = self.journal._segment.offset
        step()
        return self.journal._segment.offset - before


def microseconds(step: Callable[[], None]) -> float:
    """Processor time of a step."""
    started_at = time.thread_time()
    for _ in range(STEPS):
        step()
    return (time.thread_time() - started_at) / STEPS * 1e6


def figures_of(num_tenants: int) -> list[Figure]:
    """Steps of rows of so many tenants."""
    with tempfile.TemporaryDirectory() as folder:
        load = Load(Path(folder), num_tenants)
        with_books, without = [], []
        for _ in range(ROUNDS):  # in turn, so that whatever else runs here hits both
            with_books.append(microseconds(load.with_books))
            without.append(microseconds(load.without))
            load.books.flush()
        added_bytes = load.bytes_of(load.with_books) - load.bytes_of(load.without)
        added_us = statistics.median(with_books) - statistics.median(without)
        load.journal.close()
    rows = f"{ROWS} rows of {num_tenants} tenants"
    note = f"{statistics.median(without):.1f} us without"
    return [
        at_most(f"time that the books add to a step, {rows}", added_us, 30, "us", note),
        at_most(f"bytes that they add, {rows}", added_bytes, 1024, "B"),
    ]


def main() -> None:
    publish("books", "The scheduler's books in the journal", [*figures_of(1), *figures_of(4)], json_path())


if __name__ == "__main__":
    main()
