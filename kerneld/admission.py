"""Admission: what a tenant's limits, its own and those above it, allow to come in.

Limits guard against abuse; they are not the fairness. `max_running` refuses nothing: requests above it wait (see `kerneld.scheduler`).

Invariants
1. Every check asks the tenant and everybody above it; the first limit that is reached is named, with the tenant whose it is.
2. A refused call took nothing from any bucket.
3. Tokens that a request generates are taken from the buckets as they come, and may leave a debt: it delays the next request, not this one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from kerneld.bucket import RateBucket
from kerneld.calls import Limits
from kerneld.errors import QueueFull, QuotaExceeded
from kerneld.tally import Tally, ancestors

# Nobody knows when a place in a queue will be free, or a context freed: what is said then is when it is worth asking again.
RETRY_QUEUE_S = 1.0


@dataclass(slots=True)
class _Tenant:
    """A tenant's limits, and what is left of those that are rates."""

    limits: Limits
    requests: RateBucket | None = None
    tokens: RateBucket | None = None


class Admission:
    """Limits of all tenants, and what is left of them."""

    def __init__(self, waiting: Tally, max_queued: int, max_contexts: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`waiting` counts the requests that wait (the scheduler keeps it); the two limits are those of the whole daemon."""
        self.contexts = Tally()
        self._waiting = waiting
        self._max_queued = max_queued
        self._max_contexts = max_contexts
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}

    def set_limits(self, path: str, limits: Limits) -> None:
        """A tenant's limits are these from now on; what it used of an unchanged rate stays used."""
        now = self._clock()
        old = self._tenants.get(path)
        self._tenants[path] = _Tenant(
            limits,
            _bucket(limits.requests_per_minute, old.requests if old else None, now),
            _bucket(limits.tokens_per_minute, old.tokens if old else None, now),
        )

    def remove(self, path: str) -> None:
        """Forget a tenant."""
        self._tenants.pop(path, None)

    def check_context(self, tenant: str) -> None:
        """Whether a tenant may have one more context. Raises: QuotaExceeded."""
        if self.contexts.total >= self._max_contexts:
            raise _count_error("contexts", "", self._max_contexts)
        for path in ancestors(tenant):
            limit = self._limits(path).max_contexts
            if limit and self.contexts.of(path) >= limit:
                raise _count_error("contexts", path, limit)

    def check_request(self, tenant: str, num_input: int) -> None:
        """Whether a request with so many input tokens may wait now. Raises: QueueFull, QuotaExceeded; nothing is taken."""
        if self._waiting.total >= self._max_queued:
            raise _queue_error("", self._max_queued)
        for path in ancestors(tenant):
            limit = self._limits(path).max_queued
            if limit and self._waiting.of(path) >= limit:
                raise _queue_error(path, limit)
        now = self._clock()
        for path in ancestors(tenant):
            self._check_rates(path, num_input, now)

    def take_request(self, tenant: str, num_input: int) -> None:
        """A request that was checked comes in: its rates are used."""
        now = self._clock()
        for path in ancestors(tenant):
            known = self._tenants.get(path)
            if known is not None and known.requests is not None:
                known.requests.take(1, now)
        self.take_tokens(tenant, num_input)

    def take_tokens(self, tenant: str, num_tokens: int) -> None:
        """A request of this tenant read or generated tokens (invariant 3)."""
        now = self._clock()
        for path in ancestors(tenant):
            known = self._tenants.get(path)
            if known is not None and known.tokens is not None:
                known.tokens.take(num_tokens, now)

    def _limits(self, path: str) -> Limits:
        known = self._tenants.get(path)
        return known.limits if known else _NO_LIMITS

    def _check_rates(self, path: str, num_input: int, now: float) -> None:
        known = self._tenants.get(path)
        if known is None:
            return
        for noun, bucket, amount in (("requests", known.requests, 1), ("tokens", known.tokens, max(num_input, 1))):
            wait_s = bucket.wait_s(amount, now) if bucket else 0.0
            if bucket and wait_s > 0:
                raise QuotaExceeded(
                    f"Tenant {path!r} may use {bucket.per_minute} {noun} per minute; try again in {math.ceil(wait_s)} s.",
                    facts={"limit": f"{noun}_per_minute", "value": str(bucket.per_minute), "holder": path},
                    retry_after_s=wait_s,
                )


_NO_LIMITS = Limits()


def _bucket(per_minute: int, old: RateBucket | None, now: float) -> RateBucket | None:
    if not per_minute:
        return None
    return old if old is not None and old.per_minute == per_minute else RateBucket(per_minute, now)


def _count_error(noun: str, path: str, limit: int) -> QuotaExceeded:
    who = f"Tenant {path!r}" if path else "This daemon"
    return QuotaExceeded(
        f"{who} has {limit} {noun}, as many as it may have; free one first.",
        facts={"limit": f"max_{noun}", "value": str(limit), "holder": path},
    )


def _queue_error(path: str, limit: int) -> QueueFull:
    who = f"tenant {path!r}" if path else "this daemon"
    return QueueFull(
        f"The queue of {who} is full: {limit} requests wait.",
        facts={"limit": "max_queued", "value": str(limit), "holder": path},
        retry_after_s=RETRY_QUEUE_S,
    )
