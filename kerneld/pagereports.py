"""PageReports: tells the event bus what plans did to pages: who lost some on the device, and which did not hold their checksum."""

from __future__ import annotations

from collections.abc import Sequence

from kerneld.eventbus import EventBus
from kerneld.events import PageFoundCorrupt, PagesEvicted
from kerneld.rows import Flight, Row
from memory.page import Move


class PageReports:
    """Publishes what happened to pages."""

    def __init__(self, events: EventBus) -> None:
        self._events = events

    def landed(self, flight: Flight) -> None:
        """A plan has ended: what it evicted has left the device."""
        for eviction in flight.evictions:
            self._events.publish(PagesEvicted(eviction.owner, eviction.num_pages, eviction.num_dropped))

    def corrupt(self, moves: Sequence[Move], rows: Sequence[Row]) -> None:
        """A plan could not make these moves: what they read from the host tier was not what it should be. `rows` wanted it."""
        wanted = {
            (page.space_id, page.host_frame): (row.request.context, page.idx)
            for row in rows
            for pages in row.table.pages
            for page in pages
            if page.host_frame is not None
        }
        for move in moves:
            place = wanted.get((move.space_id, move.source_frame))
            context_id, tenant, page_idx = (place[0].id, place[0].tenant, place[1]) if place is not None else ("", "", -1)  # the row left
            self._events.publish(PageFoundCorrupt(context_id, tenant, page_idx))
