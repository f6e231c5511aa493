"""Plans on their way: issued in order, committed in order, undone newest first.

    seq      ... 7     8     9
                 done  |-- outstanding --|      newest = 9, finished = 7

Invariants
1. Numbers of outstanding plans rise; a plan commits only when it is the oldest.
2. A frame freed while plans are outstanding waits for the newest of them; with none outstanding it is free at once.
"""

from __future__ import annotations

from memory.draft import Draft
from memory.errors import PagingError
from memory.mapping import Mapping
from memory.page import Tier
from memory.table import Page


class Flights:
    """The outstanding drafts of one pager."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._drafts: list[Draft] = []
        self._finished = 0
        self.num_changes = 0  # plans that went, came back or were taken back

    @property
    def newest(self) -> int:
        """Number of the newest plan that is outstanding or finished."""
        return self._drafts[-1].seq if self._drafts else self._finished

    @property
    def drafts(self) -> list[Draft]:
        """Outstanding drafts, oldest first. Not to be changed."""
        return self._drafts

    def begin(self, seq: int) -> Draft:
        """A draft for plan `seq`, not yet outstanding. Raises: PagingError, if the number does not rise (invariant 1)."""
        if seq <= self.newest:
            raise PagingError(f"Plan {seq} comes after plan {self.newest}.")
        return Draft(seq, self._mapping)

    def issue(self, draft: Draft) -> None:
        """The draft can be met, and goes on its way; what else it takes along cannot fail it."""
        self.num_changes += 1
        self._drafts.append(draft)

    def commit(self, seq: int) -> Draft:
        """Plan `seq` has finished. Raises: PagingError, if it is not the oldest outstanding (invariant 1)."""
        if not self._drafts or self._drafts[0].seq != seq:
            raise PagingError(f"Plan {seq} is not the oldest plan on its way.")
        self.num_changes += 1
        draft = self._drafts.pop(0)
        draft.finish()
        self._finished = seq
        self._mapping.retire(seq)
        return draft

    def abort(self, seq: int) -> list[Draft]:
        """Undo plan `seq` and all later ones; returns them, oldest first. Raises: PagingError, if it is not outstanding."""
        position = next((idx for idx, draft in enumerate(self._drafts) if draft.seq == seq), None)
        if position is None:
            raise PagingError(f"Plan {seq} is not on its way.")
        self.num_changes += 1
        aborted = self._drafts[position:]
        for draft in reversed(aborted):
            draft.undo()
        del self._drafts[position:]
        self._mapping.rewind(self.newest)
        self._mapping.retire(self._finished)
        return aborted

    def free(self, page: Page, tier: Tier) -> None:
        """Take a page out of its frame for good (invariant 2)."""
        if page.is_parked:
            self._mapping.parked.pop(page)
        pool = self._mapping.pool(page.space_id, tier)
        frame = self._mapping.unmap(page, tier)
        if self._drafts and tier is not Tier.DISK:  # no plan names a frame there
            pool.defer(frame, self.newest)
        else:
            pool.free(frame)

    def free_host(self, page: Page) -> None:
        """Give up a page's host copy, but for its readers."""
        if page.readers:
            self._mapping.park(page)
        else:
            self.free(page, Tier.HOST)

    def free_below(self, page: Page) -> None:
        """Give up every copy of a page but that on the device."""
        if page.disk_frame is not None:
            self.free(page, Tier.DISK)
        if page.host_frame is not None:
            self.free_host(page)

    def give_up(self, page: Page, tier: Tier) -> None:
        """One copy of a page does not hold what it should; a frame that somebody reads stays his."""
        if tier is not Tier.HOST:
            self.free(page, tier)
        elif not page.is_parked:
            self.free_host(page)

    def free_page(self, page: Page) -> None:
        """Give up every copy of a page."""
        if page.device_frame is not None:
            self.free(page, Tier.DEVICE)
        self.free_below(page)
