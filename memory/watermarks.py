"""How much of the host tier can be had at once.

free frames      two marks: below the low one pages begin to leave, and they go on until the high one is reached
clean copies     free frames, and copies that are on disk too: kept at a share of what weights leave, so that a burst loses no page
"""

from __future__ import annotations

from memory.config import MemoryConfig
from memory.ledger import Kind
from memory.mapping import Mapping
from memory.page import Tier


class Watermarks:
    """Says how much room is missing in the host tier."""

    def __init__(self, config: MemoryConfig, mapping: Mapping) -> None:
        total = mapping.arenas[Tier.HOST].total_bytes
        self._low = int(config.host_low * total)
        self._high = max(int(config.host_high * total), self._low)
        self._clean = config.host_clean
        self._mapping = mapping
        self._is_short = False

    def missing(self) -> int:
        """Bytes that have yet to leave the host tier until the high mark is reached; 0 while it is not short of room."""
        free = self._free()
        if free >= self._high:
            self._is_short = False
        elif free < self._low:
            self._is_short = True
        return self._high - free if self._is_short else 0

    def unsaved(self) -> int:
        """Bytes of host copies that have yet to be on disk too until enough of the tier costs nothing to have; 0 or less: none."""
        ledger = self._mapping.ledger
        weights = ledger.kind_bytes(Tier.HOST, Kind.WEIGHTS) + ledger.kind_bytes(Tier.HOST, Kind.ADAPTER)
        room = self._mapping.arenas[Tier.HOST].total_bytes - weights
        return int(self._clean * room) - self._free() - self._mapping.saved_bytes

    def spare_disk(self) -> int:
        """Bytes of the disk tier that nobody is likely to need: all that is free but what leaves the host tier when that is short."""
        return self._mapping.free_bytes(Tier.DISK) - self._high

    def _free(self) -> int:
        limbo = sum(pool.num_limbo * pool.frame_bytes for pool in self._mapping.pools(Tier.HOST).values())
        return self._mapping.free_bytes(Tier.HOST) + limbo
