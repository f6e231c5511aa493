"""What was decided about a context's pages, what it was expected to cost beside the other way, and what it cost in truth.

    choose --> Decision --record--> ring of the latest 1,000 --settle--> measured_s

Invariants
1. A decision is in the ring at most once, and its measured seconds are written once.
2. `predicted_s` and `alternative_s` are what was believed when it was made; nothing learned later changes them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

RING = 1000


class Way(Enum):
    """How the tokens of a context come to the device; of a mixture, the slowest tier that takes part."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    RECOMPUTE = "recompute"


@dataclass(slots=True, eq=False)
class Decision:
    """One choice. Tokens [0, keep_tokens) are taken from where their pages are, [keep_tokens, num_tokens) are computed again."""

    at: float  # of the clock that Costs was given
    model: str
    label: str  # which context
    num_tokens: int
    keep_tokens: int
    chosen: Way
    predicted_s: float | None  # None: nobody knows the pace of prefill
    alternative: Way
    alternative_s: float | None
    copied_bytes: int = 0  # host -> device, if it is carried out
    measured_s: float | None = None  # None: not done yet, or never done


class DecisionRing:
    """The latest decisions, oldest first."""

    def __init__(self, size: int = RING) -> None:
        self._ring: deque[Decision] = deque(maxlen=size)
        self.num_recorded = 0

    def __len__(self) -> int:
        return len(self._ring)

    def record(self, decision: Decision) -> None:
        """A decision is being carried out."""
        self._ring.append(decision)
        self.num_recorded += 1

    def settle(self, decision: Decision, seconds: float) -> None:
        """It is done; only the first word counts (invariant 1)."""
        if decision.measured_s is None:
            decision.measured_s = seconds

    def latest(self, count: int = RING, model: str = "") -> list[Decision]:
        """The last `count` decisions, newest first; of one model only, if it is named."""
        found = [decision for decision in reversed(self._ring) if not model or decision.model == model]
        return found[:count]
