"""Headroom: whether those who run leave room for one more, once all of them have grown as far as is expected.

    tokens of a row    |---- now ----|- - - left - - -|         left: of what it asked for, the part that its tenant's requests use
                                                                on average (all of it where nothing is known); past that, a page

Somebody who would take what others are going to need waits: he, or somebody else, would be preempted before long, and what was computed of
him would be for nothing. It is an estimate: where it is wrong somebody is preempted, and where outputs are shorter, frames lie idle.

That all of them are fullest at once is more than happens. Counting only the fullest moment that is expected, row by row, admits a tenth
more; but whoever comes then waits for a whole row to end, because rows that begin together end together (figure 5 of `kerneld sim`: the
light tenant's first token after 5.8 s on average, and after 2.1 s this way).

All of the growth is more than rows in all stages need: half of it is what such rows have before them on average (`growth_share`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kerneld.pricing.usedparts import UsedParts
from kerneld.request import Request
from kerneld.rows import Row
from memory.page import Space, Tier
from memory.pager import Pager
from memory.table import PageTable


class Headroom:
    """Estimates of one device. Between two `begin` a row is counted once, so that seating many looks at each of them once."""

    def __init__(self, pager: Pager, parts: UsedParts, growth_share: float) -> None:
        """`growth_share`: of what rows are expected to grow by, how much is kept free for them; 0: nothing."""
        self._pager = pager
        self._parts = parts
        self._growth_share = growth_share
        self.begin()

    def begin(self) -> None:
        """Rows may have grown, and more may be known of what is expected of them."""
        self._counted: list[Row] = []
        self._counted_bytes = self._most_shared = 0

    def has_room(self, rows: Sequence[Row], candidate: Request) -> bool:
        """Whether who is next finds room beside these rows, whatever they are expected to grow by; beside nobody he always does."""
        table = candidate.context.table
        if not rows or not self._growth_share or table is None:
            return True
        self._count(rows)
        needed = self._counted_bytes + self._full_bytes(candidate, candidate.context.num_tokens, table)
        # Pages that several hold are taken for the same ones: they count once.
        shared = max(_shared_bytes(table), self._most_shared)
        return needed + shared <= self._room_bytes(table.spaces)

    def _count(self, rows: Sequence[Row]) -> None:
        """Add up what these rows will hold, those that were added up before at the head of the list only once."""
        if list(rows[: len(self._counted)]) != self._counted:
            self.begin()  # somebody left
        for row in rows[len(self._counted) :]:
            self._counted.append(row)
            self._counted_bytes += self._full_bytes(row.request, row.total, row.table)
            self._most_shared = max(self._most_shared, _shared_bytes(row.table))

    def _full_bytes(self, request: Request, num_needed: int, table: PageTable) -> int:
        """Bytes of the device that a request alone will hold; `num_needed` tokens are known of it."""
        num_tokens = max(request.context.num_tokens, num_needed) + int(self._growth_share * self._left(request))
        return max(-(-num_tokens // self._pager.page_tokens) * _frame_bytes(table.spaces) - _shared_bytes(table), 0)

    def _left(self, request: Request) -> int:
        """Tokens that a request is still expected to generate."""
        if request.is_scoring:
            return 0
        expected = math.ceil(self._parts.of(request.tenant) * request.max_tokens)
        return min(max(expected - request.num_generated, self._pager.page_tokens), request.num_remaining)

    def _room_bytes(self, spaces: Sequence[Space]) -> int:
        """Bytes of the device that pages of these spaces can fill: what a slab has left behind its last whole frame is none of them."""
        shelf = self._pager.weights[Tier.DEVICE]
        frame_bytes = max(space.device_frame_bytes for space in spaces)
        return shelf.left_slabs * (shelf.slab_bytes // frame_bytes * frame_bytes)


def _shared_bytes(table: PageTable) -> int:
    return sum(count * space.device_frame_bytes for count, space in zip(table.num_shared, table.spaces, strict=True))


def _frame_bytes(spaces: Sequence[Space]) -> int:
    """Bytes of the device frames of one page in every space."""
    return sum(space.device_frame_bytes for space in spaces)
