"""Admission: what a tenant's limits, its own and those above it, allow to come in.

Limits guard against abuse; they are not the fairness. Which of them refuse (hard) and which let wait (soft) is in `kerneld.limitmodes`. A
soft `max_running` is the scheduler's: it closes the tenant in the accounts. A soft rate says here for how long a request is held back.

Invariants
1. Every check asks the tenant and everybody above it. Of the rates that refuse, the one with the longest wait is named, with the tenant
   whose it is: who waits that long and asks again is not refused by another.
2. A refused call took nothing from any bucket. One that a soft rate holds back took its part: who comes next is held back behind it.
3. What is used of a rate outlives a restart: it is written along with the request that used it.
4. Tokens that a request generated are taken from the buckets when it ends, and may leave a debt: it delays the next request, not this one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from kerneld.accounts import NO_CHANGES, Accounts, RateAccount
from kerneld.bucket import HOUR_US, MINUTE_US, SECOND_US, RateBucket
from kerneld.calls import LimitMode, Limits
from kerneld.counted import counted
from kerneld.errors import QueueFull, QuotaExceeded
from kerneld.limitmodes import mode_of
from kerneld.tally import Tally, ancestors

# Nobody knows when a request ends, or when the next one leaves a queue as long as nothing was measured: it is worth asking again then.
RETRY_S: Final = 1.0
# Bounds of what is estimated.
LEAST_RETRY_S: Final = 0.1
MOST_RETRY_S: Final = 60.0
# Of the daemon's queue, the part that is added for tenants with few requests: an eighth.
_SPARE: Final = 8

REQUESTS: Final = "requests_per_minute"
TOKENS: Final = "tokens_per_minute"
LOADS: Final = "loads_per_hour"
# The limits that are rates: their period, what they count, and how a message says it.
RATES: Final = {
    REQUESTS: (MINUTE_US, "request", "use {} per minute"),
    TOKENS: (MINUTE_US, "token", "use {} per minute"),
    LOADS: (HOUR_US, "load", "start {} of models per hour"),
}


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request takes of the rates before it runs."""

    num_tokens: int  # of its input
    num_loads: int = 0  # of models that would begin for it

    def of(self, rate: str) -> int:
        """Its part of one rate."""
        if rate == TOKENS:
            return max(self.num_tokens, 1)
        return self.num_loads if rate == LOADS else 1


class HeldBack(NamedTuple):
    """Seconds for which soft limits hold back a request that came in; 0: not at all."""

    request_s: float = 0.0
    load_s: float = 0.0  # the loads that would begin for it


class _Tenant(NamedTuple):
    """A tenant's limits, and what is left of those that are rates."""

    limits: Limits
    buckets: dict[str, RateBucket]


class _Short(NamedTuple):
    """A rate that has no room for a request yet."""

    path: str
    rate: str
    amount: int
    wait_us: int


