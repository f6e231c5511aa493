"""DiskMover: executes the transfers between the host tier and the page file, in threads beside the event loop.

    send --> queue --> job in a thread (some MiB of one direction) --> settle on the loop: Pager.transferred, events, whoever waits

    fetches go before spills: a request waits for them
    spills  go one job at a time and with a rest behind each while rows run, at full rate when the device idles
    holes   are punched behind spills, so that frames which were given up can be used again

Invariants
1. Every transfer that was sent is settled once, whatever the disk does; an error of the disk is never an exception here.
2. The bytes of jobs in flight stay within `MAX_BYTES_IN_FLIGHT`, or there is one job.
3. A disk that failed to take a spill is left alone for `PAUSE_S`; spills that wait are settled as not done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from drivers.hostmem import HostMemory
from kerneld.disk.carrier import Carried, FrameFile, Outcome, carry
from kerneld.disk.events import DiskPageCorrupt, DiskTierFailed, PagesFetched, PagesSpilled
from kerneld.eventbus import EventBus
from memory.page import Transfer
from memory.pager import Pager

logger = logging.getLogger(__name__)

NUM_THREADS = 2
JOB_BYTES = 8 << 20
MAX_BYTES_IN_FLIGHT = 32 << 20
REST_PER_WORK = 3.0  # seconds of rest behind each second of spilling while rows run
PAUSE_S = 10.0
PUNCHES_PER_JOB = 256


class Done(NamedTuple):
    """What a job came to."""

    carried: list[Carried]
    seconds: float


class DiskMover:
    """Moves pages between the host tier and the page file. Event-loop thread only, but for the jobs."""

    def __init__(self, file: FrameFile, pager: Pager, events: EventBus, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds: what pauses are told by."""
        self.file = file
        self._pager = pager
        self._events = events
        self._clock = clock
        self._host: HostMemory | None = None
        self._fetches: deque[Transfer] = deque()
        self._spills: deque[Transfer] = deque()
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="disk")
        self._jobs: set[asyncio.Task[None]] = set()
        self._bytes_in_flight = 0
        self._is_spilling = self._is_punching = self._is_closed = False
        self._unpunched: list[tuple[int, int]] = []  # what the disk did not do yet
        self._rests_until = 0.0
        self._paused_until = 0.0
        self.is_busy: Callable[[], bool] = lambda: False  # whether rows run
        self.on_settled: Callable[[list[Carried]], None] = lambda _carried: None
        self.on_measured: Callable[[bool, int, float], None] = lambda _is_fetch, _size_bytes, _seconds: None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not (self._jobs or self._fetches or self._spills)

    @property
    def has_transfers(self) -> bool:
        """Whether a transfer waits or is under way: somebody will be told when it is settled."""
        return bool(self._bytes_in_flight or self._fetches or self._spills)

    @property
    def num_spills(self) -> int:
        """Spills that wait."""
        return len(self._spills)

    def is_paused(self) -> bool:
        """Whether the disk is left alone because it failed."""
        return self._is_closed or self._host is None or self._clock() < self._paused_until

    def use(self, host: HostMemory) -> None:
        """Move pages of this host tier."""
        self._host = host

    def send(self, transfers: Iterable[Transfer]) -> None:
        """Do these transfers, in order as far as they go the same way."""
        for transfer in transfers:
            (self._fetches if transfer.is_fetch else self._spills).append(transfer)
        self.pump()

    def pump(self) -> None:
        """Start as many jobs as may run now."""
        if self._is_closed or self._host is None:
            self._refuse(self._fetches)
            self._refuse(self._spills)
            return
        if self.is_paused():
            self._refuse(self._spills)
        while self._fetches and self._has_room():
            self._begin(self._take(self._fetches))
        while self._spills and self._has_room() and self._may_spill():
            self._begin(self._take(self._spills))
        if not self._is_punching and not self.is_paused():
            self._punch()

    async def close(self) -> None:
        """Let what is under way end; what waits is settled as not done."""
        self._is_closed = True
        self._refuse(self._fetches)
        self._refuse(self._spills)
        while self._jobs:
            await asyncio.wait(self._jobs)
        self._threads.shutdown()

    # ------------------------------------------------------------------------------------------------------------------ jobs

    def _has_room(self) -> bool:
        return self._bytes_in_flight < MAX_BYTES_IN_FLIGHT

    def _may_spill(self) -> bool:
        if not self.is_busy():
            return True
        return not self._is_spilling and self._clock() >= self._rests_until

    def _take(self, queue: deque[Transfer]) -> list[Transfer]:
        batch, size_bytes = [queue.popleft()], 0
        while queue and size_bytes + queue[0].size_bytes + batch[0].size_bytes <= JOB_BYTES:
            batch.append(queue.popleft())
            size_bytes += batch[-1].size_bytes
        return batch

    def _begin(self, batch: list[Transfer]) -> None:
        self._bytes_in_flight += sum(transfer.size_bytes for transfer in batch)
        self._is_spilling |= not batch[0].is_fetch
        self._start(self._move(batch), "move pages")

    async def _move(self, batch: list[Transfer]) -> None:
        host = self._host
        assert host is not None, "no job begins without it"
        done = await asyncio.get_running_loop().run_in_executor(self._threads, _work, self.file, host, batch)
        self._bytes_in_flight -= sum(transfer.size_bytes for transfer in batch)
        if not batch[0].is_fetch:
            self._is_spilling = False
            self._rest(done.seconds)
        self._settle(done.carried, done.seconds)

    def _rest(self, seconds: float) -> None:
        """Let the device's work have the machine for a while."""
        if self._spills and self.is_busy():
            rest_s = REST_PER_WORK * seconds
            self._rests_until = self._clock() + rest_s
            asyncio.get_running_loop().call_later(rest_s, self.pump)

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        job = asyncio.get_running_loop().create_task(work, name=name)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    # ------------------------------------------------------------------------------------------------------------------ settling

    def _refuse(self, queue: deque[Transfer]) -> None:
        """Settle what waits as not done."""
        if queue:
            refused = [Carried(transfer, Outcome.FAILED) for transfer in queue]
            queue.clear()
            self._settle(refused, 0.0)

    def _settle(self, carried: list[Carried], seconds: float) -> None:
        for item in carried:
            self._pager.transferred(item.transfer.ticket, item.outcome is Outcome.DONE)
        self._tell(carried, seconds)
        self.on_settled(carried)
        self.pump()

    def _tell(self, carried: list[Carried], seconds: float) -> None:
        is_fetch = carried[0].transfer.is_fetch
        done = [item.transfer for item in carried if item.outcome is Outcome.DONE]
        size_bytes = sum(transfer.size_bytes for transfer in done)
        if done:
            self._events.publish((PagesFetched if is_fetch else PagesSpilled)(len(done), size_bytes, seconds))
        if len(done) == len(carried):
            self.on_measured(is_fetch, size_bytes, seconds)
        for item in carried:
            if item.outcome is Outcome.CORRUPT:
                frame = item.transfer.disk_frame if is_fetch else item.transfer.host_frame
                self._events.publish(DiskPageCorrupt(frame, item.problem))
        failed = [item for item in carried if item.outcome is Outcome.FAILED and item.problem]
        if failed:
            self._failed("fetch" if is_fetch else "spill", len(failed), failed[0].problem)

    def _failed(self, action: str, num_pages: int, problem: str) -> None:
        if action != "fetch":
            self._paused_until = self._clock() + PAUSE_S  # invariant 3
        self._events.publish(DiskTierFailed(action, num_pages, problem))

    # ------------------------------------------------------------------------------------------------------------------ holes

    def _punch(self) -> None:
        """Punch frames that were given up out of the file."""
        frames = self._unpunched or self._pager.take_freed_disk(PUNCHES_PER_JOB)
        self._unpunched = []
        if frames:
            self._is_punching = True
            self._start(self._make_holes(frames), "punch holes")

    async def _make_holes(self, frames: list[tuple[int, int]]) -> None:
        problem = await asyncio.get_running_loop().run_in_executor(self._threads, _punch_all, self.file, frames)
        self._is_punching = False
        if problem:
            self._unpunched = frames
            self._failed("punch", len(frames), problem)
            return
        for frame, _size in frames:
            self._pager.punched(frame)
        self.on_settled([])
        self.pump()


def _work(file: FrameFile, host: HostMemory, batch: list[Transfer]) -> Done:
    """What a job does in its thread. A disk that did not take one page is given no more of them."""
    started_at, carried, refusal = time.perf_counter(), [], ""
    for transfer in batch:
        done = Carried(transfer, Outcome.FAILED, refusal) if refusal else carry(file, host, transfer)
        if done.outcome is Outcome.FAILED and not transfer.is_fetch:
            refusal = done.problem
        carried.append(done)
    return Done(carried, time.perf_counter() - started_at)


def _punch_all(file: FrameFile, frames: list[tuple[int, int]]) -> str:
    """Make holes of frames; says what went wrong."""
    try:
        for frame, size_bytes in frames:
            file.punch(frame, size_bytes)
    except OSError as error:
        return str(error)
    return ""
