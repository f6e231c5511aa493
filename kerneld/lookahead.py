"""Lookahead: in which order those who wait would be seated, if everything fitted and nobody else came."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from kerneld.fairshare import FairShare
from kerneld.pricing.charging import Charging
from kerneld.request import Request
from kerneld.waiting import Waiting


def line(shares: FairShare, waiting: Waiting, charging: Charging, limit: int) -> Iterator[Request]:
    """The first `limit` of those who wait, at the front and in line, in order.

    Copies the tree of shares, and looks at as many queues as it gets to. Nothing may change while it is read.
    """
    return islice(_all(shares.fork(), waiting, charging), limit)


def _all(shares: FairShare, waiting: Waiting, charging: Charging) -> Iterator[Request]:
    yield from waiting.ahead()
    queues: dict[str, Iterator[Request]] = {}
    while (path := shares.pick()) is not None:
        if path not in queues:
            queues[path] = (request for _key, request in waiting.queue(path).ahead())
        request = next(queues[path])
        yield request
        shares.charge(path, charging.expected_cost(request, request.num_at_hand))
        shares.dequeue(path, request.rank)
