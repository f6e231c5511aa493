"""What does bookkeeping cost? The pager alone, without a device: plans, copies on write, frames, the disk tier, a look at the books.

A plan should cost what changes, not what there is: at most 200 us for 64 rows of 4,096 pages in a step of decode. Taking and giving back a
frame should cost the same in a small tier and in a large one. No slice of the check of the books should hold the event loop above 5 ms.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from bench.report import Figure, at_most, json_path, publish
from memory.config import MIB, MemoryConfig
from memory.frames import FramePool
from memory.page import Space, Tier
from memory.pager import Pager, Want
from memory.slabs import Arena
from memory.table import PageTable

ROWS, PAGES, PAGE_TOKENS = 64, 4096, 16
FRAME, HOST_FRAME = 4096, 8192
STEPS = 512


class Machine:
    """A pager whose plans are committed as they come."""

    def __init__(self, num_device: int, num_host: int, num_disk: int) -> None:
        self.pager = Pager(
            MemoryConfig(
                device_bytes=num_device * FRAME // (4 * MIB) * 4 * MIB,
                host_bytes=num_host * HOST_FRAME // (4 * MIB) * 4 * MIB,
                page_file_bytes=num_disk * HOST_FRAME // (4 * MIB) * 4 * MIB,
                max_copies=1 << 20,
            )
        )
        self.pager.open_space(Space(1, PAGE_TOKENS, FRAME, HOST_FRAME))
        self._seq = 0

    def run(self, *wants: Want) -> float:
        """One plan, committed; returns the microseconds that it took to make."""
        self._seq += 1
        took = microseconds(lambda: self.pager.plan(self._seq, wants))
        self.pager.commit(self._seq)
        return took

    def grown(self, num_pages: int) -> PageTable:
        """A table with full pages."""
        table = self.pager.new_table("lab/ann", (1,))
        self.run(Want(table, 0, num_pages * PAGE_TOKENS))
        return table


def microseconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    started_at = time.perf_counter()
    work()
    return (time.perf_counter() - started_at) * 1e6


def decode_steps() -> tuple[float, float]:
    """Median microseconds of a plan in which every row writes a token, and of one in which every row needs a new page."""
    machine = Machine(ROWS * (PAGES + STEPS) + 1024, 1024, 0)
    tables = [machine.grown(PAGES) for _ in range(ROWS)]
    within: list[float] = []
    crossing: list[float] = []
    for step in range(STEPS):
        end = PAGES * PAGE_TOKENS + step
        took = machine.run(*(Want(table, end, end + 1) for table in tables))
        (crossing if end % PAGE_TOKENS == 0 else within).append(took)
    return statistics.median(within), statistics.median(crossing)


def copy_on_write() -> float:
    """Median microseconds of a plan in which a fork writes a shared partial page of 4,096."""
    machine = Machine(2 * PAGES, 1024, 0)
    parent = machine.grown(PAGES)
    end = PAGES * PAGE_TOKENS - 3
    took = []
    for _ in range(200):
        child = machine.devices.first.pager.fork(parent, end)
        took.append(machine.run(Want(child, end, end + 1)))
        machine.devices.first.pager.drop(child)
    return statistics.median(took)


def frame_cost(num_frames: int) -> float:
    """Microseconds to take and give back a frame, in a tier of so many, half of them in use."""
    pool = FramePool(Arena(num_frames // 1024, 4 * MIB, FRAME), FRAME)
    for _ in range(num_frames // 2 + 7):  # not at the border of a slab
        pool.alloc()
    rounds = 20_000

    def work() -> None:
        for _ in range(rounds):
            frame = pool.alloc()
            assert frame is not None
            pool.free(frame)

    return microseconds(work) / rounds


def disk_tier() -> tuple[float, float]:
    """Microseconds of a page that is chosen to leave for disk and settled, and of one that comes back."""
    machine = Machine(PAGES + 1024, PAGES + 1024, 2 * PAGES)
    table = machine.grown(PAGES)
    names = [number.to_bytes(16, "little") for number in range(PAGES)]
    machine.devices.first.pager.bury(table, PAGES * PAGE_TOKENS, names, b"")
    machine.run()

    def spill() -> None:
        for transfer in machine.devices.first.pager.spill(1 << 40):
            machine.devices.first.pager.transferred(transfer.ticket, True)

    def fetch() -> None:
        for transfer in machine.devices.first.pager.fetch(table, PAGES * PAGE_TOKENS):
            machine.devices.first.pager.transferred(transfer.ticket, True)

    spilled = microseconds(spill)
    assert machine.devices.first.pager.is_buried(table)
    fetched = microseconds(fetch)
    assert table.at_hand_tokens() == PAGES * PAGE_TOKENS
    return spilled / PAGES, fetched / PAGES


def longest_slice() -> tuple[float, float]:
    """Milliseconds of processor time of the longest slice of a check of 64 tables of 4,096 pages, and of the whole check."""
    machine = Machine(ROWS * PAGES + 1024, 1024, 0)
    for _ in range(ROWS):
        machine.grown(PAGES)
    steps = machine.devices.first.pager.integrity_steps()
    took = []
    is_done = False
    while not is_done:
        started_at = time.thread_time()
        is_done = next(steps, True) is True
        took.append((time.thread_time() - started_at) * 1e3)
    return max(took), sum(took)


def main() -> None:
    within, crossing = decode_steps()
    small, large = frame_cost(4096), frame_cost(1 << 18)
    spilled, fetched = disk_tier()
    longest, whole = longest_slice()
    rows = f"{ROWS} rows of {PAGES} pages"
    figures = [
        at_most(f"plan of a step of decode, {rows}", within, 200, "us"),
        Figure(f"the same, every row with a new page, {rows}", crossing, "us"),
        Figure("plan that copies a shared page on write", copy_on_write(), "us"),
        Figure("frame taken and given back, of 4,096", small, "us"),
        at_most("the same of 262,144, against 4,096", large / small, 1.5, "x"),
        Figure("page to disk: chosen and settled", spilled, "us"),
        Figure("page from disk: reserved and settled", fetched, "us"),
        at_most(
            "longest slice of a check of the books", longest, 5, "ms", f"{len(Tier)} tiers, {ROWS * PAGES} pages, {whole:.0f} ms in all"
        ),
    ]
    publish("plan_cost", "Bookkeeping: what plans, frames and checks cost without a device", figures, json_path())


if __name__ == "__main__":
    main()
