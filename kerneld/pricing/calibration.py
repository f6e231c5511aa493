"""Calibration: tariffs from what steps were measured to take, so that a second of a busy device is charged as about a second.

    input       a token, and its part of a row's chunk
    output      a token, its row, and its part of a step, shared by as many rows as usually generate together
    cached      a tenth of input: nothing is computed, but it is not for nothing either
    context     for each computed token, what it takes to look back at one before it

Prices stand still unless they are wrong: they are looked at once a minute, and changed when one is off by more than a quarter. What
steps tell of one price beside another is vague where rows grow together, so a price moves by half at most against the others, and then
all of them together so far that what was computed lately costs what it took. Requests on their way keep the tariff that they were
admitted by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from kerneld.events import TariffChanged
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepfit import StepFit, StepMix
from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.pricing.tariffs import Tariffs

MIN_STEPS: Final = 128  # until a model has made so many, its figures are not believed
REVISE_S: Final = 60.0
TOLERANCE: Final = 0.25
MOST_MOVE: Final = 1.5  # of one price against the others, in one revision
MOST_SCALE: Final = 4.0  # of all prices together, against what the terms say
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
                self._revise(model, fit)

    def forget(self, model: str) -> None:
        """A model was removed: another one of its name is measured from the beginning."""
        self._costs.forget(model)
        self._tariffs.forget(model)
        self._due_at.pop(model, None)

    def _revise(self, model: str, fit: StepFit) -> None:
        known, fresh = self._tariffs.get(model), tariff_of(fit)
        if known != UNCALIBRATED:
            fresh = moved(known, fresh)
        fresh = scaled(fresh, fit.mix)
        if known != UNCALIBRATED and not is_off(known, fresh):
            return
        self._tariffs.put(model, fresh)
        self._publish(TariffChanged(model, fresh.input_ns, fresh.cached_ns, fresh.output_ns, fresh.context_ns))


def tariff_of(fit: StepFit) -> Tariff:
    """The prices that follow from what steps take."""
    terms = fit.terms
    input_s = terms.token_s + terms.row_s / USUAL_CHUNK
    output_s = terms.token_s + terms.row_s + terms.step_s / max(fit.mean_rows, 1.0)
    return _tariff(input_s * _NS, output_s * _NS, terms.context_s * _NS)


def moved(known: Tariff, fresh: Tariff) -> Tariff:
    """The prices that are known, moved towards fresh ones as far as they may."""
    most_context = (
        known.context_ns * MOST_MOVE + (MOST_MOVE - 1) * known.input_ns / USUAL_CONTEXT
    )  # where it was free it has to begin somewhere
    input_ns = _within(fresh.input_ns, known.input_ns / MOST_MOVE, known.input_ns * MOST_MOVE)
    output_ns = _within(fresh.output_ns, known.output_ns / MOST_MOVE, known.output_ns * MOST_MOVE)
    context_ns = _within(fresh.context_ns, known.context_ns / MOST_MOVE, most_context)
    return _tariff(input_ns, output_ns, context_ns)


def scaled(tariff: Tariff, mix: StepMix) -> Tariff:
    """The same prices against each other, such that what was computed lately costs what it took."""
    cost_ns = tariff.input_ns * mix.input_tokens + tariff.output_ns * mix.output_tokens + tariff.context_ns * mix.context_tokens
    if cost_ns <= 0 or mix.seconds <= 0:
        return tariff
    scale = _within(mix.seconds * _NS / cost_ns, 1 / MOST_SCALE, MOST_SCALE)
    return _tariff(tariff.input_ns * scale, tariff.output_ns * scale, tariff.context_ns * scale)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _tariff(input_ns: float, output_ns: float, context_ns: float) -> Tariff:
    """Prices in two digits; none is 0 but that of context."""
    price_ns = max(_two_digits(input_ns), 1)
    return Tariff(price_ns, max(price_ns // 10, 1), max(_two_digits(output_ns), 1), _two_digits(context_ns))


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
