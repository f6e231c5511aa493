"""Rooms: who waits for slabs for weights, first come first served.

want --> waits --plan--> on its way --landed--> the future is done
           ^  |              '-- plan void --> put back
           |  '-- too little may go --> tried once more when what is on its way has landed, then the future fails
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memory.errors import OutOfFrames, PagingError
from memory.page import PagePlan, Tier
from memory.pager import Pager


@dataclass(slots=True, eq=False)
class RoomWanted:
    """Somebody waits for slabs."""

    sizes: tuple[int, ...]
    tier: Tier
    future: asyncio.Future[None]
    not_before: int = 0  # tried in vain; it is tried again when this plan has landed


class RoomPlan(NamedTuple):
    """A plan that makes room, and for whom."""

    pages: PagePlan
    room: RoomWanted


class Rooms:
    """The queue of those who wait."""

    def __init__(self, pager: Pager) -> None:
        self._pager = pager
        self._waiting: deque[RoomWanted] = deque()

    def want(self, sizes: tuple[int, ...], tier: Tier) -> asyncio.Future[None]:
        """Wait for room for weights of these sizes in a tier. The future raises PagingError, if there is none to be made."""
        room = RoomWanted(sizes, tier, asyncio.get_running_loop().create_future())
        self._waiting.append(room)
        return room.future

    def is_next(self, landed_seq: int) -> bool:
        """Whether somebody waits for whom a plan may be tried now."""
        return bool(self._waiting) and landed_seq >= self._waiting[0].not_before

    def plan(self, seq: int, last_on_way: int) -> RoomPlan | None:
        """The plan `seq` for whoever is next, or None: then it waits on, or was told who holds what is missing."""
        room = self._waiting.popleft()
        try:
            return RoomPlan(self._pager.plan_room(seq, room.sizes, room.tier), room)
        except PagingError as shortage:
            if isinstance(shortage, OutOfFrames) and last_on_way and not room.not_before:
                room.not_before = last_on_way
                self._waiting.appendleft(room)
            elif not room.future.done():
                room.future.set_exception(shortage)
            return None

    def put_back(self, rooms: Sequence[RoomWanted]) -> None:
        """Their plans are void: they are next."""
        self._waiting.extendleft(reversed(rooms))

    def give_up(self) -> None:
        """The device is gone: nobody waits for its slabs any more."""
        for room in self._waiting:
            room.future.cancel()
        self._waiting.clear()
