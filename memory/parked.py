"""Parked copies: host copies that somebody reads, and that their page does not have any more.

    page --park--> a page of its own, of place -1, in the same host frame --the last reader is done--> gone

Every question costs what there is to answer, however many copies are parked.
"""

from __future__ import annotations

from memory.table import Page


class ParkedCopies:
    """Which page each parked copy was of."""

    def __init__(self) -> None:
        self._origins: dict[Page, Page] = {}
        self._copies: dict[Page, list[Page]] = {}  # by origin, oldest first

    def add(self, parked: Page, page: Page) -> None:
        """A copy of a page is parked."""
        self._origins[parked] = page
        self._copies.setdefault(page, []).append(parked)

    def pop(self, parked: Page) -> Page:
        """A parked copy is about to go; returns the page that it was of."""
        page = self._origins.pop(parked)
        self._copies[page].remove(parked)
        if not self._copies[page]:
            del self._copies[page]
        return page

    def of(self, page: Page) -> list[Page]:
        """Copies of a page that are kept for its readers."""
        return list(self._copies.get(page, ()))

    def frames(self) -> list[tuple[int, int]]:
        """Space and frame of every parked copy."""
        return [(parked.space_id, parked.host_frame) for parked in self._origins if parked.host_frame is not None]
