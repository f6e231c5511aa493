"""What owners hold beyond their limits, because a limit was lowered or a sharer of their pages left: plans take it away, none fails for it.

    on the device    a page with a copy below leaves at once; others are copied to the host tier by the plan, within its allowance
    on the host      second copies leave first, then pages of the coldest contexts, from their tails

Pages of tables that an unfinished plan wants stay until it has ended, so an excess lasts at most as long as what runs.

Invariants
1. Nothing here makes a plan fail, and nothing of an owner goes that is not beyond its limit.
2. What leaves without a copy does so outside the draft: an abort does not bring it back, and neither does that of a plan that has nothing
   else to do.
"""

from __future__ import annotations

from memory.draft import Draft
from memory.flights import Flights
from memory.mapping import Mapping
from memory.pace import Allowance
from memory.page import Tier
from memory.reclaim import Sweep
from memory.table import Page


class Excess:
    """Gives back what is held beyond limits."""

    def __init__(self, mapping: Mapping, flights: Flights) -> None:
        self._ledger = mapping.ledger
        self._flights = flights

    def drain(self, draft: Draft, sweep: Sweep, allowance: Allowance) -> None:
        """Let a plan take away what it can."""
        for owner in self._ledger.in_excess(Tier.DEVICE):
            self._drain_device(draft, sweep, owner, allowance)
        for owner in self._ledger.in_excess(Tier.HOST):
            while self._is_in_excess(owner, Tier.HOST) and (page := sweep.own_host_page(owner)) is not None:
                self._flights.free_host(page)

    def _drain_device(self, draft: Draft, sweep: Sweep, owner: str, allowance: Allowance) -> None:
        while self._is_in_excess(owner, Tier.DEVICE) and allowance.is_left and (page := sweep.own_page(owner, owner)) is not None:
            if page.num_reached and not page.is_clean and self._demote(sweep, page):
                draft.take_away(page, Tier.DEVICE)
                allowance.spend(page.space.device_frame_bytes)
            else:
                self._flights.free(page, Tier.DEVICE)  # invariant 2

    def _demote(self, sweep: Sweep, page: Page) -> bool:
        """Have a page copied to the host tier. Returns whether there is room for it."""
        self._flights.free_below(page)  # what is there holds less than the page does
        return sweep.demote(page)

    def _is_in_excess(self, owner: str, tier: Tier) -> bool:
        limit = self._ledger.limit(owner, tier).limit_bytes
        return 0 < limit < self._ledger.used(owner, tier)
