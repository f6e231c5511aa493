"""DiskTier: the parts that make a page file a tier: the file, who moves pages, who keeps room above it, who waits for pages from it.

plans land, a tick                         next in line
      |                                         |
  Reclaimer --spill--> DiskMover <--fetch-- Returns
                          |
                       PageFile
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kerneld.disk.carrier import Carried
from kerneld.disk.mover import DiskMover
from kerneld.disk.pagefile import PageFile
from kerneld.disk.reclaimer import Reclaimer
from kerneld.disk.returns import Returns
from kerneld.disk_reserve import DiskReserve
from kerneld.eventbus import EventBus
from kerneld.scheduler import Scheduler
from memory.costs import Link
from memory.pager import Pager


class DiskTier:
    """The disk tier of a running daemon."""

    def __init__(self, file: PageFile, pager: Pager, scheduler: Scheduler, events: EventBus, reserve: DiskReserve) -> None:
        """`reserve` is of the file system on which the file lies."""
        self.file = file
        self.mover = DiskMover(file, pager, events)
        self.reclaimer = Reclaimer(pager, self.mover, reserve.has_room)
        self.returns = Returns(pager, scheduler, self.mover)
        self.mover.is_busy = lambda: scheduler.running.total > 0
        self.mover.on_settled = self._settled
        self.mover.on_measured = self._measured
        self._costs = pager.costs
        for link, (num_bytes, seconds) in zip((Link.HOST_TO_DISK, Link.DISK_TO_HOST), file.probe(), strict=True):
            self._costs.measured(link, num_bytes, seconds)
        self.on_return: Callable[[], None] = lambda: None  # somebody whose pages have come is in the line again
        self._turn: asyncio.Future[None] | None = None

    async def settled(self) -> None:
        """Wait until some transfers have been settled."""
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._turn)

    async def close(self) -> None:
        """Let transfers end that are under way. The file stays open."""
        await self.mover.close()

    def _measured(self, is_fetch: bool, size_bytes: int, seconds: float) -> None:
        self._costs.note_copy(Link.DISK_TO_HOST if is_fetch else Link.HOST_TO_DISK, size_bytes, seconds)

    def _settled(self, _carried: list[Carried]) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and not turn.done():
            turn.set_result(None)
        self.reclaimer.now()  # first: who returns waits for its transfers, if there is no room
        if self.returns.settled():
            self.on_return()
