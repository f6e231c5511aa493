"""How many bytes a plan may copy without need: write-behind and eviction ahead of time, beside rows that run or without them.

    rows run     throttled     bytes that take `SHARE` of a step: other rows are slowed by no more than that
    none run     full rate     bytes that take `TURN_S`: what arrives meanwhile waits for two such plans at most

A plan's copies are carried out before its first step, so their time is added to that of the plan. Demand copies (pages that a newcomer
needs, and those that make room for them) are not asked about; they are what a plan is for. They count as spent all the same: what they took
above the share is paid back by later plans.

Invariants
1. Over any run of plans with rows, copies ahead of need take at most `SHARE` of the steps, by their measured times, and one page more.
2. Nothing is known before the first measurement: then a bound on the number of pages is all there is.
"""

from __future__ import annotations

SHARE = 0.07  # of a step: with what copies take from the caches of the steps behind them it comes to about 11 %, and 15 % is the goal
TURN_S = 0.01
FORGET = 0.8


class Allowance:
    """What one plan may still copy ahead of need: bytes, the last page of which may pass the bound; or pages, where bytes are unknown."""

    def __init__(self, num_bytes: int | None, num_pages: int) -> None:
        self._bytes = num_bytes
        self._pages = num_pages

    @property
    def is_left(self) -> bool:
        """Whether one more page may be copied."""
        return self._pages > 0 if self._bytes is None else self._bytes > 0

    def spend(self, size_bytes: int) -> None:
        """A page of this size is copied."""
        self._pages -= 1
        if self._bytes is not None:
            self._bytes -= size_bytes


class CopyPace:
    """The budget of copies that can wait."""

    def __init__(self, share: float = SHARE, turn_s: float = TURN_S) -> None:
        self._share = share
        self._turn_s = turn_s
        self._plan_s = 0.0  # of the steps of a plan, slowly following
        self._debt_s = 0.0

    @property
    def has_learned(self) -> bool:
        """Whether a plan with steps has been measured."""
        return self._plan_s > 0

    def note_plan(self, steps_s: float, copies_s: float) -> None:
        """A plan has ended: its steps took so long, and its copies before them."""
        if steps_s <= 0:
            return
        self._plan_s = steps_s if not self._plan_s else FORGET * self._plan_s + (1 - FORGET) * steps_s
        self._debt_s = max(0.0, self._debt_s + copies_s - self._share * steps_s)

    def budget(self, seconds_per_byte: float, *, has_rows: bool) -> int | None:
        """Bytes that the next plan may copy ahead of need; None: nobody knows yet (invariant 2)."""
        if seconds_per_byte <= 0:
            return None
        if not has_rows:
            return int(self._turn_s / seconds_per_byte)
        if not self.has_learned:
            return None
        return int(max(0.0, self._share * self._plan_s - self._debt_s) / seconds_per_byte)
