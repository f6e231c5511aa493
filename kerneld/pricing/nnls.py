"""Least squares with coefficients that are not negative, from normal equations: exact, for a handful of unknowns.

The best of all coefficients >= 0 is the unconstrained best of some subset of them, with the others 0: every subset is tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

# Added to the diagonal, scaled to 1: unknowns that the observations cannot tell apart share what they explain.
_RIDGE: Final = 1e-9


def nonnegative_least_squares(gram: Sequence[Sequence[float]], moments: Sequence[float]) -> tuple[float, ...]:
    """The `x >= 0` of least `|A x - y|`, where `gram` is `A^T A` and `moments` is `A^T y`. An unknown that was never seen is 0."""
    size = len(moments)
    scales = [1 / math.sqrt(gram[i][i]) if gram[i][i] > 0 else 0.0 for i in range(size)]
    scaled = [[gram[i][j] * scales[i] * scales[j] + (_RIDGE if i == j else 0.0) for j in range(size)] for i in range(size)]
    aims = [moments[i] * scales[i] for i in range(size)]
    seen = [i for i in range(size) if scales[i]]
    best, most = [0.0] * size, 0.0  # what is explained of |y|^2
    for count in range(1, len(seen) + 1):
        for chosen in itertools.combinations(seen, count):
            found = _solve([[scaled[i][j] for j in chosen] for i in chosen], [aims[i] for i in chosen])
            if min(found) < 0:
                continue
            explained = sum(value * aims[i] for value, i in zip(found, chosen, strict=True))
            if explained > most:
                most, best = explained, [0.0] * size
                for value, i in zip(found, chosen, strict=True):
                    best[i] = value * scales[i]
    return tuple(best)


def _solve(matrix: list[list[float]], aims: list[float]) -> list[float]:
    """The solution of a positive definite system; the arguments are used up."""
    size = len(aims)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
            aims[row] -= factor * aims[pivot]
    for row in reversed(range(size)):
        aims[row] = (aims[row] - sum(matrix[row][column] * aims[column] for column in range(row + 1, size))) / matrix[row][row]
    return aims
