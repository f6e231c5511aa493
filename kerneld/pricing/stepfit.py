"""What a step of one model takes, learned from the steps that it made:

    seconds = step + token * tokens + row * rows + context * context tokens          no term is negative

Steps that read input and steps that only generate are forgotten separately, the former by tokens: what prefill costs is still known after
an hour without any, and a hundred small chunks, which tell little of it, do not push out what a large one told. The trial of a load stays.

Each step counts by how far it is off in proportion, and no further than a few times what steps are usually off: one that something else
held up moves little. Where steps go on being off, what was before is forgotten faster, so that a device that has changed is believed after
some dozens of them; `excess` tells at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from kerneld.pricing.nnls import nonnegative_least_squares

FIT_EVERY: Final = 32  # steps
FORGET_TOKENS: Final = 4096  # of input, after which what was seen of input before counts for about a third
FORGET_STEPS: Final = 256  # that only generate: the same of those
FORGET_MOST: Final = 1 / 16  # by one step
FORGET_ERROR: Final = 1 - 1 / 32
MIN_ERROR: Final = 0.05  # that nobody wonders at
CLIP_ERRORS: Final = 4.0  # a step that is off by more than so many usual errors counts as one that is off by so much,
MIN_BAND: Final = 1.0  # but one that took up to twice what was expected always counts as it is
HASTE: Final = 8.0  # the most times faster that is forgotten where steps are off more than `MIN_ERROR`
MIN_STEPS: Final = 4  # of a kind
TRIAL_TOKENS: Final = 64  # of the input by which a load is tried
EXCESS_WEIGHT: Final = 1 / 4  # of the last step, in what steps with input lately took beyond what was expected
MOST_EXCESS: Final = 16.0
MIX_STEPS: Final = 256  # after which what was computed counts for about a third in the mix

_SIZE: Final = 4


class StepWork(NamedTuple):
    """What a step computes on one model."""

    num_tokens: int
    num_rows: int
    context_tokens: int  # for each computed token, the tokens that stand before it

    @property
    def is_prefill(self) -> bool:
        """Whether a row reads input; a row that only generates computes one token."""
        return self.num_tokens > self.num_rows


class StepTerms(NamedTuple):
    """Seconds per step, per token, per row, and per context token; none is negative."""

    step_s: float = 0.0
    token_s: float = 0.0
    row_s: float = 0.0
    context_s: float = 0.0

    def seconds(self, work: StepWork) -> float:
        """What a step takes."""
        return self.step_s + self.token_s * work.num_tokens + self.row_s * work.num_rows + self.context_s * work.context_tokens


def context_tokens(position: int, num_tokens: int) -> int:
    """The tokens that stand before each of `num_tokens` tokens, the first of which is at `position`, all together."""
    return num_tokens * position + num_tokens * (num_tokens - 1) // 2


class StepMix(NamedTuple):
    """What steps have computed lately, and the seconds that it took; earlier ones count less."""

    input_tokens: float = 0.0
    output_tokens: float = 0.0
    context_tokens: float = 0.0
    seconds: float = 0.0

    def and_then(self, work: StepWork, seconds: float) -> StepMix:
        """The mix after another step; where a step reads input, one of its rows does."""
        num_output = work.num_rows - work.is_prefill
        keep = 1 - 1 / MIX_STEPS
        return StepMix(
            keep * self.input_tokens + work.num_tokens - num_output,
            keep * self.output_tokens + num_output,
            keep * self.context_tokens + work.context_tokens,
            keep * self.seconds + seconds,
        )


class StepFit:
    """The cost of steps of one model."""

    def __init__(self) -> None:
        self.terms = StepTerms()
        self.error = 0.0  # by which the last steps were off what was expected, in proportion; on average
        self.num_steps = 0
        self.num_prefills = 0  # steps of them that read input
        self.mean_rows = 1.0  # of the last steps that only generated
        self.excess = 1.0  # times what was expected, that the last few steps with input took
        self.mix = StepMix()
        self._has_trial = False
        self._trial, self._prefill, self._decode = _Sums(), _Sums(), _Sums()

    @property
    def is_measured(self) -> bool:
        """Whether enough steps were seen to say what one takes."""
        return self.num_steps >= MIN_STEPS

    @property
    def knows_prefill(self) -> bool:
        """Whether it can say what reading input takes, too."""
        return self.is_measured and (self._has_trial or self.num_prefills > 0)

    def note_trial(self, token_s: float) -> None:
        """A load tried a short input, which took so long per token. It counts like one step."""
        if self._has_trial or self.num_prefills:
            return
        self._has_trial = True
        seconds = token_s * TRIAL_TOKENS
        self._trial.note(StepWork(TRIAL_TOKENS, 1, context_tokens(0, TRIAL_TOKENS)), seconds, seconds, 0.0)

    def note(self, work: StepWork, seconds: float) -> None:
        """A step took so long; one that took no time says nothing."""
        if seconds <= 0:
            return
        num_before = self.num_prefills if work.is_prefill else self.num_steps - self.num_prefills
        expected = self.terms.seconds(work) if num_before >= MIN_STEPS else 0.0
        if expected > 0:
            if work.is_prefill:
                self.excess += (min(seconds / expected, MOST_EXCESS) - self.excess) * EXCESS_WEIGHT
            seconds = self._clip(expected, seconds)
        self.mix = self.mix.and_then(work, seconds)
        haste = min(max(self.error / MIN_ERROR, 1.0), HASTE)
        if work.is_prefill:
            self._prefill.note(work, seconds, expected or seconds, haste * (work.num_tokens - work.num_rows) / FORGET_TOKENS)
        else:
            self._decode.note(work, seconds, expected or seconds, haste / FORGET_STEPS)
        self.num_steps += 1
        if work.is_prefill:
            self.num_prefills += 1
        else:
            self.mean_rows += (work.num_rows - self.mean_rows) * max(1 / FORGET_STEPS, 1 / (num_before + 1))
        if self._is_due(num_before + 1):
            self.terms = self._fit()

    def _clip(self, expected: float, seconds: float) -> float:
        """A step as far as it is believed; how far it is off counts for those after it, up to twice as far as that."""
        band = max(CLIP_ERRORS * self.error, MIN_BAND)
        off = seconds / expected - 1
        self.error = self.error * FORGET_ERROR + min(abs(off), 2 * band) * (1 - FORGET_ERROR)
        return expected * (1 + max(-min(band, 0.9), min(off, band)))

    def _is_due(self, count: int) -> bool:
        """Whether the terms are to be looked at again: after steps 1, 2, 4 ... of a kind, then now and then."""
        return not self.num_steps % FIT_EVERY or (count < FIT_EVERY and not count & (count - 1))

    def _fit(self) -> StepTerms:
        kinds = (self._trial, self._prefill, self._decode)
        gram = [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*(kind.gram for kind in kinds), strict=True)]
        moments = [sum(values) for values in zip(*(kind.moments for kind in kinds), strict=True)]
        return StepTerms(*nonnegative_least_squares(gram, moments))


class _Sums:
    """Normal equations over observations that slowly lose weight."""

    __slots__ = ("_cells", "moments")

    def __init__(self) -> None:
        self._cells = [0.0] * (_SIZE * (_SIZE + 1) // 2)  # the lower triangle, row by row
        self.moments: Sequence[float] = [0.0] * _SIZE

    def note(self, work: StepWork, seconds: float, scale: float, forgets: float) -> None:
        """An observation, which counts by its error in proportion to `scale`, and takes that part of the weight of those before."""
        keep, aim = 1 - min(forgets, FORGET_MOST), seconds / scale
        step, token, row, context = 1 / scale, work.num_tokens / scale, work.num_rows / scale, work.context_tokens / scale
        fresh = (
            *(step * step, token * step, token * token),
            *(row * step, row * token, row * row),
            *(context * step, context * token, context * row, context * context),
        )
        self._cells = [keep * old + new for old, new in zip(self._cells, fresh, strict=True)]
        self.moments = [keep * old + value * aim for old, value in zip(self.moments, (step, token, row, context), strict=True)]

    @property
    def gram(self) -> list[list[float]]:
        """The whole matrix."""
        return [[self._cells[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(_SIZE)] for i in range(_SIZE)]
