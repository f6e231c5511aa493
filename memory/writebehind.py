"""Copies to the host tier before anybody needs the room: eviction of such a page is free, and it survives the worker.

Pages wait in a queue, in the order in which they became full. A plan takes some along, as long as there are host frames that nobody else
needs more; a page for which there is none leaves the queue, and is copied when it is evicted. Pages that a checkpoint asked for go first,
and take host frames of colder contexts where they must.

Invariants
1. A page in the queue of full pages is copied only while it has a name and no copy below: a page that is written again has none.
2. Nothing here makes a plan fail.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial

from memory.draft import Draft
from memory.pace import Allowance
from memory.reclaim import Sweep
from memory.table import Page, PageTable


class WriteBehind:
    """The queue of pages that should get a host copy."""

    def __init__(self) -> None:
        self._full: OrderedDict[Page, None] = OrderedDict()  # a dict looks past everything that left its front before
        self._saves: dict[Page, tuple[bytes, int]] = {}  # key and number of tokens of the copy

    def __len__(self) -> int:
        return len(self._full) + len(self._saves)

    def add(self, page: Page) -> None:
        """Copy a full page some time."""
        self._full[page] = None

    def add_table(self, table: PageTable) -> None:
        """Copy the full pages of a table some time."""
        for pages in table.pages:
            for page in pages[: table.reach // table.page_tokens]:
                if page.key and not page.is_below:
                    self.add(page)

    def add_save(self, page: Page, key: bytes, num_tokens: int) -> None:
        """Copy a page with the next plan, whether it is full or not."""
        self._saves[page] = key, num_tokens

    def cut(self, table: PageTable, num_tokens: int) -> None:
        """Tokens of a table from `num_tokens` on are forgotten or written anew: no save of them is due any more."""
        if not self._saves:
            return
        for pages in table.pages:
            for page in pages[num_tokens // table.page_tokens :]:
                _key, saved = self._saves.get(page, (b"", 0))
                if page.idx * table.page_tokens + saved > num_tokens:
                    self._saves.pop(page, None)

    def forget(self) -> None:
        """Nothing is on the device any more."""
        self._full.clear()
        self._saves.clear()

    def drain(self, draft: Draft, sweep: Sweep, allowance: Allowance) -> None:
        """Let a plan take pages along, full ones within its allowance."""
        for page in list(self._saves):
            self._save(draft, sweep, page, *self._saves.pop(page))
        has_room = True
        while self._full and allowance.is_left:
            page, _ = self._full.popitem(last=False)
            if not has_room or not self._is_due(page):
                continue
            frame = sweep.host_frame(page, may_lose=False)
            has_room = frame is not None
            if frame is not None:
                draft.on_undo(partial(self.add, page))
                sweep.copy_down(page, frame, page.holders[0].page_tokens)
                allowance.spend(page.space.device_frame_bytes)

    def _save(self, draft: Draft, sweep: Sweep, page: Page, key: bytes, num_tokens: int) -> None:
        is_done = page.host_frame is not None and page.key == key and page.num_tokens >= num_tokens
        if not page.holders or page.device_frame is None or is_done:
            return
        draft.on_undo(lambda: self._save_again(page, key, num_tokens))
        frame = sweep.host_frame(page, may_lose=True)
        if frame is None:
            return  # a copy that is there stays
        if page.host_frame is not None or page.key != key or page.num_tokens < num_tokens:
            draft.drop_below(page)
        draft.rekey(page, key)
        sweep.copy_down(page, frame, max(num_tokens, page.num_tokens))

    def _save_again(self, page: Page, key: bytes, num_tokens: int) -> None:
        if page.num_reached >= num_tokens:  # else it was truncated since
            self.add_save(page, key, num_tokens)

    def _is_due(self, page: Page) -> bool:
        return bool(page.holders) and bool(page.key) and page.device_frame is not None and not page.is_below  # invariant 1


def saves(table: PageTable, num_tokens: int, keys: Sequence[bytes], partial_key: bytes) -> Iterator[tuple[Page, bytes, int]]:
    """The pages of the first tokens of a table, with the name and the number of tokens that a copy of each is to have."""
    num_full, num_tail = divmod(num_tokens, table.page_tokens)
    for pages in table.pages:
        for page in pages[: num_full + (num_tail > 0)]:
            is_full = page.idx < num_full or (page.idx < table.num_filled and page.key != b"")
            key = (page.key or keys[page.idx]) if is_full else partial_key
            yield page, key, table.page_tokens if is_full else num_tail
