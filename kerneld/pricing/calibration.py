"""Calibration: tariffs from what steps were measured to take, so that a second of a busy device is charged as about a second.

    input       a token, and its part of a row's chunk
    output      a token, its row, and its part of a step, shared by as many rows as usually generate together
    cached      a tenth of input: nothing is computed, but it is not for nothing either
    context     for each computed token, what it takes to look back at one before it

Prices stand still unless they are wrong: they are looked at once a minute, and changed when one is off by more than a quarter. Requests
on their way keep the tariff that they were admitted by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from kerneld.events import TariffChanged
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepfit import StepFit
from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.pricing.tariffs import Tariffs

MIN_STEPS: Final = 128  # until a model has made so many, its figures are not believed
REVISE_S: Final = 60.0
TOLERANCE: Final = 0.25
# A price per token and context token counts as far as it changes what a token costs here.
USUAL_CONTEXT: Final = 1024
USUAL_CHUNK: Final = 64  # tokens of input that a row computes in a step

_NS: Final = 1e9


class Calibration:
    """Puts tariffs right. Event-loop thread only."""

    def __init__(
        self,
        costs: StepCosts,
        tariffs: Tariffs,
        publish: Callable[[TariffChanged], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._costs = costs
        self._tariffs = tariffs
        self._publish = publish
        self._clock = clock
        self._due_at: dict[str, float] = {}

    def look(self) -> None:
        """Revise what is due."""
        now = self._clock()
        for model, fit in self._costs:
            if fit.num_steps >= MIN_STEPS and fit.knows_prefill and now >= self._due_at.get(model, now):
                self._due_at[model] = now + REVISE_S
                self._revise(model, tariff_of(fit))

    def forget(self, model: str) -> None:
        """A model was removed: another one of its name is measured from the beginning."""
        self._costs.forget(model)
        self._tariffs.forget(model)
        self._due_at.pop(model, None)

    def _revise(self, model: str, fresh: Tariff) -> None:
        known = self._tariffs.get(model)
        if known != UNCALIBRATED and not is_off(known, fresh):
            return
        self._tariffs.put(model, fresh)
        self._publish(TariffChanged(model, fresh.input_ns, fresh.cached_ns, fresh.output_ns, fresh.context_ns))


def tariff_of(fit: StepFit) -> Tariff:
    """The prices that follow from what steps take; none is 0 but that of context."""
    terms = fit.terms
    input_ns = max(_two_digits((terms.token_s + terms.row_s / USUAL_CHUNK) * _NS), 1)
    output_s = terms.token_s + terms.row_s + terms.step_s / max(fit.mean_rows, 1.0)
    return Tariff(
        input_ns=input_ns,
        cached_ns=max(input_ns // 10, 1),
        output_ns=max(_two_digits(output_s * _NS), 1),
        context_ns=_two_digits(terms.context_s * _NS),
    )


def is_off(known: Tariff, fresh: Tariff) -> bool:
    """Whether a token of input or output, early in a context or later, costs more than a quarter more or less than its price."""
    prices = [
        (now + context * known.context_ns, new + context * fresh.context_ns)
        for now, new in ((known.input_ns, fresh.input_ns), (known.output_ns, fresh.output_ns))
        for context in (0, USUAL_CONTEXT)
    ]
    return any(abs(new - now) > TOLERANCE * now for now, new in prices)


def _two_digits(value: float) -> int:
    return int(float(f"{value:.1e}"))
