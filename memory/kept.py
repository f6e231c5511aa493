"""Pages that guarantees keep where they are, when many have to go at once: of every owner with a guarantee, the warmest up to its size.

Where pages go one by one, the ledger is asked before each (`Ledger.is_guaranteed`). That does not do for whole slabs: each of their pages
may be beyond the guarantee, and all of them together not.
"""

from __future__ import annotations

from collections.abc import Sequence

from memory.ledger import Ledger, lineage
from memory.mapping import frame_bytes, frame_of
from memory.page import Tier
from memory.table import Page, PageTable


def kept_pages(ledger: Ledger, tables: Sequence[PageTable], tier: Tier, taker: str) -> set[Page]:
    """The pages of a tier that a taker may not have. `tables` come coldest first; of each the head is kept longest."""
    kept: set[Page] = set()
    for owner, guarantee_bytes in ledger.guarantees(tier).items():
        if owner not in lineage(taker):
            kept |= _warmest(owner, [table for table in reversed(tables) if owner in lineage(table.owner)], tier, guarantee_bytes)
    return kept


def _warmest(owner: str, tables: Sequence[PageTable], tier: Tier, guarantee_bytes: int) -> set[Page]:
    """Pages of some tables of an owner, in this order, until what it is charged for them comes to its guarantee."""
    kept: set[Page] = set()
    for table in tables:
        for group, pages in enumerate(table.pages):
            size_bytes = frame_bytes(table.spaces[group], tier)
            for page in pages:
                if guarantee_bytes <= 0:
                    return kept
                if frame_of(page, tier) is not None and page not in kept:
                    kept.add(page)
                    own = sum(count for name, count in page.owners.items() if owner in lineage(name))
                    guarantee_bytes -= size_bytes * own // len(page.holders)
    return kept
