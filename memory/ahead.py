"""Room on the device before somebody needs it: the coldest pages get a copy below ahead of time, so that a fault that takes their frames
waits for no copy.

    free |--- pages of the coldest tables, clean ---|--- the rest, as it comes ---|
         '-------------- high mark ---------------'

A clean page is as good as a free frame to whoever needs one, and still serves its own context; so the device is not emptied ahead of need.

Invariants
1. Nothing here makes a plan fail, takes a frame of the device away, or has a page lost.
2. It looks at tables only while fewer frames are free than the low mark says, and no further than the high mark.
"""

from __future__ import annotations

from memory.config import MemoryConfig
from memory.costs import Costs
from memory.draft import Draft
from memory.mapping import Mapping
from memory.pace import Allowance
from memory.page import Tier
from memory.reclaim import Sweep
from memory.table import Page, PageTable

EVERY = 16  # plans with rows between two looks: asking costs a ranking of all tables


class Ahead:
    """Copies of the coldest pages that are on the device alone."""

    def __init__(self, config: MemoryConfig, mapping: Mapping, costs: Costs) -> None:
        total = mapping.arenas[Tier.DEVICE].total_bytes if config.write_behind else 0
        self._low, self._high = int(config.device_low * total), int(config.device_high * total)
        self._costs = costs
        self._mapping = mapping

    def drain(self, draft: Draft, sweep: Sweep, allowance: Allowance, *, has_rows: bool) -> None:
        """Let a plan copy some."""
        covered = self._mapping.free_bytes(Tier.DEVICE)
        if covered >= self._low or not allowance.is_left or (has_rows and draft.seq % EVERY):
            return
        for table in sweep.tables:
            if covered >= self._high:
                return
            if not table.pins and not self._clean(sweep, allowance, table):
                return
            covered += table.device_bytes

    def _clean(self, sweep: Sweep, allowance: Allowance, table: PageTable) -> bool:
        """Have what is dirty of a table copied, last pages first. Returns whether there was room for all."""
        for group, pages in enumerate(table.pages):
            num_dirty = table.num_device[group] - table.num_copied[group]
            for page in reversed(pages):
                if not num_dirty:
                    break
                if page.device_frame is None or page.is_below:
                    continue
                num_dirty -= 1
                if self._is_due(sweep, page) and not self._copy(sweep, allowance, page):
                    return False
        return True

    def _is_due(self, sweep: Sweep, page: Page) -> bool:
        return page.num_reached > 0 and sweep.may_leave_device(page) and self._costs.is_worth_keeping(page)

    def _copy(self, sweep: Sweep, allowance: Allowance, page: Page) -> bool:
        frame = sweep.host_frame(page, may_lose=False) if allowance.is_left else None
        if frame is None:
            return False
        sweep.copy_down(page, frame, page.num_reached)
        allowance.spend(page.space.device_frame_bytes)
        return True
