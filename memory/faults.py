"""The page-fault path: what a plan has to do so that a table's pages are on the device and may be written.

    position   0            valid_tokens          target_tokens
    pages      |    read         |r+w|     write        |
    on host    promote           promote   fresh frame
    shared     leave             copy      fresh page
    on disk    (error: fetch it first)     fresh frame
    missing    (error)           (error)   fresh page

Invariants
1. After `serve`, every page of [0, target_tokens) is on the device, and those at or past `valid_tokens` are held by this table alone,
   have no copy below and no name.
2. A step of decode costs what changes: pages before `resident` and pages that are not written are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from memory.draft import Draft
from memory.errors import PagingError
from memory.ledger import shares
from memory.mapping import frame_bytes
from memory.page import Tier
from memory.reclaim import Sweep
from memory.table import Page, PageTable


@dataclass(frozen=True, slots=True)
class Want:
    """A table whose tokens [0, target_tokens) are wanted on the device; those from `valid_tokens` on will be written."""

    table: PageTable
    valid_tokens: int
    target_tokens: int


class Faults:
    """Serves the wants of one draft."""

    def __init__(self, draft: Draft, sweep: Sweep) -> None:
        self._draft = draft
        self._sweep = sweep

    def serve(self, want: Want) -> None:
        """Fetch and prepare the pages of one table (invariant 1).

        Raises: PagingError, OutOfFrames, OverLimit; then the draft is to be undone.
        """
        table, page_tokens = want.table, want.table.page_tokens
        first, end = want.valid_tokens // page_tokens, -(-want.target_tokens // page_tokens)
        if want.target_tokens <= want.valid_tokens:
            first = end  # nothing is written
        for group, pages in enumerate(table.pages):
            if first > len(pages):
                raise PagingError(f"The table has {len(pages)} pages; {want.valid_tokens} tokens cannot be valid.")
            for idx in range(table.resident[group], first):
                if pages[idx].device_frame is None:
                    self._promote(pages[idx], table)
            for idx in range(first, end):
                self._make_writable(table, group, idx, idx * page_tokens < want.valid_tokens)
            table.resident[group] = max(table.resident[group], end)
        table.num_filled = min(table.num_filled, first)
        self._draft.reach(table, want.target_tokens)

    def _make_writable(self, table: PageTable, group: int, idx: int, holds_tokens: bool) -> None:
        pages, draft = table.pages[group], self._draft
        if idx == len(pages):
            page = Page(table.spaces[group].space_id, group, idx)
            draft.append(table, page)
            self._fresh_frame(page, table)
            return
        page = pages[idx]
        if len(page.holders) > 1:
            self._part(table, page, holds_tokens)
            return
        if page.device_frame is None:
            if holds_tokens:
                self._promote(page, table)
            else:
                self._fresh_frame(page, table)
        if page.is_below:
            draft.drop_below(page)
        if page.key:
            draft.index.forget(page)
            draft.rekey(page, b"")

    def _part(self, table: PageTable, page: Page, holds_tokens: bool) -> None:
        """Give a table a page of its own in place of a shared one, with what it needs of its content."""
        own = Page(page.space_id, page.group, page.idx)
        if not holds_tokens:
            self._draft.swap(table, page, own)
            self._fresh_frame(own, table)
            return
        _expect_at_hand(page)
        frame = self._sweep.device_frame(page.space_id, table.owner, self._frame_bytes(page))
        self._draft.swap(table, page, own)
        source = Tier.HOST if page.device_frame is None else Tier.DEVICE
        num_tokens = page.num_tokens if source is Tier.HOST else page.num_reached
        self._draft.copy(page, source, own, Tier.DEVICE, frame, num_tokens=num_tokens)

    def _promote(self, page: Page, table: PageTable) -> None:
        """Copy a page up from the host tier; the copy there stays."""
        _expect_at_hand(page)
        charge_bytes = shares(self._frame_bytes(page), len(page.holders))[0]
        frame = self._sweep.device_frame(page.space_id, table.owner, charge_bytes)
        self._draft.copy(page, Tier.HOST, page, Tier.DEVICE, frame, num_tokens=page.num_tokens)

    def _fresh_frame(self, page: Page, table: PageTable) -> None:
        frame = self._sweep.device_frame(page.space_id, table.owner, self._frame_bytes(page))
        self._draft.prepare(page, frame, table.owner)
        self._draft.give(page, Tier.DEVICE, frame)

    def _frame_bytes(self, page: Page) -> int:
        space = next(space for space in page.holders[0].spaces if space.space_id == page.space_id)
        return frame_bytes(space, Tier.DEVICE)


def _expect_at_hand(page: Page) -> None:
    if page.is_far:
        raise PagingError(f"Page {page.idx} is on disk alone: it has to be fetched first.")
    if page.is_lost:
        raise PagingError(f"Page {page.idx} is lost: its tokens are not valid.")
