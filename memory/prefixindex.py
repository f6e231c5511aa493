"""The prefix index: pages by what they hold, so that a context whose tokens begin alike takes them instead of computing them again.

    (space, link of the hash chain) -> full pages with that content, oldest first          a place is known when every group's page is

A link stands for a page's tokens and for everything before them, under the key of one sharing domain and one model (`memory.prefix`): what
is found under it is what the asker would compute, and nobody outside the domain can ask for it. Partial pages have no link.
Several pages may hold the same, when they were computed side by side; each goes its own way, and the link is known until the last is gone.

Invariants
1. A page in the index is somewhere, has a holder, and is whole: one of its holders reaches its end.
2. A page stands under one link of its own space, and a link without pages does not stand there.
3. A page that is about to be written leaves the index first; only an abort of the plan that took its content away brings a page back.

Every change costs O(1); a look costs O(1) and a few pages more where the oldest is not on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from memory.table import Page

_MAX_LOOKED_AT = 8  # of the pages that hold the same


class PrefixIndex:
    """Full pages by content."""

    def __init__(self) -> None:
        self._pages: dict[tuple[int, bytes], dict[Page, None]] = {}
        self._links: dict[Page, bytes] = {}
        self.num_changes = 0

    def __len__(self) -> int:
        return len(self._links)

    def link_of(self, page: Page) -> bytes:
        """The link under which a page stands; empty if it does not."""
        return self._links.get(page, b"")

    def add(self, page: Page, link: bytes) -> None:
        """A page is whole, and holds what the link names; one that stands under a link already stays there (invariant 2)."""
        if page not in self._links:
            self.num_changes += 1
            self._links[page] = link
            self._pages.setdefault((page.space_id, link), {})[page] = None

    def forget(self, page: Page) -> None:
        """A page is lost, cut, or about to be written; one that is not in the index is no error."""
        link = self._links.pop(page, None)
        if link is None:
            return
        self.num_changes += 1
        place = page.space_id, link
        del self._pages[place][page]
        if not self._pages[place]:
            del self._pages[place]

    def note(self, page: Page) -> None:
        """A page lost a copy, a holder, or a holder's interest in its end: it is forgotten, if that breaks invariant 1."""
        if page in self._links and (page.is_lost or not is_whole(page)):
            self.forget(page)

    def restore(self, page: Page, link: bytes) -> None:
        """The plan that took a page's content away did not happen (invariant 3); `link` is what `link_of` said before."""
        if link and is_whole(page):
            self.add(page, link)

    def find(self, space_id: int, link: bytes) -> Page | None:
        """A page with that content, one on the device if there is one among the oldest; None if there is none."""
        pages = self._pages.get((space_id, link))
        if not pages:
            return None
        oldest = itertools.islice(pages, _MAX_LOOKED_AT)
        return next((page for page in oldest if page.device_frame is not None), next(iter(pages)))

    def knows(self, space_ids: tuple[int, ...], link: bytes) -> bool:
        """Whether a place is known in every group."""
        return all((space_id, link) in self._pages for space_id in space_ids)

    def problems(self) -> Iterator[str]:
        """Look at one page after the other, and say of each which invariant does not hold: nothing, if all do."""
        for page, link in self._links.items():
            if page.is_lost or page.is_parked or not is_whole(page):
                yield f"1, page {page.idx} of space {page.space_id} is somewhere and whole"
            elif page not in self._pages.get((page.space_id, link), ()):
                yield f"2, page {page.idx} of space {page.space_id} stands under its link"
            else:
                yield ""
        is_even = sum(map(len, self._pages.values())) == len(self._links) and all(self._pages.values())
        yield "" if is_even else "2, every link has pages that stand under it alone"


def is_whole(page: Page) -> bool:
    """Whether some holder has valid tokens to the end of the page."""
    return any(table.reach >= (page.idx + 1) * table.page_tokens for table in page.holders)
