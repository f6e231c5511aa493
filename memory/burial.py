"""Tables that leave for disk wholly: their pages go from device to host with the next plans, from there by transfers, and then leave both.

    on the device alone --plan--> host copy --transfer--> on disk --> gone from device and host

A page that a table which is not buried holds too stays where it is; it only gets its copy on disk. Whoever wants a buried table, fetches it
or resumes it ends that.

Invariants
1. A page of a buried table leaves device and host only when its copy on disk holds everything that anybody may need of it.
2. Nothing here makes a plan fail, and nobody else's page is lost for it.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from memory.draft import Draft
from memory.errors import PagingError
from memory.flights import Flights
from memory.mapping import Mapping
from memory.page import Tier
from memory.reclaim import Sweep
from memory.table import Page, PageTable


class Burials:
    """Pages of buried tables that are still on the device or on the host."""

    def __init__(self, mapping: Mapping, flights: Flights, max_copies: int) -> None:
        self._mapping = mapping
        self._flights = flights
        self._max_copies = max_copies
        # On the device, without a copy that holds all; the name of the copy, where it is not named yet.
        self._dirty: OrderedDict[Page, bytes] = OrderedDict()
        self._late: dict[Page, None] = {}  # on disk, but a plan on its way names them
        self._stalled_at = -1  # changes of the mapping when no host frame was to be had

    def has_backlog(self) -> bool:
        """Whether pages wait to be copied to the host tier with the next plan, and there may be room for them."""
        return bool(self._dirty) and self._stalled_at != self._mapping.num_changes

    def add(self, table: PageTable, partial_key: bytes) -> None:
        """Let a table, cut to its valid tokens and with its full pages named, leave. Raises: PagingError, if there is no disk tier."""
        if not self._mapping.arenas[Tier.DISK].num_slabs:
            raise PagingError("There is no disk tier for pages: set memory.page_file_bytes, and memory.host_bytes if that is 0.")
        table.is_suspended = table.is_buried = True
        table.is_awaited = False
        for pages in table.pages:
            for page in pages:
                is_tail = page.num_reached < table.page_tokens
                if page.device_frame is not None and not page.is_clean:
                    self._dirty[page] = partial_key if is_tail and page.num_reached == table.reach - page.idx * table.page_tokens else b""
                self.leave(page)

    def leave(self, page: Page) -> None:
        """Take a page from device and host if it is on disk and nobody needs it there, now or as soon as no plan names it."""
        if page.disk_frame is None or not self._is_buried(page) or not page.is_clean:  # invariant 1
            return
        if page.pins or any(table.pins for table in page.holders):
            self._late[page] = None
            return
        if page.device_frame is not None:
            self._flights.free(page, Tier.DEVICE)
        if page.host_frame is not None:
            self._flights.free_host(page)

    def landed(self) -> None:
        """A plan has ended or was taken back: pages that it named may leave."""
        late, self._late = self._late, {}
        for page in late:
            self.leave(page)

    def drain(self, draft: Draft, sweep: Sweep) -> None:
        """Let a plan copy pages to the host tier."""
        num_copies = 0
        while self._dirty and num_copies < self._max_copies:
            page, key = next(iter(self._dirty.items()))
            if not page.holders or page.device_frame is None or page.is_clean or not any(table.is_buried for table in page.holders):
                del self._dirty[page]
                continue
            frame = sweep.host_frame(page, may_lose=False)
            if frame is None:
                self._stalled_at = self._mapping.num_changes
                return
            del self._dirty[page]
            draft.on_undo(partial(self._dirty.__setitem__, page, key))
            if page.is_below:
                draft.drop_below(page)
            if key:
                draft.rekey(page, key)
            sweep.copy_down(page, frame, page.num_reached)
            num_copies += 1

    def is_done(self, table: PageTable) -> bool:
        """Whether every page of a buried table is on disk, or lost, and has left device and host but for other tables."""
        return table.is_buried and all(self._is_gone(page) for pages in table.pages for page in pages)

    def _is_gone(self, page: Page) -> bool:
        is_elsewhere = page.device_frame is not None or page.host_frame is not None
        if is_elsewhere and self._is_buried(page):
            return False
        return page.disk_frame is not None or page.is_lost

    def _is_buried(self, page: Page) -> bool:
        """Whether all who hold the page are buried."""
        return bool(page.holders) and all(table.is_buried for table in page.holders)
