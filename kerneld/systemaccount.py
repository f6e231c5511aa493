"""The system's account: device time that was spent for no request of anybody, by cause, and that no tenant pays.

A request that gave its row up, or lost it, has its pages brought back or computed again when it is seated next; `kerneld.meter` measures
what that took.
"""

from __future__ import annotations

from collections import Counter

from kerneld.request import Request


class SystemAccount:
    """Microseconds by cause."""

    def __init__(self) -> None:
        self.us: Counter[str] = Counter()

    def had_back(self, request: Request, seconds: float) -> None:
        """A request has its pages again, which took so long: the system's, if they were taken away from it."""
        cause, request.lost_row_for = request.lost_row_for, ""
        if cause:
            self.us[cause] += round(seconds * 1e6)
