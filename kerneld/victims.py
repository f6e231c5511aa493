"""Victims: which running request has to give way.

    the newest request of the most served tenant, laxest class first          after its minimum service (`SchedulerPolicy`)

For a waiting request only one of a tenant that is further ahead of its own than `preempt_lag_us`. What is counted as ahead leaves out what
the victim prepaid and did not get yet, and, unless the victim is of a laxer class, what the waiting request is to be charged for the row:

    lag(victim's tenant, waiting one's) - prepaid(victim) - expected(waiting)  >  preempt_lag_us          in counter units, classes included

So after the change the victim's tenant is still ahead by more than the lag, and gets a row back by preemption only once the other one was
served twice the lag: two tenants of equal weight never take rows from each other in turn.

Apart from that, who asks for little is not kept waiting by who has much, whatever the lag: where nothing of a tenant runs, and fewer of
its requests wait than the tenant with the most rows has rows, that one gives its newest up, unless it is behind by more than `courtesy_us`
or of a better class (`kerneld.courtesy`). Tenants that both have long queues are left to the lag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.charging import Charging
from kerneld.request import Request
from kerneld.sharenode import FULL_FACTOR, SCALE
from kerneld.tally import Tally
from kerneld.waiting import Waiting


@dataclass(slots=True)
class Spent:
    """What was charged or given back so far, all together, on every device whose scheduler has this."""

    us: int = 0


class _Calm(NamedTuple):
    """Nobody was far enough ahead of a candidate, and until then nobody can be: as much has to be charged, or as many steps to be made."""

    found_for: tuple[object, ...]  # the candidate, its cost, and everything else that leads follow from but what is charged
    until_us: int  # of `Spent.us`
    until_step: int  # of `Victims.num_steps`


class _Look:
    """What a look at all rows tells of when the next one is worth it.

    A lead grows by what is charged, and by a token of what was prepaid with each step: each may use up half of what is missing.
    """

    def __init__(self, lag_us: int, min_service_tokens: int) -> None:
        self.lag_us = lag_us
        self._min_service_tokens = min_service_tokens
        self._missing_us = lag_us + 1
        self._num_steps = min_service_tokens + 1

    def level(self, lead: int, token_us: int) -> None:
        """A row is not far enough ahead; each token of what it prepaid costs so much at most."""
        missing_us = self.lag_us - lead // SCALE
        self._missing_us = min(self._missing_us, missing_us)
        if token_us:
            self._num_steps = min(self._num_steps, missing_us // (8 * token_us))  # at the least weight there is, a quarter

    def unserved(self, num_tokens: int) -> None:
        """A row is far ahead, and has not had its minimum service."""
        self._num_steps = min(self._num_steps, self._min_service_tokens - num_tokens)

    def calm(self, found_for: tuple[object, ...], spent_us: int, num_steps: int, least_weight_milli: int) -> _Calm:
        """When it is worth looking again."""
        growth_us = self._missing_us * least_weight_milli // (2 * FULL_FACTOR)
        return _Calm(found_for, spent_us + growth_us, num_steps + self._num_steps)


class Victims:
    """Chooses who gives way; changes nothing."""

    def __init__(
        self, shares: FairShare, charging: Charging, waiting: Waiting, running: Tally, policy: SchedulerPolicy, *, spent: Spent
    ) -> None:
        self._shares = shares
        self._waiting = waiting
        self._running = running
        self._charging = charging
        self._policy = policy
        self._spent = spent
        self.num_steps = 0  # in each of which a row generates a token at most
        self._calm: _Calm | None = None

    def least_deserving(self, rows: Sequence[Request]) -> Request | None:
        """Who gives way when those that run need frames: those that had their minimum service first, but not the only one."""
        if len(rows) < 2:
            return None
        served = [row for row in rows if self._is_served(row)]
        return max(served or rows, key=self._dispensability)

    def for_waiting(self, rows: Sequence[Request], candidate: Request) -> Request | None:
        """Who gives way to a request that is next and does not fit; None if nobody is far enough ahead."""
        if candidate.defer_until:
            return None  # above a limit: it runs where nobody is in its way
        charged_us = self._charging.expected_cost(candidate, candidate.num_cached)
        # Who is admitted waits no more, so the same number of rows since the last change of queues is the same rows.
        found_for = (candidate.id, charged_us, self._waiting.num_changes, self._shares.num_reweighs, len(rows))
        calm = self._calm
        if calm is not None and calm.found_for == found_for and self._spent.us < calm.until_us and self.num_steps < calm.until_step:
            return None
        if not self._running.of(candidate.tenant) and (spare := self._spare(rows, candidate)) is not None:
            return spare
        far, look = [], _Look(self._policy.preempt_lag_us, self._policy.min_service_tokens)
        for row in rows:
            lead = self._shares.lag(row.tenant, candidate.tenant, row.rank, candidate.rank)
            token_us = 0
            if lead > look.lag_us * SCALE:  # few of them
                lead = self._earned_lead(row, candidate, charged_us)
                token_us = self._charging.dearest_prepaid_us(row)
            if lead <= look.lag_us * SCALE:
                look.level(lead, token_us)
            elif self._is_served(row):
                far.append(row)
            else:
                look.unserved(row.num_since_admission)
        if not far:
            self._calm = look.calm(found_for, self._spent.us, self.num_steps, self._shares.least_weight_milli)
        return max(far, key=self._dispensability, default=None)

    def _spare(self, rows: Sequence[Request], candidate: Request) -> Request | None:
        """A row of the tenant that has the most of them, for one that has none and asks for fewer."""
        num_waiting = self._waiting.tally.of(candidate.tenant)
        tenant, num_rows = Counter([row.tenant for row in rows]).most_common(1)[0] if num_waiting < len(rows) else ("", 0)
        if num_waiting >= num_rows:
            return None
        spare = [
            row
            for row in rows
            if row.tenant == tenant
            and row.rank >= candidate.rank
            and self._shares.lag(tenant, candidate.tenant, row.rank, candidate.rank) >= -self._policy.courtesy_us * SCALE
        ]
        return max(spare, key=self._dispensability, default=None)

    def spent(self, us: int) -> int:
        """So much was charged, or given back. Returns it."""
        self._spent.us += us
        return us

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
