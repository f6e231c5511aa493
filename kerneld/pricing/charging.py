"""Charging: what requests cost their tenants in the fair-share accounts, in microseconds of device time.

    output_start       + num_charged            + num_prepaid
    |---- came, paid for ----|---- paid for ahead ----|---- charged as they come ---->

    admission          input, and the output that the tenant's last requests lead one to expect
    as tokens come     nothing while they are prepaid, then each its price at its position
    the end            what was prepaid and did not come is given back

Invariants
1. A request is charged for its input once, however often it is preempted or admitted again; a cancelled one is not given it back,
   unless nothing was computed for it.
2. A request keeps the tariff that it was admitted by. Its charges less its refund are `input_us + output_us` of what came, exactly, and
   the price of input for each draft that was computed in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kerneld.accounts import Accounts
from kerneld.calls import FinishReason
from kerneld.fairshare import FairShare
from kerneld.pricing.forecast import Forecast
from kerneld.pricing.tariff import Tariff
from kerneld.pricing.tariffs import Tariffs
from kerneld.pricing.usedparts import UsedParts
from kerneld.request import Request


class Charging:
    """Charges requests to the accounts of their tenants."""

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        self.tariffs = Tariffs()
        self.forecast = Forecast()
        self.parts = UsedParts()
        # Told of every charge: the request, and what it is charged. Returns what it is charged on top, which is not given back.
        self.surcharge: Callable[[Request, int], int] = lambda _request, _cost: 0

    # -------------------------------------------------------------------------------------------------------------------- charging

    def admission(self, request: Request, num_cached: int) -> int:
        """Charge a request that runs; `num_cached` leading tokens need no computing. Returns what it was charged (invariant 1)."""
        if request.is_charged:
            return 0
        request.is_charged = True
        request.tariff = self.tariffs.get(request.context.priced_as)
        request.num_charged = request.num_generated  # 0, but for a request of a log that says nothing of what was paid
        request.num_prepaid = max(self._expected_output(request) - request.num_charged, 0)
        cost = self._input_cost(request, request.tariff, num_cached) + self.prepaid_us(request)
        cost += self.surcharge(request, cost)
        self._shares.charge(request.tenant, cost)
        return cost

    def expected_cost(self, request: Request, num_cached: int) -> int:
        """What is to be charged until the end of a request that waits, were it admitted now; changes nothing.

        For one that runs or ran already, the price of the output that is still expected and not paid for.
        """
        tariff = self._tariff(request)
        num_paid = request.num_charged + request.num_prepaid
        cost = tariff.output_us(request.output_start + num_paid, max(self._expected_output(request) - num_paid, 0))
        return cost if request.is_charged else cost + self._input_cost(request, tariff, num_cached)

    def saved_us(self, request: Request, num_cached: int) -> int:
        """What less a request costs of whose input so many leading tokens need no computing."""
        tariff, num_input = self._tariff(request), request.output_start
        return tariff.input_us(0, num_input) - tariff.input_us(min(num_cached, num_input), num_input)

    def prepaid_us(self, request: Request) -> int:
        """What a request has paid ahead for output that has not come."""
        return self._tariff(request).output_us(request.output_start + request.num_charged, request.num_prepaid)

    def dearest_prepaid_us(self, request: Request) -> int:
        """The most that one of the tokens costs that a request has paid ahead for, rounded up."""
        end = request.output_start + request.num_charged + request.num_prepaid
        return self._tariff(request).output_us(end - 1, 1) + 1 if request.num_prepaid else 0

    def output(self, request: Request, num_tokens: int) -> int:
        """Charge tokens that a request generated. Returns what it was charged, which is nothing as long as they are prepaid."""
        cost = self._output_cost(request, num_tokens)
        if cost:
            self._shares.charge(request.tenant, cost)
        return cost

    def outputs(self, generated: Iterable[tuple[Request, int]]) -> int:
        """Charge the tokens that a step generated, each tenant in one go. Returns what was charged, all together."""
        costs: dict[str, int] = {}
        for request, num_tokens in generated:
            if request.num_prepaid >= num_tokens:  # most of them
                request.num_prepaid -= num_tokens
                request.num_charged += num_tokens
                continue
            cost = self._output_cost(request, num_tokens)
            if cost:
                costs[request.tenant] = costs.get(request.tenant, 0) + cost
        for tenant, cost in costs.items():
            self._shares.charge(tenant, cost)
        return sum(costs.values())

    def drafts(self, request: Request, num_rejected: int) -> int:
        """Charge guesses that were computed in vain, as if they were input. Returns what they cost."""
        position = request.context.num_tokens
        cost = self._tariff(request).input_us(position, position + num_rejected) - self._tariff(request).input_us(position, position)
        self._shares.charge(request.tenant, cost)
        return cost

    def end(self, request: Request, reason: FinishReason) -> int:
        """A request has ended. Returns what is given back of its charges."""
        if not request.is_charged:
            return 0
        self.forecast.ended(request.tenant, request.num_generated, is_cut_off=reason is not FinishReason.STOP)
        if reason in (FinishReason.STOP, FinishReason.LENGTH) and not request.is_scoring:
            self.parts.ended(request.tenant, request.num_generated, request.max_tokens)
        refund = self.prepaid_us(request)
        request.num_prepaid = 0
        self._shares.refund(request.tenant, refund)
        return refund

    def withdraw(self, request: Request) -> int:
        """A request ends for which nothing was computed. Returns what is given back: all but what was charged on top."""
        refund = self._input_cost(request, self._tariff(request), request.num_cached) + self.prepaid_us(request)
        request.num_prepaid, request.is_charged = 0, False
        self._shares.refund(request.tenant, refund)
        return refund

    def forget(self, tenant: str) -> None:
        """A tenant is gone."""
        self.forecast.forget(tenant)
        self.parts.forget(tenant)

    # ----------------------------------------------------------------------------------------------------------- keeping and restoring

    def accounts(self) -> Accounts:
        """Everything that is to be kept, but for the shares."""
        return Accounts(outputs=self.forecast.snapshot(), tariffs=self.tariffs.snapshot())

    def changes(self) -> Accounts:
        """What changed of it since the last call."""
        return Accounts(outputs=self.forecast.changes(), tariffs=self.tariffs.changes())

    def unkept(self, accounts: Accounts) -> None:
        """Changes could not be written: they count as changed again."""
        self.forecast.unkept(accounts.outputs)
        self.tariffs.unkept(accounts.tariffs)

    def restore(self, accounts: Accounts) -> None:
        """Put back what was kept; tenants that are not known any more are left out."""
        self.forecast.restore({tenant: outputs for tenant, outputs in accounts.outputs.items() if tenant in self._shares})
        self.tariffs.restore(accounts.tariffs)

    # ---------------------------------------------------------------------------------------------------------------------- inside

    def _tariff(self, request: Request) -> Tariff:
        """The tariff that a request was admitted by; before that, the one that it would be."""
        return request.tariff or self.tariffs.get(request.context.priced_as)

    def _expected_output(self, request: Request) -> int:
        """Tokens that the request is expected to generate, all together."""
        return 0 if request.is_scoring else min(request.max_tokens, self.forecast.of(request.tenant))

    @staticmethod
    def _input_cost(request: Request, tariff: Tariff, num_cached: int) -> int:
        return tariff.input_us(min(num_cached, request.output_start), request.output_start)

    def _output_cost(self, request: Request, num_tokens: int) -> int:
        """What tokens that came cost that were not paid for ahead."""
        num_unpaid = num_tokens - request.num_prepaid
        request.num_charged += num_tokens
        if num_unpaid <= 0:
            request.num_prepaid = -num_unpaid
            return 0
        request.num_prepaid = 0
        cost = self._tariff(request).output_us(request.output_start + request.num_charged - num_unpaid, num_unpaid)
        return cost + self.surcharge(request, cost)