class Admission:
    """Limits of all tenants, and what is left of them."""

    def __init__(
        self, waiting: Tally, running: Tally, max_queued: int, max_contexts: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The scheduler counts who waits and who runs; the two limits are those of the whole daemon. `clock` must not jump."""
        self.contexts = Tally()
        self._waiting = waiting
        self._running = running
        self._max_queued = max_queued
        self._max_contexts = max_contexts
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._touched: set[str] = set()  # tenants whose rates are to be written
        self.unix: Callable[[], float] = time.time
        # Seconds until the next one of those starts that wait below a tenant, "": of all; None: unknown.
        self.next_start_s: Callable[[str], float | None] = lambda _path: None

    def set_limits(self, path: str, limits: Limits) -> None:
        """A tenant's limits are these from now on.

        What was used of a rate that it had counts against its new amount.
        """
        now_us = self._now_us()
        old = self._tenants.get(path)
        buckets = {}
        for rate, (period_us, *_words) in RATES.items():
            amount: int = getattr(limits, rate)
            if amount:
                bucket = buckets[rate] = RateBucket(amount, period_us, now_us)
                if old is not None and rate in old.buckets:
                    bucket.set_full_in(old.buckets[rate].full_in_with_us(amount, now_us), now_us)
        self._tenants[path] = _Tenant(limits, buckets)
        if buckets or (old is not None and old.buckets):
            self._touched.add(path)

    def remove(self, path: str) -> None:
        """Forget a tenant."""
        known = self._tenants.pop(path, None)
        if known is not None and known.buckets:
            self._touched.add(path)

    def check_context(self, tenant: str) -> None:
        """Whether a tenant may have one more context. Raises: QuotaExceeded."""
        if self.contexts.total >= self._max_contexts:
            raise _count_error("context", "", self._max_contexts)
        for path, known in self._limited(tenant):
            limit = known.limits.max_contexts
            if limit and self.contexts.of(path) >= limit:
                raise _count_error("context", path, limit)

    def check_request(self, tenant: str, demand: Demand) -> None:
        """Whether a request may come in now. Raises: QueueFull, QuotaExceeded; nothing is taken."""
        if self._waiting.total >= self._max_queued and not self._has_few(tenant):
            raise self._queue_error("", self._max_queued)
        for path, known in self._limited(tenant):
            limits = known.limits
            if limits.max_queued and self._waiting.of(path) >= limits.max_queued:
                raise self._queue_error(path, limits.max_queued)
            is_hard = limits.max_running and mode_of(limits, "max_running") is LimitMode.HARD
            if is_hard and self._waiting.of(path) + self._running.of(path) >= limits.max_running:
                raise _running_error(path, limits.max_running)
        short = self._longest(tenant, demand, LimitMode.HARD)
        if short.wait_us:
            raise _rate_error(short)

    def take_request(self, tenant: str, demand: Demand) -> HeldBack:
        """A request that was checked comes in: its rates are used. Returns for how long soft ones hold it back, and its loads."""
        load_us = self._longest(tenant, demand, LimitMode.SOFT, (LOADS,)).wait_us
        request_us = self._longest(tenant, demand, LimitMode.SOFT, (REQUESTS, TOKENS)).wait_us
        now_us = self._now_us()
        for path, rate, bucket in self._buckets(tenant):
            bucket.take(demand.of(rate), now_us)
            self._touched.add(path)
        return HeldBack(request_us / SECOND_US, load_us / SECOND_US)

    def held_back_s(self, tenant: str) -> float:
        """For how long soft rates would hold back a request that came now; the shortest that there is."""
        return self._longest(tenant, Demand(0), LimitMode.SOFT, (REQUESTS, TOKENS)).wait_us / SECOND_US

    def give_back(self, tenant: str, demand: Demand) -> None:
        """A request that came in ended before it ever ran: what it took is there again."""
        now_us = self._now_us()
        for path, rate, bucket in self._buckets(tenant):
            bucket.give_back(demand.of(rate), now_us)
            self._touched.add(path)

    def take_tokens(self, tenant: str, num_tokens: int) -> None:
        """A request of this tenant generated tokens (invariant 4)."""
        now_us = self._now_us()
        for path, rate, bucket in self._buckets(tenant):
            if rate == TOKENS:
                bucket.take(num_tokens, now_us)
                self._touched.add(path)

    # ----------------------------------------------------------------------------------------------------------- keeping and restoring

    def changes(self) -> Accounts:
        """What changed of the rates since the last call."""
        if not self._touched:
            return NO_CHANGES
        touched, self._touched = self._touched, set()
        return Accounts(rates={path: self._account(path) for path in touched})

    def unkept(self, accounts: Accounts) -> None:
        """Changes could not be written: they count as changed again."""
        self._touched.update(accounts.rates)

    def restore(self, accounts: Accounts) -> None:
        """Put back what was used of the rates that tenants still have: a restart is no amnesty, and the time that it took counts."""
        now_us, unix_us = self._now_us(), int(self.unix() * SECOND_US)
        for path, rates in accounts.rates.items():
            for rate, bucket in self._tenants[path].buckets.items() if path in self._tenants else ():
                if rate in rates:
                    past_us = max(unix_us - rates[rate].at_us, 0)  # a clock that went back takes nothing
                    bucket.set_full_in(rates[rate].full_in_us - past_us, now_us)

    def _account(self, path: str) -> dict[str, RateAccount]:
        """What is left of the rates of a tenant, where they are not full."""
        known, now_us, unix_us = self._tenants.get(path), self._now_us(), int(self.unix() * SECOND_US)
        left = {rate: bucket.full_in_us(now_us) for rate, bucket in known.buckets.items()} if known is not None else {}
        return {rate: RateAccount(full_in_us, unix_us) for rate, full_in_us in left.items() if full_in_us}

    # ------------------------------------------------------------------------------------------------------------------- inside

    def _now_us(self) -> int:
        return int(self._clock() * SECOND_US)

    def _limited(self, tenant: str) -> Iterator[tuple[str, _Tenant]]:
        """The tenant and those above it, as far as they are known."""
        for path in ancestors(tenant):
            known = self._tenants.get(path)
            if known is not None:
                yield path, known

    def _buckets(self, tenant: str) -> Iterator[tuple[str, str, RateBucket]]:
        """Every rate that counts what a tenant uses, with the tenant whose it is."""
        for path, known in self._limited(tenant):
            for rate, bucket in known.buckets.items():
                yield path, rate, bucket

    def _longest(self, tenant: str, demand: Demand, mode: LimitMode, rates: Container[str] = RATES) -> _Short:
        """Of the rates of a mode that are short of room for a request, the one that takes longest (invariant 1)."""
        now_us, longest = self._now_us(), _Short("", "", 0, 0)
        for path, rate, bucket in self._buckets(tenant):
            if rate in rates and demand.of(rate) and mode_of(self._tenants[path].limits, rate) is mode:
                wait_us = bucket.wait_us(demand.of(rate), now_us)
                if wait_us > longest.wait_us:
                    longest = _Short(path, rate, bucket.amount, wait_us)
        return longest

    def _has_few(self, tenant: str) -> bool:
        """Whether a tenant comes in though the queue is full: who sends most fills it, and must not keep out who sends little.

        For those with few requests there is an eighth more room; the less is left of it, the fewer are few.
        """
        num_free = self._max_queued + self._max_queued // _SPARE - self._waiting.total
        return _SPARE * self._waiting.of(tenant) < num_free

    def _queue_error(self, path: str, limit: int) -> QueueFull:
        who = f"tenant {path!r}" if path else "this daemon"
        start_s = self.next_start_s(path)
        return QueueFull(
            f"The queue of {who} is full: {counted(limit, 'request')} {'waits' if limit == 1 else 'wait'}.",
            facts={"limit": "max_queued", "value": str(limit), "holder": path, "retry": "estimate"},
            retry_after_s=RETRY_S if start_s is None else min(max(start_s, LEAST_RETRY_S), MOST_RETRY_S),
        )


def _rate_error(short: _Short) -> QuotaExceeded:
    # A microsecond more than that: the caller's clock and ours cut the present one off at different places.
    retry_after_s = (short.wait_us + 1) / SECOND_US
    _period_us, noun, words = RATES[short.rate]
    return QuotaExceeded(
        f"Tenant {short.path!r} may {words.format(counted(short.amount, noun))}; try again in {math.ceil(retry_after_s)} s.",
        facts={"limit": short.rate, "value": str(short.amount), "holder": short.path, "retry": "exact"},
        retry_after_s=retry_after_s,
    )


def _running_error(path: str, limit: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"Tenant {path!r} has {counted(limit, 'request')}, as many as may run or wait; one has to end first.",
        facts={"limit": "max_running", "value": str(limit), "holder": path, "retry": "estimate"},
        retry_after_s=RETRY_S,
    )


def _count_error(noun: str, path: str, limit: int) -> QuotaExceeded:
    who = f"Tenant {path!r}" if path else "This daemon"
    return QuotaExceeded(
        f"{who} has {counted(limit, noun)}, as many as it may have; free one first.",
        facts={"limit": f"max_{noun}s", "value": str(limit), "holder": path},
    )
