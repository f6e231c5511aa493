"""Quanta: how many tokens each row computes in the next step, and how many steps follow each other without a look at the queues."""

from __future__ import annotations

from collections.abc import Sequence

from kerneld.pricing.stepsize import StepSizer
from kerneld.step import RowNeed, StepShape, longest_quantum, reading_order, share_budget


class Quanta:
    """Shapes one quantum after the other."""

    def __init__(self, sizer: StepSizer) -> None:
        self._sizer = sizer
        self._last_num_steps = 1
        self.last_budget = 0  # tokens that the last step was allowed

    def shape(self, rows: Sequence[RowNeed], *, has_waiting: bool) -> StepShape:
        """The next quantum of these rows, which are in the order of their admission: `reading_order` says whose input goes first.

        It has one step while somebody waits or a prefill is unfinished, else twice as many as the last one, up to the policy's limits.
        """
        rows = reading_order(rows)
        self.last_budget = self._sizer.budget(rows)
        shares = share_budget(rows, self.last_budget)
        longest = 1 if has_waiting else longest_quantum(rows, shares)
        if longest > 1:
            longest = min(longest, self._sizer.most_steps(rows))
        self._last_num_steps = min(longest, 2 * self._last_num_steps)
        return StepShape(shares, self._last_num_steps)
