"""Two marks of free frames in the host tier: below the low one pages begin to leave, and they go on until the high one is reached."""

from __future__ import annotations

from memory.config import MemoryConfig
from memory.mapping import Mapping
from memory.page import Tier


class Watermarks:
    """Says how much room is missing in the host tier."""

    def __init__(self, config: MemoryConfig, mapping: Mapping) -> None:
        total = mapping.arenas[Tier.HOST].total_bytes
        self._low = int(config.host_low * total)
        self._high = max(int(config.host_high * total), self._low)
        self._mapping = mapping
        self._is_short = False

    def missing(self, coming_bytes: int) -> int:
        """Bytes that have yet to leave the host tier, those that are leaving already (`coming_bytes`) taken off; 0 or less is none."""
        limbo = sum(pool.num_limbo * pool.frame_bytes for pool in self._mapping.pools(Tier.HOST).values())
        free = self._mapping.free_bytes(Tier.HOST) + limbo
        if free >= self._high:
            self._is_short = False
        elif free < self._low:
            self._is_short = True
        return self._high - free - coming_bytes if self._is_short else 0
