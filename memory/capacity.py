"""Whether contexts could be wholly on the device, whoever else leaves: one of some size, ever; or those that a plan would want, now."""

from __future__ import annotations

from collections.abc import Sequence

from memory.errors import NeverFits
from memory.faults import Want
from memory.ledger import lineage
from memory.mapping import Mapping
from memory.page import Tier
from memory.table import PageTable
from memory.weights import WeightShelf


def check_fits(mapping: Mapping, num_weight_slabs: int, space_ids: tuple[int, ...], num_pages: int, owner: str) -> None:
    """Check pages of one context, in every space, against the arena less the weights in it and against the owner's limits.

    Raises: NeverFits, with what it needs, what there is at most, and who holds it; UnknownSpace.
    """
    arena, ledger = mapping.arenas[Tier.DEVICE], mapping.ledger
    pools = [mapping.pool(space_id, Tier.DEVICE) for space_id in space_ids]
    num_slabs = sum(-(-num_pages // pool.frames_per_slab) for pool in pools)
    most = arena.num_slabs - num_weight_slabs
    if num_slabs > most:
        raise NeverFits("device", num_slabs * arena.slab_bytes, most * arena.slab_bytes, ledger.holders(Tier.DEVICE))
    needed = num_pages * sum(pool.frame_bytes for pool in pools)
    for name in lineage(owner):
        limit = ledger.limit(name, Tier.DEVICE).limit_bytes
        if 0 < limit < needed:
            raise NeverFits("device", needed, limit, ledger.holders(Tier.DEVICE))


class Room:
    """What there is on the device at most for the pages of a plan."""

    def __init__(self, mapping: Mapping, shelf: WeightShelf) -> None:
        self._mapping = mapping
        self._shelf = shelf

    def is_short(self, wants: Sequence[Want], leaving: Sequence[PageTable]) -> bool:
        """Whether these wants surely find no frames now: a plan need not be tried. False says nothing.

        Counts what they need at least, pages that others hold too left out, and what the tables in `leaving` keep, which nobody wants any
        more but plans on their way name.
        """
        needed = {space_id: pool.num_limbo for space_id, pool in self._mapping.pools(Tier.DEVICE).items()}
        wanted = set()
        for want in wants:
            wanted.add(want.table)
            num_pages = -(-want.target_tokens // want.table.page_tokens)
            for space_id, num_shared in zip(want.table.space_ids, want.table.num_shared, strict=True):
                needed[space_id] += max(num_pages - num_shared, 0)
        for table in leaving:
            if table not in wanted and needed.keys() >= set(table.space_ids):  # else its model has left
                for space_id, num_here, num_shared in zip(table.space_ids, table.num_device, table.num_shared, strict=True):
                    needed[space_id] += max(num_here - num_shared, 0)
        pools, arena = self._mapping.pools(Tier.DEVICE), self._mapping.arenas[Tier.DEVICE]
        num_slabs = sum(-(-num_frames // pools[space_id].frames_per_slab) for space_id, num_frames in needed.items())
        return num_slabs > arena.num_slabs - arena.num_away - self._shelf.num_slabs
