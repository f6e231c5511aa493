"""The mover: what it does at once, what it does later, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from drivers.hostmem import HostMemory, host_frame_bytes
from kerneld.disk import mover
from kerneld.disk import reclaimer as reclaimer_module
from kerneld.disk.carrier import Carried, Outcome
from kerneld.disk.events import DiskTierFailed, PagesSpilled
from kerneld.disk.mover import DiskMover
from kerneld.disk.pagefile import PageFile
from kerneld.disk.reclaimer import Reclaimer
from kerneld.eventbus import EventBus
from kerneld.events import Event
from memory.config import MemoryConfig
from memory.page import Space
from memory.pager import Pager
from memory.table import PageTable
from tests.kerneld.conftest import FakeClock
from tests.kerneld.disk.frame_files import BrokenFile, GatedFile
from tests.kerneld.rig import in_loop

MIB = 1 << 20
PAYLOAD = bytes(range(256)) * (MIB // 256 * 2 - 1)  # a page of almost two MiB
FRAME = host_frame_bytes(len(PAYLOAD), 4096)
CONFIG = MemoryConfig(8 * MIB, 64 * MIB, 0, 16, 4 * MIB, 4096, page_file_bytes=64 * MIB)


class Bench:
    """A pager with pages in its host tier, a page file, and the mover between them."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.pager = Pager(CONFIG)
        self.pager.open_space(Space(1, 16, FRAME, FRAME))
        self.host = HostMemory.create(CONFIG.host_bytes, CONFIG.granule_bytes)
        self.file = PageFile.open(folder / "pages", CONFIG.page_file_bytes, CONFIG.granule_bytes, CONFIG.slab_bytes)
        self.gate = GatedFile(self.file)
        self.events: list[Event] = []
        bus = EventBus(self.clock)
        bus.subscribe(self.events.append)
        self.mover = DiskMover(self.gate, self.pager, bus, self.clock)
        self.mover.use(self.host)
        self.carried: list[Carried] = []
        self.mover.on_settled = self.carried.extend

    def buried(self, num_pages: int) -> PageTable:
        """A table with pages in the host tier that is to go to disk."""
        table, keys = self.on_host(num_pages)
        self.pager.bury(table, num_pages * 16, keys, b"")
        return table

    def on_host(self, num_pages: int) -> tuple[PageTable, list[bytes]]:
        """A table with pages in the host tier, and their names."""
        table = self.pager.new_table("lab", (1,))
        keys = [idx.to_bytes(16, "big") for idx in range(num_pages)]
        for idx, key in enumerate(keys):
            frame = self.pager.reserve_host(table, 0, idx, key, 16)
            self.host.write_page(frame, PAYLOAD, key, 16, 1)
        return table, keys

    async def idle(self) -> None:
        while not self.mover.is_idle:
            await asyncio.sleep(0)


@asynccontextmanager
async def bench_in(folder: Path) -> AsyncIterator[Bench]:
    bench = Bench(folder)
    try:
        yield bench
    finally:
        bench.gate.let()
        await bench.mover.close()
        bench.file.close()
        bench.host.close()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@in_loop
