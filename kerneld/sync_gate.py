"""SyncGate: lets things become visible only after what they tell of is on the disk (group commit for durability `fsync`).

Actions wait for the first sync that begins after they were handed in; one sync serves all that wait, in their order. If it fails, each is
told of that instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from kerneld.errors import KernelError
from kerneld.state.journal import Journal

logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """Something that may happen once the disk has what was written before."""

    action: Callable[[], None]
    give_up: Callable[[KernelError], None]


class SyncGate:
    """A queue in front of the journal's sync."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    def after_sync(self, action: Callable[[], None], give_up: Callable[[KernelError], None]) -> None:
        """Run `action` once everything written so far is on the disk, or `give_up` if that cannot be."""
        self._waiting.append(_Waiting(action, give_up))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain(), name="journal sync")

    async def close(self) -> None:
        """Wait until nothing waits."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._journal.sync()
            except KernelError as error:
                logger.exception("the journal could not be synced; what waited for it stays unseen")
                for waiting in batch:
                    waiting.give_up(error)
                continue
            for waiting in batch:
                waiting.action()
