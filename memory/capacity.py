"""Whether a context of some size could ever be wholly on the device, whoever else leaves."""

from __future__ import annotations

from memory.errors import NeverFits
from memory.ledger import lineage
from memory.mapping import Mapping
from memory.page import Tier


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
