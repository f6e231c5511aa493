"""Victims: which running request has to give way.

    the newest request of the most served tenant, laxest class first          after its minimum service (`SchedulerPolicy`)

For a waiting request only one of a tenant that is further ahead of its own than `preempt_lag_us`. What is counted as ahead leaves out what
the victim prepaid and did not get yet, and, unless the victim is of a laxer class, what the waiting request is to be charged for the row:

    lag(victim's tenant, waiting one's) - prepaid(victim) - expected(waiting)  >  preempt_lag_us          in counter units, classes included

So after the change the victim's tenant is still ahead by more than the lag, and gets a row back by preemption only once the other one was
served twice the lag: two tenants of equal weight never take rows from each other in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.charging import Charging
from kerneld.request import Request
from kerneld.sharenode import FULL_FACTOR, SCALE


class Victims:
    """Chooses who gives way; changes nothing."""

    def __init__(self, shares: FairShare, charging: Charging, policy: SchedulerPolicy) -> None:
        self._shares = shares
        self._charging = charging
        self._policy = policy
        self.spent_us = 0  # charged or given back so far, all together; nobody's lead grows faster, least weights apart
        self.num_steps = 0  # in each of which a row generates a token at most
        self._calm_for: Request | None = None  # nobody is far enough ahead of it
        self._calm_until_us = 0  # of `spent_us`
        self._calm_until_step = 0  # of `num_steps`

    def least_deserving(self, rows: Sequence[Request]) -> Request | None:
        """Who gives way when those that run need frames: those that had their minimum service first, but not the only one."""
        if len(rows) < 2:
            return None
        served = [row for row in rows if self._is_served(row)]
        return max(served or rows, key=self._dispensability)

    def for_waiting(self, rows: Sequence[Request], candidate: Request) -> Request | None:
        """Who gives way to a request that is next and does not fit; None if nobody is far enough ahead."""
        if candidate is self._calm_for and self.spent_us < self._calm_until_us and self.num_steps < self._calm_until_step:
            return None
        if candidate.defer_until:
            return None  # above a limit: it runs where nobody is in its way
        far, most, soonest = [], 0, self._policy.min_service_tokens
        limit, charged_us = self._policy.preempt_lag_us * SCALE, -1
        for row in rows:
            lead = self._shares.lag(row.tenant, candidate.tenant, row.rank, candidate.rank)
            if lead > limit:  # few of them
                charged_us = self._charging.expected_cost(candidate, candidate.num_cached) if charged_us < 0 else charged_us
                lead = self._earned_lead(row, candidate, charged_us)
            if lead <= limit:
                most = max(most, lead)
            elif self._is_served(row):
                far.append(row)
            else:
                soonest = min(soonest, self._policy.min_service_tokens - row.num_since_admission)
        if not far:
            missing_us = self._policy.preempt_lag_us - most // SCALE
            self._calm_for, self._calm_until_us = candidate, self.spent_us + missing_us * self._shares.least_weight_milli // FULL_FACTOR
            self._calm_until_step = self.num_steps + soonest
        return max(far, key=self._dispensability, default=None)

    def spent(self, us: int) -> int:
        """So much was charged, or given back. Returns it."""
        self.spent_us += us
        return us

    def rows_changed(self) -> None:
        """Somebody was admitted, or changed class: what was found of the others says nothing of it."""
        self._calm_for = None

    def _earned_lead(self, row: Request, candidate: Request, charged_us: int) -> int:
        """How far a row's tenant is ahead of a candidate's in counter units, as far as that counts here."""
        return self._shares.lag(
            row.tenant,
            candidate.tenant,
            row.rank,
            candidate.rank,
            returned_us=self._charging.prepaid_us(row),
            charged_us=charged_us if row.rank <= candidate.rank else 0,
        )

    def _is_served(self, request: Request) -> bool:
        return request.num_since_admission >= self._policy.min_service_tokens

    def _dispensability(self, request: Request) -> tuple[tuple[int, ...], int, float, str]:
        return self._shares.counters(request.tenant), request.rank, request.arrival, request.id
