"""StepCosts: what steps take, by model, learned online from every step of the device.

Several models may run in one step; it is taken apart in proportion to what was expected of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from drivers.contract import StepResult
from drivers.wire import NO_STEP
from kerneld.pricing.stepfit import StepFit, StepWork, context_tokens
from kerneld.rows import Flight


class StepCosts:
    """Event-loop thread only."""

    def __init__(self) -> None:
        self._fits: dict[str, StepFit] = {}

    def __iter__(self) -> Iterator[tuple[str, StepFit]]:
        return iter(self._fits.items())

    def know(self, model: str, prefill_s: float) -> None:
        """A model was loaded, and took so many seconds per token in its first prefill; 0: its driver does not say."""
        if prefill_s > 0:
            self._get_or_add(model).note_trial(prefill_s)

    def forget(self, model: str) -> None:
        """A model was removed."""
        self._fits.pop(model, None)

    def find(self, model: str) -> StepFit | None:
        """What is known of a model's steps, if anything is."""
        return self._fits.get(model)

    def predict(self, works: Mapping[str, StepWork]) -> float | None:
        """Seconds of a step that computes so much of each model; None while one of them was not measured."""
        seconds = 0.0
        for model, work in works.items():
            fit = self._fits.get(model)
            if fit is None or not fit.is_measured:
                return None
            seconds += fit.terms.seconds(work)
        return seconds

    def heard(self, flight: Flight, step_idx: int, _is_last: bool, result: StepResult) -> None:
        """A step of a plan is done; positions of rows have not moved yet."""
        if step_idx == NO_STEP or result.compute_s <= 0:
            return
        sums: dict[str, tuple[int, int, int]] = {}
        for item in result.rows:
            part = flight.parts[item.slot]
            num_tokens = part.num_first if step_idx == 0 else 1
            model, position = part.row.request.context.priced_as, part.row.position
            tokens, rows, context = sums.get(model, (0, 0, 0))
            sums[model] = tokens + num_tokens, rows + 1, context + context_tokens(position, num_tokens)
        self.note({model: StepWork(*each) for model, each in sums.items()}, result.compute_s)

    def note(self, works: Mapping[str, StepWork], seconds: float) -> None:
        """A step that computed so much of each model took so long."""
        if len(works) == 1:
            [(model, work)] = works.items()
            self._get_or_add(model).note(work, seconds)
            return
        expected = self._expected(works)
        total = sum(expected.values())
        for model, work in works.items():
            self._get_or_add(model).note(work, seconds * expected[model] / total)

    def _expected(self, works: Mapping[str, StepWork]) -> dict[str, float]:
        """What is expected of each model of a step; of all by their tokens, while one of them was not measured."""
        if self.predict(works):
            return {model: self._fits[model].terms.seconds(work) for model, work in works.items()}
        return {model: float(work.num_tokens) for model, work in works.items()}

    def _get_or_add(self, model: str) -> StepFit:
        fit = self._fits.get(model)
        if fit is None:
            fit = self._fits[model] = StepFit()
        return fit
