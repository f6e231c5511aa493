"""A histogram for Prometheus that takes one value many times in one go: all rows of a step have the same step time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class BatchHistogram:
    """Counts of values, by upper bound."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0  # of all values

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """How many values are at most each bound, as Prometheus takes it."""
        count = 0
        found: list[tuple[str, float]] = []
        for bound, more in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            count += more
            found.append((bound, count))
        return found
