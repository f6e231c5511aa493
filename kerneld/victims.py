"""Victims: which running request has to give way.

    the newest request of the most served tenant, laxest class first          after its minimum service (`SchedulerPolicy`)

For a waiting request only one of a tenant that is further ahead of its own than `preempt_lag_us`. What is counted as ahead leaves out what
the victim prepaid and did not get yet, and, between requests of one class, what the waiting request is to be charged when it gets the row:

    lag(victim's tenant, waiting one's) - prepaid(victim) - expected(waiting)  >  preempt_lag_us

So after the change the victim's tenant is still ahead, and can only take a row back once the other one was served twice the lag: two equal
tenants never take rows from each other in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.charging import Charging
from kerneld.request import Request
from kerneld.sharenode import SCALE
from kerneld.waiting import class_rank


class Victims:
    """Chooses who gives way; changes nothing."""

    def __init__(self, shares: FairShare, charging: Charging, policy: SchedulerPolicy) -> None:
        self._shares = shares
        self._charging = charging
        self._policy = policy

    def least_deserving(self, rows: Sequence[Request]) -> Request | None:
        """Who gives way when those that run need frames: those that had their minimum service first, but not the only one."""
        if len(rows) < 2:
            return None
        served = [row for row in rows if self._is_served(row)]
        return max(served or rows, key=self._dispensability)

    def for_waiting(self, rows: Iterable[Request], candidate: Request) -> Request | None:
        """Who gives way to a request that is next and does not fit; None if nobody is far enough ahead."""
        ahead = [row for row in rows if self._is_served(row) and self._is_far_ahead(row, candidate)]
        return max(ahead, key=self._dispensability, default=None)

    def _is_far_ahead(self, row: Request, candidate: Request) -> bool:
        rank, waiting_rank = class_rank(row), class_rank(candidate)
        lag = self._shares.lag(row.tenant, candidate.tenant)
        if lag <= self._policy.preempt_lag_us * SCALE:  # most of them
            return False
        unearned = self._charging.prepaid_us(row)
        if rank <= waiting_rank:
            unearned += self._charging.expected_cost(candidate, candidate.num_cached)
        return lag > (self._policy.preempt_lag_us + unearned) * SCALE

    def _is_served(self, request: Request) -> bool:
        return request.num_since_admission >= self._policy.min_service_tokens

    def _dispensability(self, request: Request) -> tuple[tuple[int, ...], int, float, str]:
        return self._shares.counters(request.tenant), class_rank(request), request.arrival, request.id
