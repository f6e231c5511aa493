"""Locality: among tenants that are nearly level, and among equal requests of one tenant, the one goes first whose KV is at hand.

    who is next by the accounts             saves 0 us       lag   0
    another one within `locality_lag_us`    saves 40,000 us  lag 900        <- goes first: it saves more than it goes ahead

Whoever goes first is charged like anybody else, so a tenant can be ahead by the lag, and one request more, and no further: a preference
bounded by deficit (Cao et al., "Locality-aware fair scheduling in LLM serving", 2025: deficit longest prefix match).

Invariants
1. Only requests of the tenants that `FairShare.near` names are looked at, and the first `MOST_LOOKED_AT` of each queue that are equal in
   class and niceness.
2. No request is passed more than `MOST_PASSED` times by others of its own queue.
3. With nothing at hand the order is that of the accounts and the queues, and finding that out costs next to nothing.
4. A tenant of which something runs does not go before one of which nothing does: a request that was just preempted for another one has its
   KV at hand, and would have its row back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from kerneld.fairshare import FairShare
from kerneld.pricing.charging import Charging
from kerneld.request import Request
from kerneld.sharenode import SCALE
from kerneld.tally import Tally
from kerneld.ticketqueue import Key, TicketQueue
from kerneld.waiting import Waiting

MOST_LOOKED_AT: Final = 8
MOST_PASSED: Final = 8


class _Best(NamedTuple):
    """Whom a tenant would send first, as long as its queue is that, and no more is known."""

    num_changes: int
    stamp: int
    request: Request
    saved_us: int


class Locality:
    """Prefers what is cheap to run, within bounds."""

    def __init__(self, shares: FairShare, waiting: Waiting, running: Tally, charging: Charging, lag_us: int) -> None:
        self._shares = shares
        self._waiting = waiting
        self._running = running
        self._charging = charging
        self._lag_us = lag_us
        self.stamp: Callable[[], int] = lambda: 0  # changes when KV is at hand that was not before; 0: nothing is at all
        self.num_at_hand: Callable[[Request], int] = lambda _request: 0  # leading tokens of a waiting request
        self._seen: tuple[str, int, int] | None = None  # for what the last choice was made: pick, changes of queues, stamp
        self._chosen: Request | None = None  # one of the pick's
        self._bests: dict[str, _Best] = {}  # by tenant
        self._nothing_at: tuple[int, int] | None = None  # changes of queues, stamp: then nobody was found who saves anything

    def choose(self, pick: str) -> Request:
        """Who goes first where the accounts name this tenant; something of it waits."""
        first = self._waiting.queue(pick).first()
        stamp = self.stamp() if self._lag_us else 0
        if not stamp:
            return first
        now = self._waiting.num_changes, stamp
        if now == self._nothing_at:
            return first
        if (pick, *now) != self._seen or self._chosen is None:
            chosen, saved_us = self._best(pick, stamp)
            # One of another tenant is not remembered: what that is charged meanwhile may bring it further ahead than the lag.
            self._chosen = chosen if chosen.tenant == pick else None
            self._seen, self._nothing_at = (pick, *now), None if saved_us else now
            return chosen
        return self._chosen

    def forget(self) -> None:
        """A tenant was closed, or is gone: the last choice may be one of its requests."""
        self._chosen = None
        self._bests.clear()

    def admitted(self, request: Request) -> None:
        """A request that waits in line is admitted: those that it passes in its own queue were passed once more."""
        for _key, passed in islice(self._waiting.queue(request.tenant).ahead(), MOST_LOOKED_AT):
            if passed is request:
                return
            passed.num_passed += 1

    def _best(self, pick: str, stamp: int) -> tuple[Request, int]:
        """Who goes first, and what that saves."""
        best, best_us = self._best_of(pick, stamp)
        for path in self._shares.near(self._lag_us, MOST_LOOKED_AT):
            if path == pick or (self._running.of(path) and not self._running.of(pick)):  # invariant 4
                continue
            other, saved_us = self._best_of(path, stamp)
            if saved_us > best_us and saved_us - best_us > self._lag(other, pick):
                best, best_us = other, saved_us
        return best, best_us

    def _best_of(self, path: str, stamp: int) -> tuple[Request, int]:
        """Of a tenant's first requests, the one that saves most, the earlier one of two; and what it saves."""
        queue, known = self._waiting.queue(path), self._bests.get(path)
        if known is not None and known.num_changes == queue.num_changes and known.stamp == stamp:
            return known.request, known.saved_us
        saved = [(request, self._saved_us(request)) for request in _equals(queue)]
        best, saved_us = max(saved, key=_saving)
        self._bests[path] = _Best(queue.num_changes, stamp, best, saved_us)
        return best, saved_us

    def _saved_us(self, request: Request) -> int:
        num_tokens = self.num_at_hand(request)
        return self._charging.saved_us(request, num_tokens) if num_tokens else 0

    def _lag(self, request: Request, pick: str) -> int:
        """By how much device time a request's tenant is ahead of the pick."""
        rank = self._waiting.queue(pick).first().rank
        return self._shares.lag(request.tenant, pick, request.rank, rank) // SCALE


def _equals(queue: TicketQueue) -> Iterator[Request]:
    """The first of a queue, and those behind it that may go before it (invariants 1 and 2)."""
    first: Key | None = None
    for key, request in islice(queue.ahead(), MOST_LOOKED_AT):
        if first is not None and key[:2] != first[:2]:
            return
        first = key
        yield request
        if request.num_passed >= MOST_PASSED:
            return


def _saving(saved: tuple[Request, int]) -> int:
    return saved[1]
