"""What a step of one model takes, learned from the steps that it made:

    seconds = step + token * tokens + row * rows + context * context tokens          no term is negative

Steps that read input and steps that only generate are forgotten separately, so that what prefill costs is still known after an hour
without any. Each step counts by how far it is off in proportion, and no further than a few times what steps are usually off: one that
something else held up moves little. Where steps go on being off, what was before is forgotten faster, so that a device that has changed
is believed after some dozens of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from kerneld.pricing.nnls import nonnegative_least_squares

FIT_EVERY: Final = 32  # steps
FORGET_PREFILL: Final = 1 - 1 / 64
FORGET_DECODE: Final = 1 - 1 / 256
FORGET_ERROR: Final = 1 - 1 / 32
MIN_ERROR: Final = 0.05  # that nobody wonders at
CLIP_ERRORS: Final = 4.0  # a step that is off by more than so many usual errors counts as one that is off by so much
HASTE: Final = 4.0  # the most times faster that is forgotten where steps are off more than `MIN_ERROR`
MIN_STEPS: Final = 4  # of a kind
TRIAL_TOKENS: Final = (16, 64)  # inputs whose cost the trial of a load tells

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


class StepFit:
    """The cost of steps of one model."""

    def __init__(self) -> None:
        self.terms = StepTerms()
        self.error = 0.0  # by which the last steps were off what was expected, in proportion; on average
        self.num_steps = 0
        self.num_prefills = 0  # steps of them that read input
        self.mean_rows = 1.0  # of the last steps that only generated
        self._has_trial = False
        self._prefill, self._decode = _Sums(FORGET_PREFILL), _Sums(FORGET_DECODE)

    @property
    def is_measured(self) -> bool:
        """Whether enough steps were seen to say what one takes."""
        return self.num_steps >= MIN_STEPS

    @property
    def knows_prefill(self) -> bool:
        """Whether it can say what reading input takes, too."""
        return self.is_measured and (self._has_trial or self.num_prefills > 0)

    def note_trial(self, token_s: float) -> None:
        """A load tried a short input, which took so long per token. It counts until real inputs have told more."""
        if self._has_trial or self.num_prefills:
            return
        self._has_trial = True
        for num_tokens in TRIAL_TOKENS:
            seconds = token_s * num_tokens
            self._prefill.note(StepWork(num_tokens, 1, context_tokens(0, num_tokens)), seconds, seconds)

    def note(self, work: StepWork, seconds: float) -> None:
        """A step took so long; one that took no time says nothing."""
        if seconds <= 0:
            return
        num_before = self.num_prefills if work.is_prefill else self.num_steps - self.num_prefills
        expected = self.terms.seconds(work) if num_before >= MIN_STEPS else 0.0
        if expected > 0:
            seconds = self._clip(expected, seconds)
        sums = self._prefill if work.is_prefill else self._decode
        sums.note(work, seconds, expected or seconds, min(max(self.error / MIN_ERROR, 1.0), HASTE))
        self.num_steps += 1
        if work.is_prefill:
            self.num_prefills += 1
        else:
            self.mean_rows += (work.num_rows - self.mean_rows) * max(1 - FORGET_DECODE, 1 / (num_before + 1))
        if self._is_due(num_before + 1):
            self.terms = self._fit()

    def _clip(self, expected: float, seconds: float) -> float:
        """A step as far as it is believed; how far it is off counts for those after it, up to twice as far as that."""
        band = CLIP_ERRORS * max(self.error, MIN_ERROR)
        off = seconds / expected - 1
        self.error = self.error * FORGET_ERROR + min(abs(off), 2 * band) * (1 - FORGET_ERROR)
        return expected * (1 + max(-min(band, 0.9), min(off, band)))

    def _is_due(self, count: int) -> bool:
        """Whether the terms are to be looked at again: after steps 1, 2, 4 ... of a kind, then now and then."""
        return not self.num_steps % FIT_EVERY or (count < FIT_EVERY and not count & (count - 1))

    def _fit(self) -> StepTerms:
        gram = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(self._prefill.gram, self._decode.gram, strict=True)]
        moments = [a + b for a, b in zip(self._prefill.moments, self._decode.moments, strict=True)]
        return StepTerms(*nonnegative_least_squares(gram, moments))


class _Sums:
    """Normal equations over observations that slowly lose weight."""

    __slots__ = ("_cells", "_loses", "moments")

    def __init__(self, keep: float) -> None:
        self._loses = 1 - keep
        self._cells = [0.0] * (_SIZE * (_SIZE + 1) // 2)  # the lower triangle, row by row
        self.moments: Sequence[float] = [0.0] * _SIZE

    def note(self, work: StepWork, seconds: float, scale: float, haste: float = 1.0) -> None:
        """An observation, which counts by its error in proportion to `scale`; old ones are forgotten `haste` times faster than usual."""
        keep, aim = 1 - self._loses * haste, seconds / scale
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
