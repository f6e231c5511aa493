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

    def missing(self) -> int:
        """Bytes that have yet to leave the host tier until the high mark is reached; 0 while it is not short of room."""
        limbo = sum(pool.num_limbo * pool.frame_bytes for pool in self._mapping.pools(Tier.HOST).values())
        free = self._mapping.free_bytes(Tier.HOST) + limbo
        if free >= self._high:
            self._is_short = False
        elif free < self._low:
            self._is_short = True
        return self._high - free if self._is_short else 0
