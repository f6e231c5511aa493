"""PageUse: which page files are needed, by images that are there and by images that are being written.

Any thread may call; the lock is held for counting, and for the removal of single files.

Invariants
1. A page that an image names, or that somebody has pinned, is never given to `remove`.
2. While there is an image of which nobody knows what it needs, nothing is.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable


class PageUse:
    """Counts the users of page files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: dict[str, set[str] | None] = {}  # the pages of each image; None: its manifest cannot be read
        self._named: Counter[str] = Counter()  # images, by page
        self._pinned: Counter[str] = Counter()

    def add(self, image_id: str, pages: set[str] | None) -> None:
        """An image is there and needs these pages; None: nobody can tell which."""
        with self._lock:
            self._images[image_id] = pages
            self._named.update(pages or ())

    def remove(self, image_id: str) -> set[str]:
        """An image is gone. Return the pages that it needed."""
        with self._lock:
            pages = self._images.pop(image_id, None) or set()
            self._named.subtract(pages)
        return pages

    def pin(self, pages: set[str]) -> None:
        """Somebody is about to need pages."""
        with self._lock:
            self._pinned.update(pages)

    def unpin(self, pages: set[str]) -> None:
        """Undo one `pin` of these pages."""
        with self._lock:
            self._pinned.subtract(pages)

    def unnamed(self, pages: set[str]) -> set[str]:
        """Return those of the pages that no image names."""
        with self._lock:
            return {page for page in pages if self._named[page] <= 0}

    def drop_unneeded(self, pages: set[str], remove: Callable[[str], int]) -> int:
        """Call `remove` for those of the pages that nobody needs, and return the sum of what it gave. Raises: what it raised."""
        with self._lock:
            if None in self._images.values():
                return 0  # invariant 2
            unneeded = [page for page in pages if self._named[page] <= 0 and self._pinned[page] <= 0]
            for page in unneeded:
                del self._named[page], self._pinned[page]
            return sum(remove(page) for page in unneeded)