async def test_what_goes_to_disk_can_be_read_from_the_file(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        table = bench.buried(5)
        bench.gate.let()

        bench.mover.send(bench.pager.spill(64 * MIB))
        await bench.idle()

        assert table.counts().disk_only == 5
        assert {header.key for _frame, header in bench.file.scan()} == {idx.to_bytes(16, "big") for idx in range(5)}
        assert sum(event.num_pages for event in bench.events if isinstance(event, PagesSpilled)) == 5


@in_loop
async def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        bench.buried(24)

        bench.mover.send(bench.pager.spill(64 * MIB))
        await turns()

        in_flight = 24 - bench.mover.num_spills
        assert in_flight * FRAME <= mover.MAX_BYTES_IN_FLIGHT + mover.JOB_BYTES
        assert bench.mover.num_spills > 0


@in_loop
async def test_while_rows_run_one_job_spills_and_then_rests(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        bench.buried(24)
        bench.mover.is_busy = lambda: True

        bench.mover.send(bench.pager.spill(64 * MIB))
        first = 24 - bench.mover.num_spills
        bench.gate.let()
        while not bench.carried:
            await asyncio.sleep(0)
        bench.mover.pump()
        after_first = 24 - bench.mover.num_spills
        bench.clock.advance(60)
        bench.mover.pump()

        assert first * FRAME <= mover.JOB_BYTES
        assert after_first == first, "it rests"
        assert 24 - bench.mover.num_spills > first


@in_loop
async def test_a_fetch_goes_before_spills_that_wait(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        far = bench.buried(2)
        bench.gate.let()
        bench.mover.send(bench.pager.spill(64 * MIB))
        await bench.idle()
        bench.carried.clear()
        bench.mover.is_busy = lambda: True
        bench.buried(16)

        bench.mover.send(bench.pager.spill(64 * MIB))
        bench.mover.send(bench.pager.fetch(far, 32))
        while not any(item.transfer.is_fetch for item in bench.carried):
            await asyncio.sleep(0)

        assert bench.mover.num_spills > 0


@in_loop
async def test_a_disk_that_failed_is_tried_again_when_the_pause_is_over(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        table = bench.buried(24)
        reclaimer = Reclaimer(bench.pager, bench.mover, lambda _num_bytes: True, bench.clock)
        bench.mover.file = BrokenFile()

        reclaimer.now()
        await bench.idle()
        reclaimer.now()
        paused = bench.mover.is_idle
        bench.mover.file = bench.gate
        bench.gate.let()
        bench.clock.advance(mover.PAUSE_S)
        for _ in range(2):  # frames that the disk did not take are punched before they are used again
            reclaimer.now()
            await bench.idle()

        assert paused
        assert table.counts().disk_only == 24
        assert {item.outcome for item in bench.carried} == {Outcome.FAILED, Outcome.DONE}
        assert all(event.problem for event in bench.events if isinstance(event, DiskTierFailed))


@in_loop
async def test_a_disk_that_is_almost_full_for_others_takes_nothing(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        table = bench.buried(4)
        Reclaimer(bench.pager, bench.mover, lambda _num_bytes: False, bench.clock).now()
        await bench.idle()

        assert table.counts().host_only == 4


@in_loop
async def test_a_nearly_full_disk_takes_smaller_turns(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        table, room = bench.buried(4), reclaimer_module.SMALLEST_BYTES
        bench.gate.let()
        reclaimer = Reclaimer(bench.pager, bench.mover, lambda num_bytes: num_bytes <= room, bench.clock)
        for _ in range(6):  # small turns; and a page leaves the host when its copy on disk is there
            reclaimer.now()
            await bench.idle()

        assert table.counts().disk_only == 4


@in_loop
async def test_copies_ahead_of_need_rest_while_rows_run_and_are_made_at_once_when_none_does(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        table, _keys = bench.on_host(28)  # of 32 frames; half of them are to cost nothing
        reclaimer = Reclaimer(bench.pager, bench.mover, lambda _num_bytes: True, bench.clock)
        bench.gate.let()
        bench.mover.is_busy = lambda: True
        saved = []

        for pause_s in (0.0, reclaimer_module.AHEAD_REST_S, 0.0):
            reclaimer.now()
            await bench.idle()
            reclaimer.now()
            await bench.idle()
            saved.append(sum(table.num_saved))
            bench.clock.advance(pause_s)
        bench.mover.is_busy = lambda: False
        for _ in range(8):
            reclaimer.now()
            await bench.idle()

        per_turn = reclaimer_module.AHEAD_BYTES // FRAME
        assert saved == [per_turn, per_turn, 2 * per_turn]
        assert (table.num_host, table.num_saved) == ([28], [12])
