"""The event bus: every event goes to the subscribers, into the log, and into a ring that the verb Events reads.

A follower is a cursor into the ring. One that is slower than the ring is long is told how many events it missed, and goes on with the
oldest that is left: nobody waits for it, and it holds nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import fields
from enum import Enum
from typing import Final

from kerneld.calls import EventRecord
from kerneld.events import Event

logger = logging.getLogger("kerneld.events")

DEFAULT_CAPACITY: Final = 4096
EVENTS_MISSED: Final = "EventsMissed"

Subscriber = Callable[[Event], None]


class EventBus:
    """Where events are published and followed. Event-loop thread only."""

    def __init__(self, clock: Callable[[], float], capacity: int = DEFAULT_CAPACITY, first_sequence: int = 1) -> None:
        self.clock = clock
        self._ring: deque[EventRecord] = deque(maxlen=capacity)
        self._next_sequence = first_sequence
        self._subscribers: list[Subscriber] = []
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def next_sequence(self) -> int:
        """The number that the next event will have."""
        return self._next_sequence

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call it with every event from now on, at once; it must be quick and must not raise."""
        self._subscribers.append(subscriber)

    def publish(self, event: Event) -> None:
        """Something happened."""
        name = type(event).__name__
        facts = {item.name: _rounded(getattr(event, item.name)) for item in fields(event)}
        self._ring.append(EventRecord(self._next_sequence, self.clock(), name, {key: _text(fact) for key, fact in facts.items()}))
        self._next_sequence += 1
        for subscriber in self._subscribers:
            subscriber(event)
        if logger.isEnabledFor(event.level):
            logger.log(event.level, name, extra=facts)
        self._wake()

    async def follow(self, since: int = 0, follow: bool = True) -> AsyncGenerator[EventRecord, None]:
        """Events from number `since` on that are still in the ring; with `follow`, then those to come, until the caller leaves."""
        cursor = since
        while True:
            for record in self._after(cursor):
                cursor = record.sequence + 1
                yield record
            if cursor < self._next_sequence and self._ring:
                continue
            if not follow:
                return
            await self._wait()

    def _after(self, cursor: int) -> list[EventRecord]:
        """What the ring has from `cursor` on; if something before that was asked for and is gone, a record that says so comes first."""
        if not self._ring:
            return []
        oldest = self._ring[0].sequence
        if cursor >= oldest:
            return [self._ring[i] for i in range(cursor - oldest, len(self._ring))]
        missed = [] if cursor == 0 else [EventRecord(oldest - 1, self._ring[0].at, EVENTS_MISSED, {"count": str(oldest - cursor)})]
        return [*missed, *self._ring]

    async def _wait(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


def _rounded(fact: object) -> object:
    """A fact as it is told: seconds to the microsecond."""
    return round(fact, 6) if isinstance(fact, float) else fact


def _text(fact: object) -> str:
    return str(fact.value) if isinstance(fact, Enum) else str(fact)
