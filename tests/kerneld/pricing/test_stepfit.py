"""What steps cost is learned from steps, however noisy they are, and learned anew when it changes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.pricing.stepfit import StepFit, StepTerms, StepWork, context_tokens

TRUTH = StepTerms(step_s=0.010, token_s=0.001, row_s=0.0005, context_s=2e-7)
# What is asked of a fit: steps of a few rows and of many, with a chunk of input and without, early in a context and late.
PROBES = [
    StepWork(1, 1, 100),
    StepWork(16, 16, 16 * 500),
    StepWork(16 + 64, 17, 16 * 500 + context_tokens(0, 64)),
    StepWork(16 + 64, 17, 16 * 500 + context_tokens(3000, 64)),
    StepWork(512, 1, context_tokens(1000, 512)),
]


def random_work(draw: random.Random) -> StepWork:
    """A step of rows that generate, and beside them, one time in three, a chunk of input."""
    num_rows, chunk = draw.randint(1, 32), draw.choice([0, 0, draw.randint(2, 400)])
    context = sum(draw.randint(0, 2000) for _ in range(num_rows)) + context_tokens(draw.randint(0, 3000), chunk)
    return StepWork(num_rows + chunk, num_rows + (chunk > 0), context)


def teach(fit: StepFit, truth: StepTerms, num_steps: int, draw: random.Random, noise: Callable[[float], float] = lambda s: s) -> None:
    for _ in range(num_steps):
        work = random_work(draw)
        fit.note(work, noise(truth.seconds(work)))


def worst(fit: StepFit, truth: StepTerms) -> float:
    return max(abs(fit.terms.seconds(work) / truth.seconds(work) - 1) for work in PROBES)


@given(
    step=st.floats(0.001, 0.05),
    token=st.floats(0.0001, 0.005),
    row=st.sampled_from([0.0, 0.0002, 0.002]),
    context=st.sampled_from([0.0, 1e-8, 1e-7]),
    seed=st.integers(0, 1000),
)
def test_known_costs_are_recovered_from_noisy_steps(step: float, token: float, row: float, context: float, seed: int) -> None:
    draw, truth, fit = random.Random(seed), StepTerms(step, token, row, context), StepFit()

    teach(fit, truth, 800, draw, lambda seconds: seconds * draw.gauss(1.0, 0.05))

    assert min(fit.terms) >= 0.0
    assert worst(fit, truth) < 0.2


def test_steps_that_something_held_up_move_little() -> None:
    draw, fit = random.Random(1), StepFit()

    teach(fit, TRUTH, 600, draw, lambda seconds: seconds * (10.0 if draw.random() < 0.03 else draw.gauss(1.0, 0.03)))

    assert worst(fit, TRUTH) < 0.15


def test_one_step_that_took_ten_times_as_long_moves_little() -> None:
    draw, fit = random.Random(2), StepFit()
    teach(fit, TRUTH, 256, draw)

    fit.note(StepWork(16, 16, 8000), 10 * TRUTH.seconds(StepWork(16, 16, 8000)))
    teach(fit, TRUTH, 31, draw)

    assert worst(fit, TRUTH) < 0.05


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_device_that_changes_is_learned_anew(factor: float) -> None:
    draw, fit = random.Random(3), StepFit()
    changed = StepTerms(*(factor * term for term in TRUTH))
    teach(fit, TRUTH, 2000, draw)

    teach(fit, changed, 700, draw)

    assert worst(fit, changed) < 0.1


def test_what_prefill_costs_is_known_long_after_the_last_one() -> None:
    draw, fit = random.Random(4), StepFit()
    teach(fit, TRUTH, 300, draw)

    for _ in range(5000):
        work = StepWork(8, 8, 8 * draw.randint(100, 2000))
        fit.note(work, TRUTH.seconds(work) * draw.gauss(1.0, 0.05))

    assert worst(fit, TRUTH) < 0.1


def test_the_trial_of_a_load_stands_in_until_input_was_read() -> None:
    fit = StepFit()
    fit.note_trial(0.002)
    for _ in range(8):
        fit.note(StepWork(4, 4, 400), 0.020)

    assert fit.knows_prefill
    assert fit.terms.token_s == pytest.approx(0.002, rel=0.5)
    draw = random.Random(5)
    teach(fit, TRUTH, 600, draw)
    assert worst(fit, TRUTH) < 0.1  # and little then, even one that was off by half


def test_without_a_trial_the_cost_of_input_is_unknown_until_some_was_read() -> None:
    fit = StepFit()
    known = []
    for work in [StepWork(4, 4, 400)] * 4 + [StepWork(64, 1, 2016)]:
        known.append((fit.is_measured, fit.knows_prefill))
        fit.note(work, 0.020)

    assert known == [(False, False)] * 4 + [(True, False)]
    assert fit.knows_prefill


def test_the_first_chunk_of_input_is_learned_from_at_once() -> None:
    fit = StepFit()
    for _ in range(100):
        fit.note(StepWork(16, 16, 1600), 0.020)

    fit.note(StepWork(80, 17, 1600 + 2016), 0.084)

    assert fit.terms.seconds(StepWork(80, 17, 1600 + 2016)) == pytest.approx(0.084, rel=0.3)


def test_a_later_trial_changes_nothing() -> None:
    fit = StepFit()
    teach(fit, TRUTH, 100, random.Random(6))
    before = fit.terms

    fit.note_trial(9.0)
    teach(fit, TRUTH, 64, random.Random(7))

    assert fit.terms == pytest.approx(before, rel=0.01)


def test_steps_that_took_no_time_say_nothing() -> None:
    fit = StepFit()

    fit.note(StepWork(1, 1, 0), 0.0)

    assert (fit.num_steps, fit.terms) == (0, StepTerms())


@given(seconds=st.lists(st.floats(1e-9, 1e3), max_size=80), seed=st.integers(0, 1000))
def test_whatever_steps_take_no_cost_is_negative_and_more_work_takes_no_less(seconds: list[float], seed: int) -> None:
    draw, fit = random.Random(seed), StepFit()
    for each in seconds:
        fit.note(random_work(draw), each)

    assert min(fit.terms) >= 0.0
    work = random_work(draw)
    more = StepWork(work.num_tokens + 1, work.num_rows + 1, work.context_tokens + 1)
    assert fit.terms.seconds(more) >= fit.terms.seconds(work) >= 0.0


def test_rows_that_generate_together_are_averaged() -> None:
    fit = StepFit()
    for _ in range(2000):
        fit.note(StepWork(12, 12, 100), 0.01)
        fit.note(StepWork(100, 1, 100), 0.01)

    assert fit.mean_rows == pytest.approx(12, rel=0.01)


def test_context_tokens_are_those_before_each_token() -> None:
    assert context_tokens(10, 4) == 10 + 11 + 12 + 13
