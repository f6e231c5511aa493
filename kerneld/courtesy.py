"""Courtesy: who has many rows lets somebody go first who has none and asks for few, if both are nearly level.

What a tenant with long requests is charged comes in lumps, when they are admitted; between two of these lumps a tenant that asks for little
now and then is soon ahead by the little that it got, and would wait for a row to end. So it may be ahead by `courtesy_us`, and is next all
the same: nothing of it runs, fewer of its requests wait than the one who would be next has rows, and its class is no laxer.

Whoever goes first is charged like anybody else, so a tenant is ahead by that lag, and one request more, and no further.
"""

from __future__ import annotations

from typing import Final

from kerneld.fairshare import FairShare
from kerneld.locality import Locality
from kerneld.request import Request
from kerneld.tally import Tally
from kerneld.waiting import Waiting

MOST_LOOKED_AT: Final = 8


class Courtesy:
    """Decides who goes first of those who wait. It changes nothing."""

    def __init__(self, shares: FairShare, waiting: Waiting, running: Tally, locality: Locality, lag_us: int) -> None:
        self._shares = shares
        self._waiting = waiting
        self._running = running
        self._locality = locality
        self._lag_us = lag_us

    def choose(self, pick: str) -> Request:
        """Who goes first where the accounts name this tenant; something of it waits."""
        num_rows = self._running.of(pick)
        if num_rows > 1 and self._lag_us:
            rank = self._waiting.queue(pick).first().rank
            for path in self._shares.near(self._lag_us, MOST_LOOKED_AT):
                first = self._waiting.queue(path).first()
                if first.rank <= rank and not self._running.of(path) and self._waiting.tally.of(path) < num_rows:
                    return first
        return self._locality.choose(pick)
