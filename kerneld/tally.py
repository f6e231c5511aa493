"""A tally: how many of something each tenant has, itself and all below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


def ancestors(path: str) -> Iterator[str]:
    """A tenant path and those above it, the longest first: "a/b/c", "a/b", "a"."""
    while path:
        yield path
        path = path.rpartition("/")[0]


class Tally:
    """Counts by tenant path; what is added to a tenant counts for everybody above it."""

    def __init__(self, whole: Tally | None = None) -> None:
        """`whole`: a tally of which this one is a part: what is added here is added there too."""
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._whole = whole

    @property
    def total(self) -> int:
        """How many there are, all tenants together."""
        return self._total

    def of(self, path: str) -> int:
        """How many a tenant and all below it have."""
        return self._counts[path]

    def add(self, path: str) -> None:
        """One more."""
        self._total += 1
        for node in ancestors(path):
            self._counts[node] += 1
        if self._whole is not None:
            self._whole.add(path)

    def remove(self, path: str) -> None:
        """One less."""
        assert self._counts[path] > 0, "removed more often than added"
        self._total -= 1
        for node in ancestors(path):
            self._counts[node] -= 1
            if not self._counts[node]:
                del self._counts[node]
        if self._whole is not None:
            self._whole.remove(path)
