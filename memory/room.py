"""Room for weights: which slabs are emptied of pages so that a model's segments can be placed.

One window of slabs for all segments, else one for each; always the window whose pages are fewest, and of equal ones the highest. Slabs with
weights in them, or with a page that may not go, are in no window. From the host tier only copies go whose pages are on the device or the
disk too: an image of weights is worth a read of files, not a prefill.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from memory.draft import Draft
from memory.errors import OutOfFrames
from memory.kept import kept_pages
from memory.mapping import Mapping
from memory.page import Tier
from memory.reclaim import Sweep
from memory.table import Page
from memory.weights import WeightShelf, needed_slabs


class Room:
    """Empties slabs within one draft."""

    def __init__(self, mapping: Mapping, shelf: WeightShelf, draft: Draft, sweep: Sweep) -> None:
        self._mapping = mapping
        self._tier = shelf.tier
        self._arena = mapping.arenas[shelf.tier]
        self._shelf = shelf
        self._draft = draft
        self._sweep = sweep

    def make(self, sizes: tuple[int, ...]) -> None:
        """Evict what lies in the way, and reserve the slabs. Raises: OutOfFrames; the draft is to be undone."""
        costs = self._costs(frozenset())
        window = self._window(costs, needed_slabs(self._arena, sizes))
        slabs = set(window) if window is not None else self._windows(costs, sizes)
        for space_id, pool in self._mapping.pools(self._tier).items():
            for slab in slabs.intersection(pool.slabs()):
                self._sweep.empty(space_id, self._tier, slab)
        self._arena.reserve(slabs)
        self._draft.on_undo(self._arena.unreserve)

    def could_be(self, sizes: tuple[int, ...], without: Iterable[str]) -> bool:
        """Whether there would be room if these placements were gone. Changes nothing."""
        costs = self._costs(frozenset(without))
        if self._window(costs, needed_slabs(self._arena, sizes)) is not None:
            return True
        try:
            self._windows(costs, sizes)
        except OutOfFrames:
            return False
        return True

    @cached_property
    def _kept(self) -> set[Page]:
        """Pages that are covered by guarantees: weights are nobody's, so none of them gives way."""
        return kept_pages(self._mapping.ledger, self._sweep.tables, self._tier, "")

    def _may_go(self, page: Page) -> bool:
        if self._tier is Tier.DEVICE:
            return self._sweep.may_leave_device(page) and page not in self._kept
        return self._sweep.may_leave_host(page, may_lose=False) or (
            page.disk_frame is not None and self._sweep.may_leave_host(page, may_lose=True)
        )

    def _costs(self, without: frozenset[str]) -> list[int | None]:
        """Pages that would have to leave each slab; None where that may not be."""
        costs: list[int | None] = [0] * self._arena.num_slabs
        for slab in self._shelf.slabs().difference(*(self._shelf.slabs_of(key) for key in without)):
            costs[slab] = None
        for space_id, pool in self._mapping.pools(self._tier).items():
            for slab in pool.slabs():
                costs[slab] = self._sweep.slab_cost(space_id, self._tier, slab, self._may_go)
        return costs

    def _windows(self, costs: list[int | None], sizes: tuple[int, ...]) -> set[int]:
        """A window for each segment, the largest first."""
        taken: set[int] = set()
        for size in sorted(sizes, reverse=True):
            window = self._window(costs, needed_slabs(self._arena, (size,)))
            if window is None:
                needed = needed_slabs(self._arena, sizes) * self._arena.slab_bytes
                free = self._mapping.free_bytes(self._tier)
                raise OutOfFrames(self._tier.name.lower(), needed, free, self._mapping.ledger.holders(self._tier))
            taken.update(window)
            for slab in window:
                costs[slab] = None
        return taken

    @staticmethod
    def _window(costs: list[int | None], num_slabs: int) -> range | None:
        """The cheapest window of so many slabs, the highest of equal ones."""
        best: tuple[int, int] | None = None
        total = num_barred = 0
        for slab, cost in enumerate(costs):
            total, num_barred = total + (cost or 0), num_barred + (cost is None)
            if slab >= num_slabs:
                left = costs[slab - num_slabs]
                total, num_barred = total - (left or 0), num_barred - (left is None)
            if slab >= num_slabs - 1 and not num_barred and (best is None or total <= best[0]):
                best = total, slab - num_slabs + 1
        return range(best[1], best[1] + num_slabs) if best is not None else None
