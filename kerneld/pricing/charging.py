"""Charging: what requests cost their tenants in the fair-share accounts.

    admission          input, and the output that the tenant's last requests lead one to expect
    as tokens come     nothing while they are prepaid, then each its price
    the end            what was prepaid and did not come is given back

Invariants
1. A request is charged for its input once, however often it is preempted or admitted again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from kerneld.fairshare import FairShare
from kerneld.request import Request

_OUTPUTS_REMEMBERED: Final = 5


@dataclass(frozen=True, slots=True)
class CostWeights:
    """What a token costs, in tenths of an input token.

    Source: Sheng et al. (OSDI 2024) take 1 for input and 2 for output; a cached token saves nine tenths.
    """

    uncached_input: int = 10
    cached_input: int = 1
    output: int = 20


class Charging:
    """Charges requests to the accounts of their tenants."""

    def __init__(self, shares: FairShare, cost: CostWeights) -> None:
        self._shares = shares
        self._cost = cost
        self._outputs: dict[str, deque[int]] = {}  # lengths of a tenant's last outputs

    def admission(self, request: Request, num_cached: int) -> int:
        """Charge a request that runs; `num_cached` leading tokens need no computing. Returns what it was charged (invariant 1)."""
        if request.is_charged:
            return 0
        request.is_charged = True
        request.num_prepaid = self._expected_output(request)
        cost = self._cost
        charge = cost.cached_input * num_cached + cost.uncached_input * (request.output_start - num_cached)
        charge += cost.output * request.num_prepaid
        self._shares.charge(request.tenant, charge)
        return charge

    def output(self, request: Request, num_tokens: int) -> int:
        """Charge tokens that a request generated. Returns what it was charged, which is nothing as long as they are prepaid."""
        prepaid = min(request.num_prepaid, num_tokens)
        request.num_prepaid -= prepaid
        cost = self._cost.output * (num_tokens - prepaid)
        if cost:
            self._shares.charge(request.tenant, cost)
        return cost

    def end(self, request: Request) -> int:
        """A request has ended. Returns what is given back of its charges."""
        if not request.is_charged:
            return 0
        if request.num_generated:  # a cancelled or scoring request says nothing of how long outputs are
            self._outputs.setdefault(request.tenant, deque(maxlen=_OUTPUTS_REMEMBERED)).append(request.num_generated)
        refund = self._cost.output * request.num_prepaid
        request.num_prepaid = 0
        self._shares.refund(request.tenant, refund)
        return refund

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        self._outputs.pop(tenant, None)

    def _expected_output(self, request: Request) -> int:
        """The mean of the tenant's last outputs, as far as this request could be that long; 0 where nothing is known."""
        outputs = self._outputs.get(request.tenant)
        return min(request.num_remaining, sum(outputs) // len(outputs)) if outputs else 0
