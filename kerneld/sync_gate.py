"""SyncGate: lets things become visible only after what they tell of is on the disk (group commit for durability `fsync`).

Actions wait for the first sync that begins after they were handed in; one sync serves all that wait, in their order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kerneld.errors import KernelError
from kerneld.state.journal import Journal

logger = logging.getLogger(__name__)


class SyncGate:
    """A queue in front of the journal's sync."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None

    def after_sync(self, action: Callable[[], None]) -> None:
        """Run `action` once everything written so far is on the disk."""
        self._waiting.append(action)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._journal.sync()
            except (KernelError, OSError):
                logger.exception("the journal could not be synced; what waited for it stays unseen")
                return
            for action in batch:
                action()
