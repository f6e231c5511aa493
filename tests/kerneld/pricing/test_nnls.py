"""Least squares without negative coefficients, beside every other way to choose them."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.pricing.nnls import nonnegative_least_squares

Rows = list[list[float]]


def fit(rows: Rows, aims: list[float]) -> tuple[float, ...]:
    size = len(rows[0])
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]
    return nonnegative_least_squares(gram, [sum(row[i] * aim for row, aim in zip(rows, aims, strict=True)) for i in range(size)])


def residual(rows: Rows, aims: list[float], found: tuple[float, ...]) -> float:
    return sum((sum(a * b for a, b in zip(row, found, strict=True)) - aim) ** 2 for row, aim in zip(rows, aims, strict=True))


@given(seed=st.integers(0, 10_000), truth=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 20.0])] * 4))
def test_what_made_the_observations_is_found(seed: int, truth: tuple[float, ...]) -> None:
    draw = random.Random(seed)
    rows = [[1.0, draw.uniform(0, 9), draw.uniform(0, 90), draw.uniform(0, 900)] for _ in range(20)]
    aims = [sum(a * b for a, b in zip(row, truth, strict=True)) for row in rows]

    assert fit(rows, aims) == pytest.approx(truth, rel=0.01, abs=0.01)


@given(seed=st.integers(0, 10_000))
def test_nothing_near_it_is_better(seed: int) -> None:
    draw = random.Random(seed)
    rows = [[draw.uniform(-1, 1) for _ in range(3)] for _ in range(6)]
    aims = [draw.uniform(-1, 1) for _ in range(6)]

    found = fit(rows, aims)

    assert min(found) >= 0
    least = residual(rows, aims, found)
    for step in itertools.product((-0.01, 0.0, 0.01), repeat=3):
        other = tuple(max(value + change, 0.0) for value, change in zip(found, step, strict=True))
        assert residual(rows, aims, other) >= least - 1e-6


def test_an_unknown_that_was_never_seen_is_nothing() -> None:
    assert fit([[1.0, 0.0], [2.0, 0.0]], [3.0, 6.0]) == pytest.approx((3.0, 0.0))


def test_unknowns_that_cannot_be_told_apart_explain_it_together() -> None:
    one, other = fit([[1.0, 1.0], [2.0, 2.0]], [3.0, 6.0])

    assert one + other == pytest.approx(3.0)


def test_nothing_observed_is_nothing_found() -> None:
    assert nonnegative_least_squares([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]) == (0.0, 0.0)
