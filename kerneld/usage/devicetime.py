"""Device time: the measured time of every step, split among those for whom it computed.

    step of 12 ms:   row of ann: 96 tokens of input   row of bob: 1 token of output   row of eve: 40 tokens, 30 of them again
                          worth 7 by the tariff            worth 2                          worth 3, 2 of them again
                          7 ms to ann                      2 ms to bob                      1 ms to eve, 2 ms to the system

Computed again is what a request has computed before and lost with its row: it was preempted, or its worker died, and that is not its
tenant's doing. The time of page copies is the system's too.

Invariants
1. What is handed out adds up to what was measured; fractions of a microsecond are carried on.
"""

from __future__ import annotations

from collections.abc import Callable

from drivers.contract import StepResult
from kerneld.pricing.tariff import Tariff
from kerneld.request import Request
from kerneld.rows import Flight, Row
from kerneld.usage.amounts import SYSTEM

_US_PER_S = 1_000_000


class DeviceTime:
    """Splits steps."""

    def __init__(self, tariff_of: Callable[[str], Tariff], give: Callable[[str, int], None]) -> None:
        """`tariff_of` gives that of a model by name; `give` is told who gets how many microseconds."""
        self._tariff_of = tariff_of
        self._give = give
        self._computed: dict[str, int] = {}  # tokens of its context that a request has computed, or found, by request id
        self._rest_us = 0.0
        self._heard: Flight | None = None  # of which a step was told last

    def heard(self, flight: Flight, step_idx: int, result: StepResult) -> None:
        """A step of a plan is done, or a plan of no steps; positions of rows have not moved yet."""
        if flight is not self._heard:  # its copies went before its first step
            self._heard = flight
            if copies_us := self._whole_us(result.copies.up_s + result.copies.down_s):
                self._give(SYSTEM, copies_us)
        worth: dict[str, int] = {}
        for item in result.rows:
            if not item.error:
                part = flight.parts[item.slot]
                self._weigh(part.row, part.num_first if step_idx == 0 else 1, worth)
        self._split(self._whole_us(result.compute_s), worth)

    def ended(self, request: Request) -> None:
        """A request has ended."""
        self._computed.pop(request.id, None)

    def _weigh(self, row: Row, num_tokens: int, worth: dict[str, int]) -> None:
        """Add what the tokens of a row in this step are worth to those for whom they are computed."""
        request, start = row.request, row.position
        end, tenant = start + num_tokens, request.tenant
        tariff = self._tariff_of(request.context.priced_as)
        if row.is_over:  # it had left when the step ran: whoever ended his request pays, whoever lost his row does not
            payer = tenant if request.is_finished else SYSTEM
            worth[payer] = worth.get(payer, 0) + _cost_us(tariff, row, start, end)
            return
        known = self._computed.get(request.id, 0)
        if known > start:
            again = min(known, end)
            worth[SYSTEM] = worth.get(SYSTEM, 0) + _cost_us(tariff, row, start, again)
            start = again
        if end > start:
            worth[tenant] = worth.get(tenant, 0) + _cost_us(tariff, row, start, end)
            self._computed[request.id] = end

    def _split(self, total_us: int, worth: dict[str, int]) -> None:
        whole = sum(worth.values())
        if not whole:
            if total_us:
                self._give(SYSTEM, total_us)  # every row of it failed
            return
        reached = given = 0
        for tenant, cost in worth.items():
            reached += cost
            part = total_us * reached // whole - given
            given += part
            self._give(tenant, part)

    def _whole_us(self, seconds: float) -> int:
        self._rest_us += seconds * _US_PER_S
        whole = int(self._rest_us)
        self._rest_us -= whole
        return whole


def _cost_us(tariff: Tariff, row: Row, start: int, end: int) -> int:
    """What computing tokens [start, end) of a row costs by the tariff; never nothing."""
    if start >= row.total:
        return tariff.output_us(start, end - start) or 1
    last = min(end, row.total)
    cost = tariff.input_us(0, last) - tariff.input_us(0, start)
    if end > last:
        cost += tariff.output_us(last, end - last)
    return cost or 1
