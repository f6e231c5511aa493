"""Page-seconds: how many pages of every tier were held for how long, by whom.

Sampled about once a second from the ledger, so that it costs nothing where pages move. The pages of a tier are split as the ledger splits
its bytes: a page that several hold counts in parts, and the parts add up to the pages that there are. What is retained of freed contexts
is their owner's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from memory.ledger import Ledger
from memory.page import Tier

_MS_PER_S = 1000


class Held(NamedTuple):
    """Pages of a tier, times milliseconds."""

    owner: str
    tier: Tier
    page_ms: int


class PageSeconds:
    """Samples the ledger. `clock` is monotonic: what is done to the time of day makes no page-seconds."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._sampled_at = clock()

    def sample(self) -> Iterator[Held]:
        """What was held since the last sample, as if all of it had been held for all of that time."""
        elapsed_ms = int((self._clock() - self._sampled_at) * _MS_PER_S)
        self._sampled_at += elapsed_ms / _MS_PER_S  # the rest counts the next time
        for tier in self._ledger.snapshot():
            num_pages, num_bytes = self._ledger.num_pages[tier.tier], sum(tier.kv_bytes.values())
            for owner, held_bytes in tier.kv_bytes.items():
                page_ms = num_pages * held_bytes * elapsed_ms // num_bytes
                if page_ms:
                    yield Held(owner, tier.tier, page_ms)
