"""Idle slabs: memory that nobody needs goes back to the device while the daemon is idle, and is here again before anybody runs.

    idle for `memory.idle_return_s` --give--> away --somebody comes--> on the way back --here--> plans go out again

Invariants
1. No plan is sent, and no weights are placed, while slabs are away: who comes waits for them, so nobody is told that memory is short.
2. Where the device has lent the memory to others meanwhile, plans go out with what there is, and it is asked for again when all is idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from drivers.client import Device
from drivers.errors import DeviceLost, DriverError
from kerneld.dispatcher import Dispatcher
from memory.pager import Pager

logger = logging.getLogger(__name__)


class IdleSlabs:
    """Gives the free slabs of one device back, and takes them again."""

    def __init__(self, pager: Pager, dispatcher: Dispatcher, idle_s: float, clock: Callable[[], float]) -> None:
        """`idle_s`: how long nothing has to be done first; 0 is never."""
        self._pager = pager
        self._dispatcher = dispatcher
        self._idle_s = idle_s
        self._clock = clock
        self._device: Device | None = None
        self._idle_since: float | None = None
        self._away: tuple[int, ...] = ()
        self._shift: asyncio.Task[None] | None = None

    @property
    def num_away(self) -> int:
        """Slabs whose memory the device has."""
        return len(self._away)

    def attach(self, device: Device) -> None:
        """A device is there, with all of its arena."""
        self._device = device if device.capabilities.gives_back else None

    def detach(self) -> None:
        """The device is gone, and what was away with it."""
        self._device, self._away, self._idle_since = None, (), None
        self._dispatcher.is_held_up = False

    def tick(self, *, is_idle: bool) -> None:
        """Look whether there is anything to give."""
        now = self._clock()
        if not is_idle or self._idle_s <= 0 or self._device is None or self._shift is not None:
            self._idle_since = None
            return
        self._idle_since = now if self._idle_since is None else self._idle_since
        if now - self._idle_since >= self._idle_s and (going := self._pager.give_back_slabs()):
            self._away += going
            self._begin(self._device, going, ())

    async def have(self) -> None:
        """Have everything here again, as far as the device still has it."""
        self.wake()
        while self._shift is not None:
            await asyncio.wait([self._shift])

    def wake(self) -> None:
        """Somebody comes: ask for what is away (invariant 1)."""
        self._idle_since = None
        if self._away and self._device is not None:
            self._dispatcher.is_held_up = True
            if self._shift is None:
                self._begin(self._device, (), self._away)

    def _begin(self, device: Device, gives: tuple[int, ...], takes: tuple[int, ...]) -> None:
        task = self._shift = asyncio.get_running_loop().create_task(self._move(device, gives, takes), name="shift slabs")
        task.add_done_callback(self._moved)

    async def _move(self, device: Device, gives: tuple[int, ...], takes: tuple[int, ...]) -> None:
        try:
            await device.shift_slabs(gives, takes)
        except DeviceLost:
            return
        except DriverError as error:
            logger.warning("slabs stay where they are", extra={"num_slabs": len(gives + takes), "error": str(error)})
            if takes:
                self._dispatcher.is_held_up = False  # invariant 2
            return
        if self._device is device and takes:
            self._away = tuple(slab for slab in self._away if slab not in takes)
            self._pager.slabs_came_back(takes)
            self._dispatcher.is_held_up = False

    def _moved(self, _task: asyncio.Task[None]) -> None:
        self._shift = None
        if self._dispatcher.is_held_up:
            self.wake()  # somebody came while slabs were leaving
        else:
            self._dispatcher.room_made()
