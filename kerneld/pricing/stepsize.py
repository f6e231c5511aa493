"""StepSizer: how many tokens the next step may compute, and how many steps the next quantum may have, so that running rows go on in time.

    decoding rows alone            |####|
    with a chunk of a prefill      |####|::::|         at most `gap_factor` times as long, or as `token_gap_s` where that is longer
                                         ^ room for input; never less than `MIN_PREFILL_TOKENS`, so that a prefill gets on

Two plans are outstanding at most, so who arrives waits for two steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from kerneld.policy import SchedulerPolicy
from kerneld.pricing.stepcost import StepCosts
from kerneld.pricing.stepfit import StepTerms, StepWork, context_tokens
from kerneld.step import RowNeed

# Far into a context a few tokens take long: by the costs learned of the 135M shape on two cores, 16 tokens at position 3,000 take as long
# as a step of 16 rows that generate.
MIN_PREFILL_TOKENS: Final = 4
CAUTIOUS_PREFILL_TOKENS: Final = 64  # beside rows that generate, while nobody knows what a token of input takes


class StepSizer:
    """Sizes steps in time. It changes nothing."""

    def __init__(self, costs: StepCosts, policy: SchedulerPolicy) -> None:
        self.costs = costs
        self._policy = policy

    def budget(self, rows: Sequence[RowNeed]) -> int:
        """The most tokens that the next step may compute, those of decoding rows included; rows are in the order of their admission."""
        most = self._policy.max_step_tokens
        prefills = [row for row in rows if row.num_pending > 1]
        num_decoding = len(rows) - len(prefills)
        if not prefills or not num_decoding:
            return most
        room_s = self._room_s(rows)
        num_prefill = CAUTIOUS_PREFILL_TOKENS if room_s is None else self._fitting(prefills, room_s, _models(rows, is_prefill=False))
        return min(num_decoding + max(num_prefill, MIN_PREFILL_TOKENS), most)

    def most_steps(self, rows: Sequence[RowNeed]) -> int:
        """The most steps of the next quantum, in which each row computes a token a step."""
        seconds = self.costs.predict(_works(rows))
        if not seconds:
            return self._policy.max_steps
        return max(min(int(self._policy.max_quantum_s / seconds), self._policy.max_steps), 1)

    def _room_s(self, rows: Sequence[RowNeed]) -> float | None:
        """Seconds that input may add to a step; None while that is not known of one of the models."""
        fits = [self.costs.find(row.request.context.priced_as) for row in rows if row.num_pending > 1]
        decode_s = self.costs.predict(_works(row for row in rows if row.num_pending == 1))
        if decode_s is None or not all(fit is not None and fit.knows_prefill for fit in fits):
            return None
        bound_s = max(self._policy.gap_factor * decode_s, self._policy.token_gap_s)
        # Where steps with input take longer than expected, what is expected is held against a shorter bound until the fit has caught up.
        excess = max(fit.excess for fit in fits if fit is not None)
        return bound_s / max(excess, 1.0) - decode_s

    def _fitting(self, prefills: Sequence[RowNeed], room_s: float, running: set[str]) -> int:
        """Tokens of input that fit into so many seconds, given to the rows in order."""
        total = 0
        for row in prefills:
            model = row.request.context.priced_as
            fit = self.costs.find(model)
            assert fit is not None, "it knows prefill"
            terms = fit.terms
            room_s -= terms.row_s + (0.0 if model in running else terms.step_s)
            num_tokens = min(_tokens_within(terms, row.position, room_s), row.num_pending)
            total += num_tokens
            if num_tokens < row.num_pending:
                break
            running.add(model)
            room_s -= terms.token_s * num_tokens + terms.context_s * context_tokens(row.position, num_tokens)
        return total


def _tokens_within(terms: StepTerms, position: int, seconds: float) -> int:
    """How many tokens from `position` on a row computes in so many seconds; a great many where they seem to take no time."""
    if seconds <= 0:
        return 0
    # context_s / 2 * n^2 + slope * n = seconds
    slope = terms.token_s + terms.context_s * (position - 0.5)
    divisor = slope + math.sqrt(slope * slope + 2 * terms.context_s * seconds)
    return int(2 * seconds / divisor) if divisor > 0 else 1 << 30


def _works(rows: Iterable[RowNeed]) -> dict[str, StepWork]:
    """What a step computes of each model in which every one of these rows computes a token."""
    works: dict[str, StepWork] = {}
    for row in rows:
        model = row.request.context.priced_as
        tokens, num_rows, context = works.get(model, (0, 0, 0))
        works[model] = StepWork(tokens + 1, num_rows + 1, context + row.position)
    return works


def _models(rows: Iterable[RowNeed], *, is_prefill: bool) -> set[str]:
    return {row.request.context.priced_as for row in rows if (row.num_pending > 1) is is_prefill}
