"""A journal that keeps nothing: a simulated request is durable enough."""

from __future__ import annotations

from collections.abc import Sequence

from kerneld.state.journal import Journal
from kerneld.state.records import Record


class NoJournal(Journal):
    """Takes every record, and forgets it. It has no folder, so it is neither opened nor replayed."""

    def __init__(self) -> None:
        """Nothing is opened."""

    def append(self, records: Sequence[Record], riders: Sequence[Record] = ()) -> bool:  # noqa: ARG002
        """Forget them."""
        return True

    async def sync(self) -> None:
        """There is nothing to sync."""
