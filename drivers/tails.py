"""What lies behind a row's last token in its page, kept zero for whoever computes with whole pages: what is masked out must be finite.

A frame may hold the leavings of a page that was cut, forked or lost, and a step that opens a page writes less than all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from drivers.arena import Arena, FrameShape
from drivers.rows import Row, StepRows


class PageTails(Protocol):
    """The pages of one KV group."""

    def clear_tail(self, frame: int, num_tokens: int) -> None:
        """Zero what lies behind the first `num_tokens` tokens of a page."""


@dataclass(frozen=True, slots=True)
class ArenaTails:
    """Pages in an arena of host memory."""

    arena: Arena
    shape: FrameShape

    def clear_tail(self, frame: int, num_tokens: int) -> None:
        """See `PageTails`."""
        self.arena.clear_tail(self.shape, frame, num_tokens)


def clear_ahead(groups: Sequence[PageTails], row: Row, position: int, page_tokens: int) -> None:
    """Zero what lies at and beyond `position` in the page that holds it, in every group."""
    page, num_tokens = divmod(position, page_tokens)
    if num_tokens:
        for group, table in zip(groups, row.tables, strict=False):  # of no group, where nobody asks for it
            group.clear_tail(int(table[page]), num_tokens)


def clear_opened(groups: Sequence[PageTails], share: StepRows, page_tokens: int) -> None:
    """The same for every page that a step opens, behind what it will write."""
    for row, count in zip(share.rows, share.counts, strict=True):
        if row.position % page_tokens == 0 or row.position // page_tokens != (row.position + count - 1) // page_tokens:
            clear_ahead(groups, row, row.position + count, page_tokens)
